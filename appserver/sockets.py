"""The listening sockets: which addresses, one port for all of them, and what keeps a dead peer from being taken for a
quiet one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable

import trio

BACKLOG = 128
"""Connections that the kernel holds for us: more than managers at once (`4 * maxProcesses`), or a strangers' crowd
would crowd them out."""

FREE_PORT_TRIES = 20
"""Ports tried with `--port 0` until one is free for every address."""

KEEPALIVE_IDLE_SECONDS = 10
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_PROBES = 3
"""An idle manager whose host is gone is noticed after 25 seconds; the silence of the session ends it at the latest."""

USER_TIMEOUT_SECONDS = 30
"""The same for one to which something was sent: keepalive does not run then (tcp(7), TCP_USER_TIMEOUT)."""


class ListenError(Exception):
    """An address or port cannot be listened on: choose another, or find who has it."""


def open_listening_sockets(addresses: Iterable[str], port: int) -> list[trio.SocketListener]:
    """Listen on `port` at each address; no address means all, IPv4 and IPv6. Port 0 takes one that is free for all of
    them.

    Raises ListenError; nothing stays open then.
    """
    wanted = _resolve(tuple(addresses), port)
    for _ in range(FREE_PORT_TRIES - 1 if port == 0 else 0):
        with contextlib.suppress(ListenError):
            return _bind_all(wanted, port)
    return _bind_all(wanted, port)


def keep_honest(sock: trio.socket.SocketType) -> None:
    """Have the kernel find out that the peer is gone. Options that this system lacks are left out."""
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_SECONDS * 1000),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)


def address_of(name: object) -> str:
    """Give the address in what getsockname or getpeername return, an IPv4 address in IPv6 form as IPv4."""
    address = str(name[0]) if isinstance(name, tuple) and name else "unknown"
    return address.removeprefix("::ffff:")


def _resolve(addresses: tuple[str, ...], port: int) -> list[tuple[int, tuple[object, ...], bool]]:
    """Find (family, socket address, may be missing) for each address."""
    if not addresses:
        # A kernel without one of the families is fine; without both it is not.
        return [(socket.AF_INET, ("0.0.0.0", port), True), (socket.AF_INET6, ("::", port), True)]  # noqa: S104
    found: list[tuple[int, tuple[object, ...], bool]] = []
    for address in addresses:
        try:
            # As bytes, where that says the same: for a text Python loads what names in other alphabets need.
            host = address.encode() if address.isascii() else address
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ListenError(f"cannot listen on {address!r}: {error.strerror}") from error
        found += [(int(family), sockaddr, False) for family, _, _, _, sockaddr in answers]
    return list(dict.fromkeys(found))  # two names of one address must not find it taken, by ourselves


def _bind_all(wanted: list[tuple[int, tuple[object, ...], bool]], port: int) -> list[trio.SocketListener]:
    opened: list[socket.socket] = []
    try:
        for family, sockaddr, may_be_missing in wanted:
            try:
                opened.append(_bind(family, (sockaddr[0], port, *sockaddr[2:])))
            except OSError as error:
                if may_be_missing and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    continue
                raise ListenError(_complaint(str(sockaddr[0]), port, error)) from error
            port = opened[-1].getsockname()[1]
        if not opened:
            raise ListenError("cannot listen: this system has neither IPv4 nor IPv6")  # noqa: TRY301
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in opened]


def _bind(family: int, sockaddr: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(sockaddr)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _complaint(address: str, port: int, error: OSError) -> str:
    hint = {
        errno.EADDRINUSE: "another program listens there: `ss -ltnp` shows which",
        errno.EACCES: "a port below 1024 needs root",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0)
    reason = f"{error.strerror} (errno:{error.errno})"
    return f"cannot listen on {address} port {port}: {reason}" + (f"; {hint}" if hint else "")

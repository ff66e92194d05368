"""One attempt to reach the server: its name, TCP connections, the TLS handshake, and whether the key is the right one.

A name may have several addresses, and any of them may be dead, frozen, or another machine's by now. So each has a
runner of its own from the connection to the key, started a moment after the one before; the first to prove the right
key wins, and the others are closed (after RFC 8305, which judges by the connection only).

Everything that can go wrong comes out as `ContactError`, whose text is the reason as the log needs it: `Connection
refused (errno:111)` for the system's errors, words about keys for those of TLS. A peer with the wrong key is not the
server: a failed contact like any other (contract, section 1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, cast, final

import trio

from appmgr.addresses import RESOLVE_SECONDS, Address, Addresses
from pki.contexts import Material, PeerRefused, client_context, heed_dates, judge_peer
from pki.expiry import Reminder, Watched, watched_in, watched_peer
from pki.frozen import dataclass, replace
from pki.refusals import explain_failure, explain_tls, presented, remember_certificates, stop_remembering

CONNECT_SECONDS = 3.0
"""For one address, and no longer than for a handshake. The kernel asks again later and later, and a guest that has
just booted would wait for it."""

STAGGER_SECONDS = 0.3
"""After which the next address is tried beside those under way. RFC 8305 has 0.25 s; a handshake takes a little
longer, and two at once cost the server twice."""

HANDSHAKE_SECONDS = 10.0
"""The server's bound is the same."""

ALERT_SECONDS = 1.0
"""For the server to take our refusal, which is some bytes into its kernel's buffer."""

KEEPALIVE_PROBES = 3
"""Lost in a row before the kernel gives an idle connection up."""

MAX_SEGMENT_BYTES = 1220
"""What every path carries, since IPv6 promises packets of 1,280 bytes. On a path that loses longer ones without a
word (a tunnel, a firewall without ICMP) an outcome with a long tail would never arrive; our messages need no more."""

MAX_KEEPALIVE_SECONDS = 60
"""Between two probes, also where the timeout would allow more: a firewall forgets a connection that stays silent."""


@final
class ContactError(Exception):
    """No contact, or none any more; the text is the reason for the log. Try again until the timeout."""


@final
@dataclass(frozen=True, slots=True)
class Contact:
    """A stream to the server, who has proved to hold the right key."""

    stream: trio.abc.Stream


@final
class Dialer:
    """Knows where the server is and what its key must be."""

    def __init__(
        self,
        node: str,
        address: str,
        port: int,
        material: Material,
        *,
        reopen: Callable[[], Material],
        handshake_seconds: float,
        silence_seconds: float,
    ) -> None:
        """Prepare the TLS context.

        Args:
            node: the name that a certificate from an authority must carry.
            address: host name or address to connect to.
            port: the server's port.
            material: the opened stores.
            reopen: opens the stores anew; blocks, and raises KeysError.
            handshake_seconds: how long the handshake may take, at most `HANDSHAKE_SECONDS`.
            silence_seconds: after which the kernel takes the peer for dead.

        Raises:
            KeysError: the stores do not make a context.
        """
        self._node = node
        self._address = address
        self._addresses = Addresses(address, port)
        self._material = material
        self._reopen = reopen
        self._reread_stamp: tuple[int, ...] | None = None
        self._handshake_seconds = handshake_seconds
        self._silence_seconds = silence_seconds
        self._context = client_context(material)
        self._watched = watched_in(material, "the server")
        self._peer: tuple[Watched, ...] = ()
        self._reminder = Reminder()

    async def dial(self) -> Contact:
        """Make one attempt over all addresses. Raises `ContactError`. Cancellation closes what was opened."""
        addresses = await self._resolve()
        failures: list[ContactError | PeerRefused] = []
        won: list[Contact] = []
        try:
            async with trio.open_nursery() as runners:

                async def run(family: int, address: Address, over: trio.Event) -> None:
                    try:
                        contact = await self._reach(family, address)
                    except (ContactError, PeerRefused) as error:
                        failures.append(error)
                        over.set()
                        return
                    if won:  # in one and the same moment
                        await trio.aclose_forcefully(contact.stream)
                        return
                    won.append(contact)
                    runners.cancel_scope.cancel()

                for family, address in addresses:
                    over = trio.Event()
                    runners.start_soon(run, family, address, over)
                    with trio.move_on_after(STAGGER_SECONDS):
                        await over.wait()
        except BaseException:
            for contact in won:
                await trio.aclose_forcefully(contact.stream)
            raise
        return won[0] if won else await self._fail(failures)

    async def _fail(self, failures: Sequence[ContactError | PeerRefused]) -> NoReturn:
        """Give the reason of an attempt that has failed: a wrong key before all else, or the last one."""
        refused = next((error for error in failures if isinstance(error, PeerRefused)), None)
        if refused is not None:
            await self._reread_trust()
            raise ContactError(str(refused)) from refused
        raise failures[-1] if failures else ContactError(f"{self._address!r} has no address")

    def reminders(self) -> list[str]:
        """Give what is to be said now about certificates near their end, ours and the server's; each once a day."""
        return self._reminder.due([*self._watched, *self._peer], time.time(), trio.current_time())

    async def _reread_trust(self) -> None:
        """Take the trust store as it is now, if that was not tried before, for the attempts to come.

        The guest's keys may be changed while we run, and its new certificate was put beside the old one then. Our own
        key stays that of our start: a manager whose certificate was taken out in the guest is out.
        """
        stamp = _stamp(self._material.trust_store)
        if stamp is None or stamp == self._reread_stamp:
            return
        self._reread_stamp = stamp
        try:
            fresh = await trio.to_thread.run_sync(self._reopen, abandon_on_cancel=True)
            material = replace(self._material, pins=fresh.pins)
            self._context = client_context(material)
        except Exception:  # noqa: BLE001  (what is loaded for it may be half of an upgrade, and raise anything)
            # Half copied, perhaps, or the program itself is not there any more: what is in force stays, and the next
            # change is tried again.
            return
        self._material = material
        self._watched = watched_in(material, "the server")

    async def _resolve(self) -> list[tuple[int, Address]]:
        try:
            return await self._addresses.find()
        except trio.TooSlowError as error:
            raise ContactError(f"the look-up of {self._address!r} took longer than {RESOLVE_SECONDS:g} s") from error
        except (OSError, UnicodeError) as error:
            raise ContactError(explain(error)) from error

    async def _reach(self, family: int, address: Address) -> Contact:
        """Connect to one address and have it prove its key. Raises `ContactError` and `PeerRefused`."""
        transport = await self._connect_to(family, address)
        try:
            return await self._secure(transport)
        except BaseException:
            await trio.aclose_forcefully(transport)
            raise

    async def _connect_to(self, family: int, address: Address) -> trio.SocketStream:
        try:
            opened = trio.socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # a host without IPv6 that is told of an address of it, or without descriptors
            raise ContactError(explain(error)) from error
        try:
            with trio.move_on_after(min(CONNECT_SECONDS, self._handshake_seconds)):
                self._notice_death(opened)
                await opened.connect(address)
                return trio.SocketStream(opened)
        except OSError as error:
            opened.close()
            raise ContactError(explain(error)) from error
        except BaseException:
            opened.close()
            raise
        opened.close()
        raise ContactError(explain(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))))

    def _notice_death(self, opened: trio.socket.SocketType) -> None:
        """Let the kernel notice a dead peer: keepalive finds an idle one, the user timeout one that owes an answer.

        And have neither end send what a narrow path would lose: the peer takes our segment size for its own.
        """
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        interval_seconds = int(self._silence_seconds / (KEEPALIVE_PROBES + 1))
        interval_seconds = min(max(1, interval_seconds), MAX_KEEPALIVE_SECONDS)
        if sys.platform == "linux":
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT_BYTES)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval_seconds)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_seconds)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
            milliseconds = min(max(1000, int(self._silence_seconds * 1000)), 2**31 - 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    async def _secure(self, transport: trio.SocketStream) -> Contact:
        """Shake hands and judge the server's key. Raises `PeerRefused` where it is not one that we trust."""
        heed_dates(self._context, self._material, time.time())
        remember_certificates(self._context)
        stream = trio.SSLStream(transport, self._context, server_hostname=None, https_compatible=False)
        broken: trio.BrokenResourceError | None = None
        with trio.move_on_after(self._handshake_seconds) as scope:
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError as error:
                broken = error
        if broken is not None:
            await _send_alert(stream, transport)
            reason = self._explain_handshake(broken, stream)
            if isinstance(broken.__cause__, ssl.SSLCertVerificationError):
                raise PeerRefused(reason) from broken
            raise ContactError(reason) from broken
        if scope.cancelled_caught:
            raise ContactError(f"the TLS handshake took longer than {self._handshake_seconds:g} s")
        stop_remembering(self._context)
        der = cast("bytes", stream.getpeercert(binary_form=True))
        certificate = cast("Mapping[str, object]", stream.getpeercert())
        try:
            peer = judge_peer(self._material, der, certificate, name=self._node, now_unix=time.time())
        except PeerRefused as error:
            with trio.move_on_after(ALERT_SECONDS):
                await stream.aclose()
            raise PeerRefused(f"the key of the peer is not that of the node: {error}") from error
        self._peer = () if peer.alias else watched_peer("the certificate of the server", der)
        return Contact(stream)

    def _explain_handshake(self, error: trio.BrokenResourceError, stream: trio.SSLStream[trio.SocketStream]) -> str:
        shown = presented(stream._ssl_object)  # noqa: SLF001  (trio hands it out to nobody)
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return explain_failure(cause, shown, self._material, "server", time.time())
        return explain(error)


def _stamp(path: str) -> tuple[int, ...] | None:
    """Give what changes when a file is replaced or written; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def _send_alert(stream: trio.SSLStream[trio.SocketStream], transport: trio.SocketStream) -> None:
    """Tell the server why, so that its log can: trio raises without sending what OpenSSL has ready."""
    pending = stream._outgoing.read()  # noqa: SLF001  (trio offers no other way)
    if pending:
        with trio.move_on_after(ALERT_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            await transport.send_all(pending)


def explain(error: BaseException) -> str:
    """Give the reason behind an error of the system, of TLS or of trio, as one line for the log."""
    cause = error
    while isinstance(cause, trio.BrokenResourceError) and cause.__cause__ is not None:
        cause = cause.__cause__
    match cause:
        case ssl.SSLEOFError():
            return "the server closed the connection without a word"
        case ssl.SSLError() if "UNEXPECTED_EOF" in (cause.reason or ""):
            return "the server closed the connection without a word"
        case ssl.SSLError():
            return explain_tls(cause, "server")
        case socket.gaierror():
            return f"{cause.strerror} (errno:{cause.errno})"
        case OSError() if cause.errno is not None:
            # Not `strerror`: trio puts a sentence of its own there.
            return f"{os.strerror(cause.errno)} (errno:{cause.errno})"
        case trio.BrokenResourceError() | trio.ClosedResourceError():
            return "the connection broke"
        case _:
            return f"{type(cause).__name__}: {cause}"

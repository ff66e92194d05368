"""Prove to systemd's watchdog that managers are served (sd_notify(3), `WATCHDOG=1`), where it wants to know.

A ping from a thread, or from a loop that does nothing else, would prove nothing. Ours comes from the loop that serves,
and only while that lets managers in: where somebody waited at the door at the last look, and waits at this one, the
task that accepts must have turned in between. What ends that task ends the server, so it needs no look; what holds it
up, in whichever way, is found by its effect. A manager's session, the table and the followers live in the same loop:
what blocks one of them blocks the ping.

Nothing is asked of the disk or of the launcher: the server answers for those itself, by refusals, and a restart would
mend neither.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, final

import trio

from appserver.notify import notify

PINGS_PER_PERIOD = 3
"""One that is late, or a door that is slow once, must not end the server; systemd advises two at least."""

_WAITING_AT = 24
"""Of `tcpi_unacked` in `struct tcp_info`: for a listening socket, how many connections nobody has accepted yet."""


class Door(Protocol):
    """Who accepts."""

    @property
    def turns(self) -> Mapping[trio.SocketListener, int]:
        """How often each socket was ready for the next one who comes."""


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    """Tell within how many seconds systemd expects a ping of the process `pid`; None where it expects none."""
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None  # meant for a process whose environment we have inherited
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) > 0 else None


async def serve_watchdog(door: Door, sockets: Sequence[trio.SocketListener]) -> None:
    """Ping systemd until cancelled, as long as `door` lets in who comes to `sockets`; end at once where nobody asks."""
    seconds = watchdog_seconds(os.environ, os.getpid())
    if seconds is None:
        return
    look = Look(door, sockets, waiting_at)
    while True:
        if look.is_served():
            notify("WATCHDOG=1")
        await trio.sleep(seconds / PINGS_PER_PERIOD)


@final
class Look:
    """What was seen of the doors at the last look, to compare the next one with."""

    def __init__(
        self,
        door: Door,
        sockets: Sequence[trio.SocketListener],
        waiting: Callable[[trio.SocketListener], int],
    ) -> None:
        self._door = door
        self._sockets = sockets
        self._waiting = waiting
        self._turns_while_waited: dict[trio.SocketListener, int] = {}

    def is_served(self) -> bool:
        """Look once; False where somebody has waited at a door since the last look, and nobody has gone there."""
        before = self._turns_while_waited
        self._turns_while_waited = {
            sock: self._door.turns.get(sock, 0) for sock in self._sockets if self._waiting(sock) > 0
        }
        return not (self._turns_while_waited.items() & before.items())


def waiting_at(listener: trio.SocketListener) -> int:
    """Count the connections that wait to be accepted; 0 where this system does not tell, or the socket is closed."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return 0
    try:
        info = listener.socket.getsockopt(socket.IPPROTO_TCP, option, _WAITING_AT + 4)
    except OSError:
        return 0
    waiting: int = struct.unpack_from("=I", info, _WAITING_AT)[0]
    return waiting

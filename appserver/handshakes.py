"""From a stranger's connection to a peer that has shown a certificate which OpenSSL accepts; or to a refusal.

Who may do what when is decided by `strangers`; here it is carried out. A stranger's first record is read as plain
bytes, and only when that is whole, and it is its turn, is there TLS state for it. So those who say nothing, or a byte a
second, cost a task and a descriptor and nothing else.

What strangers can take from the others, all of them together, is bounded:

- *time*: `HANDSHAKE_SECONDS` each;
- *descriptors*: a share of what there may be, for half-open ones, and as many again for refused ones that linger;
- *memory*: `MAX_STRANGERS_BYTES`;
- *computing*: `listener.ACCEPTS_PER_SECOND`, each worth a millisecond at most;
- *the log*: `refusals.MAX_REFUSAL_LINES` a minute.
"""

from __future__ import annotations

import ssl
import time
from typing import final

import trio

from appserver.refusals import LINGER_BYTES, MAX_LINGERING, Refusals
from appserver.strangers import MAX_HALF_OPEN, MAX_HALF_OPEN_PER_ADDRESS, Strangers
from pki.contexts import Material, heed_dates
from pki.frozen import dataclass, field

HANDSHAKE_SECONDS = 10.0
"""The contract's bound; TLS 1.3 takes two round trips, and a guest that swaps perhaps a second."""

TURN_SECONDS = 0.05
"""How often one who waits for its turn asks again, at most: nobody tells it that another's time is over."""

HANDSHAKE_RECORD = 22
RECORD_HEADER_BYTES = 5
MAX_RECORD_BYTES = 16384
"""RFC 8446, section 5.1: of a peer that has not had its turn no more is read than its first record."""

TLS_STATE_BYTES = 131072
"""What OpenSSL, `ssl` and trio hold for one handshake with a chain of certificates (measured: 48 KiB with ours,
without the part of trio)."""

MAX_STRANGERS_BYTES = 2 * MAX_HALF_OPEN * (TLS_STATE_BYTES + MAX_RECORD_BYTES) + MAX_LINGERING * LINGER_BYTES
"""By how much strangers can make the server grow, all together, for good: 22 MiB. The half-open ones, as many again
that are over and not yet collected (`listener.PEERS_PER_COLLECTION`, and what the allocator keeps), and what refused
peers may send on. The log's queue has a bound of its own (`report.MAX_QUEUED_LINES`)."""


@final
@dataclass(frozen=True, slots=True)
class Trust:
    """What a handshake needs: swapped as a whole by a reload."""

    context: ssl.SSLContext
    material: Material


@final
@dataclass(eq=False, slots=True)
class _Stranger:
    scope: trio.CancelScope
    turn: trio.Event = field(default_factory=trio.Event)
    gave_way: bool = False


@final
class Handshakes:
    """Shakes hands with the strangers of one server."""

    def __init__(self, refusals: Refusals, most: int = MAX_HALF_OPEN) -> None:
        self._refusals = refusals
        self._strangers: Strangers[_Stranger] = Strangers(most, min(MAX_HALF_OPEN_PER_ADDRESS, most))

    async def shake(
        self, stream: trio.SocketStream, address: str, trust: Trust
    ) -> trio.SSLStream[trio.SocketStream] | None:
        """Shake hands; None where the peer is refused, which is logged, and which it has been told as far as possible.

        Cancelled, it leaves the stream to the caller, as it does always.
        """
        stranger = _Stranger(trio.CancelScope(deadline=trio.current_time() + HANDSHAKE_SECONDS))
        tls: trio.SSLStream[trio.SocketStream] | None = None
        broken: str | None = None
        with stranger.scope:
            self._dismiss(self._strangers.enter(stranger, address, trio.current_time()))
            try:
                first = await _first_record(stream)
                if not first:
                    self._refusals.log(address, "hung up", "it hung up during the handshake")
                    return None
                await self._wait_for_turn(stranger)
                tls = _wrap(stream, trust, first)
                await tls.do_handshake()
            except trio.BrokenResourceError as error:
                broken = self._refusals.log_broken_handshake(address, error, tls, trust.material)
            finally:
                self._strangers.leave(stranger)
                self._give_turns()
        if stranger.scope.cancelled_caught:
            await self._send_away(stranger, address, None if tls is not None else stream)
            return None
        if broken is not None:
            if tls is not None:
                await self._refusals.send_alert(tls, stream, broken)
            return None
        return tls

    async def _wait_for_turn(self, stranger: _Stranger) -> None:
        self._strangers.speak(stranger)
        while not stranger.turn.is_set():
            self._give_turns()
            next_try = max(self._strangers.next_change(), trio.current_time() + TURN_SECONDS)
            with trio.move_on_at(next_try):
                await stranger.turn.wait()

    def _give_turns(self) -> None:
        for stranger, leaving in self._strangers.next_turns(trio.current_time()):
            self._dismiss(leaving)
            stranger.turn.set()

    @staticmethod
    def _dismiss(stranger: _Stranger | None) -> None:
        if stranger is not None:
            stranger.gave_way = True
            stranger.scope.cancel()

    async def _send_away(self, stranger: _Stranger, address: str, in_the_clear: trio.SocketStream | None) -> None:
        reason = "it gave way to a newer one" if stranger.gave_way else f"no handshake within {HANDSHAKE_SECONDS:g} s"
        self._refusals.log(address, "crowded" if stranger.gave_way else "silent", reason)
        if in_the_clear is not None:
            await self._refusals.say_busy(in_the_clear)


async def _first_record(stream: trio.SocketStream) -> bytes:
    """Read until a peer's first record is whole, or is certainly none; empty where it hangs up before.

    Raises trio.BrokenResourceError. Cancellation loses what was read.
    """
    data = b""
    while not _is_enough(data):
        more = await stream.receive_some(RECORD_HEADER_BYTES + MAX_RECORD_BYTES - len(data))
        if not more:
            return b""
        data += more
    return data


def _is_enough(data: bytes) -> bool:
    """Tell whether OpenSSL can judge a peer that began so: its record is whole, or no handshake begins like this."""
    if data[:1] != bytes([HANDSHAKE_RECORD]):
        return bool(data)
    if len(data) < RECORD_HEADER_BYTES:
        return False
    size = int.from_bytes(data[3:RECORD_HEADER_BYTES], "big")
    return size > MAX_RECORD_BYTES or len(data) >= RECORD_HEADER_BYTES + size


def _wrap(stream: trio.SocketStream, trust: Trust, first: bytes) -> trio.SSLStream[trio.SocketStream]:
    heed_dates(trust.context, trust.material, time.time())
    tls = trio.SSLStream(stream, trust.context, server_side=True)
    tls._incoming.write(first)  # noqa: SLF001  (as if it had just arrived; trio has no other way in)
    return tls

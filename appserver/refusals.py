"""Tell a peer that is refused, and the log: each event once, and no more than the log can bear.

A peer gets the TLS alert that says why: trio raises without sending what OpenSSL has ready, so that is done here, and
the connection then lingers until the peer has read it.

Every refusal is logged, but a peer that tries again and again, as a manager with a wrong key does, costs one line for
each address, kind of refusal and minute; what was held back is counted, and said when the minute is over.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from typing import final

import trio

from appserver.ratelimit import RateLimit
from appserver.report import Report
from pki.material import Material
from pki.refusals import NO_TLS_REASONS, explain_failure, is_alert, kind_of_failure, presented

REFUSAL_LOG_SECONDS = 60.0
"""One line for each address, kind of refusal and minute about refused peers."""

NO_TLS_ALERT = bytes.fromhex("15 0303 0002 02 46")
"""A fatal alert, `protocol_version`, as a record in the clear (RFC 8446, section 5.1), for a peer whose first bytes
were no TLS. OpenSSL has nothing to say to such a one; a bare end of stream would look like an outage."""

LINGER_SECONDS = 1.0
LINGER_BYTES = 65536
"""A refused peer has this long, and may send this much more, to read the alert: closing over unread data would discard
it."""

BUSY_ALERT = bytes.fromhex("15 0303 0002 02 50")
"""The same, `internal_error`: for a peer that gives way before it had its turn, or says too little for too long. It is
"unrelated to the peer" (section 6.2). Once our side of the keys is made an alert would have to be encrypted, and
OpenSSL has no call for one in the middle of a handshake: such a peer sees a bare end of stream."""

MAX_LINGERING = 64
"""Refused peers that are waited for at once; with more, the alert is sent and the connection closed over it."""

MAX_REFUSAL_LINES = 60
"""Lines about refused peers in `REFUSAL_LOG_SECONDS`, from whatever addresses: whoever has many addresses could write
our log full otherwise. What has no line is counted."""


@final
class Refusals:
    """Refuses peers of one listener, and keeps count."""

    def __init__(self, report: Report, most_lingering: int = MAX_LINGERING) -> None:
        self._report = report
        self._limit = RateLimit(REFUSAL_LOG_SECONDS, MAX_REFUSAL_LINES)
        self._lingering = 0
        self._most_lingering = most_lingering

    def log(self, address: str, kind: str, reason: str) -> None:
        """Log that we refused a peer. `kind` is one of a few: lines are limited for each of them."""
        self.log_limited(
            f"refused connections from {address} ({kind})", f"refused a connection from {address}: {reason}"
        )

    def log_broken_handshake(
        self,
        address: str,
        error: trio.BrokenResourceError,
        tls: trio.SSLStream[trio.SocketStream] | None,
        material: Material,
    ) -> str:
        """Log why a handshake failed; `tls` is None where it had not come to that. Give OpenSSL's name of the reason,
        empty where it has none, for `send_alert`.
        """
        shown = presented(tls._ssl_object) if tls is not None else None  # noqa: SLF001  (trio hands it out to nobody)
        cause = error.__cause__
        if not isinstance(cause, ssl.SSLError):
            broke = f"the connection broke: {cause.strerror}" if isinstance(cause, OSError) else None
            self.log(address, "hung up", broke or "it hung up during the handshake")
            return ""
        kind, reason = kind_of_failure(cause), explain_failure(cause, shown, material, "manager", time.time())
        if is_alert(cause):
            self.log_limited(f"refusals by {address} ({kind})", f"refused by a peer at {address}: {reason}")
        else:
            self.log(address, kind, reason)
        return cause.reason or ""

    def log_limited(self, key: str, text: str) -> None:
        """Log `text`, unless another line for `key` was logged within the last minute; then it is counted."""
        held_back = self._limit.passes(key, trio.current_time())
        if held_back is not None:
            more = f" ({held_back} more like it since the last such line)" if held_back else ""
            self._report.warning(text + more)

    def tell_held_back(self, now: float) -> None:
        """Log how many lines were held back where the minute is over at `now` (monotonic; infinity: tell all)."""
        for key, held_back in self._limit.overdue(now):
            self._report.warning(f"{key}: {held_back} more since the last line about it")

    @staticmethod
    async def say_busy(stream: trio.SocketStream) -> None:
        """Tell a peer with whom no handshake was begun that there will be none."""
        with (
            trio.move_on_after(LINGER_SECONDS),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await stream.send_all(BUSY_ALERT)

    async def send_alert(self, tls: trio.SSLStream[trio.SocketStream], stream: trio.SocketStream, reason: str) -> None:
        """Send the alert for a handshake that failed for `reason`, and wait a little for the peer to read it."""
        pending = tls._outgoing.read()  # noqa: SLF001  (trio offers no other way to what OpenSSL has ready)
        if not pending and reason in NO_TLS_REASONS:
            pending = NO_TLS_ALERT
        if not pending:
            return
        unread = LINGER_BYTES if self._lingering < self._most_lingering else 0
        self._lingering += 1
        try:
            with trio.move_on_after(LINGER_SECONDS):
                await stream.send_all(pending)
                await stream.send_eof()
                while unread > 0 and (data := await stream.receive_some(unread)):
                    unread -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone before it was told
        finally:
            self._lingering -= 1

"""Accept, have hands shaken, hand over to a session; bounds, drain and reload.

A peer is a stranger until its handshake is done and its certificate judged, and strangers are bounded in time, number
and pace (`handshakes`). How one is refused is the business of `refusals`; where only our own judgement after the
handshake refuses, it is too late for an alert, and the peer is told by a message in place of the greeting.
"""

from __future__ import annotations

import gc
import math
import time
from typing import final

import trio

from appserver.descriptors import strangers_share
from appserver.fileio import OUT_OF_RESOURCES
from appserver.handshakes import Handshakes
from appserver.handshakes import Trust as Trust
from appserver.ratelimit import Pace
from appserver.refusals import MAX_LINGERING, Refusals
from appserver.report import Report
from appserver.session import PeerName, Session
from appserver.sockets import address_of, keep_honest
from appserver.strangers import MAX_HALF_OPEN
from appserver.supervisor import Supervisor
from pki.contexts import Material, PeerRefused, judge_peer
from pki.der import fingerprint
from pki.expiry import CHECK_SECONDS, Reminder, Watched, watched_in, watched_peer
from pki.frozen import dataclass
from pki.refusals import look_away

ACCEPTS_PER_SECOND = 500.0
ACCEPTS_AT_ONCE = 64
"""How fast strangers are let in while they come without a pause. Each costs a millisecond of computing at most, so half
of one processor is left to the sessions and to the applications. Sixteen silent ones of one address last 30 ms at this
pace, in which a manager on a busy host has said its first words; it had time for that in the kernel's queue, too, which
is long when many come. As many at once as may be half open: a host that restarts its managers is not slowed down."""

SESSIONS_PER_PROCESS = 4
"""A migrated guest has the managers of two hosts for a while, and an administrator may watch too."""

ACCEPT_RETRY_SECONDS = 0.1
"""Pause after descriptors or memory ran out."""

PEERS_PER_COLLECTION = 32
"""Connections that end between two full garbage collections. Each leaves some 20 KiB of OpenSSL's, which Python's own
count of garbage does not see. A collection takes a millisecond or two, since the daemon freezes what its start has
made."""

DRAIN_SECONDS = 3.0
"""For the goodbyes at the end; a manager takes its own in a round trip."""


@final
@dataclass(eq=False, slots=True)
class _Guest:
    """A peer that has proved who it is."""

    session: Session
    der: bytes
    certificate: dict[str, object]
    pinned: bool
    """Let in since its own certificate is in the trust store, not one that issued it."""

    @property
    def watched(self) -> tuple[Watched, ...]:
        """Its certificate, where that is in no store of ours."""
        return () if self.pinned else watched_peer(f"the certificate of {self.session}", self.der)


@final
class Listener:
    """Lets managers in. `serve` accepts until its scope is cancelled; sessions live in the nursery given."""

    def __init__(self, supervisor: Supervisor, report: Report, trust: Trust, max_processes: int) -> None:
        self._supervisor = supervisor
        self._report = report
        self._trust = trust
        self.max_sessions = SESSIONS_PER_PROCESS * max_processes
        self._refusals = Refusals(report, strangers_share(MAX_LINGERING))
        self._handshakes = Handshakes(self._refusals, strangers_share(MAX_HALF_OPEN))
        self._pace = Pace(ACCEPTS_PER_SECOND, ACCEPTS_AT_ONCE)
        self._watched = watched_in(trust.material, "a manager")
        self._reminder = Reminder()
        self._peers_gone = 0
        self._guests: set[_Guest] = set()
        self._empty = trio.Event()
        self._goodbye: str | None = None
        self.turns: dict[trio.SocketListener, int] = {}
        """How often each socket was ready for the next one who comes: what the watchdog looks at."""

    async def accept(self, listener: trio.SocketListener, sessions: trio.Nursery) -> None:
        """Accept on one socket until cancelled, which closes it. Sessions go on in `sessions`."""
        async with listener:
            while True:
                self.turns[listener] = self.turns.get(listener, 0) + 1
                await trio.sleep(self._pace.delay_seconds(trio.current_time()))
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in OUT_OF_RESOURCES:
                        raise
                    self._refusals.log_limited(
                        "failures to accept",
                        f"cannot accept connections, those there are go on: {error.strerror} (errno:{error.errno})",
                    )
                    await trio.sleep(ACCEPT_RETRY_SECONDS)
                else:
                    sessions.start_soon(self._serve_peer, stream)

    async def watch_dates(self) -> None:
        """Warn of certificates near their end, at once and then once a day, and tell of refusals held back.

        Runs until cancelled.
        """
        while True:
            self._remind()
            self._refusals.tell_held_back(trio.current_time())
            await trio.sleep(CHECK_SECONDS)

    def _remind(self) -> None:
        watched = [*self._watched, *(each for guest in self._guests for each in guest.watched)]
        for line in self._reminder.due(watched, time.time(), trio.current_time()):
            self._report.warning(line)

    def reload(self, trust: Trust, max_processes: int) -> set[str]:
        """Use other keys from the next connection on; name those who would be refused then, and give their
        fingerprints.
        """
        self._trust = trust
        self._watched = watched_in(trust.material, "a manager")
        self._remind()
        self.max_sessions = SESSIONS_PER_PROCESS * max_processes
        distrusted: set[str] = set()
        for guest in self._guests:
            reason = _refusal(guest, trust.material)
            if reason is not None:
                text = f"stays until its session ends, and will be refused at its next connection: {reason}"
                self._report.warning(f"{guest.session} {text}")
                distrusted.add(guest.session.fingerprint)
        return distrusted

    async def drain(self, reason: str) -> None:
        """Let all managers go, and wait until they have, `DRAIN_SECONDS` at most."""
        self._goodbye = reason
        self._refusals.tell_held_back(math.inf)
        if self._guests:
            self._empty = trio.Event()
            for guest in self._guests:
                guest.session.let_go(reason)
            with trio.move_on_after(DRAIN_SECONDS):
                await self._empty.wait()

    async def _serve_peer(self, stream: trio.SocketStream) -> None:
        try:
            address = address_of(stream.socket.getpeername())
            keep_honest(stream.socket)
        except OSError:
            self._refusals.log("an address that is not known any more", "hung up", "it hung up before it was looked at")
            await trio.aclose_forcefully(stream)
            return
        try:
            trust = self._trust
            tls = await self._handshakes.shake(stream, address, trust)
            guest = await self._judge(tls, address, trust.material) if tls is not None else None
            if guest is not None:
                await self._serve_guest(guest)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone while it was being refused
        except Exception as error:  # noqa: BLE001  (one connection's bug must not end the server, nor the other sessions)
            self._report.error(f"a bug ended the session of {address}: {type(error).__name__}: {error}")
        finally:
            await trio.aclose_forcefully(stream)
            self._collect_garbage()

    def _collect_garbage(self) -> None:
        self._peers_gone += 1
        if self._peers_gone % PEERS_PER_COLLECTION == 0:
            gc.collect()

    async def _judge(self, tls: trio.SSLStream[trio.SocketStream], address: str, material: Material) -> _Guest | None:
        """Decide about a peer that has proved to hold the key of a certificate that OpenSSL accepts."""
        der, certificate = tls.getpeercert(binary_form=True), tls.getpeercert()
        session = Session(tls, self._supervisor, self._report, PeerName(address, fingerprint(der)))
        try:
            peer = judge_peer(material, der, certificate, name=None, now_unix=time.time())
        except PeerRefused as error:
            self._refusals.log(address, "certificate", str(error))
            await session.refuse("certificate", str(error))
            return None
        look_away(tls._ssl_object)  # noqa: SLF001  (trio hands it out to nobody)
        return _Guest(session, der, certificate, pinned=peer.alias is not None)

    async def _serve_guest(self, guest: _Guest) -> None:
        if len(self._guests) >= self.max_sessions:
            text = f"{len(self._guests)} managers have a session already, and no more than {self.max_sessions} may"
            self._report.warning(f"refused {guest.session.audit_name}: {text}")
            await guest.session.refuse("sessions", text)
            return
        self._guests.add(guest)
        self._remind()
        if self._goodbye is not None:
            guest.session.let_go(self._goodbye)  # its handshake was under way when the others were let go
        try:
            await guest.session.serve()
        finally:
            self._guests.discard(guest)
            if not self._guests:
                self._empty.set()


def _refusal(guest: _Guest, material: Material) -> str | None:
    """Say why a manager that was let in would be refused now, as far as can be told without its key."""
    # `judge_peer` relies on OpenSSL, which finds out at a handshake only that a certificate is not trusted at all.
    if guest.pinned and all(pin.der != guest.der for pin in material.pins):
        return "its certificate is no longer in the trust store"
    try:
        judge_peer(material, guest.der, guest.certificate, name=None, now_unix=time.time())
    except PeerRefused as error:
        return str(error)
    return None

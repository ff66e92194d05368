"""One manager's conversation, from the greeting to the end: messages in, calls of the supervisor out, and the other way
round.

It knows a stream of bytes, whatever carries it. One task reads. What is to be said goes to the network at once where
that takes it (`atonce`): an outcome waits for no other task. Else, and behind what waits already, it is put into a
bounded queue, and as long as there is anything in it a second task writes. So a manager that does not read costs its
own session and delays nobody.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import final

import trio

from appserver import runlog
from appserver.atonce import close_at_once, send_at_once
from appserver.effects import Phase, Run, Tell, TellEnded, TellRefused, TellRunning, TellStopping, Terms
from appserver.messages import (
    MAX_TEXT_CHARACTERS,
    Ack,
    Attach,
    Bye,
    Ended,
    Error,
    Goodbye,
    Greeting,
    Hello,
    Message,
    MessageError,
    Poll,
    Previous,
    RefusalCode,
    Refused,
    Running,
    State,
    Status,
    Stop,
    Stopping,
    Unknown,
    Watch,
)
from appserver.messages import Run as RunMessage
from appserver.outcome import Lost, Outcome
from appserver.pending import Pending
from appserver.protocol import CLOSED, NEED_DATA, VERSIONS, Connection, Event, ProtocolError
from appserver.ratelimit import Pace
from appserver.report import Report, host_name, printable
from appserver.supervisor import Supervisor
from appserver.version import software
from pki.frozen import dataclass

HELLO_SECONDS = 10.0
"""A manager answers the greeting at once; this is the handshake's bound again."""

MIN_SILENCE_SECONDS = 15.0
SILENT_POLLS = 3
"""Three polls missed, but never less than 15 seconds: a guest host that is busy, or pauses to migrate, is not gone."""

MAX_SILENCE_SECONDS = 86400.0
"""Whatever it says of its polls: one that never polls must not hold a session for ever."""

SEND_SECONDS = 15.0
"""A manager that does not take a message for this long is gone; half-sent, the stream is of no use anyway."""

CLOSE_SECONDS = 2.0
"""For the goodbye of TLS."""

MAX_QUEUED_MESSAGES = 64
"""A session awaits one answer at a time; this many unread ones mean that the manager does not read."""

MAX_RECEIVE_BYTES = 16384
"""What a record of TLS holds at most: no read gives more."""

MESSAGES_AT_ONCE = 60
MESSAGES_PER_SECOND = 10.0
"""What a session may ask. A manager needs three messages to begin and one in five seconds from then on. Whoever sends
faster is read more slowly, so that neither the others' answers nor log, disk and waiters are at its mercy. A burst has
fewer answers than `MAX_QUEUED_MESSAGES`: it does not look like a manager that does not read."""

WISH_MESSAGES = 10
"""What may start, stop or change something counts for so many messages: a start costs a thread's time, two files, a
fork and two lines of log. After the burst there is one in a second."""

MAX_PEER_NAME_CHARACTERS = 200
"""Of what a manager calls itself: it goes into logs, into records and, as who asked for a stop, to waiters, whose
orders are bounded."""


@final
@dataclass(frozen=True, slots=True)
class PeerName:
    """Who is at the other end: the address, and the fingerprint of the certificate it proved to own."""

    address: str
    fingerprint: str


@final
class Session:
    """One manager."""

    def __init__(self, stream: trio.abc.Stream, supervisor: Supervisor, report: Report, peer: PeerName) -> None:
        self._stream = stream
        self._supervisor = supervisor
        self._report = report
        self.peer = peer
        self._connection = Connection("server")
        self._unsent: deque[bytes] = deque()
        """What waits to be said, from what is being sent just now on."""
        self._writing: trio.Nursery | None = None
        self._silent = False
        """Nothing more is said than what waits."""
        self._has_left = False
        self._scope = trio.CancelScope()
        self._silence_seconds = HELLO_SECONDS
        self._name = f"a manager at {peer.address}"
        self._introduced = False
        self._run_id: str | None = None
        self._pending = Pending(supervisor.find)
        self._tail_lines = 0
        self._pace = Pace(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE)

    def __str__(self) -> str:
        return f"{self._name} at {self.peer.address}" if self._run_id else self._name

    @property
    def audit_name(self) -> str:
        """Say who asks, for the log."""
        # What is proven comes first: the name is the peer's own words, and may look like anything.
        proven = f"certificate {self.peer.fingerprint} at {self.peer.address}"
        return f"{proven}, {self._name!r}" if self._introduced else proven

    @property
    def fingerprint(self) -> str:
        """Give the fingerprint of the certificate that the manager proved to own."""
        return self.peer.fingerprint

    async def serve(self) -> None:
        """Talk until either side ends it. Closes the stream; cancelled, it lets go of the manager at once."""
        try:
            try:
                with self._scope:
                    async with trio.open_nursery() as self._writing:
                        if self._unsent:  # it has been let go before it was greeted
                            self._writing.start_soon(self._write)
                        try:
                            self._say(Greeting(VERSIONS, software("cmappserver"), host_name()))
                            await self._read()
                        finally:
                            self._silent = True
            finally:
                self._supervisor.leave(self)
            if not self._has_left:  # who says `bye` waits for nothing, and most probably is no more
                with trio.move_on_after(CLOSE_SECONDS):  # not shielded: a server that ends at once skips the goodbye
                    await self._stream.aclose()
        finally:
            if not close_at_once(self._stream):
                await trio.aclose_forcefully(self._stream)

    async def refuse(self, code: RefusalCode, text: str) -> None:
        """Say in place of a greeting that this session will not be. Closes the stream, also when cancelled."""
        try:
            with trio.move_on_after(SEND_SECONDS):
                await self._stream.send_all(self._connection.send(Refused(None, code, text)))
            with trio.move_on_after(CLOSE_SECONDS):
                await self._stream.aclose()
        finally:
            await trio.aclose_forcefully(self._stream)

    def let_go(self, reason: str) -> None:
        """Say goodbye and end; the application goes on."""
        self._say(Goodbye(reason))
        self._silent = True
        if not self._unsent:
            self._scope.cancel()

    def tell(self, what: Tell) -> None:
        """Pass on what the supervisor tells."""
        match what:
            case TellRunning(_, run, attached, previous):
                self._tell_running(run, previous, attached=attached)
            case TellStopping(_, run_id):
                seq = self._pending.answer_stop(run_id)
                if seq is not None:
                    self._say(Stopping(seq, run_id))
            case TellEnded(_, run_id, outcome, log_path, previous):
                self._tell_ended(self._pending.answer_both(run_id), run_id, outcome, log_path, previous)
            case TellRefused(_, code, text, of_stop=True):
                self._say(Refused(self._pending.answer_stop(), code, text[:MAX_TEXT_CHARACTERS]))
            case TellRefused(_, code, text, run_id):
                self._tell_refused(code, text, run_id)

    def _tell_running(self, run: Run, previous: tuple[str, Outcome] | None, *, attached: bool) -> None:
        seq = self._pending.answer_run(run.run_id)
        if seq is None:
            return  # a run that it only wants stopped
        self._run_id = run.run_id
        self._say(
            Running(
                re=seq,
                run=run.run_id,
                state=_wire_state(run),
                attached=attached,
                pid=run.pid,
                started_at=run.started_at,
                ran_seconds=_ran_seconds(run),
                log=run.log_path,
                previous=Previous(*previous) if previous else None,
            )
        )
        if previous is not None:
            self._pending.expect_ack(previous[0])

    def _tell_ended(
        self,
        seq: int | None,
        run_id: str,
        outcome: Outcome,
        log_path: str | None,
        previous: tuple[str, Outcome] | None = None,
    ) -> None:
        by_itself = not isinstance(outcome, Lost) and outcome.account.stopped_by is None
        tail = tuple(runlog.tail(log_path, self._tail_lines)) if by_itself and log_path else None
        self._say(Ended(seq, run_id, outcome, tail, Previous(*previous) if previous else None))
        self._pending.expect_ack(run_id)
        if previous is not None:
            self._pending.expect_ack(previous[0])
        if self._run_id == run_id and self._supervisor.find(run_id) is None:
            self._run_id = None  # it never was, or was forgotten: a poll must not be told that it starts

    def _tell_refused(self, code: str, text: str, run_id: str) -> None:
        awaited = self._pending.awaits_run
        self._say(Refused(self._pending.refuse(run_id), code, text[:MAX_TEXT_CHARACTERS]))
        if awaited and not self._pending.awaits_run:
            self._run_id = None

    def _say(self, message: Message) -> None:
        if self._silent:
            return  # it has been let go: what there is to tell, it will hear when it comes back
        try:
            data = self._connection.send(message)
        except MessageError as error:
            self._report.error(f"cannot tell {self} of {message.type_name!r}: {error}")
            return
        try:
            if not self._unsent and send_at_once(self._stream, data):
                return
        except trio.BrokenResourceError:
            self._report.info(f"lost contact with {self}; its application goes on")
            self._break_off()
            return
        if len(self._unsent) > MAX_QUEUED_MESSAGES:
            self._report.warning(f"{self} does not read, its session is closed; its application goes on")
            self._break_off()
            return
        self._unsent.append(data)
        if len(self._unsent) == 1 and self._writing is not None:
            self._writing.start_soon(self._write)

    def _break_off(self) -> None:
        """End it without another word: what was said last may be half sent."""
        self._silent = True
        self._scope.cancel()

    async def _write(self) -> None:
        """Say what waits. Where that fails it goes on waiting, so that nothing is said after it."""
        # One scope for all messages, whose deadline is moved: to make one for each was a tenth of a poll's price.
        with trio.CancelScope() as patience:
            while self._unsent:
                patience.deadline = trio.current_time() + SEND_SECONDS
                try:
                    await self._stream.send_all(self._unsent[0])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._break_off()
                    return
                self._unsent.popleft()
        if patience.cancelled_caught:
            self._report.warning(f"{self} does not read, its session is closed; its application goes on")
            self._break_off()
        elif self._silent:
            self._scope.cancel()

    async def _read(self) -> None:
        with trio.CancelScope() as silence:
            await self._converse(silence)
        if silence.cancelled_caught:
            self._report.warning(f"{self} has been silent for {self._silence_seconds:g} s, its session is closed")

    async def _converse(self, silence: trio.CancelScope) -> None:
        try:
            while (event := await self._next_event(silence)) is not CLOSED:
                places = WISH_MESSAGES if isinstance(event, RunMessage | Watch | Attach | Stop) else 1
                delay_seconds = self._pace.delay_seconds(trio.current_time(), places)
                if delay_seconds > 0 or (self._connection.has_unread and not isinstance(event, Ack)):
                    # Many messages may come at one go: even a sleep of zero lets the one before be answered, and gives
                    # the others their turn. After a single one, reading the next does. An `ack` is the last word before
                    # `bye`, and must be heeded before a write to a manager that has ended breaks the session.
                    await trio.sleep(delay_seconds)
                if isinstance(event, Unknown):
                    self._say(Error(event.seq, f"this server does not know messages of type {event.type!r}"))
                elif not await self._heed(event):
                    return
            if not self._introduced:
                # Most probably it does not take our certificate for that of the node, and its own log says so.
                self._report.warning(f"{self.audit_name} closed before it said a word: its own log may say why")
        except trio.BrokenResourceError:
            fate = "its application goes on" if self._run_id else "it had asked for nothing yet"
            self._report.info(f"lost contact with {self}; {fate}")
        except ProtocolError as error:
            self._report.warning(f"closed the session of {self}: {error}")
            self._say(Error(None, str(error)))

    async def _next_event(self, silence: trio.CancelScope) -> Event:
        """Wait for what comes next, until `silence` is cancelled by its deadline, which counts only here."""
        if (event := self._connection.next_event()) is NEED_DATA:
            silence.deadline = trio.current_time() + self._silence_seconds
            while event is NEED_DATA:
                self._connection.receive_data(await self._stream.receive_some(MAX_RECEIVE_BYTES))
                event = self._connection.next_event()
            silence.deadline = math.inf
        return event

    async def _heed(self, message: Event) -> bool:
        """Do what one message asks; False where the conversation is over."""
        match message:
            case Hello():
                program = message.software.partition(" ")[0] or "a manager"
                self._name = printable(f"{program}[{message.pid}] on {message.host}")[:MAX_PEER_NAME_CHARACTERS]
                self._introduced = True
                silence_seconds = max(MIN_SILENCE_SECONDS, SILENT_POLLS * message.poll_seconds)
                self._silence_seconds = min(silence_seconds, MAX_SILENCE_SECONDS)
                if message.version not in VERSIONS:
                    self._say(
                        Refused(None, "version", f"this server speaks version {VERSIONS[-1]}, not {message.version}")
                    )
                    return False
            case RunMessage():
                self._begin(message.seq, message.run, message.tail_lines)
                terms = Terms(message.survivors, message.stop_timeout_seconds)
                await self._supervisor.run(self, message.run, message.service, terms)
            case Watch():
                self._begin(message.seq, message.run, message.tail_lines)
                terms = Terms(message.survivors, message.stop_timeout_seconds)
                await self._supervisor.watch(self, message.run, terms)
            case Attach():
                self._begin(message.seq, message.run, message.tail_lines)
                terms = Terms(message.survivors, message.stop_timeout_seconds)
                await self._supervisor.attach(self, message.run, message.service, terms)
            case Poll(seq):
                self._answer_poll(seq)
            case Stop(seq, run_id, timeout_seconds):
                self._pending.ask_stop(seq, run_id)
                await self._supervisor.stop(self, run_id, self._name, timeout_seconds)
                self._pending.note_stopped(run_id)
            case Ack(run_id):
                self._acknowledge(run_id)
            case Bye():
                self._has_left = True
                return False
        return True

    def _begin(self, seq: int, run_id: str, tail_lines: int) -> None:
        self._supervisor.leave(self)
        self._run_id = run_id
        self._pending.ask_run(seq, run_id)
        self._tail_lines = tail_lines

    def _acknowledge(self, run_id: str) -> None:
        """Heed it where this session was told the outcome: nobody may hide from others what it does not have."""
        told = self._pending.take_ack(run_id)
        if told is not None:
            self._supervisor.acknowledge(told)

    def _answer_poll(self, seq: int) -> None:
        run = self._supervisor.find(self._run_id) if self._run_id else None
        if self._run_id is None:
            self._say(Error(seq, "there is nothing to tell: no run was asked for in this session"))
        elif run is not None and run.phase is Phase.ENDED and run.outcome is not None:
            self._pending.answer_both(run.run_id)
            self._tell_ended(seq, run.run_id, run.outcome, run.log_path)
        elif run is None and not self._pending.awaits_run:
            self._say(Error(seq, f"there is nothing to tell: the end of run {self._run_id} was told, and is forgotten"))
        elif run is None:  # it waits for another run of the service to be stopped
            self._say(Status(seq, self._run_id, "stopping", None, None, None, None))
        else:
            usage = self._supervisor.usage(run)
            self._say(
                Status(
                    re=seq,
                    run=run.run_id,
                    state=_wire_state(run),
                    pid=run.pid,
                    ran_seconds=_ran_seconds(run),
                    cpu_seconds=usage.cpu_seconds if usage else None,
                    rss_bytes=usage.rss_bytes if usage else None,
                )
            )


def _wire_state(run: Run) -> State:
    match run.phase:
        case Phase.STARTING:
            return "starting"
        case Phase.STOPPING:
            return "stopping"
        case _:
            return "running"


def _ran_seconds(run: Run) -> float | None:
    return round(time.monotonic() - run.started_monotonic, 3) if run.started_monotonic is not None else None

"""One manager's conversation with the server: the true `Session` over streams in memory, on a clock that jumps, before
a supervisor that only notes what it is asked.
"""
# ruff: noqa: ARG001  (the clock is asked for, not used)

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from fakes import FakeSupervisor, Log, Manager

from appserver.effects import Phase, Run, TellEnded, TellRefused, TellRunning, TellStopping, Terms
from appserver.identity import Service
from appserver.messages import (
    Ack,
    Bye,
    Ended,
    Error,
    Goodbye,
    Greeting,
    Hello,
    Poll,
    Previous,
    Refused,
    Running,
    Status,
    Stop,
    Stopping,
    Watch,
)
from appserver.messages import Run as RunMessage
from appserver.outcome import Account, Exited, Lost, Outcome
from appserver.processes import Usage
from appserver.protocol import VERSIONS
from appserver.session import (
    CLOSE_SECONDS,
    HELLO_SECONDS,
    MAX_PEER_NAME_CHARACTERS,
    MAX_QUEUED_MESSAGES,
    MIN_SILENCE_SECONDS,
    SEND_SECONDS,
    PeerName,
    Session,
)

OWN = "a" * 32
OTHER = "b" * 32
SERVICE = Service("line", ("/apps/ping_mon",))
HELLO = Hello(1, "cmappmgr 1", "host1", 77, 5.0)
RUN = RunMessage(1, OWN, SERVICE, "leave", 30.0, 20)
ENDED = Exited(3, Account(ran_seconds=1.5))


class Pair:
    """One session and its manager."""

    def __init__(self, supervisor: FakeSupervisor, log: Log, streams: tuple[trio.abc.Stream, trio.abc.Stream]) -> None:
        self.supervisor = supervisor
        self.log = log
        self.theirs = streams[1]
        self.manager = Manager(streams[0])
        self.session = Session(streams[1], supervisor.as_supervisor(), log.as_report(), PeerName("192.0.2.7", "AB:CD"))
        self.ended = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        try:
            await self.session.serve()
        finally:
            self.ended.set()

    async def greet(self, hello: Hello = HELLO) -> None:
        assert isinstance(await self.manager.hear(), Greeting)
        await self.manager.say(hello)

    async def begin(self) -> Run:
        """Greet, run, and be told that it runs."""
        await self.greet()
        await self.manager.say(RUN)
        run = await self.tell_running()
        assert isinstance(await self.manager.hear(), Running)
        return run

    async def tell_running(self, previous: tuple[str, Outcome] | None = None) -> Run:
        await trio.testing.wait_all_tasks_blocked()
        run = Run(OWN, SERVICE, Phase.RUNNING, 4711, 1, 1e9, None, "/nowhere.log")
        self.supervisor.runs[OWN] = run
        self.session.tell(TellRunning(self.session, run, attached=previous is None, previous=previous))
        return run


@asynccontextmanager
async def conversation(
    supervisor: FakeSupervisor | None = None,
    streams: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = trio.testing.memory_stream_pair,
) -> AsyncIterator[Pair]:
    pair = Pair(supervisor or FakeSupervisor(), Log(), streams())
    async with trio.open_nursery() as nursery:
        await nursery.start(pair.serve)
        yield pair
        nursery.cancel_scope.cancel()


async def test_server_speaks_first(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        greeting = await pair.manager.hear()
        assert isinstance(greeting, Greeting)
        assert greeting.versions == VERSIONS
        assert greeting.software.startswith("cmappserver ")


async def test_manager_that_says_no_hello_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.manager.hear()
        await pair.ended.wait()
        assert trio.current_time() == pytest.approx(HELLO_SECONDS)
        assert "silent for 10 s" in pair.log.text
        assert "192.0.2.7" in pair.log.text


async def test_run_is_passed_on_and_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(replace(RUN, survivors="stop", stop_timeout_seconds=7.0))
        await pair.tell_running(previous=(OTHER, Exited(9)))
        assert pair.supervisor.asked == [("run", OWN, SERVICE, Terms("stop", 7.0))]
        answer = await pair.manager.hear()
        assert isinstance(answer, Running)
        assert (answer.re, answer.run, answer.pid, answer.log) == (1, OWN, 4711, "/nowhere.log")
        assert answer.previous == Previous(OTHER, Exited(9))


async def test_watch_is_passed_on_and_leaves_the_run_before(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        left = len(pair.supervisor.left)
        await pair.manager.say(Watch(2, OTHER, "leave", 30.0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.supervisor.asked[-1] == ("watch", OTHER, Terms("leave", 30.0))
        assert len(pair.supervisor.left) == left + 1


@pytest.mark.parametrize(
    ("phase", "state"), [(Phase.STARTING, "starting"), (Phase.RUNNING, "running"), (Phase.STOPPING, "stopping")]
)
async def test_poll_tells_how_the_run_fares(autojump_clock: trio.testing.MockClock, phase: Phase, state: str) -> None:
    async with conversation() as pair:
        run = await pair.begin()
        run.phase = phase
        pair.supervisor.usages[OWN] = Usage(0.5, 4096)
        await pair.manager.say(Poll(2))
        answer = await pair.manager.hear()
        assert isinstance(answer, Status)
        assert (answer.re, answer.run, answer.state, answer.pid) == (2, OWN, state, 4711)
        assert (answer.cpu_seconds, answer.rss_bytes) == (0.5, 4096)


async def test_poll_before_any_run_is_an_error_and_the_session_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(Poll(1))
        answer = await pair.manager.hear()
        assert isinstance(answer, Error)
        assert answer.re == 1
        await pair.manager.say(replace(RUN, seq=2))
        await pair.tell_running()
        assert isinstance(await pair.manager.hear(), Running)


async def test_poll_of_a_run_that_waits_for_another_to_be_stopped_does_not_say_that_it_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(RUN, Poll(2))
        answer = await pair.manager.hear()
        assert isinstance(answer, Status)
        assert answer.state != "running"
        assert answer.pid is None


async def test_poll_of_an_ended_run_tells_the_outcome(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        run = await pair.begin()
        run.phase, run.outcome = Phase.ENDED, ENDED
        await pair.manager.say(Poll(2))
        assert await pair.manager.hear() == Ended(2, OWN, ENDED, ())


async def test_poll_after_a_refusal_does_not_say_that_it_starts(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(RUN)
        await trio.testing.wait_all_tasks_blocked()
        pair.session.tell(TellRefused(pair.session, "limit", "30 processes run already", OWN))
        assert await pair.manager.hear() == Refused(1, "limit", "30 processes run already")
        await pair.manager.say(Poll(2))
        assert isinstance(await pair.manager.hear(), Error)


async def test_poll_after_an_unknown_run_does_not_say_that_it_starts(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(Watch(1, OTHER, "leave", 30.0, 0))
        await trio.testing.wait_all_tasks_blocked()
        pair.session.tell(TellEnded(pair.session, OTHER, Lost("this guest knows nothing of the run")))
        assert isinstance(await pair.manager.hear(), Ended)
        await pair.manager.say(Poll(2))
        assert isinstance(await pair.manager.hear(), Error)


async def test_end_is_pushed_at_once_with_the_last_lines(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(50)))
    async with conversation() as pair:
        await pair.begin()
        before = trio.current_time()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED, str(log)))
        answer = await pair.manager.hear()
        assert trio.current_time() == before
        assert answer == Ended(None, OWN, ENDED, tuple(f"line {number}" for number in range(30, 50)))
        await pair.manager.say(Ack(OWN))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.supervisor.asked[-1] == ("ack", OWN)


@pytest.mark.parametrize("outcome", [Lost("nobody saw it"), Exited(0, Account(stopped_by="somebody"))])
async def test_end_that_did_not_come_by_itself_has_no_last_lines(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, outcome: Outcome
) -> None:
    log = tmp_path / "log"
    log.write_text("line\n")
    async with conversation() as pair:
        await pair.begin()
        pair.session.tell(TellEnded(pair.session, OWN, outcome, str(log)))
        assert await pair.manager.hear() == Ended(None, OWN, outcome, None)


async def test_longest_tail_of_odd_bytes_fits_into_a_message(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(range(256)) * 100)
    async with conversation() as pair:
        await pair.begin()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED, str(log)))
        answer = await pair.manager.hear()
        assert isinstance(answer, Ended)
        assert answer.tail


async def test_stop_is_passed_on_with_who_asks_and_accepted_once(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        await pair.manager.say(Stop(2, OWN, 30.0))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.supervisor.asked[-1] == ("stop", OWN, "cmappmgr[77] on host1", 30.0)
        pair.session.tell(TellStopping(pair.session, OWN))
        pair.session.tell(TellStopping(pair.session, OWN))  # somebody else's stop: this manager did not ask
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        assert await pair.manager.hear() == Stopping(2, OWN)
        assert await pair.manager.hear() == Ended(None, OWN, ENDED, None)


async def test_stop_of_an_ended_run_is_answered_with_its_outcome(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        await pair.manager.say(Stop(2, OWN, 30.0))
        await trio.testing.wait_all_tasks_blocked()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        assert await pair.manager.hear() == Ended(2, OWN, ENDED, None)


@pytest.mark.parametrize("character", ["\ud800", "\x1b", "\N{CROCODILE}", "\u2028"])
async def test_name_of_a_manager_can_be_logged_and_recorded_whatever_it_is(
    autojump_clock: trio.testing.MockClock, character: str
) -> None:
    async with conversation() as pair:
        await pair.manager.hear()
        name = character * 255
        line = {"type": "hello", "version": 1, "software": name, "host": name, "pid": 7, "poll_seconds": 5}
        await pair.manager.stream.send_all(json.dumps(line).encode() + b"\n")
        await pair.manager.stream.send_all(
            json.dumps({"type": "stop", "seq": 1, "run": OWN, "timeout_seconds": 1}).encode() + b"\n"
        )
        await trio.testing.wait_all_tasks_blocked()
        (_, _, by, _) = pair.supervisor.asked[-1]
        assert isinstance(by, str)
        assert by.isprintable()
        assert len(by) <= MAX_PEER_NAME_CHARACTERS
        by.encode()


async def test_version_that_is_not_spoken_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet(replace(HELLO, version=99))
        answer = await pair.manager.hear()
        assert isinstance(answer, Refused)
        assert answer.code == "version"
        assert "not 99" in answer.text
        await pair.ended.wait()


async def test_unknown_type_is_answered_with_an_error_and_the_session_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        await pair.begin()
        await pair.manager.stream.send_all(b'{"type":"dance","seq":9,"with":["whom"]}\n')
        answer = await pair.manager.hear()
        assert isinstance(answer, Error)
        assert answer.re == 9
        assert "'dance'" in answer.text
        await pair.manager.say(Poll(10))
        assert isinstance(await pair.manager.hear(), Status)


WRONG = {
    "garbage": b"\x00\xff\x16\x03\n",
    "text": b"hello\n",
    "too long": b'{"type":"' + b"x" * 65536,
    "too long, ended": b'{"type":"bye","x":"' + b"x" * 65536 + b'"}\n',
    "nested": b'{"type":"bye","x":' + b"[" * 30000 + b"]" * 30000 + b"}\n",
    "nested a thousand deep": b"[" * 1000 + b"]" * 1000 + b"\n",
    "a list": b"[]\n",
    "no type": b"{}\n",
    "a second hello": json.dumps({
        "type": "hello",
        "version": 1,
        "software": "x",
        "host": "y",
        "pid": 1,
        "poll_seconds": 5,
    }).encode()
    + b"\n",
    "a message of the server's": b'{"type":"goodbye","reason":"x"}\n',
    "a number out of bounds": b'{"type":"poll","seq":1e400}\n',
    "not finite": b'{"type":"poll","seq":NaN}\n',
    "a run id that is a path": b'{"type":"ack","run":"../../../../../../../../etc/passwd"}\n',
    "a blank service": json.dumps({
        "type": "run",
        "seq": 1,
        "run": OWN,
        "service": {"form": "line", "line": "  "},
        "survivors": "leave",
        "stop_timeout_seconds": 1,
        "tail_lines": 1,
    }).encode()
    + b"\n",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
async def test_what_is_no_message_gets_a_last_error_and_touches_nobody_else(
    autojump_clock: trio.testing.MockClock, data: bytes
) -> None:
    async with conversation() as other, conversation(other.supervisor) as pair:
        await other.begin()
        await pair.greet()
        await pair.manager.stream.send_all(data)
        answer = await pair.manager.hear()
        assert isinstance(answer, Error)
        assert answer.re is None
        await pair.manager.hear_closed()
        await pair.ended.wait()
        assert "closed the session of cmappmgr[77] on host1" in pair.log.text
        assert other.supervisor.left[-1] is pair.session
        await other.manager.say(Poll(2))
        assert isinstance(await other.manager.hear(), Status)


async def test_message_before_hello_is_out_of_order(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.manager.hear()
        await pair.manager.stream.send_all(b'{"type":"poll","seq":1}\n')
        assert isinstance(await pair.manager.hear(), Error)
        await pair.ended.wait()


async def test_stream_that_ends_amid_a_message_is_no_message(autojump_clock: trio.testing.MockClock) -> None:
    streams = trio.testing.memory_stream_pair()
    async with conversation(streams=lambda: streams) as pair:
        await pair.greet()
        await pair.manager.stream.send_all(b'{"type":"stop","seq":1,')
        await streams[0].send_eof()
        assert isinstance(await pair.manager.hear(), Error)
        await pair.ended.wait()
        assert "only the first" in pair.log.text
        assert not pair.supervisor.asked


@pytest.mark.parametrize(("poll_seconds", "silence"), [(1.0, MIN_SILENCE_SECONDS), (20.0, 60.0)])
async def test_silence_of_three_polls_but_fifteen_seconds_at_least_ends_the_session(
    autojump_clock: trio.testing.MockClock, poll_seconds: float, silence: float
) -> None:
    async with conversation() as pair:
        await pair.greet(replace(HELLO, poll_seconds=poll_seconds))
        await pair.manager.say(RUN)
        await pair.ended.wait()
        assert trio.current_time() == pytest.approx(silence)
        assert f"silent for {silence:g} s" in pair.log.text
        assert pair.supervisor.left[-1] is pair.session


async def test_half_a_message_is_no_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        for byte in b'{"type":"po':
            await trio.sleep(4)
            if pair.ended.is_set():
                break
            await pair.manager.stream.send_all(bytes([byte]))
        await pair.ended.wait()
        assert trio.current_time() <= MIN_SILENCE_SECONDS + 4


async def test_manager_that_polls_is_never_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        for seq in range(2, 200):
            await trio.sleep(5)
            await pair.manager.say(Poll(seq))
            assert isinstance(await pair.manager.hear(), Status)
        assert not pair.ended.is_set()


async def test_manager_that_takes_nothing_is_dropped_and_delays_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as other, conversation(streams=trio.testing.lockstep_stream_pair) as pair:
        await pair.greet()
        run = await other.begin()
        before = trio.current_time()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))  # neither waits nor raises, though nobody reads
        other.session.tell(TellEnded(other.session, OWN, ENDED))
        assert run.run_id == OWN
        assert isinstance(await other.manager.hear(), Ended)
        assert trio.current_time() == before
        await pair.ended.wait()
        assert trio.current_time() <= before + SEND_SECONDS
        assert pair.supervisor.left == [pair.session]


async def test_manager_that_asks_but_does_not_read_is_dropped_when_its_queue_is_full(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation(streams=trio.testing.lockstep_stream_pair) as pair:
        await pair.greet()
        polls = [Poll(seq) for seq in range(1, MAX_QUEUED_MESSAGES + 5)]
        with pytest.raises(trio.BrokenResourceError):
            await pair.manager.say(*polls)
        await pair.ended.wait()
        assert trio.current_time() < SEND_SECONDS
        assert "does not read" in pair.log.text


async def test_peer_that_closes_before_it_said_a_word_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        assert isinstance(await pair.manager.hear(), Greeting)
        await pair.manager.stream.aclose()
        await pair.ended.wait()
        assert "certificate" in pair.log.text
        assert "closed before it said a word: its own log may say why" in pair.log.text


async def test_bye_ends_the_session_without_a_word(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        await pair.manager.say(Bye())
        await pair.manager.hear_closed()
        await pair.ended.wait()
        assert not pair.log.lines
        assert pair.supervisor.left[-1] is pair.session


async def test_manager_that_is_let_go_hears_goodbye_after_all_that_was_said(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        await pair.begin()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        pair.session.let_go("restart")
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))  # too late to be told
        assert isinstance(await pair.manager.hear(), Ended)
        assert await pair.manager.hear() == Goodbye("restart")
        await pair.manager.hear_closed()
        await pair.ended.wait()


async def test_manager_that_is_let_go_before_its_greeting_hears_goodbye_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pair = Pair(FakeSupervisor(), Log(), trio.testing.memory_stream_pair())
    pair.session.let_go("restart")
    await pair.serve()
    assert await pair.manager.hear() == Goodbye("restart")
    await pair.manager.hear_closed()


async def test_refused_session_says_so_in_place_of_a_greeting(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair(FakeSupervisor(), Log(), trio.testing.memory_stream_pair())
    await pair.session.refuse("sessions", "120 managers have a session already")
    answer = await pair.manager.hear()
    assert answer == Refused(None, "sessions", "120 managers have a session already")
    await pair.manager.hear_closed()


async def test_lost_connection_leaves_the_run(autojump_clock: trio.testing.MockClock) -> None:
    streams = trio.testing.memory_stream_pair()
    async with conversation(streams=lambda: streams) as pair:
        await pair.begin()
        streams[1].receive_stream.put_data(b'{"type":"po')
        await pair.manager.stream.aclose()
        await pair.ended.wait()
        assert pair.supervisor.left[-1] is pair.session


async def test_goodbye_that_the_manager_does_not_answer_is_cut_short_by_cancelling(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation(streams=slow_to_close) as pair:
        await pair.begin()
        pair.session.let_go("restart")
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.ended.is_set()
    assert pair.ended.is_set()
    assert trio.current_time() == 0


async def test_goodbye_that_the_manager_does_not_answer_is_not_waited_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation(streams=slow_to_close) as pair:
        await pair.begin()
        pair.session.let_go("restart")
        await pair.ended.wait()
        assert trio.current_time() == CLOSE_SECONDS


class SlowToClose(trio.abc.Stream):
    """As TLS does, waits at the end for the other end's farewell, which never comes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self._stream)


def slow_to_close() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    theirs, ours = trio.testing.memory_stream_pair()
    return theirs, SlowToClose(ours)


async def test_cancelled_session_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
    assert pair.ended.is_set()
    assert pair.supervisor.left[-1] is pair.session
    with pytest.raises(trio.ClosedResourceError):
        await pair.theirs.send_all(os.urandom(1))
    await pair.manager.hear_closed()


async def test_refusal_that_is_cancelled_closes_the_stream_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.lockstep_stream_pair()  # nobody takes the refusal: it is held in its write
    session = Session(near, FakeSupervisor().as_supervisor(), Log().as_report(), PeerName("192.0.2.7", "AB:CD"))
    with trio.move_on_after(1):
        await session.refuse("sessions", "no more than 4")
    with trio.fail_after(1):
        while await far.receive_some():  # the beginning of it, and then the end
            pass

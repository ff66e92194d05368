"""Whole conversations in any order: managers that do what they like, one that behaves, applications that come and go,
and a server that is restarted, on a clock that stands unless a step moves it.

What is asked of each step: the server raises nothing, says only what the protocol allows, answers the one that behaves
at once, and tells everybody the truth about the applications.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import patch

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from playedguest import PlayedGuest, Talk
from stage import Stage

from appserver import session
from appserver.codec import encode
from appserver.effects import Phase
from appserver.identity import Service
from appserver.messages import (
    MAX_SECONDS,
    MAX_TAIL_LINES,
    MAX_WHOLE,
    Ack,
    Bye,
    Ended,
    Error,
    ManagerMessage,
    Poll,
    Refused,
    Run,
    Running,
    Status,
    Stop,
    Stopping,
    Watch,
)
from appserver.outcome import Exited, Lost, Outcome
from appserver.protocol import CLOSED, Event

IDS = [letter * 32 for letter in "abcd"]
SERVICES = [
    Service("line", ("/bin/true",)),
    Service("vector", ("/bin/true", "\x1b[2J", "x" * 5000), "\u2028\x07" * 127),
    Service("line", ("/nowhere",)),
    Service("line", ("'open",)),
]
WRONG = [
    b"garbage\n",
    b'{"type":"goodbye","reason":"x"}\n',
    b'{"type":"hello","version":1,"software":"x","host":"y","pid":1,"poll_seconds":5}\n',
    b'{"type":"poll","seq":0}\n',
    b'{"type":"' + b"x" * 65536,
]
GOOD = "the one that behaves"


class Conversations(RuleBasedStateMachine):
    """Two managers that do as they like, one that behaves; four ids, two services, and two that cannot be started."""

    names = st.sampled_from(["a", "b"])
    ids = st.sampled_from(IDS)
    numbers = st.sampled_from([1, 2, 3, MAX_WHOLE])
    seconds = st.sampled_from([0.0, 5.0, MAX_SECONDS])
    picks = st.integers(0, 3)

    @initialize(limit=st.sampled_from([1, 2, 30]))
    def begin(self, limit: int) -> None:
        self.patches = patch.multiple(session, MESSAGES_AT_ONCE=10**9)  # the pace has tests of its own
        self.patches.start()
        self.directory = tempfile.TemporaryDirectory()
        self.guest = PlayedGuest(Path(self.directory.name), limit)
        self.collected: set[str] = set()
        self.codes = 0
        self.stage = Stage()
        self.play(lambda: self.guest.begin(self.stage.nursery))
        self.play(lambda: self.connect_as(GOOD, 5.0))

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self.stage.close()
            self.directory.cleanup()
            self.patches.stop()

    def play(self, job: Callable[[], Awaitable[None]]) -> None:
        async def play_and_settle() -> None:
            await job()
            await self.guest.settle()

        self.stage.play(play_and_settle)
        for talk in self.guest.talks.values():
            self.check(talk)

    async def connect_as(self, name: str, poll_seconds: float) -> None:
        await self.guest.connect(name, poll_seconds)

    def say(self, name: str, message: ManagerMessage) -> None:
        talk = self.talk(name)
        self.play(lambda: self.send(talk, encode(message)))

    async def send(self, talk: Talk, data: bytes) -> None:
        talk.spoke_at = trio.current_time()
        await talk.manager.stream.send_all(data)

    def talk(self, name: str) -> Talk:
        """Give the connection of a manager; it connects where it has none."""
        if name not in self.guest.talks or self.guest.talks[name].over or self.guest.talks[name].closed:
            self.connect(name, 5.0)
        return self.guest.talks[name]

    # What the managers do.

    @rule(name=names, poll_seconds=seconds)
    def connect(self, name: str, poll_seconds: float) -> None:
        if name in self.guest.talks:
            self.leave(name, words=b"")
        self.play(lambda: self.connect_as(name, poll_seconds))

    @rule(name=names, seq=numbers, run_id=ids, what=st.sampled_from(SERVICES), timeout=seconds)
    def ask_run(self, name: str, seq: int, run_id: str, what: Service, timeout: float) -> None:
        talk = self.talk(name)
        talk.run, talk.stop = (seq, run_id, what), None
        self.say(name, Run(seq, run_id, what, "leave", timeout, MAX_TAIL_LINES))

    @rule(name=names, seq=numbers, run_id=ids, timeout=seconds)
    def ask_watch(self, name: str, seq: int, run_id: str, timeout: float) -> None:
        talk = self.talk(name)
        talk.run, talk.stop = (seq, run_id, None), None
        self.say(name, Watch(seq, run_id, "stop", timeout, 0))

    @rule(name=names, seq=numbers, run_id=ids, timeout=seconds)
    def ask_stop(self, name: str, seq: int, run_id: str, timeout: float) -> None:
        self.talk(name).stop = seq
        self.say(name, Stop(seq, run_id, timeout))

    @rule(name=names, seq=numbers)
    def poll(self, name: str, seq: int) -> None:
        self.talk(name).polls[seq] += 1
        self.say(name, Poll(seq))

    @rule(name=names, run_id=ids)
    def acknowledge(self, name: str, run_id: str) -> None:
        talk = self.talk(name)
        run = self.guest.supervisor.find(run_id)
        if run is not None and run.run_id in talk.told and run.phase is Phase.ENDED:
            self.collected.add(run.run_id)
        self.say(name, Ack(run_id))

    @precondition(lambda self: self.find(lambda run: self.phase(run) == "ended"))
    @rule(name=names, pick=picks)
    def acknowledge_what_has_ended(self, name: str, pick: int) -> None:
        found = self.find(lambda run: self.phase(run) == "ended")
        self.acknowledge(name, found[pick % len(found)])

    @rule(name=names, seq=numbers)
    def say_what_nobody_knows(self, name: str, seq: int) -> None:
        talk = self.talk(name)
        talk.polls[seq] += 1  # is answered in the same way
        self.play(lambda: self.send(talk, json.dumps({"type": "\x1bdance", "seq": seq}).encode() + b"\n"))

    @rule(name=names, words=st.sampled_from(WRONG))
    def say_what_is_wrong(self, name: str, words: bytes) -> None:
        talk = self.talk(name)
        talk.over = True
        self.play(lambda: self.send(talk, words))
        assert talk.closed

    @precondition(lambda self: len(self.guest.talks) > 1)
    @rule(name=names, words=st.sampled_from([b"", b'{"type":"sto', encode(Bye())]))
    def leave(self, name: str, words: bytes) -> None:
        """Say goodbye, or have the connection cut, between two messages or in the middle of one."""
        talk = self.guest.talks.pop(name, None)
        if talk is not None and not talk.closed:
            self.play(lambda: self.cut(talk, words))

    @staticmethod
    async def cut(talk: Talk, words: bytes) -> None:
        if words:
            await talk.manager.stream.send_all(words)
        talk.scope.cancel()
        await talk.manager.stream.aclose()

    # What happens.

    @precondition(lambda self: self.find(lambda run: self.phase(run) == "starting"))
    @rule(pick=picks, fails=st.booleans())
    def come_up(self, pick: int, fails: bool) -> None:
        found = self.find(lambda run: self.phase(run) == "starting")
        self.happen(lambda: self.guest.processes.start(found[pick % len(found)], fails=fails))

    @precondition(lambda self: self.find(self.is_to_be_stopped))
    @rule(pick=picks)
    def accept_stop(self, pick: int) -> None:
        found = self.find(self.is_to_be_stopped)
        self.happen(lambda: self.guest.processes.accept_stop(found[pick % len(found)]))

    @precondition(lambda self: self.find(self.can_end))
    @rule(pick=picks, gone=st.booleans())
    def end(self, pick: int, gone: bool) -> None:
        self.codes += 1
        found = self.find(self.can_end)
        self.happen(lambda: self.guest.processes.end(found[pick % len(found)], Exited(self.codes), gone=gone))

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.stage.clock.jump(seconds)
        self.play(self.guest.settle)

    @rule()
    def restart(self) -> None:
        for it in self.guest.applications.values():
            it.ordered = False  # an order that had not arrived is gone with the server
        self.play(lambda: self.guest.restart(self.stage.nursery))
        self.play(lambda: self.connect_as(GOOD, 5.0))

    def happen(self, what: Callable[[], None]) -> None:
        async def job() -> None:
            what()
            await trio.lowlevel.checkpoint()

        self.play(job)

    def find(self, wanted: Callable[[str], bool]) -> list[str]:
        return [run for run in self.guest.applications if wanted(run)]

    def phase(self, run: str) -> str:
        return self.guest.applications[run].state.phase

    def is_to_be_stopped(self, run: str) -> bool:
        return self.guest.applications[run].ordered and self.phase(run) == "running"

    def can_end(self, run: str) -> bool:
        return self.phase(run) in {"running", "ended"} and not self.guest.applications[run].state.gone

    # What everybody is told.

    def check(self, talk: Talk) -> None:
        while talk.heard and talk.heard[0] is not CLOSED:
            self.check_message(talk, talk.heard.pop(0))
        if talk.over:
            return
        if talk.closed:
            assert self.stage.clock.current_time() - talk.spoke_at >= talk.silence_seconds, "it was let go for nothing"
            return
        assert not talk.polls.total(), "a poll was not answered"
        if talk.run is not None:
            run = self.guest.supervisor.find(talk.run[1])
            assert run is None or run.phase in {Phase.STARTING, Phase.STOPPING}, "whoever asked was not answered"

    def check_message(self, talk: Talk, message: Event) -> None:
        match message:
            case Running(re, run_id, previous=previous):
                assert talk.run is not None
                assert re == talk.run[0]
                self.check_service(talk, run_id)
                talk.run = None
                if previous is not None:
                    assert previous.run not in self.collected
                    self.check_outcome(talk, previous.run, previous.outcome)
            case Status(re):
                self.answered(talk, re)
            case Stopping(re):
                assert re == talk.stop
                talk.stop = None
            case Ended(re, run_id, outcome):
                self.check_outcome(talk, run_id, outcome)
                if re is not None:
                    self.answered(talk, re)
            case Refused(re):
                if re is not None:
                    self.answered(talk, re)
            case Error(re):
                assert (re is None) == talk.over
                if re is not None:
                    self.answered(talk, re)
            case _:
                raise AssertionError(f"nobody expected {message!r}")

    def check_service(self, talk: Talk, run_id: str) -> None:
        assert talk.run is not None
        wanted = talk.run[2]
        assert wanted is None or wanted == self.guest.applications[run_id].service

    def check_outcome(self, talk: Talk, run_id: str, outcome: Outcome) -> None:
        talk.told.add(run_id)
        true = self.guest.applications[run_id].state.outcome if run_id in self.guest.applications else None
        assert outcome == true or isinstance(outcome, Lost)

    @staticmethod
    def answered(talk: Talk, seq: int) -> None:
        """Take what this number stands for: numbers repeat, so it may be one of several."""
        if talk.polls[seq]:
            talk.polls[seq] -= 1
        elif talk.run is not None and talk.run[0] == seq:
            talk.run = None
        else:
            assert talk.stop == seq, "an answer to nothing"
            talk.stop = None

    @invariant()
    def whoever_behaves_is_answered_at_once(self) -> None:
        talk = self.guest.talks[GOOD]
        before = self.stage.clock.current_time()
        talk.polls[7] += 1
        self.say(GOOD, Poll(7))
        assert self.stage.clock.current_time() == before

    @invariant()
    def only_who_was_told_has_collected(self) -> None:
        for record in self.guest.records.all():
            assert record.is_collected() == (record.run_id in self.collected)

    @invariant()
    def the_limit_holds(self) -> None:
        assert self.guest.supervisor.count_active() <= self.guest.supervisor._table.max_processes


TestConversations = Conversations.TestCase
TestConversations.settings = settings(
    deadline=None, max_examples=8, stateful_step_count=25, derandomize=True, database=None
)

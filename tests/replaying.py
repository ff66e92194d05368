"""Today's manager and today's server, each in the part that a released one played in a recorded story."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio
import trio.testing
from playedguest import PlayedGuest
from released import BOUND, Step, Story

from appmgr.manager import Action, Finish, Manager, Send
from appmgr.options import ManagerOptions, parse_options
from appserver.codec import decode, encode
from appserver.messages import Bye, Ended, Greeting, Hello, Message, Poll, Running, ServerMessage, Stopping
from appserver.outcome import Account, Outcome, Signaled
from appserver.protocol import choose_version
from appserver.session import PeerName, Session
from appserver.version import software

PATIENCE_SECONDS = 10.0
"""Of the mock clock: an answer comes at once, or never."""

SAME = ("type", "re", "seq", "run", "state", "attached", "code", "form", "line", "argv", "kind", "timeout_seconds")
"""Fields whose values are compared; of the others, which are times and sizes and texts, that they are there."""


def says_at_least(today: object, then: object) -> bool:
    """Tell whether an object has all that another has; the null of then may be something by now."""
    if not isinstance(then, dict) or not isinstance(today, dict):
        return True
    return all(
        name in today
        and (name not in SAME or today[name] == value)
        and (value is None or says_at_least(today[name], value))
        for name, value in then.items()
    )


@dataclass
class Conversation:
    """One connection: what began it, and what this side of today said in it."""

    greeting: str = ""
    hello: str = ""
    by_manager: list[str] = field(default_factory=list)
    by_server: list[str] = field(default_factory=list)


class ManagerReplay:
    """Today's policy of the manager, told what a released server said; it has to say what the released one did."""

    def __init__(self, words: list[str], steps: list[Step]) -> None:
        options = parse_options(["-node", "g1", *words])
        assert isinstance(options, ManagerOptions)
        said = [json.loads(step.rest) for step in steps if step.what == "M"]
        self._steps = steps
        self._now = 0.0
        self._manager = Manager(options, next(one["run"] for one in said if "run" in one), 0.0)
        self._unsaid: list[Message] = []
        self.conversations: list[Conversation] = []
        self.finished: int | None = None

    def play(self) -> None:
        for step in self._steps:
            self._now += 0.001
            match step.what:
                case "connect":
                    self.conversations.append(Conversation())
                case "S":
                    self._hear(step.rest)
                case "M":
                    self._say(step.rest)
                case "close" if self.finished is None:
                    self._do(self._manager.disconnected("closed", self._now))
                case "signal":
                    self._do(self._manager.signalled(int(step.rest), self._now))
        assert not self._unsaid

    def _hear(self, line: str) -> None:
        message = decode(line.encode())
        if isinstance(message, Greeting):
            self.conversations[-1].greeting = line
            assert choose_version(message.versions) is not None
        else:
            assert isinstance(message, ServerMessage)
            self._do(self._manager.received(message, self._now))

    def _say(self, line: str) -> None:
        then = decode(line.encode())
        now: Message
        if isinstance(then, Hello):
            now = Hello(then.version, software("cmappmgr"), "node1", 7, self._manager.poll_seconds)
            self._do(self._manager.connected(self._now))
        else:
            if isinstance(then, Poll):
                self._now = self._manager.deadline()
                self._do(self._manager.tick(self._now))
            if isinstance(then, Bye) and self.finished is not None:
                self._unsaid.append(then)  # that is the link's to say
            assert self._unsaid, f"nothing is said in place of {line}"
            now = self._unsaid.pop(0)
        said = encode(now).decode().rstrip()
        assert says_at_least(json.loads(said), json.loads(line)), said
        self.conversations[-1].by_manager.append(said)

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._unsaid.append(message)
                case Finish(status):
                    self.finished = status


class ServerReplay:
    """Today's server with applications that are played, asked what a released manager asked."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self._directory = directory
        self._nursery = nursery
        self._session: Session | None = None
        self._guests = 0
        self._last_run = ""
        self._buffer = b""
        self.conversations: list[Conversation] = []

    async def begin(self) -> None:
        self._guests += 1
        self._guest = PlayedGuest(self._directory / str(self._guests), BOUND)
        await self._guest.begin(self._nursery)

    async def play(self, step: Step) -> None:
        match step.what, step.rest:
            case "connect", _:
                self._stream, theirs = trio.testing.memory_stream_pair()
                peer = PeerName("192.0.2.7", "AB:CD")
                self._session = Session(theirs, self._guest.supervisor, self._guest.log.as_report(), peer)
                self._guest.serve_soon(self._session)
                self.conversations.append(Conversation())
                self._buffer = b""
            case "M", line:
                if not self.conversations[-1].hello:
                    self.conversations[-1].hello = line
                await self._stream.send_all(line.encode() + b"\n")
            case "S", line:
                await self._expect(line)
            case "close", _:
                await self._stream.aclose()
            case "application", _:
                account = Account(1.5, 1.0, 0.25, 0.25, 4096, survivors=0)
                self._end(self._last_run, Signaled(9, account))
            case "server", "ends":
                assert self._session is not None
                self._session.let_go("the server ends, for a restart or for good")
            case "server", _:
                await self.begin()
        await self._guest.settle()

    async def _expect(self, line: str) -> None:
        await self._act(decode(line.encode()))
        await self._guest.settle()
        while b"\n" not in self._buffer:
            with trio.fail_after(PATIENCE_SECONDS):
                data = await self._stream.receive_some(65536)
            assert data, f"the server closed in place of {line}"
            self._buffer += data
        said, _, self._buffer = self._buffer.partition(b"\n")
        if "does not know messages" not in line:  # what was not known then may be by now
            assert says_at_least(json.loads(said), json.loads(line)), said
        self.conversations[-1].by_server.append(said.decode())

    async def _act(self, message: object) -> None:
        """Have done to the application what the server then told of."""
        applications, processes = self._guest.applications, self._guest.processes
        match message:
            case Running(run=run, attached=False):
                processes.start(run, fails=False)
                self._last_run = run
            case Stopping(run=run):
                assert applications[run].ordered
                processes.accept_stop(run)
            case Ended(run=run, outcome=outcome) if run in applications:
                self._end(run, outcome)

    def _end(self, run: str, outcome: Outcome) -> None:
        state = replace(self._guest.applications[run].state, phase="ended", outcome=outcome, gone=True)
        self._guest.processes.change(run, state)


async def replay_server(story: Story, directory: Path) -> list[Conversation]:
    """Play a story to its end. Raises AssertionError where today's server says something else."""
    async with trio.open_nursery() as nursery:
        replay = ServerReplay(directory, nursery)
        await replay.begin()
        for step in story.steps:
            await replay.play(step)
        nursery.cancel_scope.cancel()
    return replay.conversations

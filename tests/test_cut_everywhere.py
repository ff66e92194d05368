"""The whole pair but its wire: the manager's policy and link, the server's session, table and records. The first
connection is cut after the n-th byte, for each n; the exit status is right all the same, and one copy was started.
"""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import figures
import pytest
import trio
import trio.testing
from playedguest import PlayedGuest

from appmgr.dial import Contact
from appmgr.manager import Manager
from appmgr.options import ManagerOptions
from appmgr.watch import watch
from appserver.identity import Service
from appserver.messages import Hello
from appserver.outcome import Exited
from appserver.report import Level
from appserver.session import PeerName, Session

OWN = "a" * 32
LINE = Service("line", ("/bin/true",))
HELLO = Hello(1, "cmappmgr 0.1.0", "node1", 1, 5.0)

RUNS_SECONDS = 12.0
"""Virtual: two polls are answered, and the end is pushed between two."""

LOOK_SECONDS = 0.25
"""How often it is played what becomes of the applications; longer than a reconnection takes."""


class Wire(trio.abc.Stream):
    """Cuts both directions after so many bytes of both together."""

    def __init__(self, stream: trio.abc.Stream, bytes_left: float) -> None:
        self._stream = stream
        self._left = bytes_left
        self.passed = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        part = bytes(data)[: self._take(len(data))]
        await self._stream.send_all(part)
        await self._cut_if_short(part, data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        part = data[: self._take(len(data))]
        await self._cut_if_short(part, data)
        return part

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def _take(self, count: int) -> int:
        taken = int(min(count, self._left))
        self._left -= taken
        self.passed += taken
        return taken

    async def _cut_if_short(self, part: bytes, data: bytes | bytearray | memoryview) -> None:
        if len(part) < len(data):
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("Connection reset by peer (errno:104)")


class Lines:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def log(self, level: Level, text: str) -> None:
        self.texts.append(f"{level}: {text}")


class Nobody:
    """No signal came before the loop."""

    def take_over(self) -> tuple[int, ...]:
        return ()


@dataclass
class Story:
    """What happens beside the cut, and what the manager has to end with."""

    name: str
    status: int
    on_halt_stop: bool = False
    halted_at: float = math.inf
    restarted_at: float = math.inf


STORIES = (
    Story("to the end", 7),
    Story("a stop", 3, on_halt_stop=True, halted_at=8.0),
    Story("a restart of the server", 7, restarted_at=8.0),
    Story("a restart of the server during a stop", 3, on_halt_stop=True, halted_at=8.0, restarted_at=8.1),
)


@dataclass
class Told:
    status: int
    passed: int
    starts: int
    log: list[str]


class Scene:
    def __init__(self, directory: Path, story: Story, cut_after: float) -> None:
        self._story = story
        self._cut_after = cut_after
        self._wires: list[Wire] = []
        self._guest = PlayedGuest(directory, 2)

    async def play(self) -> Told:
        lines = Lines()
        options = ManagerOptions("g1", LINE, on_halt="stop" if self._story.on_halt_stop else "detach")
        async with trio.open_nursery() as nursery:
            await self._guest.begin(nursery)
            nursery.start_soon(self._play_applications)
            nursery.start_soon(self._play_events, nursery)
            manager = Manager(options, OWN, trio.current_time())
            status = await watch(
                manager,
                self._dial,
                lambda _: HELLO,
                lines,
                signals=(signal.SIGTERM,),
                early=Nobody(),
                greeting_seconds=10.0,
                reminders=list,
            )
            nursery.cancel_scope.cancel()
        return Told(status, self._wires[0].passed, len(self._guest.applications), lines.texts)

    async def _dial(self) -> Contact:
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        wire = Wire(near, math.inf if self._wires else self._cut_after)
        self._wires.append(wire)
        session = Session(far, self._guest.supervisor, self._guest.log.as_report(), PeerName("192.0.2.7", "AB"))
        self._guest.serve_soon(session)
        return Contact(wire)

    async def _play_applications(self) -> None:
        began: dict[str, float] = {}
        while True:
            for run_id, application in list(self._guest.applications.items()):
                state = application.state
                processes = self._guest.processes
                if state.phase == "starting":
                    began[run_id] = trio.current_time()
                    processes.start(run_id, fails=False)
                elif state.outcome is None and application.ordered:
                    processes.accept_stop(run_id)
                    processes.end(run_id, Exited(3), gone=True)
                elif state.outcome is None and trio.current_time() >= began[run_id] + RUNS_SECONDS:
                    processes.end(run_id, Exited(7), gone=True)
            await trio.sleep(LOOK_SECONDS)

    async def _play_events(self, nursery: trio.Nursery) -> None:
        moments: list[tuple[float, Callable[[], object]]] = [
            (self._story.halted_at, lambda: signal.raise_signal(signal.SIGTERM)),
            (self._story.restarted_at, lambda: None),
        ]
        began = trio.current_time()
        for moment, happen in moments:
            if moment < math.inf:
                await trio.sleep_until(began + moment)
                happen()
        if self._story.restarted_at < math.inf:
            await self._guest.restart(nursery)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look programs up at once: a clock that jumps does not wait for threads."""

    async def run_sync(call: Callable[[object], object], word: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return call(word)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


def play(directory: Path, story: Story, cut_after: float = math.inf) -> Told:
    place = directory / f"{story.name} {cut_after}"
    place.mkdir()
    scene = Scene(place, story, cut_after)
    told: list[Told] = []

    async def main() -> None:
        with trio.fail_after(1000):
            told.append(await scene.play())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return told[0]


def check(story: Story, told: Told, cut_after: float) -> None:
    assert told.status == story.status, (cut_after, told.log)
    assert told.starts == 1, (cut_after, told.log)
    assert sum("lost contact" in text for text in told.log) <= 2, told.log


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_cut_around_the_end_of_each_message_changes_nothing(tmp_path: Path, inline: None, story: Story) -> None:
    whole = play(tmp_path, story)
    check(story, whole, math.inf)
    for cut_after in range(0, whole.passed, max(1, whole.passed // 12)):
        check(story, play(tmp_path, replace(story), cut_after), cut_after)


@pytest.mark.fuzz
def test_a_cut_after_any_byte_changes_nothing(tmp_path: Path, inline: None) -> None:
    rows = []
    for story in STORIES:
        whole = play(tmp_path, story).passed
        for cut_after in range(whole):
            check(story, play(tmp_path, story, cut_after), cut_after)
        rows.append([story.name, str(whole), "0"])
    figures.record("cuts", ["story", "cut after each of so many bytes", "wrong"], rows, "Two cores, shared.")

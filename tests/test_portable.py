"""The portable backend, driven on this system: the server is the parent, psutil tells the rest."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from appserver.attributes import PLAIN, Account, Attributes, Limit
from appserver.census import Seen, Tree, creation_time, is_alive
from appserver.effects import Terms
from appserver.identity import Service
from appserver.opening import outcome_from_returncode
from appserver.outcome import NOTHING_KNOWN, Exited, Lost, Signaled
from appserver.portable import PortableProcesses
from appserver.procfs import boot_id
from appserver.recordformat import RecordError, Request, State
from appserver.records import Records, StateFile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="drives it with POSIX commands")

PATIENCE_SECONDS = 20
ENVIRONMENT = {"PATH": os.defpath, "GREETING": "hello"}
STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(600)
    os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


class Guest:
    """One state directory, the server of the moment, and what was told of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = Records(str(path / "state"))
        self.records.prepare()
        self.processes = PortableProcesses(self.records, ENVIRONMENT)
        self.states: list[State] = []
        self.stopping = 0
        self._news = trio.Event()

    def record(
        self,
        *argv: str,
        state: State | None = None,
        boot: str | None = None,
        log_max_bytes: int = 1 << 20,
        attributes: Attributes = PLAIN,
    ) -> None:
        log_path = str(self.path / "log")
        service = Service("vector", argv)
        request = Request("r1", service, argv[0], argv, log_path, log_max_bytes, boot or boot_id(), time.time())
        self.records.create(replace(request, attributes=attributes), state or State())

    async def follow(self) -> None:
        await self.processes.follow("r1", changed=self._changed, stopping=self._stopping)

    def _changed(self, state: State) -> None:
        self.states.append(state)
        self._news.set()
        self._news = trio.Event()

    def _stopping(self) -> None:
        self.stopping += 1

    async def until(self, wanted: Callable[[State], bool]) -> State:
        with trio.fail_after(PATIENCE_SECONDS):
            while not (self.states and wanted(self.states[-1])):
                await self._news.wait()
        return self.states[-1]

    def restart_server(self) -> None:
        self.processes = PortableProcesses(self.records, ENVIRONMENT)

    @property
    def on_record(self) -> State:
        return self.records.get("r1").read_state()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[trio.CancelScope]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.follow)
            yield nursery.cancel_scope

    async def run(self, *argv: str, attributes: Attributes = PLAIN) -> State:
        self.record(*argv, attributes=attributes)
        with trio.fail_after(PATIENCE_SECONDS):
            await self.follow()
        assert self.on_record == self.states[-1]
        return self.states[-1]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


async def wait_for_file(path: trio.Path) -> str:
    with trio.fail_after(PATIENCE_SECONDS):
        while not await path.exists():  # noqa: ASYNC110  (another process makes it)
            await trio.sleep(0.01)
    return await path.read_text()


@pytest.mark.parametrize("code", [0, 3, 255])
async def test_an_exit_code_is_the_outcome(guest: Guest, code: int) -> None:
    state = await guest.run("/bin/sh", "-c", f"exit {code}")
    assert state.outcome is not None
    assert state.outcome == Exited(code, state.outcome.account)
    assert (state.phase, state.gone, state.outcome.account.survivors) == ("ended", True, 0)
    assert [seen.phase for seen in guest.states] == ["starting", "starting", "running", "ended", "ended"]


async def test_a_signal_is_the_outcome(guest: Guest) -> None:
    state = await guest.run("/bin/sh", "-c", "kill -KILL $$")
    assert state.outcome is not None
    assert state.outcome == Signaled(9, state.outcome.account)
    assert state.outcome.account.stopped_by is None
    assert state.outcome.account.ran_seconds is not None


async def test_the_application_gets_what_the_contract_grants(guest: Guest) -> None:
    script = 'read line; echo "$? $(pwd) $(umask) $GREETING ${HOME-none} $(ls /proc/self/fd | wc -l)"; echo err >&2'
    await guest.run("/bin/sh", "-c", script)
    log = guest.path / "log"
    assert log.read_text() == "1 / 0022 hello none 4\nerr\n"  # descriptors 0 to 2, and the one that ls reads with
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda _: None, "no-such-command"),
        (lambda path: path.mkdir(), "is-a-directory"),
        (lambda path: path.write_text("#!/bin/sh\n"), "not-executable"),
        (lambda path: (path.write_text("#!/no/such/interpreter\n"), path.chmod(0o755)), "no-such-command"),
        (lambda path: (path.write_bytes(b"\x7fELF"), path.chmod(0o755)), "start-failed"),
    ],
    ids=["absent", "directory", "not executable", "interpreter missing", "no binary"],
)
async def test_what_cannot_be_started_is_refused_with_its_code(
    guest: Guest, make: Callable[[Path], object], code: str
) -> None:
    program = guest.path / "program"
    make(program)
    state = await guest.run(str(program))
    assert state.phase == "failed"
    assert state.failure is not None
    assert state.failure[0] == code
    assert str(program) in state.failure[1]
    assert (state.gone, state.pid, state.outcome) == (True, None, None)


async def test_a_rule_gives_directory_and_environment_here_too(guest: Guest) -> None:
    attributes = Attributes(directory="/usr", environment=(("EXTRA", "a=b"), ("PATH", "/elsewhere")))
    state = await guest.run("/bin/sh", "-c", 'pwd; echo "$EXTRA $PATH"', attributes=attributes)
    assert state.outcome is not None
    assert (guest.path / "log").read_text() == "/usr\na=b /elsewhere\n"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="another user is root's to give")
async def test_a_rule_gives_a_user_here_too(guest: Guest) -> None:
    state = await guest.run("/bin/sh", "-c", "id -u; id -g; id -G", attributes=Attributes(Account(1, 2, (2, 3))))
    assert state.outcome is not None
    assert (guest.path / "log").read_text() == "1\n2\n2 3\n"
    assert (guest.path / "log").stat().st_uid == 1


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (Attributes(directory="/nowhere"), "the directory '/nowhere' that its rule names cannot be entered"),
        (Attributes(limits=(Limit("core", 0, 0),)), "nobody can set them between fork and exec"),
    ],
)
async def test_what_a_rule_wants_and_this_way_cannot_give_refuses_the_start(
    guest: Guest, attributes: Attributes, told: str
) -> None:
    state = await guest.run("/bin/true", attributes=attributes)
    assert state.failure is not None
    assert state.failure[0] == "start-failed"
    assert told in state.failure[1]


async def test_a_server_that_lets_go_and_follows_again_still_learns_the_code(guest: Guest) -> None:
    fifo = guest.path / "go"
    os.mkfifo(fifo)
    guest.record("/bin/sh", "-c", f"read go < {fifo}; exit 5")
    async with guest.following() as scope:
        await guest.until(lambda state: state.phase == "running")
        scope.cancel()
    fd = os.open(fifo, os.O_RDWR)
    os.write(fd, b"go\n")
    with trio.fail_after(PATIENCE_SECONDS):
        await guest.follow()
    os.close(fd)
    outcome = guest.on_record.outcome
    assert outcome is not None
    assert outcome == Exited(5, outcome.account)


async def test_a_process_found_again_after_a_restart_is_watched_and_its_outcome_is_lost(guest: Guest) -> None:
    guest.record("/bin/sleep", "600")
    former = guest.processes
    async with guest.following() as scope:
        started = await guest.until(lambda state: state.phase == "running")
        scope.cancel()
    assert started.pid is not None
    assert started.start_ticks is not None
    guest.restart_server()
    guest.states.clear()
    async with guest.following():
        assert await guest.until(lambda state: state.phase == "running") == started
        usage = guest.processes.usage(started.pid, started.start_ticks)
        assert usage is not None
        assert usage.rss_bytes > 0
        assert guest.processes.usage(started.pid, started.start_ticks + 1) is None
        os.kill(started.pid, signal.SIGKILL)
        ended = await guest.until(lambda state: state.gone)
    assert isinstance(ended.outcome, Lost)
    assert "only the parent learns" in ended.outcome.reason
    await former._let_go["r1"].wait()


async def test_a_process_found_again_can_be_stopped(guest: Guest) -> None:
    guest.record("/bin/sleep", "600")
    former = guest.processes
    async with guest.following() as scope:
        await guest.until(lambda state: state.phase == "running")
        scope.cancel()
    guest.restart_server()
    async with guest.following():
        await trio.testing.wait_all_tasks_blocked()
        guest.processes.order_stop("r1", "admin", 30)
        ended = await guest.until(lambda state: state.gone)
    assert guest.stopping == 1
    assert isinstance(ended.outcome, Lost)
    assert ended.outcome.account.stopped_by == "admin"
    assert await former._let_go["r1"].wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("state", "boot", "words"),
    [
        (State(started_at=1.0, started_monotonic=1.0), None, "while it was being started"),
        (State(phase="running", pid=os.getpid(), start_ticks=1), None, "only the parent learns"),
        (State(phase="running", pid=os.getpid(), start_ticks=None), None, "only the parent learns"),
        (State(phase="running", pid=os.getpid(), start_ticks=creation_time(os.getpid())), "another", "rebooted"),
        (State(phase="running", pid=2**22 + 1, start_ticks=1), None, "only the parent learns"),
    ],
    ids=["start of unknown fate", "pid of somebody else", "no start time", "another boot", "gone"],
)
async def test_nothing_is_adopted_by_mistake(guest: Guest, state: State, boot: str | None, words: str) -> None:
    guest.record("/bin/sh", "-c", "echo started twice", state=state, boot=boot)
    with trio.fail_after(PATIENCE_SECONDS):
        await guest.follow()
    found = guest.on_record
    assert isinstance(found.outcome, Lost)
    assert words in found.outcome.reason
    assert found.outcome.account == NOTHING_KNOWN  # nothing is made up
    assert guest.states == [state, found]
    assert found.gone
    assert not (guest.path / "log").exists()


async def test_a_stop_ends_a_stubborn_grandchild_with_a_session_of_its_own(guest: Guest) -> None:
    pid_file = guest.path / "grandchild"
    guest.record(sys.executable, "-S", "-c", STUBBORN + "time.sleep(600)", str(pid_file))
    async with guest.following():
        grandchild = int(await wait_for_file(trio.Path(pid_file)))
        created = creation_time(grandchild)
        assert created is not None
        guest.processes.order_stop("r1", "admin", 60)
        ended = await guest.until(lambda state: state.outcome is not None)
        assert not ended.gone
        assert is_alive(grandchild, created)
        guest.processes.order_stop("r1", "somebody else", 0.1)
        gone = await guest.until(lambda state: state.gone)
    assert not is_alive(grandchild, created)
    assert gone.outcome is not None
    assert gone.outcome == Signaled(signal.SIGTERM, gone.outcome.account)
    assert gone.outcome.account.stopped_by == "admin"
    assert gone.outcome.account.survivors in {1, 2}  # the one between them may end a moment later
    assert gone.stop is not None
    assert gone.stop.by == "admin"


async def test_a_stop_that_comes_before_the_run_is_followed_is_kept(guest: Guest) -> None:
    guest.record("/bin/sleep", "600")
    guest.processes.order_stop("r1", "admin", 30)
    with trio.fail_after(PATIENCE_SECONDS):
        await guest.follow()
    outcome = guest.on_record.outcome
    assert outcome is not None
    assert outcome == Signaled(signal.SIGTERM, outcome.account)
    assert (guest.stopping, outcome.account.stopped_by) == (1, "admin")


async def test_terms_that_come_before_the_run_is_followed_are_kept(guest: Guest) -> None:
    guest.record("/bin/true")
    guest.processes.set_terms("r1", Terms("stop", 7.0))
    with trio.fail_after(PATIENCE_SECONDS):
        await guest.follow()
    assert (guest.on_record.survivors, guest.on_record.stop_timeout_seconds) == ("stop", 7.0)


async def test_a_process_that_is_suspended_notices_a_stop(guest: Guest) -> None:
    guest.record("/bin/sleep", "600")
    async with guest.following():
        state = await guest.until(lambda state: state.phase == "running")
        assert state.pid is not None
        os.kill(state.pid, signal.SIGSTOP)
        guest.processes.order_stop("r1", "admin", 60)
        ended = await guest.until(lambda state: state.gone)
    assert isinstance(ended.outcome, Signaled)
    assert ended.outcome.number == signal.SIGTERM


async def test_survivors_are_left_alone_and_counted(guest: Guest) -> None:
    guest.record("/bin/sh", "-c", "sleep 600 & exit 4")
    async with guest.following():
        ended = await guest.until(lambda state: state.outcome is not None)
        assert ended.outcome is not None
        assert ended.outcome == Exited(4, ended.outcome.account)
        assert (ended.outcome.account.survivors, ended.gone, ended.stop) == (1, False, None)
        guest.processes.order_stop("r1", "admin", 30)
        await guest.until(lambda state: state.gone)


async def test_survivors_are_ended_where_the_terms_say_so(guest: Guest) -> None:
    guest.record("/bin/sh", "-c", f"sleep 600 & read go < {guest.path}/go; exit 4")
    os.mkfifo(guest.path / "go")
    async with guest.following():
        await guest.until(lambda state: state.phase == "running")
        guest.processes.set_terms("r1", Terms("stop", 20.0))
        fd = os.open(guest.path / "go", os.O_RDWR)
        os.write(fd, b"go\n")
        gone = await guest.until(lambda state: state.gone)
        os.close(fd)
    assert gone.outcome is not None
    assert gone.outcome == Exited(4, gone.outcome.account)
    assert (gone.outcome.account.survivors, gone.outcome.account.stopped_by) == (1, None)
    assert gone.stop is not None


async def test_survivors_of_a_former_server_are_nobodys(guest: Guest) -> None:
    ended = State(phase="ended", pid=1, start_ticks=1, outcome=Exited(4))
    guest.record("/bin/true", state=ended)
    await guest.follow()
    assert guest.on_record.outcome == Exited(4)
    assert guest.on_record.gone


async def test_a_log_is_trimmed_while_the_application_writes(guest: Guest) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; sleep 600"
    guest.record("/bin/sh", "-c", script, log_max_bytes=2000)
    async with guest.following():
        with trio.fail_after(PATIENCE_SECONDS):
            log = guest.path / "log"
            while not (log.exists() and "line 4999\n" in log.read_text() and log.stat().st_size <= 2000):  # noqa: ASYNC110
                await trio.sleep(0.05)
        guest.processes.order_stop("r1", "admin", 0)
    assert log.read_text().startswith("[")


async def test_a_state_that_cannot_be_written_does_not_end_the_watch(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: StateFile, _state: State) -> None:
        raise RecordError("input/output error")

    monkeypatch.setattr(StateFile, "write", refuse)
    guest.record("/bin/sh", "-c", "exit 6")
    with trio.fail_after(PATIENCE_SECONDS):
        await guest.follow()
    outcome = guest.states[-1].outcome
    assert outcome is not None
    assert outcome == Exited(6, outcome.account)


@pytest.mark.parametrize(
    ("platform", "code", "outcome"),
    [
        ("linux", 0, Exited(0)),
        ("linux", 255, Exited(255)),
        ("linux", -15, Signaled(15)),
        ("win32", 0, Exited(0)),
        ("win32", 0xC0000005, Exited(0xC0000005)),
        ("win32", -1073741819, Exited(0xC0000005)),
        ("win32", -1, Exited(0xFFFFFFFF)),
    ],
)
def test_a_return_code_means_what_the_system_means_by_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, code: int, outcome: Exited | Signaled
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert outcome_from_returncode(code) == outcome


MAIN = Seen(100, 1, 50, 100)


def keys(tree: Tree) -> set[int]:
    return {pid for pid, _ in tree.living}


@pytest.mark.parametrize(
    ("looks", "members"),
    [
        ([[MAIN, Seen(101, 100, 51, 100), Seen(102, 101, 52, 102), Seen(9, 1, 1, 9)]], {100, 101, 102}),
        ([[Seen(101, 1, 51, 100)]], {101}),
        ([[MAIN, Seen(102, 100, 52, 102)], [Seen(102, 1, 52, 102)]], {102}),
        ([[MAIN], [Seen(102, 100, 52, 102)], [Seen(103, 102, 53, 102)]], {103}),
        ([[MAIN, Seen(102, 100, 52, 102)], [Seen(102, 1, 99, 102)]], set()),
        ([[MAIN], [Seen(9, 100, 49, 9)]], set()),
        ([[MAIN], [Seen(100, 1, 90, 100), Seen(105, 100, 91, 100)]], set()),
        ([[MAIN], [], [Seen(105, 1, 51, 100)]], {105}),
        ([[MAIN], [], [], [Seen(105, 100, 91, 100)]], set()),
        ([[MAIN], [Seen(100, 1, 90, None), Seen(102, 100, 80, None)]], {102}),
    ],
    ids=[
        "by descent, whatever the session",
        "by session, without a parent",
        "a member stays one when its parent dies",
        "a parent that died between two looks vouches once more",
        "a pid that was used again is a stranger",
        "a child older than its parent is a stranger's",
        "a stranger who got the main pid, and its session",
        "one look may miss a process",
        "a session that has died out counts no more",
        "a child left before its parent's pid was used again",
    ],
)
def test_who_belongs_to_a_tree(looks: list[list[Seen]], members: set[int]) -> None:
    tree = Tree((100, 50))
    for look in looks:
        tree.update(look)
    assert keys(tree) == members


def test_a_main_process_that_has_ended_is_no_member_even_if_it_is_still_shown() -> None:
    tree = Tree((100, 50))
    tree.update([MAIN])
    tree.main_ended()
    tree.update([MAIN, Seen(101, 100, 51, None)])
    assert keys(tree) == {101}


def test_a_tree_has_died_out_only_when_two_looks_in_a_row_show_nobody() -> None:
    tree = Tree((100, 50))
    found = []
    for look in ([MAIN], [], [Seen(101, 1, 51, 100)], [], []):
        tree.update(look)
        found.append(tree.has_died_out)
    assert found == [False, False, False, False, True]

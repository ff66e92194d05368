"""What lies between the server and an application on Linux: kernel, signals, spawning, launcher, waiter, follower."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
from fakes import Log
from pair import Guest, python, wait_until

from appserver import memory
from appserver.attributes import PLAIN
from appserver.effects import Terms
from appserver.identity import Service
from appserver.kernel import outcome_from_wait_status, outcome_of_stranger
from appserver.outcome import Account, Exited, Signaled
from appserver.procfs import Stat, boot_id, descendants, is_same_process, process_stat
from appserver.recordformat import Request, State, StopOrder
from appserver.records import Records, RunRecord
from appserver.signalling import kill, signal_process, terminate
from appserver.spawn import Program, explain_report, spawn
from appserver.waited import WaitedProcesses
from appserver.waiter import CONTROL_VERSION, MAX_CONNECTIONS, MAX_ORDER_BYTES, Waiter

PATIENCE_SECONDS = 30
FIXTURES = Path(__file__).parent / "fixtures"
RUN = "0123456789abcdef0123456789abcdef"

FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@contextmanager
def child(*argv: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A child and the ticks at which it started; it is killed at the end."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        stat = process_stat(process.pid)
        assert stat is not None
        try:
            yield process, stat.start_ticks
        finally:
            process.kill()


def stat_of(pid: int) -> Stat:
    stat = process_stat(pid)
    assert stat is not None
    return stat


def kernel_tells_strangers() -> bool:
    major, minor = (int("".join(filter(str.isdigit, part))) for part in os.uname().release.split(".")[:2])
    return (major, minor) >= (6, 15)


@pytest.mark.parametrize(
    ("script", "outcome"), [("exit 0", Exited(0)), ("exit 7", Exited(7)), ("kill -9 $$", Signaled(9))]
)
def test_end_of_a_zombie_is_told(script: str, outcome: Exited | Signaled) -> None:
    with child("/bin/sh", "-c", f"read x; {script}") as (process, start_ticks):
        pidfd = os.pidfd_open(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        select.select([pidfd], [], [], PATIENCE_SECONDS)
        assert outcome_of_stranger(pidfd, process.pid, start_ticks) == outcome
        os.close(pidfd)


@pytest.mark.parametrize(
    ("script", "outcome"), [("exit 0", Exited(0)), ("exit 7", Exited(7)), ("kill -9 $$", Signaled(9))]
)
def test_end_of_one_that_was_reaped_is_told_where_the_kernel_knows_and_never_made_up(
    script: str, outcome: Exited | Signaled
) -> None:
    with child("/bin/sh", "-c", f"read x; {script}") as (process, start_ticks):
        pidfd = os.pidfd_open(process.pid)
        process.communicate(b"\n", PATIENCE_SECONDS)
        found = outcome_of_stranger(pidfd, process.pid, start_ticks)
        assert found == (outcome if kernel_tells_strangers() else None)
        os.close(pidfd)


def test_one_that_lives_has_no_outcome() -> None:
    with child("/bin/cat") as (process, start_ticks):
        pidfd = os.pidfd_open(process.pid)
        assert outcome_of_stranger(pidfd, process.pid, start_ticks) is None
        os.close(pidfd)


def test_zombie_that_has_the_pid_but_another_start_is_not_taken_for_it() -> None:
    with child("/bin/sh", "-c", "exit 0") as (process, start_ticks), child("/bin/cat") as (other, _):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        pidfd = os.pidfd_open(other.pid)
        assert outcome_of_stranger(pidfd, process.pid, start_ticks + 1) is None
        os.close(pidfd)


def test_end_of_one_that_is_dead_and_not_yet_released_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def released_in_a_moment(pid: int) -> Stat | None:
        stat = process_stat(pid)
        return stat and stat._replace(state="X")

    monkeypatch.setattr("appserver.kernel.process_stat", released_in_a_moment)
    with child("/bin/sh", "-c", "exit 7") as (process, start_ticks), child("/bin/cat") as (other, _):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        pidfd = os.pidfd_open(other.pid)  # by which the kernel tells nothing yet
        assert outcome_of_stranger(pidfd, process.pid, start_ticks) == Exited(7)
        os.close(pidfd)


@pytest.mark.skipif(not kernel_tells_strangers(), reason="needs PIDFD_GET_INFO with the exit code (Linux 6.15)")
def test_success_that_is_hidden_is_asked_about_again_when_the_process_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []

    def released_after_the_first_look(pid: int) -> Stat | None:
        looks.append(pid)
        if len(looks) == 2:
            process.wait()
        return process_stat(pid)

    monkeypatch.setattr("appserver.kernel._may_trace", lambda: False)
    monkeypatch.setattr("appserver.kernel.process_stat", released_after_the_first_look)
    with child("/bin/sh", "-c", "read x; exit 0") as (process, start_ticks):
        pidfd = os.pidfd_open(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        select.select([pidfd], [], [], PATIENCE_SECONDS)
        assert outcome_of_stranger(pidfd, process.pid, start_ticks) == Exited(0)
        os.close(pidfd)


def test_success_that_the_kernel_may_have_hidden_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appserver.kernel._may_trace", lambda: False)
    with child("/bin/sh", "-c", "exit 0") as (process, start_ticks), child("/bin/cat") as (other, _):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        pidfd = os.pidfd_open(other.pid)
        assert outcome_of_stranger(pidfd, process.pid, start_ticks) is None
        os.close(pidfd)


@pytest.mark.parametrize(
    ("status", "outcome"), [(0, Exited(0)), (7 << 8, Exited(7)), (9, Signaled(9)), (139, Signaled(11))]
)
def test_wait_status_is_translated(status: int, outcome: Exited | Signaled) -> None:
    assert outcome_from_wait_status(status) == outcome


def test_process_whose_first_thread_has_ended_still_lives() -> None:
    with child(sys.executable, "-c", FIRST_THREAD_ENDS) as (process, start_ticks):
        status = Path(f"/proc/{process.pid}/status")
        wait_until(lambda: "State:\tZ" in status.read_text(), "the end of the first thread")
        assert is_same_process(process.pid, start_ticks)
        assert process.pid in {stat.pid for stat in descendants(os.getpid())}
        kill([stat_of(process.pid)])
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_signal_never_hits_a_pid_with_another_start_time() -> None:
    with child("/bin/cat") as (process, start_ticks):
        for ticks in (start_ticks - 1, start_ticks + 1, 0):
            assert not signal_process(process.pid, ticks, signal.SIGKILL)
        kill([stat_of(process.pid)._replace(start_ticks=start_ticks + 1)])
        terminate([stat_of(process.pid)._replace(start_ticks=start_ticks + 1)], set())
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0  # it was not hit: cat has ended by itself
        assert not signal_process(process.pid, start_ticks, signal.SIGKILL)


def test_each_process_is_asked_once_and_a_stopped_one_hears_it() -> None:
    with child("/bin/cat") as (process, start_ticks):
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stat_of(process.pid).state == "T", "the stop")
        asked: set[tuple[int, int]] = set()
        terminate([stat_of(process.pid)], asked)
        assert (process.pid, start_ticks) in asked
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGTERM
    with child("/bin/cat") as (process, start_ticks):
        terminate([stat_of(process.pid)], {(process.pid, start_ticks)})
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        ("nothing", "no-such-command", "no such command"),
        ("under a file", "no-such-command", "not a directory"),
        ("directory", "is-a-directory", "is a directory"),
        ("without x", "not-executable", "permission denied"),
        ("no interpreter", "no-such-command", "interpreter is missing"),
        ("no program", "start-failed", "neither a binary"),
        ("too long", "start-failed", "too long"),
        ("a NUL", "start-failed", "Invalid argument"),
    ],
)
def test_what_cannot_be_executed_is_refused_with_its_code(tmp_path: Path, make: str, code: str, words: str) -> None:
    path = tmp_path / "command"
    argv: tuple[str, ...] = ("command",)
    if make == "directory":
        path.mkdir()
    elif make != "nothing":
        path.write_text({"no interpreter": "#!/nowhere/sh\n", "no program": "x\n"}.get(make, "#!/bin/sh\n"))
        path.chmod(0o644 if make == "without x" else 0o755)
    if make == "under a file":
        path /= "x"
    if make == "too long":
        argv = ("command", "x" * (1 << 21))
    if make == "a NUL":
        argv = ("command", "a\0b")
    with (tmp_path / "log").open("ab") as file:
        pid, _, report = spawn(lambda: (b"", Program(str(path), argv, {}, file.fileno(), PLAIN)))
    os.waitpid(pid, 0)
    error = explain_report(str(path), PLAIN, report)
    assert error.code == code
    assert words in str(error)
    assert str(path) in str(error)


class Room:
    """True records, launcher and waiters, and what was told of one run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records = Records(str(directory / "state"))
        self.records.prepare()
        self.log = Log()
        self.processes = WaitedProcesses(self.records, {"PATH": os.defpath}, self.log.as_report())
        self.states: list[State] = []
        self._news = trio.Event()

    @property
    def record(self) -> RunRecord:
        return self.records.get(RUN)

    def request(self, *argv: str) -> None:
        log_path = str(self.directory / "log")
        service = Service("vector", argv)
        self.records.create(Request(RUN, service, argv[0], argv, log_path, 1 << 20, boot_id(), 1.5), State())

    async def follow(self) -> None:
        await self.processes.follow(RUN, changed=self._changed, stopping=lambda: None)

    def _changed(self, state: State) -> None:
        self.states.append(state)
        self._news.set()
        self._news = trio.Event()

    async def until(self, wanted: Callable[[State], bool]) -> State:
        while not (self.states and wanted(self.states[-1])):
            await self._news.wait()
        return self.states[-1]

    def connect(self) -> socket.socket:
        # A socket's path may have 107 bytes only.
        directory = os.open(self.record.path, os.O_RDONLY | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE_SECONDS)
        try:
            connection.connect(f"/proc/self/fd/{directory}/control")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(directory)
        return connection


@asynccontextmanager
async def room(directory: Path, *argv: str) -> AsyncIterator[Room]:
    """A run of `argv`, followed."""
    made = Room(directory)
    made.request(*argv)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(made.processes.serve)
                nursery.start_soon(made.follow)
                await made.until(lambda state: state.phase != "starting")
                yield made
                nursery.cancel_scope.cancel()
    finally:
        state = made.states[-1] if made.states else State()
        if state.pid is not None and not state.gone:
            kill([stat for stat in [process_stat(state.pid)] if stat is not None])


async def test_follower_tells_the_start_and_the_end(tmp_path: Path) -> None:
    async with room(tmp_path, "/bin/sh", "-c", "exit 7") as made:
        state = await made.until(lambda state: state.gone)
        assert isinstance(state.outcome, Exited)
        assert state.outcome.code == 7
        assert made.processes.usage(state.pid or 0, state.start_ticks) is None


async def test_order_to_launch_that_comes_twice_starts_it_once(tmp_path: Path) -> None:
    """Its launcher died before it could answer, and its waiter a moment later."""
    made = Room(tmp_path)
    made.request("/bin/sh", "-c", f"echo >> {tmp_path}/starts; exec sleep 1000")
    pids = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.processes.serve)
            for _ in range(2):
                await made.processes._launching.order("launch", RUN)
                while made.record.read_state().phase == "starting":  # noqa: ASYNC110  (another process writes it)
                    await trio.sleep(0.01)
                pids.append(made.record.read_state().pid)
                with made.connect() as connection:
                    waiter = json.loads(connection.recv(MAX_ORDER_BYTES))["pid"]
                os.kill(waiter, signal.SIGKILL)
                while made.processes.is_watched(RUN):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    state = made.record.read_state()
    assert state.pid is not None
    assert signal_process(state.pid, state.start_ticks or 0, signal.SIGKILL)
    assert pids == [state.pid] * 2
    assert (tmp_path / "starts").read_text() == "\n"


async def test_orders_that_come_before_it_is_followed_are_carried_out(tmp_path: Path) -> None:
    made = Room(tmp_path)
    made.request("/bin/sleep", "1000")
    made.processes.set_terms(RUN, Terms("stop", 9.0))
    made.processes.order_stop(RUN, "somebody", 20.0)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.processes.serve)
            nursery.start_soon(made.follow)
            state = await made.until(lambda state: state.gone)
            assert isinstance(state.outcome, Signaled)
            assert state.outcome.account.stopped_by == "somebody"
            assert (state.survivors, state.stop_timeout_seconds) == ("stop", 9.0)
            nursery.cancel_scope.cancel()


def speak(connection: socket.socket, script: Path, waiter_pid: int) -> None:
    """Hold the conversation of a fixture: what a server of that version sent, and what it has to hear."""
    for line in script.read_text().splitlines():
        direction, _, packet = line.partition(" ")
        if direction == ">":
            connection.send(packet.encode())
        elif packet == "end":
            assert connection.recv(MAX_ORDER_BYTES) == b""
        else:
            expected = json.loads(packet.replace('"PID"', str(waiter_pid)))
            assert json.loads(connection.recv(MAX_ORDER_BYTES)) == expected


async def test_waiter_holds_the_conversation_of_every_control_version(tmp_path: Path) -> None:
    scripts = sorted(FIXTURES.glob("control-*.txt"))
    assert FIXTURES / f"control-{CONTROL_VERSION}.txt" in scripts
    for number, script in enumerate(scripts):
        async with room(tmp_path / str(number), "/bin/sleep", "1000") as made:
            state = made.states[-1]
            assert state.pid is not None
            waiter = stat_of(state.pid).ppid
            with made.connect() as connection:
                await trio.to_thread.run_sync(speak, connection, script, waiter)
            ended = await made.until(lambda state: state.gone)
            assert isinstance(ended.outcome, Signaled)
            assert ended.outcome.account.stopped_by == "cmappmgr[7] on host1"
            assert (ended.survivors, ended.stop_timeout_seconds) == ("stop", 5.0)


@pytest.mark.parametrize(
    "packet",
    [
        b"{",
        b"\xff\x00",
        b"[]",
        b"[" * 4000,
        b'{"order":"dance"}',
        b'{"order":"stop","by":7,"timeout_seconds":"x"}',
        b'{"order":"stop","by":"' + b"x" * MAX_ORDER_BYTES + b'","timeout_seconds":1}',
    ],
    ids=["torn", "no text", "a list", "nested", "unknown", "wrong types", "too long"],
)
async def test_waiter_survives_what_is_no_order(tmp_path: Path, packet: bytes) -> None:
    marker = tmp_path / "go"
    async with room(tmp_path, "/bin/sh", "-c", f"while ! test -e {marker}; do sleep 0.02; done; exit 7") as made:
        waiter = stat_of(made.states[-1].pid or 0).ppid
        with made.connect() as connection:
            greeting = connection.recv(MAX_ORDER_BYTES)
            connection.send(packet)
            with contextlib.suppress(OSError):  # it may have hung up
                connection.send(b'{"order":"survivors","policy":"leave","stop_timeout_seconds":1}')
                assert connection.recv(MAX_ORDER_BYTES) in {b"", b'{"event": "state"}'}
        with made.connect() as connection:
            assert connection.recv(MAX_ORDER_BYTES) == greeting
        assert process_stat(waiter) is not None
        touch(marker)
        state = await made.until(lambda state: state.gone)
        assert isinstance(state.outcome, Exited)
        assert state.outcome.code == 7


async def test_waiter_hangs_up_on_the_oldest_of_too_many(tmp_path: Path) -> None:
    async with room(tmp_path, "/bin/sleep", "1000") as made:
        connections = []
        for _ in range(MAX_CONNECTIONS + 1):
            connections.append(made.connect())
            connections[-1].recv(MAX_ORDER_BYTES)
        assert connections[0].recv(MAX_ORDER_BYTES) == b""
        for connection in connections:
            connection.close()


def touch(path: Path) -> None:
    path.touch()


def test_records_of_every_format_are_read() -> None:
    for path in sorted(FIXTURES.glob("run-*")):
        record = RunRecord(str(path))
        request, state = record.read_request(), record.read_state()
        service = Service("vector", ("/bin/sh", "-c", "exit 7 # ä"), "two")
        assert request == Request(
            RUN, service, "/bin/sh", service.words, "/var/log/x.log", 1 << 20, "0a1b2c3d-boot", 1700000000.5
        )
        account = Account(1700000002.5, 2.0, 0.01, 0.02, 4096, False, "cmappmgr[7] on host1", 1)
        assert state == State(
            "ended",
            4711,
            123456,
            1700000000.75,
            12.5,
            3,
            "stop",
            9.5,
            StopOrder("cmappmgr[7] on host1", 21.5),
            Signaled(15, account),
            None,
            True,
        )
        assert record.is_collected()


def told(monkeypatch: pytest.MonkeyPatch, *messages: bytes, kills: int = 1) -> None:
    monkeypatch.setattr(memory, "oom_kills", lambda: kills)
    monkeypatch.setattr(memory, "_kernel_messages", lambda: list(messages))


OOM_LINES = [
    b"3,1,2,-;Out of memory: Killed process 4711 (java) total-vm:1kB, anon-rss:1kB",
    b"3,1,2,-;Memory cgroup out of memory: Killed process 4711 (a) b) total-vm:1kB",
    b"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/x,task=java,pid=4711,uid=0",
]


@pytest.mark.parametrize("line", OOM_LINES)
def test_kill_for_memory_is_found_in_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    told(monkeypatch, b"6,0,1,-;something else 4711", line)
    assert memory.was_killed_for_memory(4711, kills_before=0)
    for other in (471, 47110, 711):
        assert not memory.was_killed_for_memory(other, kills_before=0)


def test_kill_for_memory_is_not_looked_for_where_the_kernel_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, OOM_LINES[0], kills=5)  # an old line of a process that had this pid before
    assert not memory.was_killed_for_memory(4711, kills_before=5)
    assert memory.was_killed_for_memory(4711, kills_before=4)


def test_kernel_that_says_nothing_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    assert not memory.was_killed_for_memory(4711, kills_before=0)


EATER = """
import os, sys
with open(sys.argv[1] + '/cgroup.procs', 'w') as file:
    file.write(str(os.getpid()))
eaten = bytearray(256 * 1024 * 1024)
for at in range(0, len(eaten), 4096):
    eaten[at] = 1
"""


@contextmanager
def memory_group() -> Iterator[Path]:
    path = Path(f"/sys/fs/cgroup/memory/cmapp-test-{os.getpid()}")
    if not os.access(path.parent, os.W_OK) or not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("no memory cgroup (v1) can be made here, or the kernel's messages cannot be read")
    path.mkdir()
    try:
        (path / "memory.limit_in_bytes").write_text(str(32 * 1024 * 1024))
        yield path
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text(), "the end of who is in the group")
        path.rmdir()


def test_application_that_the_kernel_kills_for_memory_is_told_apart(guest: Guest) -> None:
    with memory_group() as group:
        status, log = guest.run("-service", *python(EATER), str(group))
        assert status == 128 + 9
        assert "killed for memory" in log
    status, log = guest.run("-service", "/bin/sh", "-c", "kill -9 $$")
    assert status == 128 + 9
    assert "killed for memory" not in log


def test_stop_ends_an_application_whose_first_thread_has_ended(guest: Guest) -> None:
    manager = guest.manager("--on-halt", "stop", "-service", *python(FIRST_THREAD_ENDS))
    pid = manager.wait_started()
    status = Path(f"/proc/{pid}/status")
    wait_until(lambda: "State:\tZ" in status.read_text(), "the end of the first thread")
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 128 + 15


def test_server_without_descriptors_takes_no_outcome_for_lost(guest: Guest) -> None:
    marker = guest.directory / "go"
    manager = guest.manager("-service", "/bin/sh", "-c", f"while ! test -e {marker}; do sleep 0.02; done; exit 7")
    pid = manager.wait_started()
    record = guest.record_of(pid)
    assert guest.server is not None
    before = resource.prlimit(guest.server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(guest.server.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    marker.touch()
    wait_until(lambda: record.read_state().gone, "the end on record")
    with socket.create_connection(("127.0.0.1", guest.port)):
        wait_until(lambda: "cannot accept connections, those there are go on: Too many open files" in guest.server_log)
        resource.prlimit(guest.server.pid, resource.RLIMIT_NOFILE, before)
    assert manager.wait() == 7
    assert "Traceback" not in guest.server_log


def test_who_parts_holds_nothing_but_its_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        os.open(tmp_path, os.O_RDONLY)
        monkeypatch.setattr("appserver.waiter.time.sleep", lambda _: _tell_descriptors(theirs.fileno()))
        Waiter.part(cast("Waiter", SimpleNamespace(_connections={theirs.fileno(): True})))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.recv(4096) == str([theirs.fileno()]).encode()
    ours.close()
    theirs.close()


def _tell_descriptors(to: int) -> None:
    held = []
    for fd in range(1024):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            held.append(fd)
    os.write(to, str(held).encode())
    os._exit(0)

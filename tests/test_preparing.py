"""What the child of a waiter does before it executes, and what becomes of a run whose child does not get that far."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

from appserver import preparing
from appserver import waiter as room
from appserver.attributes import Account, Attributes
from appserver.identity import Service
from appserver.outcome import Signaled
from appserver.preparing import WATCH, known_state, prepare, read_known
from appserver.procfs import process_stat
from appserver.recordformat import RecordError, Request, State, newest, request_to_json, state_to_json
from appserver.recording import Recording
from appserver.records import Records, RunRecord, StateFile, write_slot
from appserver.spawn import Program
from appserver.waiter import run_waiter

RUN = "0123456789abcdef" * 2
ATTRIBUTES = Attributes(environment=(("B", "rule"), ("C", "rule")))
FRESH = State(boot="boot", survivors="stop", stop_timeout_seconds=9.5, service_digest="0a0b0c0d")


def recorded(path: Path, state: State = FRESH, attributes: Attributes = ATTRIBUTES) -> tuple[RunRecord, Request]:
    records = Records(str(path))
    records.prepare()
    service = Service("line", ("a ä",))
    request = Request(RUN, service, "/bin/a", ("a", "ä"), str(path / "log"), 1000, "boot", 1.5, attributes=attributes)
    return records.create(request, state), request


@contextlib.contextmanager
def closing(program: Program | None) -> Iterator[None]:
    yield
    if program is not None:
        os.close(program.log_fd)


def test_a_child_puts_itself_on_record_and_tells_its_waiter_all_that_it_has_to_know(tmp_path: Path) -> None:
    record, request = recorded(tmp_path)
    told, program = prepare(record, {b"A": b"own", b"B": b"own"})
    assert program is not None
    with closing(program):
        assert os.readlink(f"/proc/self/fd/{program.log_fd}") == request.log_path
        environment = {b"A": b"own", b"B": b"rule", b"C": b"rule"}
        assert program == Program("/bin/a", ("a", "ä"), environment, program.log_fd, ATTRIBUTES)
    stat = process_stat(os.getpid())
    assert stat is not None
    state = record.read_state()
    times = {"started_at": state.started_at, "started_monotonic": state.started_monotonic, "oom_kills": state.oom_kills}
    assert state == replace(FRESH, pid=os.getpid(), start_ticks=stat.start_ticks, **times)  # type: ignore[arg-type]
    assert None not in times.values()
    sequence, values, text, sealed, request_text, *log = read_known(told)
    running = known_state(values)
    assert running == replace(state, phase="running")
    assert json.loads(text) == state_to_json(running)
    assert json.loads(request_text) == json.loads(json.dumps(request_to_json(request)))
    assert log == [request.log_path, 1000]
    write_slot(os.open(record.file("state"), os.O_RDWR), sequence, sealed)
    assert record.read_state() == running  # which is newer than what the child wrote


def test_the_log_belongs_to_the_user_of_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = recorded(tmp_path, attributes=Attributes(account=Account(4001, 4002, ())))
    seen: list[object] = []
    monkeypatch.setattr("appserver.preparing.os.fchown", lambda _, *ids: seen.append(ids))
    with closing(prepare(record, {})[1]):
        assert seen == [(4001, 4002)]


@pytest.mark.parametrize("state", [replace(FRESH, pid=1), replace(FRESH, phase="failed"), State("running", 1, 1)])
def test_what_a_predecessor_has_started_is_watched_and_not_started_again(tmp_path: Path, state: State) -> None:
    record, _ = recorded(tmp_path, state)
    assert prepare(record, {}) == (WATCH, None)
    assert record.read_state() == state


def test_a_log_that_cannot_be_opened_is_a_failure_on_record(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path)
    (tmp_path / "log").mkdir()
    assert prepare(record, {}) == (b"", None)
    text = f"[Errno 21] Is a directory: '{tmp_path}/log'"
    assert record.read_state() == replace(FRESH, phase="failed", failure=("start-failed", text), gone=True)


def test_a_child_that_the_kernel_does_not_show_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = recorded(tmp_path)
    monkeypatch.setattr(preparing, "process_stat", lambda _: None)
    assert prepare(record, {}) == (b"", None)
    failure = ("start-failed", "[Errno 3] the kernel does not show the new process under /proc")
    assert record.read_state() == replace(FRESH, phase="failed", failure=failure, gone=True)


def test_a_child_that_cannot_be_recorded_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecordError("the state of a run: Input/output error")

    record, _ = recorded(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(StateFile, "write", broken)
        with pytest.raises(RecordError):
            prepare(record, {})
    assert record.read_state() == FRESH  # so it may be tried again


@pytest.mark.parametrize("name", ["request", "state"])
def test_a_damaged_record_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    record, _ = recorded(tmp_path)
    Path(record.file(name)).write_bytes(b"torn")
    assert prepare(record, {}) == (b"", None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the record of run {RUN} cannot be used: ")


def wait_out(record: RunRecord) -> int:
    """Be the waiter of a run in a child; give how that ended."""
    pid = os.fork()
    if pid == 0:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind("")
                listener.listen()
                run_waiter(record, listener, {})
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(record: RunRecord, *, is_recorded: bool) -> tuple[bytes, Program | None]:
    if is_recorded:
        prepare(record, {})
    os.kill(os.getpid(), signal.SIGKILL)
    return b"", None


def test_a_child_that_is_killed_before_it_is_on_record_may_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = recorded(tmp_path)
    monkeypatch.setattr(room, "prepare", lambda record, _: killed(record, is_recorded=False))
    assert wait_out(record) == 1
    assert record.read_state() == FRESH


def test_the_end_of_a_child_that_is_killed_after_it_is_on_record_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = recorded(tmp_path)
    monkeypatch.setattr(room, "prepare", lambda record, _: killed(record, is_recorded=True))
    assert wait_out(record) == 0
    state = record.read_state()
    assert (state.phase, state.gone) == ("ended", True)
    assert isinstance(state.outcome, Signaled)
    assert state.outcome.number == signal.SIGKILL


def test_what_cannot_be_executed_is_on_record_with_its_reason(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path)  # there is no /bin/a
    assert wait_out(record) == 1
    state = record.read_state()
    text = "'/bin/a' cannot be executed: there is no such command, or its interpreter is missing (errno:2)"
    assert (state.phase, state.failure, state.gone) == ("failed", ("no-such-command", text), True)
    assert state.pid is not None


def test_a_fork_that_fails_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    record, _ = recorded(tmp_path)
    monkeypatch.setattr(room, "spawn", no_fork)
    assert wait_out(record) == 1
    failure = ("start-failed", "cannot fork: Resource temporarily unavailable")
    assert record.read_state() == replace(FRESH, phase="failed", failure=failure, gone=True)


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_waiter_goes_on_from_what_its_child_told(tmp_path: Path, is_writable: bool) -> None:
    record, _ = recorded(tmp_path)
    told, program = prepare(record, {})
    assert program is not None
    os.close(program.log_fd)
    known = read_known(told)
    state_fd = os.open(record.file("state"), os.O_RDWR if is_writable else os.O_RDONLY)
    run = Recording.of_new(state_fd, known)
    run.write_ready()
    assert record.read_state().phase == ("running" if is_writable else "starting")
    assert json.loads(run.nudge()) == {
        "event": "state",
        "state": state_to_json(known_state(known[1])),
        "recorded": is_writable,
    }
    assert run.is_quiet
    with open(record.file("state"), "r+b", buffering=0) as writable:
        os.dup2(writable.fileno(), state_fd)
    run.write(survivors="stop")
    assert not run.is_quiet
    sequence, state = newest(Path(record.file("state")).read_bytes())
    assert state == run.state == replace(known_state(known[1]), survivors="stop")
    assert sequence == known[0] + is_writable  # a slot that was never written is not the newer one of the two
    run.close()

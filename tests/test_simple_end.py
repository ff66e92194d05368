"""The end that nearly every run comes to goes from text to text: it says to the last byte what a state would say."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import Self

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

from appserver.identity import Service
from appserver.outcome import Account, Exited, Outcome, Signaled
from appserver.preparing import read_known, write_known
from appserver.recordformat import Request, State, newest, state_text
from appserver.recording import Recording
from appserver.records import Records, RunRecord
from appserver.waiter import Waiter, wake_on_children

RUN = "0123456789abcdef" * 2
NOW = 100.0


class Bench:
    """A waiter that has its state as its child told it, of a child that ends as it is told."""

    def __init__(self, path: Path, command: str, *, flags: int = os.O_RDWR, started: float | None = 90.0) -> None:
        records = Records(str(path))
        records.prepare()
        self.pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], {})
        log = path / "log"
        log.write_bytes(b"x" * 1000)
        request = Request(RUN, Service("line", ("a",)), "/bin/a", ("a",), str(log), 1000, "boot", 1.5)
        self.log = log
        self.running = State(
            "running", self.pid, 8, 900.0, started, 3, "stop", 9.5, boot="b\u00f6\udc80t", service_digest="0a0b0c0d"
        )
        self.record: RunRecord = records.create(request, replace(self.running, phase="starting"))
        known = read_known(write_known(2, self.running, b"{}", request))
        self.run = Recording.of_new(os.open(self.record.file("state"), flags), known)
        self.run.write_ready()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path / "c"))
        self.listener.listen()
        self.waiter = Waiter(self.run, self.listener, wake_on_children())

    def told(self) -> State:
        return self.record.read_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiter.close()
        self.listener.close()
        os.close(signal.set_wakeup_fd(-1))
        os.close(self.waiter._wakeup)
        self.run.close()


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handler = signal.getsignal(signal.SIGCHLD)
    for room in ("waiter", "recording"):
        monkeypatch.setattr(f"appserver.{room}.time.monotonic", lambda: NOW)
        monkeypatch.setattr(f"appserver.{room}.time.time", lambda: 1000.25)
    yield
    signal.signal(signal.SIGCHLD, handler)


def reaped(bench: Bench) -> bool:
    """Reap when the main process has ended; tell whether no child was left then."""
    os.waitid(os.P_PID, bench.pid, os.WEXITED | os.WNOWAIT)
    return bench.waiter._reap()


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        ("exit 0", Exited(0)),
        ("exit 7", Exited(7)),
        ("exit 255", Exited(255)),
        ("kill -TERM $$", Signaled(15)),
        ("kill -ABRT $$", Signaled(6)),
        ("kill -KILL $$", Signaled(9)),  # which may have been for memory, and goes the long way
    ],
)
@pytest.mark.parametrize("started", [90.0, None])
def test_the_short_way_says_what_the_long_one_would(
    tmp_path: Path, command: str, outcome: Outcome, started: float | None
) -> None:
    with Bench(tmp_path, command, started=started) as bench:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(bench.listener.getsockname())
            bench.waiter._attend(bench.listener.fileno())
            client.recv(4096)
            client.send(b'{"order": "describe"}')
            bench.waiter._attend(*bench.waiter._connections)
            client.recv(4096)
            assert bench.run.is_quiet
            assert reaped(bench)
            event = json.loads(client.recv(8192))
        assert bench.run.is_over
        assert not bench.run.is_quiet
        state = bench.told()
        assert state.outcome is not None
        known = state.outcome.account
        assert known.user_seconds is not None
        assert known.system_seconds is not None
        assert known.max_rss_bytes
        account = Account(
            1000.25,
            10.0 if started else 0.0,
            known.user_seconds,
            known.system_seconds,
            known.max_rss_bytes,
            survivors=0,
        )
        expected = replace(bench.running, phase="ended", outcome=replace(outcome, account=account), gone=True)
        assert state == expected
        assert bench.run.state == expected
        text = state_text(expected)
        assert bench.run.nudge() == b'{"event": "state", "state": %s, "recorded": true}' % text
        assert event == {"event": "state", "state": json.loads(text), "recorded": True}


def test_an_end_is_told_where_it_cannot_be_recorded(tmp_path: Path) -> None:
    with Bench(tmp_path, "exit 7", flags=os.O_RDONLY) as bench:
        assert reaped(bench)
        assert bench.run.is_over
        assert b'"code":7' in bench.run.nudge()
        assert b'"recorded": false' in bench.run.nudge()
        assert bench.told().phase == "starting"
        assert isinstance(bench.run.state.outcome, Exited)


def test_an_end_goes_over_the_older_slot_also_where_the_start_could_not_be_recorded(tmp_path: Path) -> None:
    with Bench(tmp_path, "exit 7", flags=os.O_RDONLY) as bench:
        with open(bench.record.file("state"), "r+b", buffering=0) as writable:
            os.dup2(writable.fileno(), bench.run._next[0])
        assert reaped(bench)
        sequence, state = newest(Path(bench.record.file("state")).read_bytes())
        assert (sequence, state.phase) == (2, "ended")
        assert b'"recorded": true' in bench.run.nudge()


def test_an_end_beside_others_of_the_tree_goes_the_long_way(tmp_path: Path) -> None:
    with Bench(tmp_path, "exit 7") as bench:
        other = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        assert not reaped(bench)
        assert not bench.run.is_over
        assert bench.told().outcome == bench.run.state.outcome
        assert not bench.told().gone
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def test_an_end_with_a_log_beyond_its_bound_goes_the_long_way(tmp_path: Path) -> None:
    with Bench(tmp_path, "exit 7") as bench:
        bench.log.write_bytes(b"x" * 1001)
        assert reaped(bench)
        assert not bench.run.is_over
        assert bench.told().phase == "ended"
        assert not bench.told().gone
        bench.waiter._has_news = True  # of the child, which may have ended before anybody listened
        bench.waiter.wait()
        assert bench.told().gone
        assert bench.log.stat().st_size < 1000


def test_an_end_after_other_terms_goes_the_long_way(tmp_path: Path) -> None:
    with Bench(tmp_path, "exit 7") as bench:
        bench.waiter._write(survivors="leave", stop_timeout_seconds=3.0)
        assert reaped(bench)
        assert bench.run.is_over
        assert bench.told().survivors == "leave"
        assert bench.told().outcome == bench.run.state.outcome

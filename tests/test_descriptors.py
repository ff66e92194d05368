"""A server that has no descriptor left says so, serves those it has, loses nothing, and goes on when there are some."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from callers import Caller, host_material, open_descriptors
from pair import PATIENCE_SECONDS, Guest, open_guest, wait_for_match, wait_until

from appserver import descriptors
from appserver.listener import SESSIONS_PER_PROCESS
from appserver.messages import Ended, Refused, Running
from appserver.outcome import Exited
from appserver.protocol import Event
from appserver.refusals import MAX_LINGERING
from appserver.strangers import MAX_HALF_OPEN

STUCK_SECONDS = 0.3
"""For an answer that does not come before there are descriptors again; one that comes later is as good."""

WAIT = "while [ ! -e {path} ]; do sleep 0.02; done; exit 7"


@contextlib.contextmanager
def exhausted(guest: Guest, spare: int = 0) -> Iterator[None]:
    """Leave the server so many descriptors above those it has."""
    assert guest.server is not None
    pid = guest.server.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if number not in open_descriptors(guest))
    lowest = next(itertools.islice(free, spare, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def until(fact: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not fact():  # noqa: ASYNC110  (a log file and a process tell nobody)
            await trio.sleep(0.01)


async def test_server_without_descriptors_serves_those_it_has_and_recovers(guest: Guest, tmp_path: Path) -> None:
    assert guest.server is not None
    own = host_material(guest)
    with trio.fail_after(2 * PATIENCE_SECONDS):
        watcher, idle = [await Caller.greeted(guest, own) for _ in range(2)]
        await watcher.run("/bin/sh", "-c", WAIT.format(path=tmp_path / "end"))
        with exhausted(guest):
            # More than one: a descriptor that came and went when they were counted is taken by the first.
            waiting = [await trio.open_tcp_stream("127.0.0.1", guest.port) for _ in range(4)]
            await until(lambda: "cannot accept connections, those there are go on" in guest.server_log)
            await watcher.poll()
            refused = await idle.ask_run("/bin/sleep", "1000")
            assert isinstance(refused, Refused)
            assert "Too many open files" in refused.text
            (tmp_path / "end").touch()
            ended = await watcher.hear()
            assert isinstance(ended, Ended)
            assert isinstance(ended.outcome, Exited)
            assert ended.outcome.code == 7
            os.kill(guest.server.pid, signal.SIGHUP)
            # It wants a descriptor or two, which the application that ended may have left it.
            reloaded = "reload failed, the old configuration and keys stay in force", "keys read again and in force"
            await until(lambda: any(text in guest.server_log for text in reloaded))
            os.kill(guest.launcher_pid(), signal.SIGKILL)
            # Whether another can be started now depends on how many of those that wait have been given up.
            await until(lambda: "the launcher ended with signal 9, starting another" in guest.server_log)
        await idle.run("/bin/sleep", "1000")
        newcomer = await Caller.greeted(guest, own)
        for caller in (watcher, idle, newcomer):
            await caller.close()
        for stranger in waiting:
            await trio.aclose_forcefully(stranger)
    assert guest.server_log.count("cannot accept connections") == 1
    assert "a bug" not in guest.server_log
    assert guest.stop_server() == 0


@pytest.mark.strangers
def test_start_that_runs_out_of_descriptors_anywhere_is_refused_or_carried_out(guest: Guest) -> None:
    async def ask() -> None:
        own = host_material(guest)
        with trio.fail_after(2 * PATIENCE_SECONDS):
            caller = await Caller.greeted(guest, own)
            for spare in range(8):
                words = ("/bin/sh", "-c", f"sleep 1000; exit {spare}")
                answer: Event | None = None
                with exhausted(guest, spare):
                    await caller.say_run(*words)
                    with trio.move_on_after(STUCK_SECONDS):
                        answer = await caller.hear()
                if answer is None:  # it was started, and there was no descriptor to follow it with
                    answer = await caller.hear()
                if isinstance(answer, Refused):
                    assert "Too many open files" in answer.text
                    answer = await caller.ask_run(*words)
                assert isinstance(answer, Running)
            await caller.close()

    trio.run(ask)
    assert "a bug" not in guest.server_log
    wait_until(lambda: len(list(guest.records.all())) == 8)


@pytest.mark.strangers
def test_application_gets_the_limit_that_the_server_was_given(tmp_path: Path, keys: Path) -> None:
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.configure("maxProcesses=100")
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        try:
            guest.start_server()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert guest.server is not None
        own, _ = resource.prlimit(guest.server.pid, resource.RLIMIT_NOFILE)
        assert own == min(descriptors.wanted(100), before[1])
        code, log = guest.run("-service", "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn")
        assert code == 0
        assert " 200\n" in log
        assert f" {before[1]}\n" in log


@pytest.mark.strangers
def test_limit_that_is_too_low_is_said_and_survived(tmp_path: Path, keys: Path) -> None:
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.start_server()
        assert guest.server is not None
        resource.prlimit(guest.server.pid, resource.RLIMIT_NOFILE, (64, 64))
        guest.server.send_signal(signal.SIGHUP)
        wait_for_match(lambda: guest.server_log, "64 descriptors are all this server may have, and maxProcesses=30 can")
        assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5


def test_descriptors_wanted_cover_the_bounds() -> None:
    assert descriptors.STRANGERS == MAX_HALF_OPEN + MAX_LINGERING
    assert descriptors.DESCRIPTORS_PER_PROCESS >= SESSIONS_PER_PROCESS + 3


def test_strangers_have_a_share_of_a_low_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, share in ((64, 8), (4, 1), (1024, 64), (resource.RLIM_INFINITY, 64)):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert descriptors.strangers_share(64) == share

"""A child process of the server: how it begins, how it ends, and what is left of it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

if sys.platform == "win32":
    pytest.skip("started by posix_spawn", allow_module_level=True)

from test_launcher_process import signals

from appserver.child import Child

PATIENCE_SECONDS = 30
STREAMS = (0, 1, 2)


@contextmanager
def started(*words: str, streams: tuple[int, int, int] = STREAMS) -> Iterator[Child]:
    child = Child(list(words), {"WORD": "given"}, streams)
    try:
        yield child
    finally:
        child.kill()
        child.close()


def shell(source: str) -> tuple[str, str, str]:
    return "/bin/sh", "-c", source


def end(pid: int) -> None:
    """Kill a child, and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_reaped() -> bool:
    """Tell whether there is no child of ours, not even a dead one."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("source", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -signal.SIGKILL)])
async def test_its_end_is_told_to_all_who_wait_for_it(source: str, code: int) -> None:
    before = descriptors()
    told: list[int] = []

    async def wait(child: Child) -> None:
        told.append(await child.wait())

    with trio.fail_after(PATIENCE_SECONDS), started(*shell(source)) as child:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, child)
            nursery.start_soon(wait, child)
        told.append(await child.wait())
    assert told == [code] * 3
    assert descriptors() == before
    assert is_reaped()


async def test_it_has_the_streams_and_the_environment_that_it_is_given(tmp_path: Path) -> None:
    said, complaint = tmp_path / "said", tmp_path / "complaint"
    read, write = os.pipe()
    os.write(write, b"a line\n")
    with said.open("wb") as out, complaint.open("wb") as err, trio.fail_after(PATIENCE_SECONDS):
        source = 'read line; echo "$line $WORD $HOME"; echo complaint >&2'
        with started(*shell(source), streams=(read, out.fileno(), err.fileno())) as child:
            assert await child.wait() == 0
    os.close(read)
    os.close(write)
    assert said.read_text() == "a line given \n"
    assert complaint.read_text() == "complaint\n"


async def test_it_has_a_session_of_its_own_and_ignores_nothing_that_python_ignores() -> None:
    with trio.fail_after(PATIENCE_SECONDS), started("/bin/sleep", "1000") as child:
        assert not {signal.SIGPIPE, signal.SIGXFSZ} & signals(child.pid, "SigIgn")
        assert os.getsid(child.pid) == child.pid
        child.kill()
        assert await child.wait() == -signal.SIGKILL
        child.kill()  # one that has ended is fine


@pytest.mark.parametrize("has_ended", [True, False])
async def test_one_that_is_closed_is_killed_in_nobody_elses_place(has_ended: bool) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        child = Child(list(shell("exit 0")), {}, STREAMS)
        if has_ended:
            await child.wait()
        child.close()
        with started("/bin/sleep", "1000") as other:  # its descriptor is the lowest that is free, as that one was
            child.kill()
            with trio.move_on_after(0.05):
                await other.wait()
                pytest.fail("it was killed")
            other.kill()
            assert await other.wait() == -signal.SIGKILL
        assert not has_ended or await child.wait() == 0
    if not has_ended:
        child._reap()


async def test_whoever_waits_no_more_has_let_go_of_it() -> None:
    with trio.fail_after(PATIENCE_SECONDS), started("/bin/sleep", "1000") as child:
        with trio.move_on_after(0.01) as scope:
            await child.wait()
        assert scope.cancelled_caught
        child.kill()
        assert await child.wait() == -signal.SIGKILL


async def test_a_kill_that_comes_after_all_is_over_meets_nobody() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        child = Child(["/bin/true"], {}, STREAMS)
        assert await child.wait() == 0
        child.close()
        before = descriptors()
        child.kill()
        assert await child.wait() == 0
        assert descriptors() == before

        lasting = Child(["/bin/sleep", "1000"], {}, STREAMS)
        pid = lasting.pid
        lasting.close()
        lasting.kill()
        os.kill(pid, 0)  # it lives: nobody has a handle on it any more
        end(pid)


async def test_whoever_waits_for_one_that_is_let_go_of_hears_it() -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        child = Child(["/bin/sleep", "1000"], {}, STREAMS)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await child.wait()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            child.close()
        end(child.pid)


def test_one_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        Child(["/nowhere/python"], {}, STREAMS)

    def no_descriptor(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        Child(["/bin/sleep", "1000"], {}, STREAMS)
    assert descriptors() == before
    assert is_reaped()


async def test_where_the_ends_of_children_are_ignored_it_has_ended_all_the_same() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with trio.fail_after(PATIENCE_SECONDS), started("/bin/sleep", "1000") as child:
            child.kill()
            assert await child.wait() == 0
    finally:
        signal.signal(signal.SIGCHLD, before)

"""How the server's rooms end where something is out of order: a launcher that does not leave, a start that fails, a
look for which there is no descriptor.
"""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
import trio.testing
from door import HOST, trust
from fakes import Log

from appserver import daemon, following, launching
from appserver.following import Follower
from appserver.identity import Service
from appserver.launching import FORMER_END_SECONDS, LaunchError, Launching, wait_for_former
from appserver.listener import Listener
from appserver.procfs import boot_id, process_stat
from appserver.recordformat import Request, State
from appserver.records import LAUNCHER_LOCK, Records
from appserver.rules import OPEN
from appserver.settings import ServerSettings
from appserver.sockets import open_listening_sockets
from appserver.statelock import StateDirError
from appserver.supervisor import Supervisor
from pki.errors import SettingsError
from pki.material import Keys

PATIENCE_SECONDS = 40
RUN = "a" * 32
HOLDER = (
    "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
)


DIES_AS_IT_FORKS = """
import os, signal, socket
orders = socket.socket(fileno=0)
orders.send(b'{{"ready": true}}')
orders.recv(4096)
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
orders.recv(1)  # a waiter that has not come to close the socket of the orders, until the server does
"""


def prepared(directory: Path) -> Records:
    records = Records(str(directory / "state"))
    records.prepare()
    return records


@contextmanager
def holder(records: Records, *, is_known: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who holds the launcher's lock and does not leave; the lock says who, or does not yet."""
    path = Path(records.state_dir) / LAUNCHER_LOCK
    path.touch()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            stat = process_stat(process.pid)
            assert stat is not None
            path.write_text(f"{process.pid} {stat.start_ticks if is_known else 1}\n")
            yield process
        finally:
            process.kill()


async def test_former_launcher_that_does_not_leave_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "LEAVE_SECONDS", 0.05)
    records, log = prepared(tmp_path), Log()
    with holder(records, is_known=True) as process:
        with trio.fail_after(PATIENCE_SECONDS):
            await wait_for_former(records.state_dir, log.as_report())
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert log.count("does not leave") == 1


async def test_former_launcher_that_cannot_be_killed_ends_the_start(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """One that was stopped between its lock and its name: whom to kill is not known."""
    records = prepared(tmp_path)
    with holder(records, is_known=False) as process:
        with pytest.raises(StateDirError, match=r"launcher of a former server .*launcher\.lock"):
            await wait_for_former(records.state_dir, Log().as_report())
        assert process.poll() is None
    assert trio.current_time() == pytest.approx(FORMER_END_SECONDS, abs=1.0)


async def test_launcher_that_dies_as_it_forks_costs_the_order_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is seen by its pidfd, while the socket on which it would answer is held open by its child."""
    records, log = prepared(tmp_path), Log()
    monkeypatch.setattr(launching, "_BOOTSTRAP", f"import os; os.chdir({{state_dir!r}}){DIES_AS_IT_FORKS}")
    made = Launching(records, {"PATH": os.defpath}, log.as_report())
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.serve)
            with pytest.raises(LaunchError, match="3 launchers died over it"):
                await made.order("launch", RUN)
            nursery.cancel_scope.cancel()
    assert log.count("the launcher ended with signal 9") == 3


async def test_launcher_that_was_stopped_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued later, it would carry out an order that nobody remembers."""
    records = prepared(tmp_path)
    monkeypatch.setattr(launching, "LEAVE_SECONDS", 0.05)
    made = Launching(records, {"PATH": os.defpath}, Log().as_report())
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.serve)
            while made._process is None:
                await made._ready.wait()
            process = made._process
            os.kill(process.pid, signal.SIGSTOP)
            nursery.cancel_scope.cancel()
    assert await process.wait() == -signal.SIGKILL


def test_process_that_could_not_be_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handle on a process counts only when it is known whose it is."""
    records = prepared(tmp_path)
    stat = process_stat(os.getpid())
    assert stat is not None
    service = Service("line", ("/bin/true",))
    request = Request(RUN, service, "/bin/true", service.argv(), str(tmp_path / "log"), 4096, boot_id(), 1.5)
    record = records.create(request, State("running", pid=stat.pid, start_ticks=stat.start_ticks))
    follower = Follower(record, Launching(records, {}, Log().as_report()))
    before = set(os.listdir("/proc/self/fd"))

    def no_descriptor(*_: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(following, "is_same_process", no_descriptor)
        assert follower._look().pid == stat.pid
    assert follower._pidfd is None
    assert set(os.listdir("/proc/self/fd")) == before
    follower._look()
    assert follower._pidfd is not None
    os.close(follower._pidfd)


async def test_sockets_are_closed_where_the_supervisor_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[trio.SocketListener] = []
    open_sockets = open_listening_sockets

    def remember(*words: object) -> list[trio.SocketListener]:
        opened.extend(open_sockets(*words))  # type: ignore[arg-type]
        return opened

    async def refuse(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("it does not start")

    monkeypatch.setattr(daemon, "open_listening_sockets", remember)
    monkeypatch.setattr(Supervisor, "serve", refuse)
    keys = Keys("", "", "", "", "accept")
    state_dir, log_dir = str(tmp_path / "state"), str(tmp_path / "log")
    settings = ServerSettings(keys, ("127.0.0.1",), 0, 30, state_dir, log_dir, 1 << 20, OPEN, None)
    with pytest.RaisesGroup(LookupError, flatten_subgroups=True):
        await daemon.run_daemon(settings, lambda: settings, trust(HOST), Log().as_report())
    assert [each.socket.fileno() for each in opened] == [-1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
        (MemoryError(), "MemoryError"),
        (SettingsError("the file is wrong"), "in force: the file is wrong"),
    ],
)
async def test_reload_that_cannot_be_made_leaves_all_in_force(error: Exception, said: str) -> None:
    def reread() -> ServerSettings:
        raise error

    log = Log()
    settings = cast("ServerSettings", None)
    supervisor, listener = cast("Supervisor", None), cast("Listener", None)  # nothing is taken over
    made = daemon._Daemon(settings, reread, log.as_report(), supervisor, listener)
    await made._reload()
    assert "reload failed, the old configuration and keys stay in force: " in log.text
    assert said in log.text

"""`cmappserver --stop-all`: everything is stopped, with and without a server, and nothing is started meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pair import Guest, is_alive, python, wait_ended
from supervised import OWN, SERVICE, TERMS, FakeWatcher, serving
from supervised import Guest as PlayedGuest

from appserver.closing import CLOSED, closed, why_closed
from appserver.effects import TellRefused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="waiters are Linux")

SLEEPER = python("import time; time.sleep(1000)")
STUBBORN = python(
    "import os, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if os.fork() == 0: os.setsid()\n"
    "print('deaf', flush=True); time.sleep(1000)"
)


def stop_all(guest: Guest, *words: str) -> tuple[int, str]:
    """Run `cmappserver --stop-all`; give its status and what it said."""
    program = [sys.executable, "-m", "appserver", "--config", str(guest.server_config)]
    done = subprocess.run([*program, "--stop-all", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_every_application_is_stopped_and_managers_hear_of_it(guest: Guest) -> None:
    first = guest.manager("--instance", "1", "-service", *SLEEPER)
    second = guest.manager("--instance", "2", "--stop-timeout", "0.3", "-service", *STUBBORN)
    pids = [first.wait_started(), second.wait_started()]
    status, said = stop_all(guest, "5")
    assert status == 0, said
    assert "stopping 2 applications" in said
    assert "every application has been stopped" in said
    assert not any(map(is_alive, pids))
    assert first.wait() == 128 + signal.SIGTERM
    assert second.wait() == 128 + signal.SIGKILL
    assert "stopped by cmappserver --stop-all in the guest" in first.log
    assert guest.run("-service", sys.executable, "-c", "")[0] == 0  # starts are allowed again


def test_without_a_server_the_waiters_do_it_and_where_there_is_none_the_command(guest: Guest) -> None:
    manager = guest.manager("--instance", "1", "-service", *SLEEPER)
    orphaned = guest.manager("--instance", "2", "--stop-timeout", "0.3", "-service", *SLEEPER)
    pid, orphan = manager.wait_started(), orphaned.wait_started()
    waiter = guest.waiter_pid(orphan)
    guest.kill_server()
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    status, said = stop_all(guest, "5", "--until-boot")
    assert status == 0, said
    assert "nobody saw how it ended" in said
    assert not is_alive(pid)
    assert not is_alive(orphan)
    assert stop_all(guest)[1].count("nothing to stop: no application runs") == 1
    guest.start_server()
    assert manager.wait() == 128 + signal.SIGTERM
    assert "stopped by the shutdown of the guest" in manager.log
    refused, log = guest.run("-service", sys.executable, "-c", "")
    assert refused == 1
    assert "this guest is being shut down" in log


def test_unusable_configuration_keeps_nobody_from_stopping(tmp_path: Path) -> None:
    (tmp_path / "odd.conf").write_text("nonsense=1\n", encoding="utf-8")
    words = ["--config", str(tmp_path / "odd.conf"), "--state-dir", str(tmp_path / "none"), "--stop-all"]
    done = subprocess.run([sys.executable, "-m", "appserver", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "nonsense" in done.stderr
    assert f"nothing to stop: there is no {tmp_path}/none" in done.stderr


@pytest.mark.parametrize(
    "words", [["--until-boot"], ["--stop-all", "0"], ["--stop-all", "soon"], ["--stop-all", "5", "--check"]]
)
def test_wrong_usage_is_told(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "appserver", *words], capture_output=True, check=False)
    assert done.returncode == 2


def test_directory_is_closed_while_somebody_stops_everything_and_at_a_shutdown_for_good(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert why_closed(directory) is None
    with closed(directory, until_boot=False), closed(directory, until_boot=False):
        assert why_closed(directory) == "every application of this guest is being stopped"
    assert why_closed(directory) is None
    with closed(directory, until_boot=True):
        pass
    assert "being shut down" in (why_closed(directory) or "")
    (tmp_path / CLOSED).write_text("another boot\n", encoding="ascii")
    assert why_closed(directory) is None


async def test_start_under_way_is_given_up_when_everything_is_being_stopped(tmp_path: Path) -> None:
    async with serving(PlayedGuest(tmp_path)) as guest:
        watcher = FakeWatcher()
        with closed(guest.records.state_dir, until_boot=False):
            await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
            told = await watcher.next()
        assert isinstance(told, TellRefused)
        assert "every application of this guest is being stopped" in told.text
        assert guest.records.all() == []
        assert guest.processes.followed == {}

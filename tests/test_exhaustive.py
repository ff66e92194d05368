"""Every exit code and every signal through the real pair: `make test-long`."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pair import Guest, is_alive, open_guest, wait_until

pytestmark = pytest.mark.long

AT_ONCE = 4

HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


@pytest.fixture(scope="module")
def lasting_guest(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> object:
    with open_guest(tmp_path_factory.mktemp("exhaustive") / "guest", keys) as guest:
        guest.start_server()
        yield guest


def patient_script(guest: Guest, ending: str) -> tuple[str, ...]:
    go = guest.directory / f"go-{ending.replace(' ', '-')}"
    return ("-service", "/bin/sh", "-c", f"while ! test -e {go}; do sleep 0.05; done; {ending}")


@pytest.mark.parametrize("detached", [False, True], ids=["watched", "detached in between"])
def test_every_exit_code_comes_back(lasting_guest: Guest, *, detached: bool) -> None:
    def status(code: int) -> int:
        if not detached:
            return lasting_guest.run("-service", "/bin/sh", "-c", f"exit {code}")[0]
        words = patient_script(lasting_guest, f"exit {code}")
        first = lasting_guest.manager(*words)
        pid = first.wait_started()
        first.signal(signal.SIGTERM)
        assert first.wait() == 143
        second = lasting_guest.manager(*words)
        assert second.wait_started() == pid
        (lasting_guest.directory / f"go-exit-{code}").touch()
        return second.wait()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(status, range(256))) == list(range(256))


def test_every_signal_comes_back(lasting_guest: Guest) -> None:
    def status(number: int) -> int:
        manager = lasting_guest.manager("--instance", str(number), "-service", "/bin/sleep", "1000")
        pid = manager.wait_started()
        os.kill(pid, number)
        return manager.wait()

    ending = sorted(set(signal.valid_signals()) - HARMLESS - STOPPING)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(status, ending)) == [128 + number for number in ending]


@pytest.mark.parametrize("number", sorted(HARMLESS | STOPPING))
def test_a_signal_that_ends_nobody_changes_nothing(lasting_guest: Guest, number: int) -> None:
    manager = lasting_guest.manager("--instance", str(number), "-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    assert is_alive(pid)
    assert manager.process.poll() is None
    os.kill(pid, signal.SIGKILL)
    assert manager.wait() == 128 + signal.SIGKILL


def test_three_hundred_short_runs_leave_the_server_as_it_was(lasting_guest: Guest) -> None:
    assert lasting_guest.server is not None
    pid = lasting_guest.server.pid

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    def rss_pages() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])

    def run_many(count: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            words = [("--instance", str(number % 10), "-service", "/bin/true") for number in range(count)]
            assert {run.result()[0] for run in [pool.submit(lasting_guest.run, *each) for each in words]} == {0}

    run_many(120)  # as many as outcomes of them are kept, and at one time as many as there will be
    before, memory_before = descriptors(), rss_pages()
    run_many(300)
    wait_until(lambda: descriptors() <= before, "the descriptors to be closed")
    assert rss_pages() - memory_before < 500, "memory grew by 2 MB over 300 runs"

"""A waiter that gets no descriptors, and one whose KILL does not help: the outcome gets on record, nothing spins."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
from test_waiting import room

from appserver import waiter as waiter_module
from appserver.outcome import Account, Exited
from appserver.procfs import Stat, process_stat
from appserver.recordformat import State, StopOrder
from appserver.waiter import KILL_SWEEP_SECONDS, MAX_KILL_SWEEP_SECONDS, Waiter

SURVIVED = "sleep 1000 & echo $! > {0}/survivor; "


@pytest.mark.parametrize("before", ["", SURVIVED], ids=["alone", "with a survivor"])
async def test_outcome_gets_on_record_where_the_waiter_has_no_descriptors(tmp_path: Path, before: str) -> None:
    script = before.format(tmp_path) + f"while ! test -e {tmp_path}/go; do sleep 0.02; done; exit 7"
    async with room(tmp_path, "/bin/sh", "-c", script) as made:
        main = process_stat(made.states[-1].pid or 0)
        assert main is not None
        limits = resource.prlimit(main.ppid, resource.RLIMIT_NOFILE)
        resource.prlimit(main.ppid, resource.RLIMIT_NOFILE, (3, limits[1]))
        await trio.Path(tmp_path / "go").touch()
        ended = await made.until(lambda state: state.outcome is not None)
        assert ended.outcome is not None
        assert replace(ended.outcome, account=Account()) == Exited(7)
        assert ended.outcome.account.survivors == (None if before else 0)  # what cannot be counted is not made up
        if before:
            assert not ended.gone
            os.kill(int((tmp_path / "survivor").read_text()), signal.SIGKILL)
        await made.until(lambda state: state.gone)
        recorded = made.record.read_state().outcome
        assert recorded is not None
        assert replace(recorded, account=Account()) == Exited(7)


def test_kill_that_does_not_help_is_repeated_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stuck in the kernel may stay so for hours."""
    stuck = Stat(4711, "D", 1, 4711, 0, 0, 1, 0, 0)
    killed: list[list[Stat]] = []
    now = 100.0
    waiter = Waiter.__new__(Waiter)
    state = State("running", pid=stuck.pid, start_ticks=1, stop=StopOrder("a test", kill_at=now))
    monkeypatch.setattr(waiter_module, "kill", killed.append)
    monkeypatch.setattr(waiter_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(waiter_module, "descendants", lambda _: [stuck])
    waiter._run = SimpleNamespace(state=state, is_quiet=False)  # type: ignore[assignment]
    waiter._is_substitute = False
    waiter._next_trim = now + 1e6
    waiter._kill_sweep_seconds = KILL_SWEEP_SECONDS
    pauses: list[float] = []
    for _ in range(10):
        waiter._advance_stop()
        pauses.append(waiter._sleep_seconds())
        now += pauses[-1]
    doubled = [min(KILL_SWEEP_SECONDS * 2**number, MAX_KILL_SWEEP_SECONDS) for number in range(1, 11)]
    assert pauses == pytest.approx(doubled)
    assert pauses[-1] == pytest.approx(MAX_KILL_SWEEP_SECONDS)
    assert killed == [[stuck]] * 10

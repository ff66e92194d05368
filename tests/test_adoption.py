"""A process whose waiter and substitute were killed: its end is heard although nobody watches it at that moment."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import trio

if sys.platform != "linux":
    pytest.skip("waiters are Linux's", allow_module_level=True)

from test_waiting import Room, room, touch

from appserver import following
from appserver.outcome import Exited, Lost
from appserver.waiter import MAX_ORDER_BYTES


async def waiter_but(made: Room, others: set[int]) -> int:
    """Wait for a waiter that is none of these; give its pid."""
    while True:
        try:
            with made.connect() as connection:
                pid = int(json.loads(connection.recv(MAX_ORDER_BYTES))["pid"])
        except (OSError, ValueError):
            pid = 0  # the one is dead, and the next not there yet
        if pid and pid not in others:
            return pid
        await trio.sleep(0.01)


async def test_end_between_two_substitutes_is_heard_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "ADOPT_RETRY_SECONDS", 1000.0)
    marker = tmp_path / "go"
    script = f"while ! test -e {marker}; do sleep 0.02; done; exit 7"
    async with room(tmp_path / "room", "/bin/sh", "-c", script) as made:
        killed: set[int] = set()
        for _ in range(2):
            waiter = await waiter_but(made, killed)
            os.kill(waiter, signal.SIGKILL)
            killed.add(waiter)
        touch(marker)
        state = await made.until(lambda state: state.outcome is not None)
        assert isinstance(state.outcome, Lost) or (isinstance(state.outcome, Exited) and state.outcome.code == 7)

"""Thirty managers hold their sessions while a thousand strangers of every kind come at once, again and again.

The strangers are a program of their own (`strangers.py`), the server and some of the managers are the real ones; the
other managers speak the protocol from here, so that each of their polls is measured.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from callers import Caller, host_material, open_descriptors, resident_bytes
from figures import record
from pair import PATIENCE_SECONDS, Guest

from appserver.handshakes import MAX_STRANGERS_BYTES

POLL_SECONDS = 0.25
MAX_POLL_SECONDS = 1.0
"""Of the 99th percentile of all polls during a storm: a fifth of the poll interval of a manager."""

REAL_MANAGERS = 4
MANAGERS = 30
PROGRAM = Path(__file__).with_name("strangers.py")


@dataclass
class Seen:
    """What was seen during one storm."""

    polls: list[float] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    growth_bytes: int = 0

    @property
    def connected(self) -> int:
        return sum(each.get("connected", 0) for each in self.counts.values())

    def percentile(self, share: float) -> float:
        return sorted(self.polls)[min(int(len(self.polls) * share), len(self.polls) - 1)]


async def poll_until(over: trio.Event, caller: Caller, polls: list[float]) -> None:
    while not over.is_set():
        began = time.monotonic()
        await caller.poll()
        polls.append(time.monotonic() - began)
        with trio.move_on_after(POLL_SECONDS):
            await over.wait()


async def storm(guest: Guest, callers: list[Caller], *words: str) -> Seen:
    """Let strangers come while `callers` poll."""
    seen = Seen()
    before = resident_bytes(guest)
    over = trio.Event()
    async with trio.open_nursery() as polling:
        for caller in callers:
            polling.start_soon(poll_until, over, caller, seen.polls)
        command = [sys.executable, str(PROGRAM), str(guest.port), *words]
        done = await trio.run_process(command, capture_stdout=True)
        over.set()
    seen.counts = json.loads(done.stdout)
    seen.growth_bytes = resident_bytes(guest) - before
    return seen


async def settled(guest: Guest, descriptors: int) -> None:
    """Wait until the server has as many descriptors as before: every stranger was let in and sent away."""
    with trio.fail_after(PATIENCE_SECONDS):
        while len(open_descriptors(guest)) > descriptors:  # noqa: ASYNC110  (nobody tells)
            await trio.sleep(0.05)


def refused_by_the_log(text: str) -> int:
    lines = len(re.findall(r"refused a connection from", text))
    repeated = re.findall(r"\((\d+) more like it", text)
    held_back = re.findall(r": (\d+) more since the last line about it", text)
    return lines + sum(map(int, repeated)) + sum(map(int, held_back))


async def test_few_dozen_strangers_are_sent_away_and_counted_to_the_last(guest: Guest) -> None:
    own = host_material(guest)
    with trio.fail_after(2 * PATIENCE_SECONDS):
        callers = [await Caller.greeted(guest, own) for _ in range(3)]
        for number, caller in enumerate(callers):
            await caller.run("/bin/sleep", f"{1000 + number}")
        descriptors = len(open_descriptors(guest))
        seen = await storm(guest, callers, "--crowd", "48", "--seconds", "0.3", "--sources", "3", "--patience", "0.5")
        await (await Caller.greeted(guest, own)).close()  # whoever waited in the kernel's queue before it was let in
        await settled(guest, descriptors)
        for caller in callers:
            await caller.poll()
            await caller.close()
    assert guest.stop_server() == 0
    assert refused_by_the_log(guest.server_log) == seen.connected >= 48
    assert seen.percentile(0.99) < MAX_POLL_SECONDS
    assert seen.growth_bytes < MAX_STRANGERS_BYTES


async def knock_as_the_thirty_first(guest: Guest) -> float:
    """Ask for one application too many; give how long the refusal took."""
    began = time.monotonic()
    status, log = await trio.to_thread.run_sync(
        partial(guest.run, "-cmappserver_timeout", "30", "-service", "/bin/true")
    )
    assert status == 1
    assert "(limit)" in log or "at once" in log, log
    return time.monotonic() - began


async def attach(guest: Guest) -> float:
    """Attach to an application that runs; give how long that took."""
    began = time.monotonic()
    manager = guest.manager("-cmappserver_timeout", "30", "-service", "/bin/sleep", "2000")
    await trio.to_thread.run_sync(manager.wait_started)
    took = time.monotonic() - began
    manager.kill()
    return took


async def in_the_storm(guest: Guest, *words: str) -> tuple[Seen, list[float], list[float]]:
    own = host_material(guest)
    managers = [guest.manager("-service", "/bin/sleep", f"{2000 + number}") for number in range(REAL_MANAGERS)]
    for manager in managers:
        await trio.to_thread.run_sync(manager.wait_started)
    callers = [await Caller.greeted(guest, own) for _ in range(MANAGERS - REAL_MANAGERS)]
    for number, caller in enumerate(callers):
        await caller.run("/bin/sleep", f"{1000 + number}")
    descriptors = len(open_descriptors(guest))
    refused, attached = [], []
    newcomers = trio.Event()
    result: list[Seen] = []

    async def rage() -> None:
        result.append(await storm(guest, callers, *words))
        newcomers.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rage)
        await trio.sleep(2)  # until it rages; it goes on for many times as long
        while not newcomers.is_set():
            refused.append(await knock_as_the_thirty_first(guest))
            attached.append(await attach(guest))
    await settled(guest, descriptors)
    for caller in callers:
        await caller.poll()
        await caller.close()
    for manager in managers:
        assert "contact" not in manager.log
    return result[0], refused, attached


@pytest.mark.strangers
@pytest.mark.parametrize("sources", [1, 200], ids=["one address, the managers' own", "200 addresses"])
def test_thousand_strangers_at_once_and_again_disturb_no_manager(guest: Guest, sources: int) -> None:
    words = ("--crowd", "1000", "--seconds", "20", "--sources", str(sources))
    seen, refused, attached = trio.run(in_the_storm, guest, *words)
    assert guest.stop_server() == 0
    counted = refused_by_the_log(guest.server_log)
    kinds = Counter(dict.fromkeys(seen.counts, 0)) + Counter({
        kind: each.get("connected", 0) for kind, each in seen.counts.items()
    })
    ROWS.append([
        str(sources),
        str(seen.connected),
        str(counted),
        str(len(seen.polls)),
        f"{seen.percentile(0.5) * 1000:.0f}",
        f"{seen.percentile(0.99) * 1000:.0f}",
        f"{max(seen.polls) * 1000:.0f}",
        f"{max(refused):.1f}",
        f"{max(attached):.1f}",
        f"{seen.growth_bytes / 2**20:.1f}",
    ])
    record("strangers", COLUMNS, ROWS, f"{NOTE} Kinds in the last storm: {dict(kinds)}.")
    assert all(kinds.values())
    assert seen.percentile(0.99) < MAX_POLL_SECONDS
    assert seen.growth_bytes < MAX_STRANGERS_BYTES
    sent_away = sum(each.get("closed", 0) + each.get("told", 0) for each in seen.counts.values())
    assert counted >= sent_away
    assert "a bug" not in guest.server_log
    assert "has been silent" not in guest.server_log


ROWS: list[list[str]] = []
NOTE = "Two cores, shared by the server, its strangers and its managers; 1,000 strangers at any time, for 20 s."
COLUMNS = [
    "addresses",
    "connections",
    "refused, by the log",
    "polls",
    "median ms",
    "99th percentile ms",
    "longest ms",
    "31st refused after s",
    "attached after s",
    "memory grew MiB",
]

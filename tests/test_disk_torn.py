"""A record torn at every byte: the server starts, keeps what is whole, calls lost what is not, and says so."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from figures import record as record_figures
from supervised import ENDED, OTHER, OWN, RUNNING, SERVICE, SLEEP, Guest

from appserver.effects import Phase, Run
from appserver.outcome import Exited, Lost
from appserver.procfs import boot_id
from appserver.recordformat import SLOT_BYTES, State, StopOrder
from appserver.records import StateFile

pytestmark = [
    pytest.mark.disk,
    pytest.mark.skipif(sys.platform == "win32", reason="starts POSIX commands by name"),
]

HERE = boot_id()
STOPPING = replace(RUNNING, stop=StopOrder("somebody", 1e9))
CONDITIONS: dict[str, tuple[State, State, Phase, bool]] = {
    "ended": (RUNNING, ENDED, Phase.ENDED, False),
    "running": (replace(RUNNING, phase="starting"), RUNNING, Phase.RUNNING, True),
    "starting": (State(), State(), Phase.STARTING, False),
    "stopping": (RUNNING, STOPPING, Phase.STOPPING, True),
}
"""Of each: the state before the last write, the last one, what the table says of it, and whether a waiter lives."""

PADDING_STEP = 64
"""Where only padding is hit, one byte in so many will do: nothing reads it."""

KINDS: dict[str, Callable[[bytes, bytes, int], bytes]] = {
    "cut off": lambda _old, new, at: new[:at],
    "old bytes behind": lambda old, new, at: new[:at] + old[at:],
    "zeros behind": lambda _old, new, at: new[:at] + bytes(len(new) - at),
    "a bit flipped": lambda _old, new, at: new[:at] + bytes([new[at] ^ (1 << at % 8)]) + new[at + 1 :],
}


def positions(content: bytes) -> Iterator[int]:
    for at, byte in enumerate(content):
        if byte or at % PADDING_STEP == 0 or (at and content[at - 1]):
            yield at


def left_behind(directory: Path, before: State, last: State) -> tuple[Guest, dict[str, tuple[bytes, bytes]]]:
    """A record in this condition, a whole one beside it, and the old and new bytes of the files of the first."""
    guest = Guest(directory)
    guest.record(OTHER, replace(RUNNING, boot=HERE), service=SLEEP)
    guest.record(OWN, replace(before, boot=HERE))
    record = guest.records.get(OWN)
    old = Path(record.file("state")).read_bytes()
    file = StateFile(record)
    file.write(replace(last, boot=HERE))
    file.close()
    files = {name: Path(record.file(name)).read_bytes() for name in ("request", "state", "collected")}
    olds = {"state": old, "request": bytes(len(files["request"])), "collected": b"1"}
    return guest, {name: (olds[name], files[name]) for name in files}


def found_by_another(directory: Path, *, is_watched: bool) -> Guest:
    guest = Guest(directory)
    if is_watched:
        guest.processes.watched.add(OWN)
    guest.supervisor.recover()
    return guest


def verdict(run: Run | None, guest: Guest, before: State, phase: Phase, *, is_watched: bool) -> str:
    """Say what became of the torn one, if that is allowed."""
    assert run is not None, "it is known by its id at least"
    said = f"the record of run {OWN} is damaged" in guest.log.text
    if isinstance(run.outcome, Lost):
        assert said
        assert not is_watched, "what runs is never called lost"
        return "lost, and said"
    if run.service != SERVICE:
        assert said
        assert run.phase is phase
        return "known by its id, and said"
    if said:
        assert is_watched
        assert run.phase is Phase.RUNNING
        return "running, and said"
    assert run.outcome in {None, Exited(3)}
    if run.phase is phase:
        return "whole"
    assert run.phase is (Phase.STARTING if before.phase == "starting" else Phase.RUNNING)
    return "the state before"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_record_torn_at_any_byte_keeps_the_server_from_nothing(tmp_path: Path, condition: str) -> None:
    before, last, phase, is_watched = CONDITIONS[condition]
    guest, files = left_behind(tmp_path, before, last)
    seen: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for name, (old, new) in files.items():
        path = Path(guest.records.get(OWN).file(name))
        for kind, tear in KINDS.items():
            for at in positions(new):
                path.write_bytes(tear(old, new, at))
                found = found_by_another(tmp_path, is_watched=is_watched)
                other = found.supervisor.find(OTHER)
                assert other is not None
                assert other.phase is Phase.RUNNING, "the whole one beside it is kept"
                run = found.supervisor.find(OWN)
                seen[kind][verdict(run, found, before, phase, is_watched=is_watched)] += 1
                assert os.path.isdir(guest.records.get(OWN).path)
            path.write_bytes(new)
    words = ["whole", "the state before", "running, and said", "known by its id, and said", "lost, and said"]
    rows = [[condition, kind, str(sum(seen[kind].values())), *(str(seen[kind][w]) for w in words)] for kind in KINDS]
    ROWS.extend(rows)
    if len(ROWS) == len(CONDITIONS) * len(KINDS):
        record_figures("disk", ["the run", "torn by", "positions", *words], ROWS, NOTE)
    assert sum(seen["cut off"].values()) > 2 * SLOT_BYTES // PADDING_STEP


ROWS: list[list[str]] = []
NOTE = (
    "Every byte of the request, the state and the mark of collection of one run (of padding every 64th), beside a "
    "whole record of another: what a server that starts then knows of the torn one. The whole one was found each time."
)

"""The demonstration really runs, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parent.parent / "demo" / "demo.py"

PATIENCE_SECONDS = 60
"""Twice what the demo gives itself."""


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO)],
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(directory: Path) -> list[str]:
    """List files, and processes that were told of the directory."""
    processes = psutil.process_iter(["cmdline"])
    told = [str(process) for process in processes if str(directory) in " ".join(process.info["cmdline"] or ())]
    return [*map(str, directory.iterdir()), *told]


@pytest.mark.slow
def test_the_demo_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with start(tmp_path) as demo:
        output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 0, output
    assert output.splitlines()[-1].startswith("nothing was lost: one start")
    assert "PROGRAM EXIT CODE 7" in output
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_fails_and_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("Both are killed"):
                break
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 1, output
    assert output.endswith("the demo failed: interrupted\n")
    assert left_behind(tmp_path) == []

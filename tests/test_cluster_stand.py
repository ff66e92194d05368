"""The cluster that `make cluster` leaves up: what it offers works, and its end leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import agent, nodes, world
from cluster.stand import DIRECTORY
from pair import wait_ended

REASON = agent.unavailable() or nodes.unavailable() or world.unavailable()

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

PATIENCE_SECONDS = 90
PING_MON = "/bin/sh /mnt/apps/ping_mon"


def start(output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.stand"],
            cwd=agent.ROOT,
            env=os.environ | {"PYTHONPATH": "tests"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def tool(name: str, *words: str) -> str:
    done = subprocess.run([DIRECTORY / name, *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def wait_said(pattern: str, name: str, *words: str) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not re.search(pattern, said := tool(name, *words)):
        assert time.monotonic() < deadline, f"{pattern!r} is not in {said!r}"
        time.sleep(0.1)
    return said


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    if DIRECTORY.exists():
        pytest.skip("somebody has a cluster up here")
    output = tmp_path / "output"
    process = start(output)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "The cluster is up" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_cluster_that_stays_up_can_be_watched_disturbed_and_ended(
    stand: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    wait_said(r"ping_mon.*Started n1", "n1", "crm_mon", "-1")
    tool("g1", "pkill", "-KILL", "-f", "-x", PING_MON)
    wait_said(r"ping_mon.*fail-count=1", "n2", "crm_mon", "-1", "-f")
    assert "expected" in tool("power", "off", "n3")

    another = start(tmp_path / "another")
    assert another.wait(PATIENCE_SECONDS) == 1
    assert "there is one already" in (tmp_path / "another").read_text()

    tool("power", "off", "n1")
    assert "n1 does not run at the moment" in tool("n1", "true")
    wait_said(r"ping_mon.*Started n2", "n2", "crm_mon", "-1")
    assert tool("g1", "pgrep", "-f", "-x", PING_MON).strip().isdigit()
    tool("power", "on", "n1")
    wait_said(r"Online: \[ n1 n2 \]", "n1", "crm_mon", "-1")

    children = [int(word) for word in Path(f"/proc/{stand.pid}/task/{stand.pid}/children").read_text().split()]
    tool("end")
    assert stand.wait(PATIENCE_SECONDS) == 0
    assert not DIRECTORY.exists()
    for child in children:
        wait_ended(child)


def test_a_signal_ends_the_cluster_as_well(stand: subprocess.Popen[bytes]) -> None:
    stand.send_signal(signal.SIGTERM)
    assert stand.wait(PATIENCE_SECONDS) == 0
    assert not DIRECTORY.exists()

"""The namespaces themselves: nothing of them stays behind, whatever happens to the run that made them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from network import ETC, NAMES, Network, sweep
from pair import is_alive, wait_until

pytestmark = pytest.mark.network

LEFT_BEHIND = """
import subprocess, time
from network import Network
with Network() as network:
    machine = network.machine("left")
    network.plug(machine, "10.77.0.7/24")
    machine.write_etc("hosts", [])
    print(machine.name, subprocess.Popen([*machine.words, "sleep", "1000"]).pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.usefixtures("network")
def test_what_a_killed_run_has_left_is_swept() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", LEFT_BEHIND], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        name, pid = process.stdout.readline().decode().split()
        assert (NAMES / name).exists()
        sweep()
        assert (NAMES / name).exists()  # its owner lives
        process.kill()
    sweep()
    # Another run may be sweeping the same.
    wait_until(lambda: not (NAMES / name).exists() and not (ETC / name).exists(), f"the end of {name}")
    assert not is_alive(int(pid))


def test_names_of_others_are_left_alone(network: Network) -> None:
    own = network.machine("own").name
    assert own not in sweep()
    assert (NAMES / own).exists()
    network.close()
    assert not (NAMES / own).exists()

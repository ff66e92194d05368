"""The state machines of the sequences, for as long as `make fuzz` says, from a seed that is printed."""

from __future__ import annotations

import os
import random
import time

import figures
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from test_session_sequences import Conversations
from test_table_sequences import Sequences

pytestmark = pytest.mark.fuzz

SEQUENCES_AT_ONCE = 50
STEPS = 50
SETTINGS = settings(
    deadline=None,
    max_examples=SEQUENCES_AT_ONCE,
    stateful_step_count=STEPS,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def run_for(machine: type[RuleBasedStateMachine], seconds: float, first_seed: int) -> tuple[int, int]:
    """Run sequences of a machine, with one seed after the other; give how many there were, and how many steps."""
    sequences = steps = 0

    class Counted(machine):  # type: ignore[valid-type,misc]
        def check_invariants(self, *arguments: object, **named: object) -> None:
            nonlocal steps
            steps += 1
            super().check_invariants(*arguments, **named)

        def teardown(self) -> None:
            nonlocal sequences
            sequences += 1
            super().teardown()

    began = time.monotonic()
    while time.monotonic() - began < seconds:
        run_state_machine_as_test(seed(first_seed)(Counted), settings=SETTINGS)
        first_seed += 1
    return sequences, steps


def test_no_sequence_breaks_a_promise() -> None:
    seconds = float(os.environ.get("FUZZ_SECONDS") or 60)
    first_seed = int(os.environ.get("FUZZ_SEED") or random.randrange(10**6))
    print(f"sequences from seed {first_seed}: SEED={first_seed} repeats them", flush=True)
    rows = []
    for name, machine in (("the table", Sequences), ("conversations", Conversations)):
        sequences, steps = run_for(machine, seconds, first_seed)
        rows.append([name, f"{sequences:,}", f"{steps:,}", "0"])
    note = f"From seed {first_seed}, {seconds:g} s for each machine, {STEPS} steps at most in a sequence."
    figures.record("sequences", ["what", "sequences", "steps", "promises broken"], rows, note)

"""A drill with random faults, from the command line; `drill` says how it is made, `--help` what it takes.

python tests/chaos.py --runs 300 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import figures
import trio
from drill.exercise import Order, run_drill
from pair import make_keys


def main() -> int:
    parser = argparse.ArgumentParser(description="Drill the pair with random faults.", allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=300, help="how many runs")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="makes the plan")
    parser.add_argument("--at-once", type=int, default=12, help="how many services at a time, 1 to 25")
    options = parser.parse_args()
    if not 1 <= options.at_once <= 25:  # the guest runs 30, and a service may be there twice for a moment
        parser.error("--at-once must be 1 to 25")
    order = Order(options.runs, options.seed, options.at_once)
    print(f"seed {order.seed}: the same seed makes the same plan", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="cmapp-drill-"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            keys = make_keys(directory / "keys")
        tally = trio.run(run_drill, order, directory / "guest", keys, partial(print, flush=True))
    finally:
        shutil.rmtree(directory)
    note = (
        f"{tally.runs:,} runs, seed {order.seed}, {order.at_once} services at once, "
        f"in {tally.seconds / 60:.1f} minutes on {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}."
    )
    figures.record("drill", ["what", "seen", "must be"], tally.rows(), note)
    own, theirs = (sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"CPU: {own:.0f} s of the drill itself, {theirs:.0f} s of managers and servers")
    print("clean" if tally.is_clean() else f"NOT clean: {tally.bad} bad; repeat with --seed {order.seed}")
    return 0 if tally.is_clean() else 1


if __name__ == "__main__":
    sys.exit(main())

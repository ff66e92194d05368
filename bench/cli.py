"""`make bench`: install what is missing, measure, print and write the tables and the curves."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from figures import VARIABLE, record

from bench.goals import FIGURES
from bench.needs import install
from bench.plan import LARGE_SIZES, SMALL_SIZES, SSH_MOST, steps
from bench.plot import curve
from bench.processes import BenchError, InterruptedBenchError
from bench.run import measure
from bench.samples import Samples
from bench.table import goals_table, growth_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "performance.md"
CURVES = DOCS / "performance"

DEFAULT_ROUNDS = 3
INTERRUPTED_STATUS = 130


def main() -> int:
    """Run the program with the words of its command line; give its exit status."""
    parser = argparse.ArgumentParser(prog="bench", description="measure this pair beside what would be used instead")
    parser.add_argument(
        "--rounds", type=int, default=DEFAULT_ROUNDS, help="how often all take their turns (%(default)s)"
    )
    parser.add_argument("--sizes", type=_sizes, default=SMALL_SIZES + LARGE_SIZES, help="numbers of applications")
    parser.add_argument("--no-java", action="store_true", help="leave the Java stand-in out, which takes the longest")
    parser.add_argument("--ssh-most", type=int, default=SSH_MOST, help="OpenSSH takes part up to here (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there, too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} is not a number of rounds, which is 1 or more")
    samples = Samples()
    began = time.monotonic()
    try:
        install()
        measure(steps(options.rounds, options.sizes, java=not options.no_java, ssh_most=options.ssh_most), samples)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return INTERRUPTED_STATUS if isinstance(error, InterruptedBenchError) else 1
    finally:
        if options.json:
            options.json.write_text(samples.to_json(), encoding="utf-8")
    _publish(samples, _note(options.rounds, time.monotonic() - began))
    return 0


def _publish(samples: Samples, note: str) -> None:
    pictures = {figure: picture for figure in FIGURES if (picture := curve(figure, samples)) is not None}
    curves = "".join(f"\n![{figure.title}]({CURVES.name}/{figure.key}.svg)" for figure in pictures)
    record("goals", *goals_table(samples), note, page=PAGE)
    record("growth", *growth_table(samples), f"{note}\n{curves}" if curves else note, page=PAGE)
    if os.environ.get(VARIABLE) == "1":
        CURVES.mkdir(exist_ok=True)
        for figure, picture in pictures.items():
            (CURVES / f"{figure.key}.svg").write_text(picture, encoding="utf-8")


def _note(rounds: int, seconds: float) -> str:
    cores = os.cpu_count()
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return (
        f"{day}, {rounds} rounds, {seconds / 60:.1f} minutes, {cores} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}."
    )


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(word) for word in text.split(",")}))
    if not sizes or sizes[0] < 1:
        raise ValueError(text)
    return sizes

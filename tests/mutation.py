"""Would the tests notice? Breaks modules at random places, one at a time, and sees which of it their tests notice.

    .venv-mutation/bin/python tests/mutation.py --sample 150 --seed 1

`mutants` says what is broken, `GROUPS` below which tests have to notice. The same seed over the same sources makes the
same mutants. Each is run in a copy of the tree with an interpreter whose packages come from that copy and nowhere else,
as the launchers and waiters do that the tests start; before anything else a module that cannot be imported must be
noticed, for the process rooms also where it only breaks in the processes that tests start.

A test that fails, cannot be collected or takes far longer than it does over the sound source has noticed. The survivors
are printed with their differences, and in the page's table with the explanations of `survivors.txt`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

import figures
from mutants import Module, Mutant

ROOT = Path(__file__).resolve().parent.parent
EXPLANATIONS = Path(__file__).with_name("survivors.txt")
PERCENT_TO_NOTICE = 85
"""Below it the suite is not good enough, and the exit status is 1. A small sample needs a lower bound: of 25 mutants, a
suite that notices 90 % of all misses this one every fourth time."""

AT_ONCE = 2
"""Tests of real processes measure time: more at once would fail by themselves on two cores."""

PATIENCE = 3
MIN_LIMIT_SECONDS = 60
"""A mutant may take this many times what its tests take over the sound source, but at least so long."""

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "htmlcov")


@dataclass(frozen=True, slots=True)
class Group:
    """Modules, and the tests that are to notice what is broken in them, the quick ones first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    run_elsewhere: tuple[str, ...] = ()
    """Those of them that run in processes that the tests start, and hardly in the tests themselves."""


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_{name}.py" for name in names)


_IN_WAITERS = tuple(f"appserver/{room}.py" for room in ("launcher", "waiter", "spawn", "preparing", "recording"))
_OF_ROOMS = (
    *("waiter_rules", "follower_rules", "launcher_rules", "spawn_attributes", "preparing"),
    *("launcher_process", "following", "waiting", "describing", "ends"),
)

GROUPS = {
    "services": Group(
        ("appserver/services.py", "appserver/retention.py"),
        _tests("services", "services_askers", "retention", "table_sequences"),
    ),
    "records": Group(
        ("appserver/records.py", "appserver/recordformat.py"),
        _tests("recordformat", "recovery", "records", "disk_faults"),
    ),
    "protocol": Group(("appserver/protocol.py", "appserver/codec.py"), _tests("protocol", "codec")),
    "manager": Group(("appmgr/manager.py",), _tests("manager", "manager_actions", "manager_wishes", "manager_watch")),
    "processes: Linux": Group(
        (*(f"appserver/{room}.py" for room in ("waited", "following", "launching")), *_IN_WAITERS),
        _tests(*_OF_ROOMS),
        run_elsewhere=_IN_WAITERS,
    ),
    "processes: portable": Group(("appserver/portable.py",), _tests("portable_rules", "portable")),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One source to try; `mutant` is None where the sound one is measured."""

    group: str
    mutant: Mutant | None
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the tests of a job went: whether they failed, by whom, after how long."""

    noticed: bool
    by: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description="See which broken sources the tests notice.", allow_abbrev=False)
    parser.add_argument("--sample", type=int, default=150, help="how many mutants in all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="chooses them")
    parser.add_argument("--percent", type=int, default=PERCENT_TO_NOTICE, help="how many must be noticed, in a hundred")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="of which modules")
    options = parser.parse_args()
    print(f"seed {options.seed}: the same seed over the same sources makes the same mutants", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cmapp-mutation-") as directory:
        mutants = choose(options.groups, options.sample, options.seed)
        _copy(Path(directory))
        workers = ProcessPoolExecutor(AT_ONCE, get_context("fork"), _begin_worker, (directory,))
        try:
            limits = _check_itself(workers, options.groups)
            jobs = [Job(group, mutant, limits[group]) for group, mutant in mutants]
            verdicts = dict(_tried(workers, jobs))
        except BaseException:
            for pid in _children():
                os.kill(pid, signal.SIGTERM)
            raise
        finally:
            workers.shutdown(cancel_futures=True)
    return report(verdicts, options.seed, time.monotonic() - begun, options.percent)


def choose(groups: list[str], sample: int, seed: int) -> list[tuple[str, Mutant]]:
    """Draw the mutants: each group gets the same number, each change of a group the same chance."""
    chooser = random.Random(seed)
    chosen: list[tuple[str, Mutant]] = []
    for place, name in enumerate(groups):
        modules = [Module(ROOT, path) for path in GROUPS[name].modules]
        numbers = [(module, number) for module in modules for number in range(len(module))]
        chooser.shuffle(numbers)
        drawn = (mutant for module, number in numbers if (mutant := module.mutant(number)) is not None)
        wanted = sample * (place + 1) // len(groups) - sample * place // len(groups)
        chosen += [(name, mutant) for mutant, _ in zip(drawn, range(wanted), strict=False)]
        print(f"{name}: {wanted} of {len(numbers)} changes of {', '.join(GROUPS[name].modules)}", flush=True)
    chooser.shuffle(chosen)  # what takes long does not come all at the end
    return chosen


def report(verdicts: dict[Job, Verdict], seed: int, seconds: float, percent: int) -> int:
    """Print the survivors and both tables; give the exit status."""
    survivors = [job.mutant for job, verdict in verdicts.items() if not verdict.noticed and job.mutant is not None]
    tried, noticed = (
        Counter(job.group for job in verdicts),
        Counter(job.group for job in verdicts if verdicts[job].noticed),
    )
    rows = [_row(name, tried[name], noticed[name]) for name in GROUPS if name in tried]
    rows.append(_row("in all", tried.total(), noticed.total()))
    note = (
        f"{tried.total()} mutants, seed {seed}, in {seconds / 60:.0f} minutes on {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}."
    )
    print()
    figures.record("mutation", ["modules", "mutants", "noticed", "survived", "share"], rows, note)
    explained = explanations(EXPLANATIONS.read_text(encoding="utf-8"))
    lines = [_survivor(mutant, explained) for mutant in sorted(survivors, key=lambda each: (each.path, each.line))]
    figures.record("survivors", ["where", "change", "why nothing notices"], lines, "The survivors of that run:")
    enough = 100 * noticed.total() >= percent * tried.total()
    print("enough was noticed" if enough else f"NOT enough was noticed: less than {percent} %")
    return 0 if enough else 1


def explanations(text: str) -> dict[tuple[str, str], str]:
    """Read `survivors.txt`: three lines for each survivor (file, change, why), empty lines and comments between."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if len(lines) % 3:
        raise ValueError(f"{EXPLANATIONS.name}: three lines for each survivor were expected, not {len(lines)} in all")
    return {(lines[at], lines[at + 1]): lines[at + 2] for at in range(0, len(lines), 3)}


def _survivor(mutant: Mutant, explained: dict[tuple[str, str], str]) -> list[str]:
    why = explained.get((mutant.path, mutant.change), "not explained yet")
    return [f"{mutant.path}:{mutant.line}", f"`{mutant.change}`", why]


def _row(name: str, tried: int, noticed: int) -> list[str]:
    return [name, str(tried), str(noticed), str(tried - noticed), f"{noticed / tried:.1%}" if tried else ""]


def _check_itself(workers: ProcessPoolExecutor, groups: list[str]) -> dict[str, float]:
    """See that the sound source passes and that a broken one is run at all; give the time limit of each group."""
    limits: dict[str, float] = {}
    for job, verdict in _tried(workers, [Job(name, None, 600) for name in groups]):
        if verdict.noticed:
            raise SystemExit(f"the tests of {job.group} fail over the sound source: {verdict.by}")
        limits[job.group] = max(MIN_LIMIT_SECONDS, PATIENCE * verdict.seconds)
    broken = [Job(name, mutant, limits[name]) for name in groups for mutant in _unusable(GROUPS[name])]
    for job, verdict in _tried(workers, broken):
        if not verdict.noticed:
            raise SystemExit(f"the tests of {job.group} do not run the copy of {job.mutant and job.mutant.path}")
    return limits


def _unusable(group: Group) -> Iterator[Mutant]:
    """Make a module of the group that cannot be imported: by nobody, or only not in processes that the tests start."""
    broken = "cannot be imported"
    source = (ROOT / group.modules[0]).read_text(encoding="utf-8")
    yield Mutant(group.modules[0], 1, source, f"{source}\nraise ValueError({broken!r})\n", broken)
    for path in group.run_elsewhere:
        source = (ROOT / path).read_text(encoding="utf-8")
        end = f"\nif 'pytest' not in sys.modules:\n    raise ValueError({broken!r})\n"
        yield Mutant(path, 1, source, source + end, broken)


def _tried(workers: ProcessPoolExecutor, jobs: Iterable[Job]) -> Iterator[tuple[Job, Verdict]]:
    """Try the jobs side by side; tell each as it is done."""
    running: dict[Future[Verdict], Job] = {workers.submit(_try, job): job for job in jobs}
    for done, future in enumerate(as_completed(running), 1):
        job, verdict = running[future], future.result()
        what = "the sound source" if job.mutant is None else f"{job.mutant.path}:{job.mutant.line}"
        word = "noticed " if verdict.noticed else "SURVIVED" if job.mutant is not None else "passes  "
        details = verdict.by if verdict.noticed or job.mutant is None else f"\n{job.mutant.diff}"
        print(f"[{done}/{len(running)}] {word} {verdict.seconds:5.1f} s  {what}  {details}", flush=True)
        yield job, verdict


def _copy(directory: Path) -> None:
    """Make one copy of the tree for each worker, with an interpreter of its own.

    That one finds the copy's packages first, then those that `.venv` has installed, but not the tree itself, which
    `.venv` only knows by a path file.
    """
    (site_packages,) = (ROOT / ".venv").glob("lib/python*/site-packages")
    for number in range(AT_ONCE):
        tree = directory / str(number)
        shutil.copytree(ROOT, tree, symlinks=True, ignore=NOT_COPIED)
        python = ROOT / ".venv" / "bin" / "python"
        subprocess.run([python, "-m", "venv", "--without-pip", tree / ".venv"], check=True)
        (own,) = (tree / ".venv").glob("lib/python*/site-packages")
        (own / "copy.pth").write_text(f"{tree}\n{site_packages}\n", encoding="utf-8")


_tree = Path()


def _begin_worker(directory: str) -> None:
    """Take the first copy that nobody has; be the parent of whatever the tests leave behind."""
    global _tree
    for number in range(AT_ONCE):
        tree = Path(directory, str(number))
        try:
            (tree / ".taken").mkdir()
        except FileExistsError:
            continue
        _tree = tree
        break
    signal.signal(signal.SIGTERM, _leave_worker)
    set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0)


def _leave_worker(_number: int, _frame: FrameType | None) -> None:
    _end_everybody()
    os._exit(1)


def _try(job: Job) -> Verdict:
    """Run the tests of a group over one source, in this worker's copy."""
    begun = time.monotonic()
    if job.mutant is not None:
        _write(job.mutant.path, job.mutant.source)
    try:
        noticed, by = _run_tests(GROUPS[job.group].tests, job.limit_seconds)
    finally:
        _end_everybody()
        if job.mutant is not None:
            _write(job.mutant.path, job.mutant.original)
    return Verdict(noticed, by, time.monotonic() - begun)


def _write(path: str, source: str) -> None:
    """Replace a module, and make sure that nothing compiled of the former one is run: its time may be the same."""
    (_tree / path).write_text(source, encoding="utf-8")
    for compiled in (_tree / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
        compiled.unlink()


def _run_tests(tests: tuple[str, ...], limit_seconds: float) -> tuple[bool, str]:
    temporary = _tree / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    python = str(_tree / ".venv" / "bin" / "python")
    argv = [python, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={temporary}"]
    environment = {name: value for name, value in os.environ.items() if name != figures.VARIABLE}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*argv, *tests], cwd=_tree, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True, f"not done after {limit_seconds:.0f} s"
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "")
    return status != 0, failed[:120] if status else ""


def _end_everybody() -> None:
    """Kill and reap what the tests left, generation after generation: what loses its parents becomes ours."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """List our children. None of them can be somebody else by now: only we reap them."""
    return [int(pid) for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main())

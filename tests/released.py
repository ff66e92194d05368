"""What is kept of each released version, in `fixtures/releases/VERSION`, and how it is used.

    cmapp-VERSION-py3-none-any.whl   its programs
    conversation.txt                 what its manager and its server said to each other, story by story
    state/                           a state directory of its server, with runs in every phase

`recorder.py` makes all of it. A line of a conversation begins with a word:

    story NAME      what follows happens in one guest, from its first request on
    words [...]     a manager was started with these words; null: somebody spoke by hand
    connect         it connected
    S {...}         the server said this
    M {...}         the manager said this
    close           the connection ended
    signal N        the manager was sent signal N
    server ...      what became of the server: `ends`, `forgets` (it comes back without its records)
    application ... what became of the application beside its own doings: `ends`
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TREE = Path(__file__).parents[1]
RELEASES = Path(__file__).with_name("fixtures") / "releases"
ENVIRONMENTS = TREE / ".venv-releases"

VERSIONS = sorted(path.name for path in RELEASES.iterdir()) if RELEASES.exists() else []
"""All that were released, in order of their names."""

BOUND = 2
"""`maxProcesses` of the guests in the stories."""


@dataclass(frozen=True)
class Step:
    """One line of a conversation: its first word, and the rest."""

    what: str
    rest: str


@dataclass
class Story:
    name: str
    steps: list[Step] = field(default_factory=list)

    def said(self, speaker: str) -> list[str]:
        """All that the manager ("M") or the server ("S") said."""
        return [step.rest for step in self.steps if step.what == speaker]

    def managers(self) -> list[tuple[list[str], list[Step]]]:
        """Give each manager's words, and what happened to it. Left out is who spoke by hand."""
        found: list[tuple[list[str], list[Step]]] = []
        for step in self.steps:
            if step.what == "words":
                found.append((json.loads(step.rest) or [], []))
            else:
                found[-1][1].append(step)
        return [(words, steps) for words, steps in found if words]


def stories(version: str) -> list[Story]:
    """Read the recorded conversation of a release."""
    found: list[Story] = []
    for line in (RELEASES / version / "conversation.txt").read_text(encoding="utf-8").splitlines():
        what, _, rest = line.partition(" ")
        if what == "story":
            found.append(Story(rest))
        else:
            found[-1].steps.append(Step(what, rest))
    return found


_JUDGE = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from appserver.codec import decode
from appserver.protocol import NEED_DATA, Connection
from appserver.records import Records

def judge(job):
    if "state_dir" in job:
        return [f"{each.run_id} {each.read_request() and each.read_state().phase}" for each in
                Records(job["state_dir"]).all()]
    end, took = Connection(job["role"]), []
    if job["role"] == "server":
        end.send(decode(job["own"].encode()))
    for line in job["heard"]:
        end.receive_data(line.encode() + b"\\n")
        took.append(type(end.next_event()).__name__)
        assert end.next_event() is NEED_DATA
        if took == ["Greeting"]:
            end.send(decode(job["own"].encode()))
    return took

json.dump([judge(job) for job in json.load(sys.stdin)], sys.stdout)
"""


def judge_program() -> str:
    """Give a program that judges by the code in a wheel, which it gets as its argument, and nothing else of ours."""
    return _JUDGE


def recorded_state(version: str, target: Path) -> None:
    """Copy the state directory of a release, with the modes that git does not keep."""
    shutil.copytree(RELEASES / version / "state", target, symlinks=True)
    for path in target.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
    target.chmod(0o700)


def wheel(version: str) -> Path:
    (path,) = (RELEASES / version).glob("cmapp-*.whl")
    return path


def python_of(version: str) -> str:
    """Give the interpreter of an environment that has a release installed; it is made where it is not there."""
    home = ENVIRONMENTS / version
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = home / ".installed"
        digest = f"{wheel(version).stat().st_size}"
        if not stamp.exists() or stamp.read_text() != digest:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            quiet = ["--quiet", "--disable-pip-version-check"]
            subprocess.run([str(home / "bin/python"), "-m", "pip", "install", *quiet, str(wheel(version))], check=True)
            stamp.write_text(digest)
    return str(home / "bin" / "python")

"""The launcher's rehearsal leaves nothing behind, also where the system has nothing to give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

REHEARSE = """
import os, resource, signal, sys
sys.path.append(sys.argv[1])
from appserver import rehearsal
from appserver.waiter import Waiter
ends = []
told = Waiter._end_simply
Waiter._end_simply = lambda waiter, main: (ends.append(os.waitstatus_to_exitcode(main[1])), told(waiter, main))[1]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = os.listdir("/proc/self/fd")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]) or hard, hard))
rehearsal.rehearse()
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
assert os.listdir("/proc/self/fd") == before, os.listdir("/proc/self/fd")
assert signal.set_wakeup_fd(-1) == -1
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print(len(ends), set(ends), rehearsal.LIVES)
"""


def rehearsed(descriptors: int) -> list[str]:
    words = [sys.executable, "-I", "-S", "-c", REHEARSE, str(Path(__file__).parent.parent), str(descriptors)]
    return subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_a_rehearsal_has_all_its_lives_and_leaves_nothing_behind() -> None:
    ends, codes, lives = rehearsed(0)
    assert ends == lives
    assert codes == "{127}"


@pytest.mark.parametrize("descriptors", range(3, 10))
def test_a_rehearsal_that_lacks_descriptors_breaks_off_and_leaves_nothing_behind(descriptors: int) -> None:
    assert rehearsed(descriptors)[0] == "0"


GAPS = """
import sys
sys.path.append(sys.argv[1])
from appserver.rehearsal import fill_gaps
fill_gaps()
pages = 0
for size in (64, 80, 96, 208):
    made = [bytes(size - sys.getsizeof(b"")) for _ in range(20)]
    pages += len({id(one) // 4096 for one in made})
print(pages)
"""


def test_what_is_made_after_the_gaps_are_filled_lies_together() -> None:
    words = [sys.executable, "-I", "-S", "-c", GAPS, str(Path(__file__).parent.parent)]
    done = subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) <= 8  # five are seen, and twenty without

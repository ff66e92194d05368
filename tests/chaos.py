"""A drill with random faults: many short runs while managers, servers and launchers are killed and connections cut.

    python tests/chaos.py --runs 300 --seed 1

Each run is an application whose ending is known, watched by a manager that is replaced when it is killed, as a cluster
would. The oracle is the application itself: it notes its starts and holds a lock while it runs, so a second copy beside
the first gives itself away. What must not happen is counted and printed: an outcome that is wrong or lost, a double
start, a process that outlives its stop, a descriptor or a zombie left over.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cutter import Cutter
from pair import Guest, Manager, is_alive, make_keys, open_guest, wait_until

from appserver import procfs

APPLICATION = """
import fcntl, os, signal, sys, time
path, seconds, ending = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
lock = os.open(path + '.lock', os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open(path + '.double', 'w').close()
with open(path + '.starts', 'a') as file:
    file.write(f'{os.getpid()}\\n')
time.sleep(seconds)
with open(path + '.ends', 'a') as file:
    file.write('x\\n')
if ending < 0:
    if ending != -signal.SIGKILL:
        signal.signal(-ending, signal.SIG_DFL)  # Python ignores SIGPIPE
    os.kill(os.getpid(), -ending)
    time.sleep(10)
sys.exit(ending)
"""

ENDINGS = (0, 1, 7, 255, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM, -signal.SIGPIPE)
SHARE_STOPPED = 0.15
AT_ONCE = 8
PAUSE_BETWEEN_FAULTS_SECONDS = (0.05, 0.5)


@dataclasses.dataclass
class Tally:
    """What happened. All but the first three must be zero."""

    runs: int = 0
    faults: int = 0
    right: int = 0
    wrong: int = 0
    lost: int = 0
    double_starts: int = 0
    alive_after_stop: int = 0
    left_over: int = 0

    def add(self, name: str) -> None:
        with _LOCK:
            setattr(self, name, getattr(self, name) + 1)

    def is_clean(self) -> bool:
        return not (self.wrong + self.lost + self.double_starts + self.alive_after_stop + self.left_over)


_LOCK = threading.Lock()


class Drill:
    """One drill against one guest."""

    def __init__(self, guest: Guest, cutter: Cutter, runs: int, seed: int) -> None:
        self._guest = guest
        self._cutter = cutter
        self._runs = runs
        self._random = random.Random(seed)
        self._managers: dict[int, Manager] = {}
        self._over = threading.Event()
        self._application = guest.directory / "application.py"
        self._application.write_text(APPLICATION)
        self.tally = Tally()
        self.complaints: list[str] = []

    def run(self) -> None:
        plans = [(index, self._random.random() * 0.8, self._random.choice(ENDINGS)) for index in range(self._runs)]
        stopped = {index for index in range(self._runs) if self._random.random() < SHARE_STOPPED}
        faults = threading.Thread(target=self._make_faults)
        faults.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for done in [pool.submit(self._one, *plan, stop=plan[0] in stopped) for plan in plans]:
                    done.result()
        finally:
            self._over.set()
            faults.join()

    def _one(self, index: int, seconds: float, ending: int, *, stop: bool) -> None:
        path = self._guest.directory / f"app-{index}"
        seconds = 1000.0 if stop else seconds
        words = ("-service", sys.executable, str(self._application), str(path), f"{seconds:.3f}", str(ending))
        halt = ("--on-halt", "stop", "--stop-timeout", "20") if stop else ()
        expected = 128 + signal.SIGTERM if stop else 128 - ending if ending < 0 else ending
        for _ in range(20):
            manager = self._guest.manager("-cmappserver_timeout", "30", *halt, *words)
            self._managers[index] = manager
            if stop and not self._stop_when_started(manager, path):
                continue
            status = manager.wait()
            if status != -signal.SIGKILL:
                break
        del self._managers[index]
        self._judge(index, path, manager, status, expected, stop=stop)

    def _stop_when_started(self, manager: Manager, path: Path) -> bool:
        starts = Path(f"{path}.starts")
        wait_until(lambda: starts.exists() or manager.process.poll() is not None)
        if manager.process.poll() is not None:
            return False
        if "contact" not in manager.log:
            wait_until(lambda: "the application" in manager.log or manager.process.poll() is not None)
        try:
            manager.signal(signal.SIGTERM)
        except ProcessLookupError:
            return False
        return True

    def _judge(self, index: int, path: Path, manager: Manager, status: int, expected: int, *, stop: bool) -> None:
        tally = self.tally
        tally.add("runs")
        starts = (
            [int(line) for line in Path(f"{path}.starts").read_text().split()]
            if Path(f"{path}.starts").exists()
            else []
        )
        if status == expected:
            tally.add("right")
        else:
            kind = "lost" if "outcome lost" in manager.log else "wrong"
            tally.add(kind)
            self.complaints.append(
                f"run {index}: {kind}: status {status}, expected {expected}, starts {starts}\n{manager.log}"
            )
        if Path(f"{path}.double").exists():
            tally.add("double_starts")
            self.complaints.append(f"run {index}: two copies at once: {starts}\n{manager.log}")
        if stop and any(is_alive(pid) for pid in starts):
            tally.add("alive_after_stop")
            self.complaints.append(f"run {index}: alive after the stop: {starts}\n{manager.log}")

    def _make_faults(self) -> None:
        faults: list[Callable[[], None]] = [self._kill_manager, self._kill_server, self._kill_launcher, self._cut]
        while not self._over.wait(self._random.uniform(*PAUSE_BETWEEN_FAULTS_SECONDS)):
            self._random.choice(faults)()
            self.tally.faults += 1

    def _kill_manager(self) -> None:
        managers = [manager for manager in list(self._managers.values()) if manager.process.poll() is None]
        if managers:
            try:
                self._random.choice(managers).signal(signal.SIGKILL)
            except ProcessLookupError:
                return

    def _kill_server(self) -> None:
        self._guest.kill_server()
        self._over.wait(self._random.choice((0.0, 0.0, 0.3)))
        self._guest.start_server()
        self._guest.configure_host(port=self._cutter.port)

    def _kill_launcher(self) -> None:
        try:
            os.kill(self._guest.launcher_pid(), signal.SIGKILL)
        except ProcessLookupError:
            return

    def _cut(self) -> None:
        self._cutter.cut_all()


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_bytes(pid: int) -> int:
    stat = procfs.process_stat(pid)
    return stat.rss_pages * os.sysconf("SC_PAGE_SIZE") if stat else 0


def leftovers(guest: Guest) -> list[str]:
    """List what still runs of the guest beside its server and launcher."""
    assert guest.server is not None
    known = {guest.server.pid, guest.launcher_pid()}
    found = []
    for stat in procfs.all_processes():
        if stat.pid in known or stat.pid == os.getpid():
            continue
        try:
            words = Path(f"/proc/{stat.pid}/cmdline").read_bytes()
            directory = os.readlink(f"/proc/{stat.pid}/cwd")
        except OSError:
            continue
        if str(guest.directory).encode() in words or directory.startswith(str(guest.directory)):
            found.append(f"{stat.pid} {words!r}")
    return found


def drill(runs: int, seed: int, directory: Path, keys: Path, say: Callable[[str], None]) -> Tally:
    """Run one drill; say what went wrong, and the figures."""
    began = time.monotonic()
    with open_guest(directory, keys) as guest:
        guest.start_server()
        with Cutter(guest.port, flights=None) as cutter:
            guest.configure_host(port=cutter.port)
            one = Drill(guest, cutter, runs, seed)
            one.run()
        assert guest.server is not None
        try:
            wait_until(lambda: not leftovers(guest), "the end of all waiters")
        except AssertionError:
            one.tally.left_over = len(leftovers(guest))
            one.complaints += leftovers(guest)
        descriptors, memory = count_descriptors(guest.server.pid), rss_bytes(guest.server.pid)
        for complaint in one.complaints:
            say(complaint)
        if one.complaints:
            say("the server's log:\n" + guest.server_log)
    figures = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(one.tally).items())
    say(f"seed {seed}: {figures}")
    say(f"server at the end: {descriptors} descriptors, {memory / 2**20:.1f} MiB; {time.monotonic() - began:.0f} s")
    return one.tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Drill the pair with random faults.")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="cmapp-chaos-"))
    try:
        tally = drill(options.runs, options.seed, directory / "guest", make_keys(directory / "keys"), print)
    finally:
        shutil.rmtree(directory)
    return 0 if tally.is_clean() else 1


if __name__ == "__main__":
    sys.exit(main())

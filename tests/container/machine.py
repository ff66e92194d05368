"""A booted copy of the root file system: systemd is process 1, and nothing of it is seen outside.

It has process ids, host name, mounts, control groups and network (a loopback interface, no more) of its own. What it
writes stays in its copy and can be read after it is switched off.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from container.rootfs import ENVIRONMENT, NoContainer, printed_by, run_to_end

COMMAND_SECONDS = 120
"""A second on an idle machine, also for what installs packages; a disk that is slow to sync takes its time."""

BOOT_SECONDS = 120
"""Half a second on an idle machine."""

OFF_SECONDS = 60
POLL_SECONDS = 0.05

KEEPER = Path(__file__).with_name("keeper.py")


class Machine:
    """One container that runs. `leader` is the pid of its process 1 as it is seen outside."""

    def __init__(self, root: Path, keeper: subprocess.Popen[str], kept_pid: int) -> None:
        self.root = root
        self._keeper = keeper
        self._kept_pid = kept_pid
        self.leader = 0

    @property
    def words(self) -> list[str]:
        """What to put before a command to have it run inside.

        Inside is a child of what is started here. It goes with its parent: otherwise it would hold the pipes of one
        that was killed, and whoever reads them to their end would wait for it.
        """
        inside = ["nsenter", "--target", str(self.leader), *(f"--{kind}" for kind in ("mount", "uts", "ipc", "net"))]
        return [*inside, "--pid", "--cgroup", "--root", "--wd=/", "setpriv", "--pdeathsig", "KILL"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command inside, with pipes for what it says."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*self.words, *words], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def try_to(self, *words: str, timeout_seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, whatever its status."""
        return run_to_end([*self.words, *words], timeout_seconds)

    def run(self, *words: str, timeout_seconds: float = COMMAND_SECONDS) -> str:
        """Run a command inside; give what it printed. Raises CommandFailed."""
        return printed_by(words, self.try_to(*words, timeout_seconds=timeout_seconds))

    def path(self, name: str) -> Path:
        """Where a path of its root file system lies here; not for what is mounted inside, such as /run."""
        return self.root / name.lstrip("/")

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Read properties of a unit."""
        shown = self.run("systemctl", "show", name, *(f"--property={one}" for one in properties))
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal(self, *words: str) -> str:
        """Read the journal, switched on or off (then it must be kept under /var/log/journal)."""
        told = ["journalctl", "--no-pager", "--output=short-monotonic", *words]
        if self.is_on():
            return self.run(*told)
        done = subprocess.run(
            [*told, f"--directory={self.path('/var/log/journal')}"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def await_journal(self, text: str, *words: str) -> None:
        """Wait until the journal tells something; it is a moment later than who has said it."""
        wait_until(f"{text!r} in the journal", lambda: text in self.journal(*words))

    def is_on(self) -> bool:
        return self._keeper.poll() is None

    def power_off(self) -> float:
        """Shut down in order; give the seconds that it took."""
        began = time.monotonic()
        self.run("systemctl", "poweroff")
        self._keeper.wait(OFF_SECONDS)
        return time.monotonic() - began

    def await_boot(self) -> None:
        """Wait until everything that starts at boot has. Raises NoContainer."""
        deadline = time.monotonic() + BOOT_SECONDS
        state = "nothing yet"
        while time.monotonic() < deadline and self.is_on():
            self.leader = self.leader or self._find_leader()
            if self.leader:
                state = self.try_to("systemctl", "is-system-running").stdout.strip() or state
                if state in {"running", "degraded"}:
                    return
            time.sleep(POLL_SECONDS)
        log = self.root.with_name("console.log").read_text(encoding="utf-8", errors="replace")
        raise NoContainer(f"systemd does not come up in a container, {state}: {log[-500:]}")

    def _find_leader(self) -> int:
        looked_at = [self._kept_pid]
        with contextlib.suppress(OSError):
            for pid in looked_at:
                if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "systemd":
                    return pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
                looked_at += map(int, children.split())
        return 0


@contextlib.contextmanager
def open_machine(root: Path) -> Iterator[Machine]:
    """Boot a root file system that may be changed; switch it off, hard, at the end. Raises NoContainer."""
    name = f"cmapp-container-{os.getpid()}-{root.parent.name}"
    words = ["systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no", "--keep-unit"]
    words += ["--private-network", "--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
    words += ["--machine=guest"]
    with root.with_name("console.log").open("w") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-I", str(KEEPER), name, *words],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        assert keeper.stdout is not None
        pid = keeper.stdout.readline().strip()
        if not pid:
            text = root.with_name("console.log").read_text(encoding="utf-8", errors="replace")
            raise NoContainer(f"no container can be made here: {text[-300:]}")
        machine = Machine(root, keeper, int(pid))
        machine.await_boot()
        yield machine
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()
        if keeper.stdout is not None:
            keeper.stdout.close()


def wait_until(what: str, is_so: Callable[[], object], seconds: float = COMMAND_SECONDS) -> None:
    """Wait for what will come to be. Raises AssertionError where it does not."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(POLL_SECONDS)

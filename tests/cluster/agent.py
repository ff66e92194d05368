"""The resource agent called by hand, as the cluster does it: an action, parameters in the environment, a status."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pair import NODE, Guest

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "packages" / "ocf" / "cmappmgr"
SHELLFUNCS = Path("/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs")
CMAPPMGR = Path(sys.executable).with_name("cmappmgr")

SUCCESS, ERR_GENERIC, ERR_ARGS, ERR_UNIMPLEMENTED, ERR_PERM, ERR_INSTALLED, ERR_CONFIGURED, NOT_RUNNING = range(8)


def unavailable() -> str | None:
    """Tell why the agent cannot run here; None where it can."""
    if not SHELLFUNCS.exists():
        return "the agents' shell functions are missing: install the package resource-agents"
    if shutil.which("setsid") is None or shutil.which("flock") is None:
        return "setsid and flock are missing: install util-linux"
    return None


class Agent:
    """One resource on one node, which is a directory `temporary` of state."""

    def __init__(self, guest: Guest, temporary: Path, service: str, name: str = "app", **parameters: str) -> None:
        self.guest = guest
        self.temporary = temporary
        self.name = name
        self.said = ""
        self.parameters = {
            "node": NODE,
            "service": service,
            "config": str(guest.host_config),
            "cmappmgr": str(CMAPPMGR),
            "timeout": "30",
            "stop_timeout": "5",
        } | parameters

    def environment(self, **meta: str) -> dict[str, str]:
        return (
            {
                "OCF_ROOT": "/usr/lib/ocf",
                "OCF_RESOURCE_INSTANCE": self.name,
                "HA_RSCTMP": str(self.temporary),
                "PATH": os.defpath,
            }
            | {f"OCF_RESKEY_{name}": value for name, value in self.parameters.items()}
            | {f"OCF_RESKEY_CRM_meta_{name}": value for name, value in meta.items()}
        )

    def do(self, action: str, seconds: float = 60, **meta: str) -> int:
        """Run one action; give its status. What it said is in `said`."""
        return self.call(action, self.environment(timeout=str(int(seconds * 1000)), **meta), seconds)

    def call(self, action: str, environment: Mapping[str, str], seconds: float = 60) -> int:
        done = subprocess.run(
            [str(AGENT), action],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        self.said = done.stdout + done.stderr
        return done.returncode

    @property
    def reason(self) -> str:
        """What the cluster shows of why the last action failed."""
        reasons = [line for line in self.said.splitlines() if line.startswith("ocf-exit-reason:")]
        return reasons[-1].removeprefix("ocf-exit-reason:") if reasons else ""

    @property
    def state(self) -> Path:
        return self.temporary / f"cmappmgr-{self.name}"

    @property
    def log(self) -> str:
        return Path(f"{self.state}.log").read_text()

    def standing(self) -> dict[str, str]:
        """What the manager says of itself."""
        return dict(line.split("=", 1) for line in (self.state / "status").read_text().splitlines())

    @property
    def pid(self) -> int:
        """The application's, in the guest."""
        return int(self.standing()["pid"])

    @property
    def manager_pid(self) -> int:
        return int((self.state / "manager").read_text().split()[0])

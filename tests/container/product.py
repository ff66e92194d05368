"""The distribution, installed from a wheel into /opt/cmapp of a root file system, with keys, units and links.

It is installed as the packages do it, by the root file system's own Python and at the final path; where the packages
are tested, they do it themselves.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from container.rootfs import BUILD, NoContainer, run_in

REPOSITORY = BUILD.parent
UNITS = REPOSITORY / "packages" / "systemd"

HOST_CONFIGURATION = """\
keyStore=/etc/cmcluster/cmappmgr/client.private
guest:
address=127.0.0.1
trustStore=/etc/cmcluster/cmappmgr/server_guest.public
"""


def install_product(root: Path) -> None:
    """Install programs, units and keys of both sides; the server is enabled. Half a minute."""
    wheels = root / "wheels"
    python = run_in(root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    _pip("wheel", "--no-deps", f"--wheel-dir={wheels}", str(REPOSITORY))
    (wheel,) = map(str, wheels.glob("cmapp-*.whl"))
    _pip("download", "--only-binary=:all:", f"--python-version={python}", f"--dest={wheels}", wheel)
    run_in(root, "python3", "-m", "venv", "/opt/cmapp")
    run_in(root, "/opt/cmapp/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels", "cmapp")
    shutil.rmtree(wheels)
    for program in ("cmappmgr", "cmappserver", "cmapppki"):
        (root / "usr/sbin" / program).symlink_to(f"/opt/cmapp/bin/{program}")
    for unit in UNITS.iterdir():
        shutil.copy(unit, root / "usr/lib/systemd/system")
    make_keys(root)
    run_in(root, "systemctl", "enable", "cmappserver.service")


def make_keys(root: Path) -> None:
    """Make keys of both sides that trust each other, and the host's configuration."""
    run_in(root, "cmapppki", "client", "--force")
    run_in(root, "cmapppki", "server", "--guest", "guest", "--force")
    guest, host = root / "opt/hp/cmappserver", root / "etc/cmcluster/cmappmgr"
    shutil.copy(host / "client.public", guest)
    shutil.copy(guest / "server_guest.public", host)
    (root / "etc/cmappmgr.conf").write_text(HOST_CONFIGURATION, encoding="utf-8")


def units() -> Iterator[Path]:
    """Give the units that are installed."""
    yield from sorted(UNITS.glob("*.service"))


def _pip(*words: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoContainer(f"pip {words[0]} failed: {done.stderr.strip()[-300:]}")

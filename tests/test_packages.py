"""The packages, built and installed for real: `make test-packages`.

Each test works in a fresh copy of a small Debian that the build of the containers keeps; some boot it.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import build_packages
import pytest
from container.machine import Machine, open_machine, wait_until
from container.rootfs import CommandFailed, NoContainer, build_root, open_copy, run_in
from contents import PROGRAMS
from release import MAINTAINER, ROOT, BuildError, maintainer, this_release

from pki.pem import encode_certificate
from pki.pkcs12 import open_trust_store

pytestmark = pytest.mark.packages

TOOLS = {**build_packages.TOOLS, "lintian": "lintian", "rpmlint": "rpmlint", "rpm": "rpm", "mandoc": "mandoc"}

NAMES = ("cmapp-host", "cmapp-guest", "cmapp-common")
UNITS = ("cmappmgr@.service", "cmappserver.service")
LATER = "+later1"
MANAGER_SECONDS = 120
"""Until a manager has ended that has every reason to; a second or two on an idle machine."""

KEPT = "keyStore=/opt/hp/cmappserver/server.private\ntrustStore=/opt/hp/cmappserver/client.public\nmaxProcesses=7\n"
UNWATCHED = "until test -e /root/end; do sleep 0.1; done; exit 42"
HOST_CONFIG = """\
keyStore=/etc/cmcluster/cmappmgr/client.private
guest:
trustStore=/etc/cmcluster/cmappmgr/server_guest.public
address=127.0.0.1
"""


@final
@dataclass(frozen=True, slots=True)
class Built:
    """Where the packages of this release and of a later one lie."""

    now: Path
    later: Path

    def debs(self, *, later: bool = False) -> list[Path]:
        return sorted((self.later if later else self.now).glob("*.deb"))

    def rpms(self, *, later: bool = False) -> list[Path]:
        return sorted((self.later if later else self.now).glob("*.rpm"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if os.geteuid() != 0:
        pytest.skip("packages are installed as root")
    found = Built(tmp_path_factory.mktemp("now"), tmp_path_factory.mktemp("later"))
    try:
        build_packages.need_tools(TOOLS)
        for suffix, directory in (("", found.now), (LATER, found.later)):
            began = time.monotonic()
            made = build_packages.build(suffix, directory, quick=True)
            size = sum(file.stat().st_size for file in made) / 1e6
            version = this_release(suffix).version
            print(f"\nbuilt {len(made)} packages of {version} in {seconds_since(began)}, {size:.1f} MB")
    except BuildError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def root() -> Iterator[Path]:
    try:
        with open_copy(build_root()) as copy:
            for left_out in (copy / "etc/dpkg/dpkg.cfg.d").iterdir():
                left_out.unlink()  # it would have manual pages and documents left out
            yield copy
    except NoContainer as error:
        pytest.skip(str(error))


@pytest.fixture
def machine(root: Path) -> Iterator[Machine]:
    try:
        with open_machine(root) as machine:
            yield machine
    except NoContainer as error:
        pytest.skip(str(error))


def seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def put_debs(root: Path, debs: list[Path]) -> list[str]:
    """Copy packages into a root file system; give their names there."""
    for deb in debs:
        (root / "root" / deb.name).write_bytes(deb.read_bytes())
    return [f"/root/{deb.name}" for deb in debs]


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_lintian_and_rpmlint_find_no_error(built: Built, tmp_path: Path) -> None:
    for words in (
        ["lintian", "--no-cfg", "--allow-root", "--fail-on=error", *map(str, built.debs())],
        ["rpmlint", f"--config={ROOT}/packages/rpm/rpmlint.toml", *map(str, built.rpms())],
    ):
        # lintian leaves its data bases behind, wherever it is told to put them.
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
        errors = [line for line in done.stdout.splitlines() if line.startswith("E: ") or ": E: " in line]
        assert (errors, done.returncode) == ([], 0), done.stdout + done.stderr


def test_debs_live_in_an_environment_of_their_own(built: Built, root: Path) -> None:
    for name in ("pki", "trio", "appserver"):
        foreign = root / "usr/lib/python3/dist-packages" / name / "__init__.py"
        foreign.parent.mkdir(parents=True)
        foreign.write_text("raise SystemExit('a stranger was imported')\n", encoding="utf-8")
    before = files_below(root)
    run_in(root, "dpkg", "--install", *put_debs(root, built.debs()))
    installed = files_below(root / "opt/cmapp")
    version = this_release().version
    for program in PROGRAMS:
        for python_path in ([], ["PYTHONPATH=/usr/lib/python3/dist-packages", "PYTHONHOME=/nowhere"]):
            told = run_in(root, "env", "-i", *python_path, f"/usr/sbin/{program}", "--version")
            assert told == f"{program} {version}"
    path = run_in(root, "/opt/cmapp/bin/python3", "-I", "-c", "import sys; print(*sys.path, sep='\\n')").splitlines()
    assert any(entry.startswith("/opt/cmapp/lib/") for entry in path)
    assert not [entry for entry in path if "dist-packages" in entry or entry.startswith("/usr/local")]
    with pytest.raises(CommandFailed, match="No module named 'appmgr'"):
        run_in(root, "python3", "-I", "-c", "import appmgr")
    assert files_below(root / "opt/cmapp") == installed, "a start has written beside the package's files"
    assert run_in(root, "dpkg", "--verify", *NAMES) == ""
    sources = {name for name in installed if name.endswith(".py")}
    compiled = {
        name.replace("__pycache__/", "").partition(".cpython-")[0] + ".py" for name in installed if ".pyc" in name
    }
    assert sources == {name for name in compiled if name in sources}
    run_in(root, "dpkg", "--remove", *NAMES)
    run_in(root, "dpkg", "--purge", *NAMES)
    left = {name for name in files_below(root) - before if "cmapp" in name or name.startswith("opt")}
    assert {name for name in left if not name.startswith("root/")} == set()


def test_pages_completions_units_and_agent_are_in_the_packages(built: Built) -> None:
    words = ["dpkg-deb", "--fsys-tarfile"]
    names = {
        name.removeprefix("./")
        for deb in built.debs()
        for name in subprocess
        .run(
            ["tar", "--list"],
            input=subprocess.run([*words, str(deb)], capture_output=True, check=True).stdout,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .splitlines()
    }
    pages = {name for name in names if name.startswith("usr/share/man/") and name.endswith(".gz")}
    files = {"usr/share/man/man4/cmappmgr.conf.4.gz", "usr/share/man/man4/cmappserver.conf.4.gz"}
    assert pages == files | {f"usr/share/man/man1/{program}.1m.gz" for program in PROGRAMS}
    for program in PROGRAMS:
        assert {
            f"usr/share/bash-completion/completions/{program}",
            f"usr/share/zsh/vendor-completions/_{program}",
        } <= names
    assert {f"usr/lib/systemd/system/{unit}" for unit in UNITS} | {"usr/lib/ocf/resource.d/cmapp/cmappmgr"} <= names


def set_up(machine: Machine) -> None:
    """Make keys and configuration of both sides in one machine, and start the server."""
    machine.run("/usr/sbin/cmapppki", "client")
    machine.run("/usr/sbin/cmapppki", "server", "--guest", "guest")
    machine.run("cp", "/etc/cmcluster/cmappmgr/client.public", "/opt/hp/cmappserver/")
    machine.run("cp", "/opt/hp/cmappserver/server_guest.public", "/etc/cmcluster/cmappmgr/")
    machine.path("/opt/hp/cmappserver/cmappserver.conf").write_text(KEPT, encoding="utf-8")
    machine.path("/etc/cmappmgr.conf").write_text(HOST_CONFIG, encoding="utf-8")
    machine.run("systemctl", "enable", "--now", "cmappserver")


def manager_words(*service: str) -> list[str]:
    return ["env", "-i", "/usr/sbin/cmappmgr", "-node", "guest", "-cmappserver_timeout", "60", "-service", *service]


def renew_in_pem(machine: Machine) -> None:
    """Give the guest another key, and the host its certificate in a form that no running manager has read before.

    A manager needs parts of the program for it that it had not imported when its files were exchanged.
    """
    machine.run("sh", "-c", "rm /opt/hp/cmappserver/server*")
    machine.run("/usr/sbin/cmapppki", "server", "--guest", "guest")
    ((certificate, _),) = open_trust_store(
        machine.path("/opt/hp/cmappserver/server_guest.public").read_bytes(), "public"
    )
    trusted = machine.path("/etc/cmcluster/cmappmgr/server_guest.public")
    trusted.write_bytes(encode_certificate(certificate))
    machine.run("systemctl", "restart", "cmappserver")


def pid_of(machine: Machine, *words: str) -> str:
    return machine.try_to("pgrep", "--full", "--exact", " ".join(words)).stdout.strip()


def kept_digests(machine: Machine) -> str:
    return machine.run(
        "sh",
        "-c",
        "sha256sum /etc/cmappmgr.conf /opt/hp/cmappserver/*.* /etc/cmcluster/cmappmgr/*; stat -c %a /opt/hp/*/*.*",
    )


def test_an_upgrade_leaves_applications_running_and_keeps_statuses(built: Built, machine: Machine) -> None:
    began = time.monotonic()
    machine.run("dpkg", "--install", *put_debs(machine.root, built.debs()))
    print(f"\ninstalled in {seconds_since(began)}")
    assert machine.try_to("systemctl", "is-active", "cmappserver").stdout.strip() == "inactive", "without keys"
    set_up(machine)

    watched, unwatched = ("/bin/sleep", "4711"), ("/bin/sh", "-c", UNWATCHED)
    manager = machine.start(*manager_words(*watched))
    try:
        wait_until("the application runs", lambda: pid_of(machine, *watched) != "")
        # Its manager is killed: nobody is there to collect how it ends.
        lost = machine.start(*manager_words(*unwatched))
        wait_until("the second one runs", lambda: pid_of(machine, *unwatched) != "")
        machine.run("pkill", "-KILL", "--full", "cmappmgr.*exit 42$")
        lost.communicate(timeout=MANAGER_SECONDS)
        machine.path("/root/end").touch()
        wait_until("the second one has ended", lambda: pid_of(machine, *unwatched) == "")
        pid, server = pid_of(machine, *watched), machine.unit("cmappserver", "MainPID")
        digests = kept_digests(machine)

        began = time.monotonic()
        machine.run("dpkg", "--install", *put_debs(machine.root, built.debs(later=True)))
        print(f"upgraded in {seconds_since(began)}")
        assert machine.unit("cmappserver", "MainPID", "ActiveState") != {**server, "ActiveState": "active"}
        assert machine.unit("cmappserver", "ActiveState") == {"ActiveState": "active"}
        machine.await_journal(f"cmappserver {this_release(LATER).version} started", "--unit=cmappserver")
        assert pid_of(machine, *watched) == pid, "the application is another process now"
        assert kept_digests(machine) == digests, "the upgrade touched configuration or keys"

        told = machine.start(*manager_words(*unwatched))
        said = told.communicate(timeout=MANAGER_SECONDS)[1]
        assert re.search(r"ended without a manager after .*: .*42", said), said
        renew_in_pem(machine)
        machine.run("kill", "-TERM", pid)
        said = manager.communicate(timeout=MANAGER_SECONDS)[1]
        assert manager.returncode == 128 + 15, said
        assert said.count("contact with the node guest is back") == 2, said
        print(said.strip())
    finally:
        manager.kill()
        manager.communicate(timeout=MANAGER_SECONDS)


def test_removing_ends_no_application_and_purging_no_key(built: Built, machine: Machine) -> None:
    machine.run("dpkg", "--install", *put_debs(machine.root, built.debs()))
    set_up(machine)
    application = ("/bin/sleep", "4712")
    manager = machine.start(*manager_words(*application))
    try:
        wait_until("the application runs", lambda: pid_of(machine, *application) != "")
        pid = pid_of(machine, *application)
        machine.run("dpkg", "--remove", "cmapp-guest")
        assert machine.try_to("systemctl", "is-active", "cmappserver").stdout.strip() in {"inactive", "unknown"}
        assert pid_of(machine, *application) == pid, "removing the package has ended the application"

        # Installed again it is found again, since what is in the state directory was left alone.
        machine.run("dpkg", "--install", *put_debs(machine.root, [deb for deb in built.debs() if "guest" in deb.name]))
        machine.run("systemctl", "enable", "--now", "cmappserver")
        machine.await_journal("1 application found again", "--unit=cmappserver")

        machine.run("dpkg", "--remove", "cmapp-guest")
        done = machine.try_to("dpkg", "--purge", "cmapp-guest")
        assert done.returncode == 0, done.stderr
        assert "applications are running, so /run/cmappserver stays" in done.stderr
        assert "configuration and keys stay in /opt/hp/cmappserver" in done.stderr
        assert pid_of(machine, *application) == pid
        assert not machine.path("/var/log/cmappserver").exists()
        left = {path.name for path in machine.path("/opt/hp/cmappserver").iterdir()}
        assert {"server.private", "client.public", "cmappserver.conf"} <= left
    finally:
        manager.kill()
        manager.communicate(timeout=MANAGER_SECONDS)


def rpm(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["rpm", f"--root={root}", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def test_rpms_install_upgrade_verify_and_go(built: Built, root: Path) -> None:
    before = files_below(root)
    # The Debian below has what they require, but not in rpm's books.
    rpm(root, "--install", "--nodeps", *map(str, built.rpms()))
    assert rpm(root, "--verify", "--nodeps", *NAMES) == ""
    for program in PROGRAMS:
        assert run_in(root, "env", "-i", f"/usr/sbin/{program}", "--version") == f"{program} {this_release().version}"
    config = root / "opt/hp/cmappserver/cmappserver.conf"
    config.write_text(KEPT, encoding="utf-8")
    rpm(root, "--upgrade", "--nodeps", *map(str, built.rpms(later=True)))
    assert rpm(root, "--verify", "--nodeps", *NAMES) == ""
    assert run_in(root, "/usr/sbin/cmappserver", "--version") == f"cmappserver {this_release(LATER).version}"
    assert config.read_text(encoding="utf-8") == KEPT
    rpm(root, "--erase", "--nodeps", *NAMES)
    left = {name for name in files_below(root) - before if not (root / name).is_dir() and "/.rpmdb/" not in name}
    assert left - {name for name in left if name.startswith("var/lib/rpm")} == {"opt/hp/cmappserver/cmappserver.conf"}
    assert not (root / "opt/cmapp").exists()


def test_the_packages_name_who_built_them_where_it_is_said() -> None:
    said = {"DEBFULLNAME": "Operations", "DEBEMAIL": "ops@example.org"}
    assert maintainer(said) == "Operations <ops@example.org>"
    assert maintainer({}) == maintainer({"DEBEMAIL": "ops@example.org"}) == MAINTAINER


def test_each_package_asks_for_the_python_that_it_was_built_for(built: Built) -> None:
    python = this_release().python
    common = next(deb for deb in built.debs() if "common" in deb.name)
    depends = subprocess.run(["dpkg-deb", "--field", common, "Depends"], capture_output=True, text=True, check=True)
    assert Path(python).name in depends.stdout.split(",")[0]
    common = next(file for file in built.rpms() if "common" in file.name)
    requires = subprocess.run(
        ["rpm", "--query", "--requires", "-p", common], capture_output=True, text=True, check=True
    )
    assert python in requires.stdout.split()

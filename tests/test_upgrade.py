"""The drill: this version and each released one, installed beside it as users do, for real on loopback.

Both processes of `docs/upgrade.md` are gone through in their steps. What the programs say meanwhile is printed.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import NODE, SERVER, Guest, Manager, is_alive, open_guest, wait_ended, wait_until
from released import VERSIONS, python_of

from appserver.version import VERSION

pytestmark = [
    pytest.mark.upgrade,
    pytest.mark.skipif(sys.platform != "linux", reason="applications outlive their server on Linux only"),
]

PROGRAMS: dict[str, tuple[list[str], list[str]]] = {
    VERSION: ([sys.executable, *SERVER], [sys.executable, "-m", "appmgr"])
}
"""Server and manager of each version."""


PATIENT = """\
#!/bin/sh
echo $$ >> "$0.starts"
while ! test -e "$0.go"; do sleep 0.05; done
exit 7
"""

STUBBORN = """\
#!/bin/sh
trap '' TERM
echo $$ >> "$0.starts"
while :; do sleep 0.05; done
"""


class App:
    """An application with a short name, which the logs show: a script, and its traces."""

    def __init__(self, guest: Guest, name: str, script: str = PATIENT) -> None:
        self._path = guest.directory / name
        self._path.write_text(script)
        self._path.chmod(0o755)
        self.service = ("-service", str(self._path))

    def finish(self) -> None:
        Path(f"{self._path}.go").touch()

    def starts(self) -> int:
        traces = Path(f"{self._path}.starts")
        return len(traces.read_text().splitlines()) if traces.exists() else 0


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest) -> str:
    """A released version, installed."""
    version = str(request.param)
    python = python_of(version)
    PROGRAMS[version] = ([python, "-m", "appserver"], [python, "-m", "appmgr"])
    return version


@pytest.fixture
def site(old: str, tmp_path: Path) -> Iterator[Guest]:
    """A guest without a server yet, with keys that the released version made."""
    keys = tmp_path / "keys"
    for words in (["client"], ["server", "--guest", NODE]):
        command = [python_of(old), "-m", "pki", *words, "--dir", str(keys)]
        subprocess.run(command, check=True, capture_output=True, cwd="/")
    with open_guest(tmp_path / "guest", keys) as guest:
        yield guest
        show(guest)


def show(guest: Guest) -> None:
    print("\nthe server's log:")
    print(guest.server_log)
    for manager in guest.managers:
        print("a manager's log:")
        print(manager.log)


def start_server(guest: Guest, version: str) -> None:
    guest.server_program = PROGRAMS[version][0]
    before = len(guest.server_log)
    guest.start_server()
    assert f"cmappserver {version} started" in guest.server_log[before:]


def start_manager(guest: Guest, version: str, *words: str) -> Manager:
    guest.manager_program = PROGRAMS[version][1]
    return guest.manager(*words)


def halt(manager: Manager) -> int:
    manager.signal(signal.SIGTERM)
    return manager.wait()


def contacts(manager: Manager) -> int:
    return manager.log.count("is back after")


def test_a_guest_is_upgraded_under_running_applications_and_rolled_back(site: Guest, old: str) -> None:
    through, away, later, left = (App(site, name) for name in ("through", "away", "later", "left"))
    stubborn = App(site, "stubborn", STUBBORN)
    # Before: everything is of the released version.
    start_server(site, old)
    watched = start_manager(site, old, *through.service)
    meanwhile = start_manager(site, old, *away.service)
    halted = start_manager(site, old, "--on-halt", "stop", "--stop-timeout", "1", *stubborn.service)
    detached = start_manager(site, old, *left.service)
    pids = {app: manager.wait_started() for app, manager in ((through, watched), (away, meanwhile), (left, detached))}
    stubborn_pid = halted.wait_started()
    wait_until(stubborn.starts, "the moment from which it ignores TERM")
    waiters = {pid: site.waiter_pid(pid) for pid in (*pids.values(), stubborn_pid)}
    assert halt(detached) == 128 + signal.SIGTERM
    # The upgrade of the guest's side: the daemon ends, an application ends beside it, the new daemon starts.
    assert site.stop_server() == 0
    assert all(is_alive(pid) for pid in (*pids.values(), stubborn_pid))
    away.finish()
    wait_ended(pids[away])
    start_server(site, VERSION)
    assert meanwhile.wait() == 7
    wait_until(lambda: contacts(watched) and contacts(halted), "the return of the managers")
    assert {pid: site.waiter_pid(pid) for pid in waiters if pid != pids[away]}.items() <= waiters.items()
    # A stop goes through the waiter of the released version.
    assert halt(halted) == 128 + signal.SIGKILL
    assert not is_alive(stubborn_pid)
    # The upgrade of the host's side, one manager after the other, forth and back.
    for version in (VERSION, old, VERSION):
        manager = start_manager(site, version, *left.service)
        assert manager.wait_started() == pids[left]
        assert halt(manager) == 128 + signal.SIGTERM
    # Rolled back: the released server finds what this one started.
    after = start_manager(site, VERSION, *later.service)
    pids[later] = after.wait_started()
    returned = contacts(watched)
    assert site.stop_server() == 0
    start_server(site, old)
    wait_until(lambda: contacts(watched) > returned and contacts(after), "the return of the managers")
    last = start_manager(site, old, *left.service)
    assert last.wait_started() == pids[left]
    for app, manager in ((through, watched), (left, last), (later, after)):
        app.finish()
        assert manager.wait() == 7
    assert [app.starts() for app in pids] == [1] * len(pids)
    assert stubborn.starts() == 1
    assert "damaged" not in site.server_log
    assert "Traceback" not in site.server_log


@pytest.mark.parametrize("newer", ["manager", "server"])
def test_either_side_may_be_the_newer_one(site: Guest, old: str, newer: str) -> None:
    server, manager = (old, VERSION) if newer == "manager" else (VERSION, old)
    app, stopped = App(site, "app"), App(site, "stopped")
    start_server(site, server)
    first = start_manager(site, manager, *app.service)
    pid = first.wait_started()
    first.kill()
    second = start_manager(site, manager, *app.service)
    assert second.wait_started() == pid
    site.kill_server()
    start_server(site, server)
    wait_until(lambda: contacts(second), "the return of the manager")
    halted = start_manager(site, manager, "--on-halt", "stop", *stopped.service)
    stopped_pid = halted.wait_started()
    wait_until(stopped.starts, "the start of the application's own code")
    assert halt(halted) == 128 + signal.SIGTERM
    assert not is_alive(stopped_pid)
    app.finish()
    assert second.wait() == 7
    assert app.starts() == 1
    refused = start_manager(site, manager, "-service", "/nowhere/command")
    assert refused.wait() == 1
    assert "no-such-command" in refused.log


def test_a_manager_that_is_to_start_nothing_says_that_the_guest_is_too_old(site: Guest, old: str) -> None:
    app = App(site, "app")
    start_server(site, old)
    for action in ("attach", "stop"):
        asking = start_manager(site, VERSION, "--action", action, *app.service)
        if asking.wait() != 1 or "upgraded" not in asking.log:
            pytest.skip(f"{old} knows attach")
    assert app.starts() == 0
    # Told the run, it needs nothing that the released server does not know.
    run_id = "5" * 32
    running = start_manager(site, VERSION, "--run-id", run_id, *app.service)
    running.wait_started()
    assert halt(running) == 128 + signal.SIGTERM
    stopping = start_manager(site, VERSION, "--action", "stop", "--run-id", run_id, *app.service)
    assert stopping.wait() == 0
    assert "stopped by" in stopping.log


def test_a_guest_is_upgraded_with_its_package_down(site: Guest, old: str) -> None:
    app = App(site, "app")
    start_server(site, old)
    before = start_manager(site, old, "--on-halt", "stop", *app.service)
    before.wait_started()
    wait_until(app.starts, "the start of the application's own code")
    assert halt(before) == 128 + signal.SIGTERM  # the package is halted, and the guest with it
    assert site.stop_server() == 0
    shutil.rmtree(site.state_dir)  # which lies in /run, and does not outlive a boot
    start_server(site, VERSION)
    after = start_manager(site, VERSION, *app.service)
    after.wait_started()
    assert "an earlier run" not in after.log
    app.finish()
    assert after.wait() == 7
    assert app.starts() == 2


def test_the_stores_of_a_release_are_read_and_its_configuration_is_taken(site: Guest) -> None:
    site.configure_host(port=5315)
    check = [sys.executable, "-m", "appserver", "--config", str(site.server_config), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    listed = [sys.executable, "-m", "pki", "list", str(site.directory / "server.private"), "--json"]
    done = subprocess.run(listed, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)

"""The rotation drill on a running pair: keys change on both sides, and what runs never notices."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cutter import Cutter
from pair import Guest, Manager, is_alive, make_keys, open_guest, wait_for_match, wait_until

from pki.cli import main as cmapppki
from pki.der import describe
from pki.material import Keys
from pki.unlock import load_material

IN_FORCE = "configuration and keys read again and in force"
NAMED = "will be refused at its next connection: its certificate is no longer in the trust store"

THIRTY = 30


def patient(guest: Guest, name: str) -> tuple[str, ...]:
    """The words of an application that runs until it is told, and then exits with 7."""
    return ("-service", "/bin/sh", "-c", f"while ! test -e {guest.directory}/go-{name}; do sleep 0.05; done; exit 7")


def finish(guest: Guest, *names: str) -> None:
    for name in names:
        (guest.directory / f"go-{name}").touch()


def reload(guest: Guest, said: str = IN_FORCE) -> str:
    """Send HUP and wait for what the log says; give that."""
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.send_signal(signal.SIGHUP)
    wait_for_match(lambda: guest.server_log[before:], said)
    return guest.server_log[before:]


def new_keys(guest: Guest, name: str) -> Path:
    directory = guest.directory / name
    directory.mkdir()
    return make_keys(directory)


def trust(store: Path, *words: str) -> None:
    assert cmapppki(["trust", str(store), *words]) == 0


def fingerprint_in(directory: Path, side: str) -> str:
    """Give the fingerprint of the one certificate in a public store that was just made."""
    other = {"client": "server", "server": "client"}[side]
    password = {"client": "serverpw", "server": "clientpw"}[side]
    keys = Keys(str(directory / f"{other}.private"), password, str(directory / f"{side}.public"), "public")
    (pin,) = load_material(keys).pins
    return describe(pin.der).fingerprint


def use_host_key(guest: Guest, directory: Path) -> None:
    """Have the managers to come use the host's key in `directory`."""
    lines = guest.host_config.read_text().splitlines()
    guest.host_config.write_text("\n".join([f"keyStore={directory}/client.private", *lines[1:], ""]))


@pytest.fixture
def relayed(guest: Guest) -> Iterator[Cutter]:
    """A way to the guest whose connections the test can cut."""
    with Cutter(guest.port, flights=None) as cutter:
        yield cutter


def start(guest: Guest, name: str, *words: str) -> Manager:
    manager = guest.manager(*words, *patient(guest, name))
    manager.wait_started()
    return manager


@pytest.mark.slow
def test_key_of_a_host_is_changed_and_only_the_old_one_is_refused(guest: Guest, relayed: Cutter) -> None:
    old_fingerprint = fingerprint_in(guest.directory, "client")
    guest.configure_host(relayed.port)
    old = guest.manager("-cmappserver_timeout", "5", *patient(guest, "old"))
    pid = old.wait_started()
    guest.configure_host()
    colleague_keys, next_keys = new_keys(guest, "colleague"), new_keys(guest, "next")
    clients = guest.directory / "client.public"

    trust(clients, str(colleague_keys / "client.public"), str(next_keys / "client.public"))
    assert "refused" not in reload(guest)
    use_host_key(guest, colleague_keys)
    colleague = start(guest, "colleague")
    use_host_key(guest, next_keys)
    new = start(guest, "new")

    trust(clients, "--remove", old_fingerprint)
    log = reload(guest)
    assert log.count(NAMED) == 1
    assert f"cmappmgr[{old.process.pid}] on " in log
    assert old.process.poll() is None
    assert "contact" not in old.log

    relayed.cut_all()
    assert old.wait() == 1
    assert "the guest does not accept our key: this host's certificate is not in its trust store" in old.log
    wait_for_match(lambda: guest.server_log, rf"refused a connection .*{old_fingerprint}.* is not in the trust store")

    again = guest.manager(*patient(guest, "old"))
    assert again.wait_started() == pid
    finish(guest, "old", "colleague", "new")
    assert [manager.wait() for manager in (again, colleague, new)] == [7, 7, 7]
    assert not any("contact" in manager.log for manager in (again, colleague, new))


def test_key_of_the_guest_is_changed_and_managers_that_began_before_come_back(guest: Guest, relayed: Cutter) -> None:
    old_fingerprint = fingerprint_in(guest.directory, "server")
    steady = start(guest, "steady")
    guest.configure_host(relayed.port)
    cut = start(guest, "cut")
    guest.configure_host()
    next_keys = new_keys(guest, "next")
    servers = guest.directory / "server.public"

    trust(servers, str(next_keys / "server.public"))
    (guest.directory / "server.private").write_bytes((next_keys / "server.private").read_bytes())
    reload(guest)
    new = start(guest, "new")
    trust(servers, "--remove", old_fingerprint)
    newest = start(guest, "newest")
    assert not any("contact" in manager.log for manager in (steady, cut, new, newest))

    relayed.cut_all()
    cut.wait_for("contact with the node .* is back")
    finish(guest, "steady", "cut", "new", "newest")
    assert [manager.wait() for manager in (steady, cut, new, newest)] == [7, 7, 7, 7]
    assert not any("contact" in manager.log for manager in (steady, new, newest))


@pytest.mark.parametrize("name", ["server.private", "client.public"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"\x30\x82\x01\x00half a store"])
def test_reload_with_a_broken_store_keeps_the_old_keys_and_says_which(
    guest: Guest, name: str, content: bytes | None
) -> None:
    path = guest.directory / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    log = reload(guest, "reload failed, the old configuration and keys stay in force: ")
    assert str(path) in log
    assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5


def test_trust_store_that_is_half_copied_costs_a_manager_nothing(guest: Guest, relayed: Cutter) -> None:
    guest.configure_host(relayed.port)
    manager = start(guest, "cut")
    next_keys = new_keys(guest, "next")
    servers = guest.directory / "server.public"
    servers.write_bytes(b"\x30\x82half")
    (guest.directory / "server.private").write_bytes((next_keys / "server.private").read_bytes())
    reload(guest)
    before = guest.server_log.count("refused by a peer")
    relayed.cut_all()
    wait_until(lambda: guest.server_log.count("refused by a peer") > before, "the refusal of the new key")
    shutil.copyfile(next_keys / "server.public", servers)
    manager.wait_for("contact with the node .* is back")
    finish(guest, "cut")
    assert manager.wait() == 7


@pytest.mark.long
def test_thirty_applications_run_on_while_all_keys_are_changed(guest: Guest) -> None:
    names = [f"app-{number}" for number in range(THIRTY)]
    managers = [guest.manager("--poll-interval", "1", *patient(guest, name)) for name in names]
    pids = [manager.wait_started() for manager in managers]
    old = [fingerprint_in(guest.directory, side) for side in ("client", "server")]
    next_keys = new_keys(guest, "next")
    stores = [guest.directory / f"{side}.public" for side in ("client", "server")]
    for store in stores:
        trust(store, str(next_keys / store.name))
    reload(guest)
    for side in ("client", "server"):
        shutil.copyfile(next_keys / f"{side}.private", guest.directory / f"{side}.private")
    reload(guest)
    for store, fingerprint in zip(stores, old, strict=True):
        trust(store, "--remove", fingerprint)
    assert reload(guest).count(NAMED) == THIRTY
    with ExitStack() as seconds:
        watchers = [guest.manager(*patient(guest, name)) for name in names]
        for watcher in watchers:
            seconds.callback(watcher.wait)
        assert [watcher.wait_started() for watcher in watchers] == pids
        assert all(is_alive(pid) for pid in pids)
        finish(guest, *names)
    assert [manager.wait() for manager in (*managers, *watchers)] == [7] * (2 * THIRTY)
    assert not any("contact" in manager.log for manager in (*managers, *watchers))


def test_both_programs_warn_at_their_start_of_keys_that_end_soon(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    for side, days in (("client", "20"), ("server", "5")):
        assert cmapppki([side, "--dir", str(keys), "--validity", days]) == 0
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.start_server()
        status, log = guest.run("-service", "/bin/true")
        assert status == 0
        assert (
            len(re.findall(r"our own certificate in the key store '.*/client\.private', .* \(in 19 days\)", log)) == 1
        )
        assert len(re.findall(r"the certificate of the server in the trust store .* \(in 4 days\)", log)) == 1
        own = r"our own certificate in the key store '.*/server\.private', .* \(in 4 days\)"
        wait_for_match(lambda: guest.server_log, own)
        assert (
            len(re.findall(r"the certificate of a manager in the trust store .* \(in 19 days\)", guest.server_log)) == 1
        )

"""`cmapppki renew`: at no step does a pair that works stop working, and nothing is lost on the way."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pair import Guest, wait_for_match
from stores_for_tests import GUEST, HOST, NOW, der, expiring, held, key_store, print_of, trust_store

from pki import stores
from pki.certificates import Purpose
from pki.cli import main
from pki.contexts import Keys, client_context, load_material, server_context

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    key_store(tmp_path / "client.private", HOST)
    trust_store(tmp_path / "client.public", HOST)
    return tmp_path


def renew(path: Path, *words: str, side: str = "client") -> int:
    return main(["renew", side, "--dir", str(path), *words])


def own(path: Path, password: str = "clientpw") -> bytes:
    return stores.load_key_store(str(path), password)[0]


def pins(path: Path) -> list[bytes]:
    return [found for _, found in held(path)]


def usable(path: Path) -> bool:
    """The pair in one directory: who shows `client.private` is trusted by `client.public`."""
    client_context(load_material(Keys(str(path / "client.private"), "clientpw", str(path / "client.public"), "public")))
    shown = x509.load_pem_x509_certificate(own(path / "client.private"))
    return shown.public_bytes(Encoding.DER) in pins(path / "client.public")


def refused(capsys: Captured, path: Path, *words: str) -> str:
    capsys.readouterr()
    assert renew(path, *words) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err


def test_the_three_steps_change_the_key_and_the_pair_works_after_each(host: Path, capsys: Captured) -> None:
    before = own(host / "client.private")
    assert renew(host) == 0
    assert own(host / "client.private") == before
    fresh = own(host / "client.private.new")
    assert stat.S_IMODE((host / "client.private.new").stat().st_mode) == 0o600
    assert [alias for alias, _ in held(host / "client.public")] == ["clientpublic", "clientpublic-2"]
    assert pins(host / "client.public")[0] == der(HOST)
    assert usable(host)
    out = capsys.readouterr().out
    assert f"copy {host}/client.public to /opt/hp/cmappserver in every guest" in out
    assert f"cmapppki renew client --dir {host} --switch" in out

    assert renew(host, "--switch") == 0
    assert own(host / "client.private") == fresh
    assert own(host / "client.private.old") == before
    assert not (host / "client.private.new").exists()
    assert usable(host)

    assert renew(host, "--finish") == 0
    assert sorted(os.listdir(host)) == ["client.private", "client.public"]
    ((alias, _),) = held(host / "client.public")
    assert alias == "clientpublic"
    assert usable(host)
    assert f"cmapppki trust STORE --remove {print_of(HOST)}" in capsys.readouterr().out


def test_subject_and_names_are_those_of_the_old_certificate(host: Path) -> None:
    assert renew(host) == 0
    new = x509.load_pem_x509_certificate(own(host / "client.private.new"))
    assert new.subject == HOST.certificate.subject
    names = new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host1"]


def test_subject_validity_and_password_can_be_chosen(host: Path) -> None:
    key_store(host / "client.private", HOST, "hunter22")
    assert renew(host, "--dname", "CN=new", "--validity", "10", "--storepass", "hunter22") == 0
    new = x509.load_pem_x509_certificate(own(host / "client.private.new", "hunter22"))
    assert new.subject.rfc4514_string() == "CN=new"
    assert (new.not_valid_after_utc - NOW).days <= 10


def test_a_guest_renews_both_of_its_public_files(tmp_path: Path, capsys: Captured) -> None:
    key_store(tmp_path / "server.private", GUEST, "serverpw", "serverprivate")
    trust_store(tmp_path / "server.public", GUEST, alias="serverpublic")
    assert renew(tmp_path, "--guest", "g1", side="server") == 0
    for name in ("server.public", "server_g1.public"):
        assert [alias for alias, _ in held(tmp_path / name)] == ["serverpublic", "serverpublic-2"]
    assert "server_g1.public to /etc/cmcluster/cmappmgr/server_g1.public on every host" in capsys.readouterr().out
    assert renew(tmp_path, "--guest", "g1", "--switch", side="server") == 0
    assert "systemctl reload cmappserver" in capsys.readouterr().out
    trust_store(tmp_path / "client.public", HOST)
    keys = Keys(f"{tmp_path}/server.private", "serverpw", f"{tmp_path}/client.public", "public")
    server_context(load_material(keys))
    assert renew(tmp_path, "--guest", "g1", "--finish", side="server") == 0
    assert len(held(tmp_path / "server_g1.public")) == 1


def test_a_missing_public_file_is_made_with_both_certificates(host: Path) -> None:
    (host / "client.public").unlink()
    assert renew(host) == 0
    assert len(held(host / "client.public")) == 2


def test_certificates_of_others_in_the_public_file_stay(host: Path) -> None:
    other = expiring(Purpose.CLIENT, 300, "other")
    trust_store(host / "client.public", HOST, other)
    for step in ([], ["--switch"], ["--finish"]):
        assert renew(host, *step) == 0
        assert der(other) in pins(host / "client.public")
    assert len(held(host / "client.public")) == 2


def test_a_second_beginning_is_refused_unless_forced_and_leaves_no_pin_without_a_key(
    host: Path, capsys: Captured
) -> None:
    assert renew(host) == 0
    first = pins(host / "client.public")
    assert "a renewal has begun" in refused(capsys, host)
    assert pins(host / "client.public") == first
    assert renew(host, "--force") == 0
    second = pins(host / "client.public")
    assert second[0] == der(HOST)
    assert len(second) == 2
    assert second[1] != first[1]


def test_steps_out_of_order_are_refused_with_the_right_one(host: Path, capsys: Captured) -> None:
    assert "nothing to switch to; begin with cmapppki renew client" in refused(capsys, host, "--switch")
    assert "no renewal to finish" in refused(capsys, host, "--finish")
    assert renew(host) == 0
    assert "--switch comes first" in refused(capsys, host, "--finish")
    assert renew(host, "--switch") == 0
    assert "nothing to switch to" in refused(capsys, host, "--switch")
    assert usable(host)


def test_a_switch_to_a_key_that_nobody_was_told_of_is_refused(host: Path, capsys: Captured) -> None:
    assert renew(host) == 0
    trust_store(host / "client.public", HOST)
    assert "does not hold the new certificate" in refused(capsys, host, "--switch")
    assert own(host / "client.private") == HOST.certificate.public_bytes(Encoding.PEM)


def test_a_switch_that_was_cut_off_after_the_backup_can_be_repeated(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert renew(host) == 0
    replace = os.replace

    def cut(source: str, target: str) -> None:
        if target.endswith(".private"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    assert "Input/output error" in refused(capsys, host, "--switch")
    assert usable(host)
    assert (host / "client.private.old").exists()
    monkeypatch.undo()
    assert renew(host, "--switch") == 0
    assert renew(host, "--finish") == 0
    assert usable(host)


def test_a_broken_public_file_stops_the_beginning_before_anything_is_made(host: Path, capsys: Captured) -> None:
    (host / "client.public").write_bytes(b"nonsense")
    assert "neither PKCS#12 nor PEM" in refused(capsys, host)
    assert not (host / "client.private.new").exists()


def test_a_key_that_is_still_in_use_is_not_finished(host: Path, capsys: Captured) -> None:
    assert renew(host) == 0
    assert renew(host, "--switch") == 0
    # The way back was taken by a copy.
    (host / "client.private").write_bytes((host / "client.private.old").read_bytes())
    assert "the old one is still in use" in refused(capsys, host, "--finish")
    assert usable(host)


@pytest.mark.parametrize(
    "words",
    [
        ["client", "--guest", "g1"],
        ["host"],
        ["client", "--switch", "--finish"],
        ["server", "--guest", "a/b"],
        ["client", "--switch", "--force"],
        [],
    ],
)
def test_words_that_make_no_sense_end_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["renew", *words])
    assert caught.value.code == 2


def test_a_guest_named_by_its_address_gets_a_file_name_without_colons(tmp_path: Path) -> None:
    key_store(tmp_path / "server.private", GUEST, "serverpw", "serverprivate")
    assert renew(tmp_path, "--guest", "fe80::1", side="server") == 0
    assert len(held(tmp_path / "server_fe80--1.public")) == 2


def test_a_guest_that_forgets_its_name_renews_the_file_for_the_hosts_all_the_same(tmp_path: Path) -> None:
    key_store(tmp_path / "server.private", GUEST, "serverpw", "serverprivate")
    own_file, other_file = tmp_path / "server_g1.public", tmp_path / "server_g2.public"
    trust_store(own_file, GUEST, alias="serverpublic")
    trust_store(other_file, HOST)
    (tmp_path / "server_g3.public").write_bytes(b"rubbish")
    for step, expected in (([], 2), (["--switch"], 2), (["--finish"], 1)):
        assert renew(tmp_path, *step, side="server") == 0
        assert len(held(own_file)) == expected
        assert pins(other_file) == [der(HOST)]
    assert der(GUEST) not in pins(own_file)


def reload(guest: Guest) -> None:
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.send_signal(signal.SIGHUP)
    wait_for_match(lambda: guest.server_log[before:], "read again and in force")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_keep_their_owner_so_that_a_server_of_another_user_can_read_them(host: Path) -> None:
    for name in ("client.private", "client.public"):
        os.chown(host / name, 12345, 54321)
    for step in ([], ["--switch"], ["--finish"]):
        assert renew(host, *step) == 0
        for path in host.iterdir():
            assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321), path


@pytest.mark.slow
def test_a_running_pair_runs_after_every_step_of_both_renewals(guest: Guest) -> None:
    exact = ["-service", "/bin/sh", "-c", "exit 7"]
    steady = guest.manager("-service", "/bin/sleep", "1000")
    steady.wait_started()
    sides = ("client", "server")
    for step in ([], ["--switch"], ["--finish"]):
        for side in sides:
            assert renew(guest.directory, *step, side=side) == 0
            status, log = guest.run(*exact)
            assert status == 7, (side, step, log)
            reload(guest)
            status, log = guest.run(*exact)
            assert status == 7, (side, step, log)
    assert steady.process.poll() is None
    assert "contact" not in steady.log

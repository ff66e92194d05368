"""`cmapppki`: what it makes, what it says, and what it refuses with which status."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from pki import stores
from pki.cli import main
from pki.contexts import Keys, client_context, load_material, server_context
from pki.errors import KeysError

Captured = pytest.CaptureFixture[str]


def leaf(store: Path, password: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(stores.load_key_store(str(store), password)[0])


def wrong_usage(*words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code


def test_client_makes_a_private_key_store_and_a_public_trust_store(tmp_path: Path, capsys: Captured) -> None:
    assert main(["client", "--dir", str(tmp_path / "new")]) == 0
    made = tmp_path / "new"
    assert sorted(os.listdir(made)) == ["client.private", "client.public"]
    assert stat.S_IMODE((made / "client.private").stat().st_mode) == 0o600
    (pin,) = stores.load_trust_store(str(made / "client.public"), "public")
    certificate = leaf(made / "client.private", "clientpw")
    assert pin.alias == "clientpublic"
    assert x509.load_der_x509_certificate(pin.der) == certificate
    out = capsys.readouterr().out
    assert f"\nkeyStore={made}/client.private\nkeyStorePassword=\n" in out
    assert f"expires {certificate.not_valid_after_utc:%Y-%m-%d}" in out
    assert f"{made}/client.public to /opt/hp/cmappserver in every guest" in out
    assert socket.gethostname() in out


def test_server_with_a_guest_also_makes_the_file_for_the_hosts(tmp_path: Path, capsys: Captured) -> None:
    assert main(["server", "--guest", "mmpf121", "--dir", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["server.private", "server.public", "server_mmpf121.public"]
    assert (tmp_path / "server.public").read_bytes() == (tmp_path / "server_mmpf121.public").read_bytes()
    assert leaf(tmp_path / "server.private", "serverpw").subject.rfc4514_string() == "CN=mmpf121"
    out = capsys.readouterr().out
    assert "\nmmpf121:\ntrustStore=/etc/cmcluster/cmappmgr/server_mmpf121.public\n" in out
    assert f"\ntrustStore={tmp_path}/client.public\n" in out


def test_server_without_a_guest_makes_two_files(tmp_path: Path) -> None:
    assert main(["server", "--dir", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["server.private", "server.public"]


def test_an_ipv6_guest_gets_brackets_in_the_configuration_and_no_colons_in_the_file_name(
    tmp_path: Path, capsys: Captured
) -> None:
    assert main(["server", "--guest", "fe80::1", "--dir", str(tmp_path)]) == 0
    assert (tmp_path / "server_fe80--1.public").exists()
    assert "\n[fe80::1]:\n" in capsys.readouterr().out


def test_what_both_sides_make_works_together(tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    assert main(["client", "--dir", str(host)]) == 0
    assert main(["server", "--guest", "g1", "--dir", str(guest)]) == 0
    client_context(
        load_material(Keys(str(host / "client.private"), "clientpw", str(guest / "server_g1.public"), "public"))
    )
    server_context(
        load_material(Keys(str(guest / "server.private"), "serverpw", str(host / "client.public"), "public"))
    )


def test_subject_validity_and_password_are_those_asked_for(tmp_path: Path, capsys: Captured) -> None:
    words = ["--dname", "CN=x, O=Example", "--validity", "10", "--storepass", "hunter22"]
    assert main(["client", "--dir", str(tmp_path), *words]) == 0
    certificate = leaf(tmp_path / "client.private", "hunter22")
    assert certificate.subject.rfc4514_string() == "CN=x,O=Example"
    left = certificate.not_valid_after_utc - datetime.now(timezone.utc)
    assert timedelta(days=9) < left <= timedelta(days=10)
    assert len(stores.load_trust_store(str(tmp_path / "client.public"), "public")) == 1
    captured = capsys.readouterr()
    assert "hunter22" not in captured.out + captured.err


def test_a_password_can_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hunter22\n"))
    assert main(["client", "--dir", str(tmp_path), "--storepass", "-"]) == 0
    assert leaf(tmp_path / "client.private", "hunter22").subject
    with pytest.raises(KeysError):
        stores.load_key_store(str(tmp_path / "client.private"), "clientpw")


@pytest.mark.parametrize("existing", ["server.private", "server.public", "server_g1.public"])
def test_nothing_is_written_where_any_file_exists_unless_forced(
    tmp_path: Path, capsys: Captured, existing: str
) -> None:
    (tmp_path / existing).write_text("precious")
    words = ["server", "--guest", "g1", "--dir", str(tmp_path)]
    assert main(words) == 1
    assert os.listdir(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "precious"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"cmapppki: '{tmp_path}/{existing}' exists already: --force would replace it")
    assert captured.err.count("\n") == 1
    assert main([*words, "--force"]) == 0
    assert stat.S_IMODE((tmp_path / "server.private").stat().st_mode) == 0o600


def a_file(tmp_path: Path) -> list[str]:
    (tmp_path / "file").write_text("")
    return ["--dir", str(tmp_path / "file" / "x")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (a_file, "cannot make the directory"),
        (lambda path: ["--dir", str(path), "--dname", "nonsense"], "is not a subject such as"),
        (lambda path: ["--dir", str(path), "--dname", ""], "is not a subject such as"),
    ],
)
def test_a_failure_is_one_line_and_status_1(
    tmp_path: Path, capsys: Captured, words: Callable[[Path], list[str]], told: str
) -> None:
    assert main(["client", *words(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.glob("*.p*"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["client", "--nonsense"],
        ["client", "--guest", "g1"],
        ["client", "--val", "3"],
        ["client", "--validity", "0"],
        ["client", "--validity", "1e3"],
        ["client", "--validity", "99999"],
        ["client", "--storepass", "short"],
        ["client", "--dir", ""],
        ["server", "--guest", "../../etc/x"],
        ["server", "--guest", ""],
        ["server", "--guest", "a b"],
    ],
)
def test_wrong_usage_ends_with_2_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wrong_usage(*words) == 2
    assert "usage: cmapppki" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_version_and_help_end_with_0(capsys: Captured) -> None:
    assert wrong_usage("--version") == 0
    assert capsys.readouterr().out.startswith("cmapppki 0.")
    assert wrong_usage("--help") == 0
    assert wrong_usage("server", "--help") == 0


def test_the_module_runs_as_a_program_with_an_empty_environment(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pki", "client", "--dir", str(tmp_path)]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(command, env={}, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "client.private").exists()


def test_a_full_standard_output_is_one_line_and_the_keys_are_made(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pki", "client", "--dir", str(tmp_path)]
    root = str(Path(__file__).resolve().parent.parent)
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command, env={}, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith("cmapppki: the keys are made, but not described")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "client.private").exists()

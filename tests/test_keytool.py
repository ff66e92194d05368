"""Beside the real keytool: it reads every store that we write, and the programs run with every store that it writes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pair import NODE, make_keys, open_guest
from stores_for_tests import HOST, OTHER_HOST, pem, print_of, put, trust_store

from pki.cli import main

KEYTOOL = shutil.which("keytool")
KEYTOOL_SECONDS = 120

pytestmark = pytest.mark.skipif(KEYTOOL is None, reason="no keytool on the path: it comes with a JDK")


def keytool(*words: str) -> str:
    assert KEYTOOL is not None
    done = subprocess.run(
        [KEYTOOL, "-J-XX:TieredStopAtLevel=1", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=KEYTOOL_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(store: Path | str, password: str) -> list[tuple[str, str]]:
    """Give alias and kind of every entry, as keytool sees them."""
    text = keytool("-list", "-keystore", str(store), "-storepass", password)
    found = re.findall(r"^(\S+), .*, (PrivateKeyEntry|trustedCertEntry),", text, re.MULTILINE)
    assert re.search(rf"contains {len(found)} entr", text)
    return sorted(found)


def test_keytool_lists_what_client_and_server_make(tmp_path: Path) -> None:
    make_keys(tmp_path)
    for side in ("client", "server"):
        assert listed(tmp_path / f"{side}.private", f"{side}pw") == [(f"{side}private", "PrivateKeyEntry")]
        assert listed(tmp_path / f"{side}.public", "public") == [(f"{side}public", "trustedCertEntry")]


@pytest.mark.slow
def test_keytool_lists_every_certificate_after_trust(tmp_path: Path) -> None:
    store = trust_store(tmp_path / "t", HOST)
    assert main(["trust", store, put(tmp_path / "s", pem(OTHER_HOST))]) == 0
    assert [alias for alias, kind in listed(store, "public") if kind == "trustedCertEntry"] == [
        "clientpublic",
        "clientpublic-2",
    ]
    # A store that keytool wrote is changed, and changed again by keytool.
    exported = put(tmp_path / "temp.key", pem(HOST))
    own = ["-keystore", str(tmp_path / "k"), "-storepass", "public", "-noprompt", "-file", exported]
    keytool("-import", "-alias", "clientpublic", *own)
    assert main(["trust", str(tmp_path / "k"), put(tmp_path / "s", pem(OTHER_HOST))]) == 0
    keytool("-delete", "-alias", "clientpublic", "-keystore", str(tmp_path / "k"), "-storepass", "public")
    assert listed(tmp_path / "k", "public") == [("clientpublic-2", "trustedCertEntry")]


def test_keytool_lists_a_store_whose_last_certificate_was_taken_out(tmp_path: Path) -> None:
    store = trust_store(tmp_path / "t", HOST)
    source = trust_store(tmp_path / "s", HOST)
    assert main(["trust", store, "--remove", print_of(HOST), "--force"]) == 0
    assert listed(store, "public") == []
    assert main(["trust", store, source]) == 0
    assert listed(store, "public") == [("clientpublic", "trustedCertEntry")]


@pytest.mark.slow
def test_keytool_lists_every_file_of_a_renewal(tmp_path: Path) -> None:
    make_keys(tmp_path)
    words = ["renew", "client", "--dir", str(tmp_path)]
    assert main(words) == 0
    assert listed(tmp_path / "client.private.new", "clientpw") == [("clientprivate", "PrivateKeyEntry")]
    assert [alias for alias, _ in listed(tmp_path / "client.public", "public")] == ["clientpublic", "clientpublic-2"]
    assert main([*words, "--switch"]) == 0
    assert listed(tmp_path / "client.private", "clientpw") == [("clientprivate", "PrivateKeyEntry")]
    assert main([*words, "--finish"]) == 0
    assert listed(tmp_path / "client.public", "public") == [("clientpublic", "trustedCertEntry")]


def old_guide(directory: Path, side: str, algorithm: str) -> None:
    """Make the stores of one side by the three commands of the old guide, with the -keyalg that newer JDKs demand."""
    private, public, exported = (str(directory / name) for name in (f"{side}.private", f"{side}.public", "temp.key"))
    alias, password = f"{side}private", f"{side}pw"
    keytool(
        *("-genkey", "-alias", alias, "-keystore", private, "-storepass", password, "-keypass", password),
        *("-validity", "400", "-keyalg", algorithm, "-dname", f"CN={NODE}"),
    )
    keytool("-export", "-alias", alias, "-keystore", private, "-storepass", password, "-file", exported)
    keytool(
        *("-import", "-noprompt", "-alias", f"{side}public", "-keystore", public, "-storepass", "public"),
        *("-file", exported),
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["RSA", "EC"])
def test_both_programs_run_with_the_stores_of_the_old_guide_as_they_are(
    tmp_path: Path, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for side in ("client", "server"):
        old_guide(keys, side, algorithm)
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.start_server()
        status, log = guest.run("-service", "/bin/sh", "-c", "exit 7")
        assert status == 7, log
        capsys.readouterr()
        words = ["--config", str(guest.host_config), "--config", str(guest.server_config)]
        checked = main(["check", *words])
        out = capsys.readouterr().out
    # keytool makes key stores that everybody may read, which is what check is for.
    assert checked == 1, out
    assert "chmod 600" in out
    assert "the manager reaches the guest" in out
    assert all("others may use its private key" in line for line in out.splitlines() if line.startswith("warning"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JKS", "JCEKS"])
def test_the_command_named_for_an_old_java_store_mends_it(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "client.private")
    keytool(
        *("-genkeypair", "-alias", "clientprivate", "-keystore", path, "-storetype", kind, "-keyalg", "EC"),
        *("-storepass", "clientpw", "-keypass", "clientpw", "-dname", "CN=host1"),
    )
    assert main(["list", path]) == 1
    told = re.search(r"convert it with: keytool (.*)", capsys.readouterr().err)
    assert told is not None
    keytool(*told[1].split(), "-srcstorepass", "clientpw", "-deststorepass", "clientpw")
    assert main(["list", path + ".p12"]) == 0
    assert "clientprivate: private key" in capsys.readouterr().out

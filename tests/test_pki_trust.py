"""`cmapppki list` and `cmapppki trust`: what is shown, what is changed, and what is left as it was."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from stores_for_tests import (
    GUEST,
    HOST,
    NOW,
    OTHER_HOST,
    authority,
    der,
    expiring,
    held,
    issued_by,
    key_pem,
    key_store,
    pem,
    print_of,
    put,
    rsa_key_store,
    trust_store,
)

from pki import stores, trusting
from pki.certificates import Purpose
from pki.cli import main
from pki.errors import KeysError

Captured = pytest.CaptureFixture[str]


def listed(capsys: Captured, *words: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["list", "--json", *words]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def entries(capsys: Captured, path: str) -> list[dict[str, object]]:
    found = listed(capsys, path)["entries"]
    assert isinstance(found, list)
    return found


def refused(capsys: Captured, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# list


def test_a_key_store_is_listed_with_the_password_of_either_side(tmp_path: Path, capsys: Captured) -> None:
    path = key_store(tmp_path / "k", GUEST, "serverpw", "serverprivate")
    assert main(["list", path]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: PKCS#12, 1 certificate\n\nserverprivate: private key\n  subject  CN=g1\n")
    assert "  key      EC secp256r1, 256 bits\n" in out
    assert f"  SHA-256  {print_of(GUEST)}\n" in out
    assert out.endswith(" days left\n")


def test_the_list_for_programs_has_every_field(tmp_path: Path, capsys: Captured) -> None:
    (entry,) = entries(capsys, trust_store(tmp_path / "t", HOST))
    assert entry.pop("days_left") in {399, 400}
    assert entry == {
        "alias": "clientpublic",
        "kind": "trusted certificate",
        "subject": "CN=host1",
        "key": "EC secp256r1, 256 bits",
        "sha256": print_of(HOST),
        "not_before": HOST.certificate.not_valid_before_utc.isoformat(),
        "not_after": HOST.certificate.not_valid_after_utc.isoformat(),
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("days", "told"),
    [(200, None), (89, "fewer than 90"), (29, "fewer than 30"), (6, "fewer than 7"), (-3, "expired on")],
)
def test_a_certificate_near_its_end_is_listed_with_a_warning(
    tmp_path: Path, capsys: Captured, days: int, told: str | None
) -> None:
    (entry,) = entries(capsys, trust_store(tmp_path / "t", expiring(Purpose.CLIENT, days)))
    assert entry["days_left"] == days
    warnings = entry["warnings"]
    assert isinstance(warnings, list)
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]


def test_pem_and_a_bare_certificate_are_listed_without_aliases(tmp_path: Path, capsys: Captured) -> None:
    for data in (pem(HOST), der(HOST)):
        (entry,) = entries(capsys, put(tmp_path / "t", data))
        assert (entry["alias"], entry["sha256"]) == (None, print_of(HOST))


def test_an_unusable_key_is_listed_with_its_fault(tmp_path: Path, capsys: Captured) -> None:
    (entry,) = entries(capsys, put(tmp_path / "k", rsa_key_store(1024)))
    assert entry["key"] == "RSA, 1024 bits"
    assert "an RSA key of 1024 bits, fewer than 2048" in str(entry["warnings"])


def test_several_keys_and_a_key_that_does_not_match_are_listed_with_a_warning(tmp_path: Path, capsys: Captured) -> None:
    path = put(tmp_path / "k", key_pem(HOST) + pem(HOST) + key_pem(GUEST))
    assert "2 private keys in one store" in str(listed(capsys, path)["warnings"])
    path = put(tmp_path / "k", key_pem(HOST) + pem(GUEST))
    assert "does not match its certificate" in str(listed(capsys, path)["warnings"])


def test_in_a_key_store_the_chain_is_told_from_trusted_certificates(tmp_path: Path, capsys: Captured) -> None:
    key, root = authority()
    own = ec.generate_private_key(ec.SECP256R1())
    leaf = issued_by(key, root, "host1", purpose=Purpose.CLIENT, own=own)
    data = pkcs12.serialize_key_and_certificates(
        b"x", own, leaf, [root, GUEST.certificate], BestAvailableEncryption(b"public")
    )
    kinds = {entry["subject"]: entry["kind"] for entry in entries(capsys, put(tmp_path / "k", data))}
    assert kinds == {"CN=leaf": "private key", "CN=authority": "chain certificate", "CN=g1": "trusted certificate"}


def test_a_key_without_a_certificate_is_listed_with_a_warning(tmp_path: Path, capsys: Captured) -> None:
    warnings = str(listed(capsys, put(tmp_path / "k", key_pem(HOST)))["warnings"])
    assert "a private key without its certificate" in warnings
    assert "no certificate: nobody is trusted" in warnings


def test_a_list_with_an_unknown_password_is_one_line_and_the_right_one_opens(tmp_path: Path, capsys: Captured) -> None:
    path = key_store(tmp_path / "k", HOST, "hunter22")
    assert "wrong password (--storepass)" in refused(capsys, "list", path)
    assert main(["list", path, "--storepass", "hunter22"]) == 0


# trust


def test_a_certificate_is_added_beside_the_old_one_under_an_alias_of_its_own(tmp_path: Path, capsys: Captured) -> None:
    store = trust_store(tmp_path / "client.public", HOST)
    source = trust_store(tmp_path / "new", OTHER_HOST)
    assert main(["trust", store, source]) == 0
    assert held(store) == [("clientpublic", der(HOST)), ("clientpublic-2", der(OTHER_HOST))]
    out = capsys.readouterr().out
    assert f"added CN=host2, SHA-256 {print_of(OTHER_HOST)}" in out
    assert f"wrote {store}: PKCS#12, 2 certificates" in out


def test_a_store_that_does_not_exist_is_made(tmp_path: Path, capsys: Captured) -> None:
    store = str(tmp_path / "deep" / "client.public")
    assert main(["trust", store, put(tmp_path / "pem", pem(HOST))]) == 0
    assert held(store) == [("clientpublic", der(HOST))]
    assert stat.S_IMODE(os.stat(store).st_mode) == 0o644
    assert f"made {store}" in capsys.readouterr().out


def test_of_a_key_store_only_the_certificate_is_taken(tmp_path: Path) -> None:
    store = str(tmp_path / "t")
    assert main(["trust", store, key_store(tmp_path / "k", GUEST, "serverpw", "serverprivate")]) == 0
    assert held(store) == [("serverpublic", der(GUEST))]


@pytest.mark.parametrize("data", [pem(GUEST), der(GUEST), key_pem(GUEST) + pem(GUEST)], ids=["pem", "der", "key"])
def test_files_without_aliases_are_named_by_their_purpose(tmp_path: Path, data: bytes) -> None:
    store = str(tmp_path / "t")
    assert main(["trust", store, put(tmp_path / "s", data)]) == 0
    assert held(store) == [("serverpublic", der(GUEST))]


def test_what_is_there_already_is_said_and_skipped(tmp_path: Path, capsys: Captured) -> None:
    store = trust_store(tmp_path / "t", HOST)
    before = Path(store).read_bytes()
    assert main(["trust", store, put(tmp_path / "s", pem(HOST))]) == 0
    assert Path(store).read_bytes() == before
    out = capsys.readouterr().out
    assert "is there already: CN=host1" in out
    assert "nothing to change" in out


def test_a_pem_store_stays_pem(tmp_path: Path) -> None:
    store = put(tmp_path / "t", pem(HOST))
    assert main(["trust", store, trust_store(tmp_path / "s", OTHER_HOST)]) == 0
    assert Path(store).read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert [found for _, found in held(store)] == [der(HOST), der(OTHER_HOST)]


def test_each_password_is_for_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    store = trust_store(tmp_path / "t", HOST, password="hunter22")
    source = trust_store(tmp_path / "s", OTHER_HOST, password="hunter33")
    assert "the source" in refused(capsys, "trust", store, source, "--storepass", "hunter22")
    assert "the trust store" in refused(capsys, "trust", store, source, "--sourcepass", "hunter33")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hunter22\nhunter33\n"))
    assert main(["trust", store, source, "--storepass", "-", "--sourcepass", "-"]) == 0
    assert len(held(store, "hunter22")) == 2


def test_sources_may_stand_behind_options(tmp_path: Path) -> None:
    store, source = trust_store(tmp_path / "t", HOST), put(tmp_path / "s", pem(OTHER_HOST))
    assert (
        main([
            "trust",
            store,
            "--storepass",
            "public",
            source,
            "--sourcepass",
            "public",
            put(tmp_path / "u", pem(GUEST)),
        ])
        == 0
    )
    assert [found for _, found in held(store)] == [der(HOST), der(OTHER_HOST), der(GUEST)]


@pytest.mark.parametrize("form", [str.upper, str.lower, lambda text: text.replace(":", "")])
def test_a_certificate_is_removed_by_its_fingerprint_in_any_form(tmp_path: Path, form: object) -> None:
    assert callable(form)
    store = trust_store(tmp_path / "t", HOST, OTHER_HOST)
    assert main(["trust", store, "--remove", form(print_of(HOST))]) == 0
    assert held(store) == [("clientpublic-2", der(OTHER_HOST))]


def test_adding_and_removing_is_one_change(tmp_path: Path) -> None:
    store = trust_store(tmp_path / "t", HOST)
    assert main(["trust", store, put(tmp_path / "s", pem(OTHER_HOST)), "--remove", print_of(HOST)]) == 0
    assert [found for _, found in held(store)] == [der(OTHER_HOST)]


@pytest.mark.parametrize("kind", ["pkcs12", "pem"])
def test_the_last_certificate_goes_only_by_force(tmp_path: Path, capsys: Captured, kind: str) -> None:
    store = trust_store(tmp_path / "t", HOST) if kind == "pkcs12" else put(tmp_path / "t", pem(HOST))
    before = Path(store).read_bytes()
    words = ["trust", store, "--remove", print_of(HOST)]
    assert "the last certificate" in refused(capsys, *words)
    assert Path(store).read_bytes() == before
    assert main([*words, "--force"]) == 0
    assert "stop it to shut everybody out" in capsys.readouterr().out
    with pytest.raises(KeysError, match="holds no certificate: nobody could be trusted"):
        stores.load_trust_store(store, "public")
    assert main(["trust", store, put(tmp_path / "s", pem(HOST))]) == 0
    assert len(held(store)) == 1


def test_a_fingerprint_that_is_not_there_changes_nothing(tmp_path: Path, capsys: Captured) -> None:
    store = trust_store(tmp_path / "t", HOST, OTHER_HOST)
    before = Path(store).read_bytes()
    told = refused(capsys, "trust", store, "--remove", print_of(OTHER_HOST), "--remove", print_of(GUEST))
    assert "holds no certificate with the fingerprint" in told
    assert Path(store).read_bytes() == before


@pytest.mark.parametrize("failing", ["source", "weak", "disk"])
def test_the_old_store_is_kept_on_any_error(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = trust_store(tmp_path / "t", HOST)
    before = Path(store).read_bytes()
    good, bad = put(tmp_path / "good", pem(OTHER_HOST)), str(tmp_path / "absent")
    if failing == "weak":
        bad = put(tmp_path / "weak", rsa_key_store(1024))
    if failing == "disk":
        bad = good

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    told = {"source": "does not exist", "weak": "1024 bits", "disk": "No space left"}[failing]
    assert told in refused(capsys, "trust", store, good, bad)
    assert Path(store).read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


def test_a_key_store_is_not_taken_for_the_trust_store_to_change(tmp_path: Path, capsys: Captured) -> None:
    store = key_store(tmp_path / "k", HOST)
    assert "it is a key store" in refused(capsys, "trust", store, put(tmp_path / "s", pem(GUEST)))


def test_a_link_stays_a_link_and_others_lose_the_right_to_write(tmp_path: Path) -> None:
    real = trust_store(tmp_path / "real", HOST)
    os.chmod(real, 0o666)
    (tmp_path / "link").symlink_to("real")
    assert main(["trust", str(tmp_path / "link"), put(tmp_path / "s", pem(GUEST))]) == 0
    assert (tmp_path / "link").is_symlink()
    assert len(held(real)) == 2
    assert stat.S_IMODE(os.stat(real).st_mode) == 0o644


def test_what_deserves_a_second_look_is_added_with_a_warning(tmp_path: Path, capsys: Captured) -> None:
    old, (_, root) = expiring(Purpose.CLIENT, -3), authority()
    sources = [
        put(tmp_path / "old", pem(old)),
        put(tmp_path / "ca", stores.trust_store_bytes([(root, "ca")], "public")),
    ]
    assert main(["trust", str(tmp_path / "t"), *sources]) == 0
    out = capsys.readouterr().out
    assert "warning: it expired on" in out
    assert "warning: it is an authority" in out


@pytest.mark.parametrize(
    "words",
    [
        ["trust", "x"],
        ["trust", "x", "--remove", "12"],
        ["trust"],
        ["list"],
        ["list", "x", "y"],
        ["trust", "x", "y", "--no", "z"],
    ],
)
def test_words_that_make_no_sense_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: cmapppki" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_removing_from_a_store_that_does_not_exist_is_refused(tmp_path: Path, capsys: Captured) -> None:
    assert "does not exist" in refused(capsys, "trust", str(tmp_path / "t"), "--remove", print_of(HOST))
    assert os.listdir(tmp_path) == []


def test_aliases_are_unique_whatever_their_case() -> None:
    entries = [(made.certificate, alias) for made, alias in ((HOST, "A"), (GUEST, "a"), (OTHER_HOST, "a-2"))]
    assert [alias for _, alias in trusting.unique_aliases(entries)] == ["A", "a-2", "a-3"]
    unnamed = [(HOST.certificate, None), (OTHER_HOST.certificate, None), (GUEST.certificate, None)]
    named = [alias for _, alias in trusting.unique_aliases(unnamed)]
    assert named == ["clientpublic", "clientpublic-2", "serverpublic"]


def test_adding_twice_in_one_call_adds_once() -> None:
    offered = [(HOST.certificate, None), (HOST.certificate, "x")]
    entries, said = trusting.add([], offered, NOW)
    assert len(entries) == 1
    assert [line.partition(" CN")[0] for line in said] == ["added", "is there already:"]

"""Stores on the disk: what is read, what is refused and with which cure, and how files are written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from pki import stores
from pki.certificates import Issued, Purpose, issue, parse_dname
from pki.contexts import client_context, load_material
from pki.errors import KeysError
from pki.files import MAX_STORE_BYTES, prepare_directory, write_file
from pki.material import Keys

NOW = datetime.now(timezone.utc)
GUEST, HOST = issue(Purpose.SERVER, "g1", now=NOW), issue(Purpose.CLIENT, "host1", now=NOW)
KEYTOOL = shutil.which("keytool")


def put(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def certificate_pem(made: Issued) -> bytes:
    return made.certificate.public_bytes(Encoding.PEM)


def key_pem(made: Issued, encryption: KeySerializationEncryption | None = None) -> bytes:
    return made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def key_store(path: Path, made: Issued = HOST, password: str = "clientpw") -> str:
    return put(path, stores.key_store_bytes(made, "clientprivate", password))


def trust_store(path: Path, *trusted: Issued) -> str:
    entries = [(made.certificate, f"serverpublic{number or ''}") for number, made in enumerate(trusted or (GUEST,))]
    return put(path, stores.trust_store_bytes(entries, "public"))


def keys(tmp_path: Path, **changes: str) -> Keys:
    paths = {"key_store": key_store(tmp_path / "k"), "trust_store": trust_store(tmp_path / "t")}
    words = {"key_store_password": "clientpw", "trust_store_password": "public"} | paths | changes
    return Keys(words["key_store"], words["key_store_password"], words["trust_store"], words["trust_store_password"])


def foreign_store(key: pkcs12.PKCS12PrivateKeyTypes | None, made: Issued | None = None) -> bytes:
    certificate = made.certificate if made else None
    return pkcs12.serialize_key_and_certificates(b"x", key, certificate, None, BestAvailableEncryption(b"clientpw"))


def refusal(path: str, *, what: str = "key", password: str = "clientpw") -> str:
    load = stores.load_key_store if what == "key" else stores.load_trust_store
    with pytest.raises(KeysError) as caught:
        load(path, password)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    chain, key = stores.load_key_store(key_store(tmp_path / "k"), "clientpw")
    assert chain == certificate_pem(HOST)
    assert key == key_pem(HOST)
    pins = stores.load_trust_store(trust_store(tmp_path / "t", GUEST, HOST), "public")
    assert [pin.alias for pin in pins] == ["serverpublic", "serverpublic1"]
    assert [pin.der for pin in pins] == [made.certificate.public_bytes(Encoding.DER) for made in (GUEST, HOST)]


def test_pem_is_read_with_text_around_the_blocks_and_in_any_order(tmp_path: Path) -> None:
    data = b"subject=x\n" + certificate_pem(GUEST) + b"Bag Attributes\n" + certificate_pem(HOST) + key_pem(HOST)
    chain, key = stores.load_key_store(put(tmp_path / "k", data), "unused")
    assert (chain, key) == (certificate_pem(HOST), key_pem(HOST))
    pins = stores.load_trust_store(put(tmp_path / "t", certificate_pem(GUEST) * 2), "unused")
    assert [pin.alias for pin in pins] == ["certificate 1"]


def test_an_encrypted_pem_key_is_opened_with_the_stores_password(tmp_path: Path) -> None:
    data = key_pem(HOST, BestAvailableEncryption(b"clientpw")) + certificate_pem(HOST)
    path = put(tmp_path / "k", data)
    assert stores.load_key_store(path, "clientpw")[1] == key_pem(HOST)
    assert "wrong password (keyStorePassword)" in refusal(path, password="other1")


def test_a_bare_der_certificate_is_a_trust_store_of_one(tmp_path: Path) -> None:
    path = put(tmp_path / "t", GUEST.certificate.public_bytes(Encoding.DER))
    assert len(stores.load_trust_store(path, "public")) == 1


@pytest.mark.parametrize(("magic", "kind"), [("feedfeed", "JKS"), ("cececece", "JCEKS")])
def test_an_old_java_store_is_refused_with_the_command_that_converts_it(tmp_path: Path, magic: str, kind: str) -> None:
    path = put(tmp_path / "a b", bytes.fromhex(magic) + b"\0\0\0\2")
    expected = (
        f"is an old {kind} file: convert it with: keytool -importkeystore -srckeystore '{path}' -srcstoretype {kind} "
        f"-destkeystore '{path}.p12' -deststoretype PKCS12"
    )
    assert expected in refusal(path)


def test_a_wrong_password_names_the_key_of_the_configuration(tmp_path: Path) -> None:
    told = refusal(key_store(tmp_path / "a k"), password="other1")
    assert "wrong password (keyStorePassword)" in told
    assert f"try the password with: cmapppki list '{tmp_path}/a k' --storepass -" in told
    assert "wrong password (trustStorePassword)" in refusal(
        trust_store(tmp_path / "t"), what="trust", password="other1"
    )


def test_the_two_stores_in_each_others_place_are_told_apart(tmp_path: Path) -> None:
    assert "holds no private key: is it a trust store?" in refusal(trust_store(tmp_path / "t"), password="public")
    assert "holds a private key: is it a key store?" in refusal(key_store(tmp_path / "k"), what="trust")


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    assert "no certificate that belongs" in refusal(put(tmp_path / "k", foreign_store(HOST.key)))
    assert "no certificate that belongs" in refusal(put(tmp_path / "k", key_pem(HOST)))
    mixed = key_pem(HOST) + certificate_pem(GUEST)
    assert "does not match its certificate" in refusal(put(tmp_path / "k", mixed))


def test_several_private_keys_are_refused(tmp_path: Path) -> None:
    data = key_pem(HOST) + certificate_pem(HOST) + key_pem(GUEST)
    told = refusal(put(tmp_path / "k", data))
    assert "several private keys: keep one, and take the others out with: " in told
    assert told.endswith(f"keytool -delete -alias ALIAS -keystore {tmp_path}/k")


def test_an_empty_trust_store_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "t", b"-----BEGIN X-----\n-----END X-----\n")
    assert "holds no certificate: nobody could be trusted" in refusal(path, what="trust")


def self_signed(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = HOST.certificate.subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (rsa.generate_private_key(65537, 1024), "an RSA key of 1024 bits, fewer than 2048"),
        (ec.generate_private_key(ec.SECP256K1()), "a key on the curve secp256k1"),
    ],
)
def test_a_key_that_tls_13_cannot_use_is_refused_in_either_store(
    tmp_path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, words: str
) -> None:
    certificate = self_signed(key)
    data = pkcs12.serialize_key_and_certificates(b"x", key, certificate, None, BestAvailableEncryption(b"clientpw"))
    assert words in refusal(put(tmp_path / "k", data))
    assert words in refusal(put(tmp_path / "t", certificate.public_bytes(Encoding.PEM)), what="trust")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is an empty file"),
        (b"hello", "is neither PKCS#12 nor PEM"),
        (b"\x30\x82\x01\x00garbage", "a damaged file: make new keys"),
        (b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "damaged PEM block, 'CERTIFICATE'"),
        (b"-----BEGIN CERTIFICATE-----\nMTIz\n-----END CERTIFICATE-----\n", "holds a damaged certificate"),
        (b"\x30" * (MAX_STORE_BYTES + 1), "is larger than"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(put(tmp_path / "k", data))


def test_a_store_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = stores.key_store_bytes(HOST, "clientprivate", "clientpw")
    for length in range(1, len(whole), 97):
        refusal(put(tmp_path / "k", whole[:length]))


def test_a_missing_file_a_directory_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    assert "does not exist" in refusal(str(tmp_path / "absent"))
    assert "is not a regular file" in refusal(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(str(tmp_path / "pipe"))
    with pytest.raises(KeysError, match="cannot be one"):
        stores.load_key_store("a\0b", "x")


def test_a_certificate_that_does_not_belong_to_the_key_is_left_out(tmp_path: Path) -> None:
    data = certificate_pem(GUEST) + key_pem(HOST) + certificate_pem(HOST)
    assert stores.load_key_store(put(tmp_path / "k", data), "x")[0] == certificate_pem(HOST)


def test_a_chain_leads_from_the_leaf_to_its_authority_whatever_the_order_in_the_store(tmp_path: Path) -> None:
    name = parse_dname("CN=authority")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().issuer_name(name).serial_number(1).not_valid_before(NOW).not_valid_after(NOW)
    root = builder.subject_name(name).public_key(key.public_key()).sign(key, hashes.SHA256())
    leaf = builder.subject_name(parse_dname("CN=x")).public_key(HOST.key.public_key()).sign(key, hashes.SHA256())
    others = [GUEST.certificate, root]
    data = pkcs12.serialize_key_and_certificates(b"x", HOST.key, leaf, others, BestAvailableEncryption(b"clientpw"))
    chain, _ = stores.load_key_store(put(tmp_path / "k", data), "clientpw")
    assert chain == leaf.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM)


# Files


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_file(str(tmp_path / "k"), b"secret", mode=0o600, force=False)
    assert seen == [0o600]
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = str(tmp_path / "k")
    write_file(path, b"one", mode=0o600, force=False)
    with pytest.raises(KeysError, match="exists already: --force would replace it"):
        write_file(path, b"two", mode=0o600, force=False)
    assert Path(path).read_bytes() == b"one"
    write_file(path, b"two", mode=0o600, force=True)
    assert Path(path).read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["k"]


def test_a_write_that_fails_leaves_nothing_new_and_the_old_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "k")
    write_file(path, b"old", mode=0o600, force=False)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysError, match=r"cannot write .*No space left on device \(errno:28\)"):
        write_file(path, b"new", mode=0o600, force=True)
    assert os.listdir(tmp_path) == ["k"]
    assert Path(path).read_bytes() == b"old"


def test_a_missing_directory_is_made_and_one_open_to_all_refused(tmp_path: Path) -> None:
    prepare_directory(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(KeysError, match="is writable for everybody"):
        prepare_directory(str(tmp_path / "a"))
    (tmp_path / "a").chmod(0o1777)
    prepare_directory(str(tmp_path / "a"))
    with pytest.raises(KeysError, match="cannot make the directory"):
        prepare_directory(put(tmp_path / "file", b"") + "/x")
    with pytest.raises(KeysError, match="cannot write"):
        write_file(str(tmp_path / "absent" / "k"), b"", mode=0o600, force=False)


# Beside keytool


def keytool(*words: str) -> str:
    assert KEYTOOL is not None
    done = subprocess.run([KEYTOOL, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(KEYTOOL is None, reason="no keytool on the path")
def test_keytool_lists_our_stores_as_what_they_are(tmp_path: Path) -> None:
    listed = keytool("-list", "-keystore", key_store(tmp_path / "k"), "-storepass", "clientpw")
    assert "PrivateKeyEntry" in listed
    assert "clientprivate" in listed
    listed = keytool("-list", "-keystore", trust_store(tmp_path / "t"), "-storepass", "public")
    assert "trustedCertEntry" in listed
    assert "serverpublic" in listed


@pytest.mark.slow
@pytest.mark.skipif(KEYTOOL is None, reason="no keytool on the path")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # older ones do read DSA
@pytest.mark.parametrize("algorithm", ["RSA", "EC", "DSA"])
def test_stores_of_the_old_guides_commands_are_read_as_they_are(tmp_path: Path, algorithm: str) -> None:
    private, public, exported = (str(tmp_path / name) for name in ("client.private", "client.public", "temp.key"))
    own = ("-alias", "clientprivate", "-keystore", private, "-storepass", "clientpw")
    keytool("-genkey", *own, "-keyalg", algorithm, "-dname", "CN=host1", "-validity", "400")
    keytool("-export", *own, "-file", exported)
    keytool(
        "-import", "-noprompt", "-alias", "clientpublic", "-keystore", public, "-storepass", "public", "-file", exported
    )
    if algorithm == "DSA":
        for told in (refusal(private), refusal(public, what="trust", password="public")):
            assert "a DSA key" in told
            assert "make new keys" in told
        assert "make new keys with cmapppki" in refusal(private)
        return
    material = load_material(Keys(private, "clientpw", public, "public"))
    slowly = stores.open_stores(Keys(private, "clientpw", public, "public"))
    assert (material.chain_pem, material.pins) == (slowly.chain_pem, slowly.pins)
    assert [pin.alias for pin in material.pins] == ["clientpublic"]
    client_context(material)
    # A second key in the store: OpenSSL would take the first one in silence.
    keytool("-genkey", *own[2:], "-alias", "second", "-keyalg", algorithm, "-dname", "CN=host2")
    assert "several private keys" in refusal(private)


def test_a_store_of_ours_does_not_keep_a_manager_busy_with_its_password() -> None:
    rounds = b"\x02\x02" + stores.KDF_ROUNDS.to_bytes(2, "big")  # an INTEGER of DER
    key_store = stores.key_store_bytes(HOST, "clientprivate", "clientpw")
    assert key_store.count(rounds) == 3  # certificate, key and checksum
    trust_store = stores.trust_store_bytes([(HOST.certificate, "clientpublic")], "public")
    assert trust_store.count(rounds) == 2

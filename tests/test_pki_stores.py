"""Stores on the disk: what is read, what is refused and with which cure, how files are written, and the child that
opens them."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
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

from pki import stores, unlock
from pki.certificates import Issued, Purpose, issue, parse_dname
from pki.contexts import client_context, load_material, server_context
from pki.errors import KeysError
from pki.files import MAX_STORE_BYTES, prepare_directory, write_file
from pki.material import Keys
from pki.unlock import start_unlock

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


# The child


def test_the_child_opens_what_this_process_opens(tmp_path: Path) -> None:
    found = keys(tmp_path)
    assert load_material(found) == stores.open_stores(found)


def test_the_child_needs_neither_environment_nor_directory_nor_cryptography_here(tmp_path: Path) -> None:
    found = keys(tmp_path)
    root = os.path.dirname(os.path.dirname(unlock.__file__))
    code = (
        f"import sys; sys.path.append({root!r})\n"
        "from pki.contexts import Keys, client_context, load_material\n"
        f"client_context(load_material(Keys({found.key_store!r}, 'clientpw', {found.trust_store!r}, 'public')))\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env={}, cwd="/", capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_passwords_are_not_among_the_childs_arguments(tmp_path: Path) -> None:
    with start_unlock(keys(tmp_path)) as unlocking:
        assert unlocking._process is not None
        words = unlocking._process.args
        assert "clientpw" not in str(words)
        unlocking.result()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_store_password": "wrong1"}, "wrong password (keyStorePassword)"),
        ({"trust_store_password": "wrong1"}, "wrong password (trustStorePassword)"),
        ({"key_store": "/absent"}, "the key store '/absent' does not exist"),
        ({"trust_store": "/absent"}, "the trust store '/absent' does not exist"),
    ],
)
def test_what_the_child_refuses_is_raised_here_each_time_it_is_asked_for(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    unlocking = start_unlock(keys(tmp_path, **changes))
    for _ in range(2):
        with pytest.raises(KeysError) as caught:
            unlocking.result()
        assert words in str(caught.value)


def test_stores_in_pem_need_no_child(tmp_path: Path) -> None:
    found = keys(
        tmp_path,
        key_store=put(tmp_path / "k.pem", key_pem(HOST) + certificate_pem(HOST)),
        trust_store=put(tmp_path / "t.pem", certificate_pem(GUEST)),
    )
    unlocking = start_unlock(found)
    assert unlocking._process is None
    material = unlocking.result()
    assert material == stores.open_stores(found)
    client_context(material)
    server_context(material)


@pytest.mark.parametrize("kind", ["encrypted", "no certificate", "two keys", "key in trust store", "no pin"])
def test_unusual_pem_is_left_to_the_child_to_judge(tmp_path: Path, kind: str) -> None:
    own, trusted = key_pem(HOST) + certificate_pem(HOST), certificate_pem(GUEST)
    own, trusted = {
        "encrypted": (key_pem(HOST, BestAvailableEncryption(b"clientpw")) + certificate_pem(HOST), trusted),
        "no certificate": (key_pem(HOST), trusted),
        "two keys": (own + key_pem(GUEST), trusted),
        "key in trust store": (own, trusted + key_pem(GUEST)),
        "no pin": (own, b"-----BEGIN X-----\n-----END X-----\n"),
    }[kind]
    found = keys(tmp_path, key_store=put(tmp_path / "k.pem", own), trust_store=put(tmp_path / "t.pem", trusted))
    with start_unlock(found) as unlocking:
        assert unlocking._process is not None
        if kind == "encrypted":
            assert unlocking.result().key_pem == key_pem(HOST)
        else:
            with pytest.raises(KeysError, match=r"[kt]\.pem"):
                unlocking.result()


def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> unlock.Unlocking:
    monkeypatch.setattr(unlock, "_BOOTSTRAP", code)
    return start_unlock(keys(tmp_path))


def test_a_child_that_hangs_is_killed_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocking = stubborn(tmp_path, monkeypatch, "import signal; signal.pause()")
    process = unlocking._process
    assert process is not None
    with pytest.raises(KeysError, match=r"could not be opened within 0\.05 seconds"):
        unlocking.result(0.05)
    assert process.returncode == -signal.SIGKILL


def test_an_abandoned_child_is_killed_and_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocking = stubborn(tmp_path, monkeypatch, "import signal; signal.pause()")
    process = unlocking._process
    assert process is not None
    unlocking.abandon()
    unlocking.abandon()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(KeysError, match="was given up"):
        unlocking.result()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('out of order')", "broke down with status 1: out of order"),
        ("import os; os._exit(3)", "broke down with status 3: no word"),
        ("print('[]')", "broke down with status 0"),
        ("print('{\"chain\": 1}')", "broke down with status 0"),
    ],
)
def test_a_child_that_breaks_down_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    with pytest.raises(KeysError) as caught:
        stubborn(tmp_path, monkeypatch, code).result()
    assert words in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="holds a file by a lease")
def test_a_child_whose_store_does_not_open_ends_when_nobody_wants_it_any_more(tmp_path: Path) -> None:
    """A program that ends while it reads its keys again has nobody left who could kill the child."""
    from leases import leased

    found = keys(tmp_path)
    with leased(Path(found.key_store)) as lease:
        child = unlock._start_child(found)
        unlocking = unlock.Unlocking(found, child, None)
        lease.wait_wanted()
        assert child.poll() is None
        unlocking._let_go()  # as the end of this process would
        child.communicate(timeout=40)
        assert child.returncode == unlock.EXIT_UNWANTED


def test_an_interpreter_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(KeysError, match="cannot start '/absent/python' to open the stores"):
        start_unlock(keys(tmp_path)).result()


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
            assert "make new keys with cmapppki" in told
        return
    material = load_material(Keys(private, "clientpw", public, "public"))
    assert [pin.alias for pin in material.pins] == ["clientpublic"]
    client_context(material)
    # A second key in the store: OpenSSL would take the first one in silence.
    keytool("-genkey", *own[2:], "-alias", "second", "-keyalg", algorithm, "-dname", "CN=host2")
    assert "several private keys" in refusal(private)

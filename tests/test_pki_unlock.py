"""Stores opened beside the program: as PEM, by a thread with libcrypto, or by a child; all three give the same."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import pkcs12 as foreign
from stores_for_tests import GUEST, HOST, NOW, OTHER_GUEST, key_pem, key_store, pem, put, trust_store

from pki import opener, pkcs12, stores, unlock
from pki.contexts import client_context, server_context
from pki.errors import KeysError
from pki.material import Keys
from pki.opener import Opener
from pki.unlock import start_unlock

PASSWORD = BestAvailableEncryption(b"clientpw")
OLD_PASSWORD = (
    PrivateFormat.PKCS12
    .encryption_builder()
    .key_cert_algorithm(foreign.PBES.PBESv1SHA1And3KeyTripleDESCBC)
    .hmac_hash(hashes.SHA1())
    .build(b"clientpw")
)
"""What keytool wrote by default for a long time."""

here_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libcrypto is looked for on Linux only")


def keys(tmp_path: Path, **changes: str) -> Keys:
    paths = {"key_store": key_store(tmp_path / "k", HOST), "trust_store": trust_store(tmp_path / "t", GUEST)}
    words = {"key_store_password": "clientpw", "trust_store_password": "public"} | paths | changes
    return Keys(words["key_store"], words["key_store_password"], words["trust_store"], words["trust_store_password"])


def self_signed(key: foreign.PKCS12PrivateKeyTypes) -> x509.Certificate:
    name = HOST.certificate.subject
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW)
    edwards = isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
    return builder.sign(key, None if edwards else hashes.SHA256())


def key_store_of(key: foreign.PKCS12PrivateKeyTypes, encryption: object = PASSWORD) -> bytes:
    assert isinstance(encryption, (BestAvailableEncryption, type(OLD_PASSWORD)))
    return foreign.serialize_key_and_certificates(b"x", key, self_signed(key), None, encryption)


@pytest.fixture
def no_libcrypto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that is not PEM is the child's."""
    monkeypatch.setattr(pkcs12, "_LIBCRYPTO", "libabsent.so.0")
    pkcs12._library.cache_clear()
    yield
    pkcs12._library.cache_clear()


# In a thread, by libcrypto.


@here_only
def test_usual_stores_need_no_child_and_give_what_the_child_would(tmp_path: Path) -> None:
    found = keys(tmp_path, trust_store=trust_store(tmp_path / "two", GUEST, OTHER_GUEST, GUEST))
    unlocking = start_unlock(found)
    material = unlocking.result()
    assert unlocking._child is None
    assert material == stores.open_stores(found)
    assert [pin.alias for pin in material.pins] == ["clientpublic", "clientpublic-2"]
    assert unlocking.result() is material
    client_context(material)
    server_context(material)


@here_only
@pytest.mark.parametrize(
    "data",
    [
        key_store_of(rsa.generate_private_key(65537, 2048)),
        key_store_of(ec.generate_private_key(ec.SECP256R1()), OLD_PASSWORD),
        key_store_of(ec.generate_private_key(ec.SECP384R1())),
        key_store_of(ec.generate_private_key(ec.SECP521R1())),
        key_store_of(ed25519.Ed25519PrivateKey.generate()),
        key_store_of(ed448.Ed448PrivateKey.generate()),
    ],
    ids=["rsa", "3des", "p384", "p521", "ed25519", "ed448"],
)
def test_a_key_of_every_kind_that_tls_can_use_is_opened_here(tmp_path: Path, data: bytes) -> None:
    found = keys(tmp_path, key_store=put(tmp_path / "own", data))
    unlocking = start_unlock(found)
    material = unlocking.result()
    assert unlocking._child is None
    slowly = stores.open_stores(found)
    assert material.chain_pem == slowly.chain_pem
    assert public_part(material.key_pem) == public_part(slowly.key_pem)
    client_context(material)


def public_part(private: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from pki.reading import spki

    return spki(load_pem_private_key(private, None).public_key())


@here_only
@pytest.mark.parametrize("name", [None, b"one", "schlüssel".encode(), b"odd\nline", b"\xf0\x9f\x94\x91"])
def test_aliases_are_those_that_the_child_gives(tmp_path: Path, name: bytes | None) -> None:
    entries = [foreign.PKCS12Certificate(GUEST.certificate, name)]
    data = foreign.serialize_java_truststore(entries, BestAvailableEncryption(b"public"))
    found = keys(tmp_path, trust_store=put(tmp_path / "trusted", data))
    material = start_unlock(found).result()
    assert material.pins == stores.open_stores(found).pins


UNUSUAL_KEY_STORES = {
    "a small rsa key": key_store_of(rsa.generate_private_key(65537, 1024)),
    "a curve": key_store_of(ec.generate_private_key(ec.SECP256K1())),
    "no certificate": foreign.serialize_key_and_certificates(b"x", HOST.key, None, None, PASSWORD),
    "another's certificate": foreign.serialize_key_and_certificates(
        b"x", HOST.key, None, [GUEST.certificate], PASSWORD
    ),
    "a chain": foreign.serialize_key_and_certificates(b"x", HOST.key, HOST.certificate, [GUEST.certificate], PASSWORD),
    "no key": foreign.serialize_key_and_certificates(b"x", None, None, [GUEST.certificate], PASSWORD),
    "a bare certificate": GUEST.certificate.public_bytes(Encoding.DER),
    "garbage": b"\x30\x82\x01\x00garbage",
    "nothing": stores.EMPTY_STORE,
    "not even that": b"hello",
}


@pytest.mark.parametrize("kind", UNUSUAL_KEY_STORES)
def test_what_is_not_usual_in_a_key_store_is_not_opened_here(kind: str) -> None:
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_key_store(UNUSUAL_KEY_STORES[kind], "clientpw")


@pytest.mark.parametrize("kind", sorted(set(UNUSUAL_KEY_STORES) - {"no key"}))
def test_what_is_not_usual_in_a_trust_store_is_not_opened_here(kind: str) -> None:
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_trust_store(UNUSUAL_KEY_STORES[kind], "clientpw")


def test_a_trusted_certificate_that_tls_cannot_use_is_not_opened_here() -> None:
    weak = self_signed(rsa.generate_private_key(65537, 1024))
    entries = [foreign.PKCS12Certificate(certificate, b"x") for certificate in (GUEST.certificate, weak)]
    data = foreign.serialize_java_truststore(entries, BestAvailableEncryption(b"public"))
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_trust_store(data, "public")


def test_two_keys_are_never_one() -> None:
    """OpenSSL would take the first in silence."""
    once = key_store_of(HOST.key)
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_key_store(once + pkcs12._KEY_BAG_OIDS[1], "clientpw")


@pytest.mark.parametrize("password", ["wrong1", "", "clientpw\0", "clientpw\0x"])
def test_a_wrong_password_is_not_judged_here(password: str) -> None:
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_key_store(key_store_of(HOST.key), password)


def test_a_store_cut_short_or_changed_anywhere_is_not_opened_here() -> None:
    whole = key_store_of(ec.generate_private_key(ec.SECP256R1()), OLD_PASSWORD)
    for place in range(0, len(whole), 61):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            with pytest.raises(pkcs12.NotUsualError):
                pkcs12.open_key_store(data, "clientpw")


def test_nothing_is_left_in_the_queue_of_errors() -> None:
    with pytest.raises(pkcs12.NotUsualError):
        pkcs12.open_key_store(key_store_of(HOST.key), "wrong1")
    with pytest.raises(ssl.SSLError, match="NO_START_LINE|no start line|PEM"):
        ssl.create_default_context().load_verify_locations(cadata="nothing")


@here_only
def test_a_store_that_is_not_usual_goes_on_to_the_child(tmp_path: Path) -> None:
    data = UNUSUAL_KEY_STORES["a chain"]
    found = keys(tmp_path, key_store=put(tmp_path / "own", data))
    with start_unlock(found) as unlocking:
        assert unlocking._child is None
        assert unlocking.result() == stores.open_stores(found)
        assert unlocking._child is not None


@here_only
def test_a_thread_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slowly(_data: bytes, _password: str) -> tuple[bytes, bytes]:
        go_on.wait(40)
        raise pkcs12.NotUsualError

    monkeypatch.setattr(pkcs12, "open_key_store", slowly)
    with pytest.raises(KeysError, match=r"could not be opened within 0\.05 seconds"):
        start_unlock(keys(tmp_path)).result(0.05)
    go_on.set()


@pytest.mark.parametrize("store", ["pkcs12", "pem"])
def test_a_program_whose_files_are_gone_cannot_open_stores_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    for name in ("pkcs12", "opener"):
        monkeypatch.delattr(f"pki.{name}", raising=False)
        monkeypatch.setitem(sys.modules, f"pki.{name}", None)
    wanted = keys(tmp_path) if store == "pkcs12" else keys(tmp_path, trust_store=put(tmp_path / "p", pem(GUEST)))
    with pytest.raises(KeysError, match="parts of this program are gone: .*pki"):
        unlock.load_material(wanted)


def test_where_there_are_no_more_threads_the_child_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    found = keys(tmp_path)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    unlocking = start_unlock(found)
    monkeypatch.undo()
    assert unlocking._child is not None
    assert unlocking.result() == stores.open_stores(found)


# By a child.


@pytest.mark.usefixtures("no_libcrypto")
def test_the_child_opens_what_this_process_opens(tmp_path: Path) -> None:
    found = keys(tmp_path)
    with start_unlock(found) as unlocking:
        assert unlocking.result() == stores.open_stores(found)
        assert unlocking._child is not None


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
    with unlock.Unlocking(keys(tmp_path)) as unlocking:
        assert unlocking._child is not None
        assert unlocking._child._process is not None
        words = unlocking._child._process.args
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
        key_store=put(tmp_path / "k.pem", key_pem(HOST) + pem(HOST)),
        trust_store=put(tmp_path / "t.pem", pem(GUEST)),
    )
    unlocking = start_unlock(found)
    assert unlocking._child is None
    material = unlocking.result()
    assert material == stores.open_stores(found)
    client_context(material)
    server_context(material)


@pytest.mark.parametrize("kind", ["encrypted", "no certificate", "two keys", "key in trust store", "no pin"])
def test_unusual_pem_is_left_to_the_child_to_judge(tmp_path: Path, kind: str) -> None:
    own, trusted = key_pem(HOST) + pem(HOST), pem(GUEST)
    own, trusted = {
        "encrypted": (HOST.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, PASSWORD) + pem(HOST), trusted),
        "no certificate": (key_pem(HOST), trusted),
        "two keys": (own + key_pem(GUEST), trusted),
        "key in trust store": (own, trusted + key_pem(GUEST)),
        "no pin": (own, b"-----BEGIN X-----\n-----END X-----\n"),
    }[kind]
    found = keys(tmp_path, key_store=put(tmp_path / "k.pem", own), trust_store=put(tmp_path / "t.pem", trusted))
    with start_unlock(found) as unlocking:
        assert unlocking._child is not None
        if kind == "encrypted":
            assert unlocking.result().key_pem == key_pem(HOST)
        else:
            with pytest.raises(KeysError, match=r"[kt]\.pem"):
                unlocking.result()


def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> unlock.Unlocking:
    monkeypatch.setattr(opener, "_BOOTSTRAP", code)
    return unlock.Unlocking(keys(tmp_path))


def test_a_child_that_hangs_is_killed_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocking = stubborn(tmp_path, monkeypatch, "import signal; signal.pause()")
    assert unlocking._child is not None
    process = unlocking._child._process
    assert process is not None
    with pytest.raises(KeysError, match=r"could not be opened within 0\.05 seconds"):
        unlocking.result(0.05)
    assert process.returncode == -signal.SIGKILL


def test_an_abandoned_child_is_killed_and_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocking = stubborn(tmp_path, monkeypatch, "import signal; signal.pause()")
    assert unlocking._child is not None
    process = unlocking._child._process
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
        child = Opener(found)
        process = child._process
        assert process is not None
        lease.wait_wanted()
        assert process.poll() is None
        child._let_go()  # as the end of this process would
        process.communicate(timeout=40)
        assert process.returncode == opener.EXIT_UNWANTED


def test_an_interpreter_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(KeysError, match="cannot start '/absent/python' to open the stores"):
        start_unlock(keys(tmp_path, key_store_password="wrong1")).result()

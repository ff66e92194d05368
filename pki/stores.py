"""Key stores and trust stores: PKCS#12 and PEM in, PKCS#12 out.

Parsing PKCS#12 imports `cryptography`, which costs 65 ms and 10 MB; in the daemons only the short-lived child of
`unlock` imports this module. Every refusal names the file and what mends it, because the reader is an administrator
at night.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from pki import pem
from pki.certificates import Issued, key_fault
from pki.errors import KeysError
from pki.files import read_store
from pki.material import Keys, Material, Pin

CLIENT_KEY_PASSWORD = "clientpw"
SERVER_KEY_PASSWORD = "serverpw"
TRUST_PASSWORD = "public"
"""The old guide's passwords (contract, section 4). They protect nothing: the file mode does."""

CLIENT_KEY_ALIAS, CLIENT_TRUST_ALIAS = "clientprivate", "clientpublic"
SERVER_KEY_ALIAS, SERVER_TRUST_ALIAS = "serverprivate", "serverpublic"

_OLD_JAVA_STORES = {b"\xfe\xed\xfe\xed": "JKS", b"\xce\xce\xce\xce": "JCEKS"}

_KEY_BAG_OIDS = (bytes.fromhex("060b2a864886f70d010c0a0101"), bytes.fromhex("060b2a864886f70d010c0a0102"))
"""keyBag and pkcs8ShroudedKeyBag (RFC 7292, appendix D). The bags' labels stand outside the encryption in what
keytool, OpenSSL and we write."""

MAX_CHAIN_CERTIFICATES = 10
"""OpenSSL's own bound on a chain is of this order; it also ends a circle of issuers."""


@final
class _Contents:
    """What a store of either format holds, before anybody asks whether it is the right kind of store."""

    __slots__ = ("certificates", "key", "leaf")

    def __init__(
        self,
        key: PrivateKeyTypes | None,
        leaf: x509.Certificate | None,
        certificates: list[tuple[x509.Certificate, str | None]],
    ) -> None:
        self.key = key
        self.leaf = leaf
        self.certificates = certificates


def open_stores(keys: Keys) -> Material:
    """Open both stores of a program. Raises `KeysError` for the first thing that is wrong with them."""
    chain_pem, key_pem = load_key_store(keys.key_store, keys.key_store_password)
    pins = load_trust_store(keys.trust_store, keys.trust_store_password)
    return Material(chain_pem, key_pem, pins, keys.expired_pins, keys.key_store, keys.trust_store)


def load_key_store(path: str, password: str) -> tuple[bytes, bytes]:
    """Give the certificate chain, leaf first, and the decrypted private key, both PEM.

    Raises `KeysError` where the store cannot be read or opened, holds no key, several, or one that does not fit.
    """
    contents = _load(path, password, "key store")
    if contents.key is None:
        raise KeysError(
            f"the key store {path!r} holds no private key: is it a trust store? (their names end in .public)"
        )
    if contents.leaf is None:
        raise KeysError(f"the key store {path!r} holds no certificate that belongs to its private key: make new keys")
    if _public_bytes(contents.leaf) != _spki(contents.key.public_key()):
        raise KeysError(f"the private key in the key store {path!r} does not match its certificate: make new keys")
    if fault := key_fault(contents.leaf.public_key()):
        raise KeysError(f"the key store {path!r} holds {fault}, which TLS 1.3 cannot use: make new keys with cmapppki")
    chain = _chain(contents.leaf, [certificate for certificate, _ in contents.certificates])
    key_pem = contents.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain), key_pem


def load_trust_store(path: str, password: str) -> tuple[Pin, ...]:
    """Give the certificates of a trust store, at least one. Raises `KeysError`."""
    contents = _load(path, password, "trust store")
    if contents.key is not None:
        raise KeysError(
            f"the trust store {path!r} holds a private key: is it a key store? (their names end in .private); "
            "private keys stay on the machine that made them"
        )
    found: dict[bytes, Pin] = {}
    for number, (certificate, alias) in enumerate(contents.certificates, start=1):
        if fault := key_fault(certificate.public_key()):
            raise KeysError(
                f"the trust store {path!r} holds a certificate with {fault}, which TLS 1.3 cannot use: "
                "make new keys with cmapppki where it comes from"
            )
        der = certificate.public_bytes(serialization.Encoding.DER)
        found.setdefault(der, Pin(der, alias or f"certificate {number}"))
    if not found:
        raise KeysError(f"the trust store {path!r} holds no certificate: nobody could be trusted")
    return tuple(found.values())


def key_store_bytes(issued: Issued, alias: str, password: str) -> bytes:
    """Write a key store as PKCS#12; keytool takes one password for the store and its key."""
    encryption = serialization.BestAvailableEncryption(password.encode())
    return pkcs12.serialize_key_and_certificates(alias.encode(), issued.key, issued.certificate, None, encryption)


def trust_store_bytes(pins: Iterable[tuple[x509.Certificate, str]], password: str) -> bytes:
    """Write a trust store as PKCS#12, marked so that Java takes its entries for trusted certificates."""
    entries = [pkcs12.PKCS12Certificate(certificate, alias.encode()) for certificate, alias in pins]
    return pkcs12.serialize_java_truststore(entries, serialization.BestAvailableEncryption(password.encode()))


def _load(path: str, password: str, what: str) -> _Contents:
    data = read_store(path, what)
    if (kind := _OLD_JAVA_STORES.get(data[:4])) is not None:
        raise KeysError(f"the {what} {path!r} is an old {kind} file: convert it with: {_conversion(path, kind)}")
    if pem.is_pem(data):
        return _load_pem(data, path, password, what)
    if not data.startswith(b"\x30"):
        raise KeysError(f"the {what} {path!r} is neither PKCS#12 nor PEM: copy it again, or make it with cmapppki")
    bare = _bare_certificate(data)
    return _Contents(None, None, [(bare, None)]) if bare else _load_pkcs12(data, path, password, what)


def _conversion(path: str, kind: str) -> str:
    source, target = shlex.quote(path), shlex.quote(path + ".p12")
    return (
        f"keytool -importkeystore -srckeystore {source} -srcstoretype {kind} "
        f"-destkeystore {target} -deststoretype PKCS12"
    )


def _bare_certificate(data: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(data)
    except ValueError:
        return None


def _load_pkcs12(data: bytes, path: str, password: str, what: str) -> _Contents:
    if sum(data.count(oid) for oid in _KEY_BAG_OIDS) > 1:
        raise KeysError(
            f"the {what} {path!r} holds several private keys: keep one (keytool -delete -alias ... takes one out)"
        )
    try:
        store = pkcs12.load_pkcs12(data, password.encode())
    except ValueError as error:
        raise KeysError(_pkcs12_fault(str(error), path, what)) from error
    except Exception as error:
        # UnsupportedAlgorithm, and whatever a parser of hostile bytes may raise: one line, not a traceback.
        raise KeysError(f"cannot open the {what} {path!r}: {type(error).__name__}: {error}") from error
    bundled = [*([store.cert] if store.cert else []), *store.additional_certs]
    names = [
        (entry.certificate, entry.friendly_name.decode("utf-8", "replace") if entry.friendly_name else None)
        for entry in bundled
    ]
    return _Contents(store.key, store.cert.certificate if store.cert else None, names)


def _pkcs12_fault(error: str, path: str, what: str) -> str:
    if error.startswith("Invalid password"):
        setting = "keyStorePassword" if what == "key store" else "trustStorePassword"
        return f"cannot open the {what} {path!r}: wrong password ({setting}), or a damaged file"
    # The password was right. keytool writes a parameter into DSA certificates that cryptography does not read.
    return (
        f"cannot read what is in the {what} {path!r}: a DSA key, as keytool made them by default, which TLS 1.3 cannot "
        "use, or a damaged file: make new keys with cmapppki"
    )


def _load_pem(data: bytes, path: str, password: str, what: str) -> _Contents:
    blocks = pem.private_keys(data)
    if len(blocks) > 1:
        raise KeysError(f"the {what} {path!r} holds several private keys: keep one")
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in pem.certificates(data, path)]
    except ValueError as error:
        raise KeysError(f"the {what} {path!r} holds a damaged certificate: copy it again") from error
    if not blocks:
        return _Contents(None, None, [(certificate, None) for certificate in certificates])
    try:
        key = serialization.load_pem_private_key(blocks[0], password.encode() if pem.is_encrypted(blocks[0]) else None)
    except (ValueError, TypeError) as error:
        raise KeysError(
            f"cannot open the {what} {path!r}: wrong password for its private key, or a damaged file"
        ) from error
    except Exception as error:
        raise KeysError(f"cannot open the {what} {path!r}: {type(error).__name__}: {error}") from error
    own = _spki(key.public_key())
    # The leaf need not come first in a file put together by hand.
    leaf = next((found for found in certificates if _public_bytes(found) == own), None)
    leaf = leaf or (certificates[0] if certificates else None)
    return _Contents(key, leaf, [(certificate, None) for certificate in certificates])


def _chain(leaf: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    chain = [leaf]
    while len(chain) < MAX_CHAIN_CERTIFICATES and chain[-1].issuer != chain[-1].subject:
        above = next((found for found in others if found.subject == chain[-1].issuer and found not in chain), None)
        if above is None:
            break
        chain.append(above)
    return chain


def _public_bytes(certificate: x509.Certificate) -> bytes:
    return _spki(certificate.public_key())


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key of cryptography has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded

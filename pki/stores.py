"""Key stores and trust stores as the programs use them: PKCS#12 and PEM in, PKCS#12 out.

Parsing PKCS#12 imports `cryptography`, which costs 65 ms and 10 MB; in the daemons only the short-lived child of
`unlock` imports this module. Every refusal names the file and what mends it, because the reader is an administrator
at night.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from pki.certificates import Issued, key_fault
from pki.errors import KeysError
from pki.material import Keys, Material, Pin
from pki.reading import NEW_KEYS, read_contents, spki

CLIENT_KEY_PASSWORD = "clientpw"
SERVER_KEY_PASSWORD = "serverpw"
TRUST_PASSWORD = "public"
"""The old guide's passwords (contract, section 4). They protect nothing: the file mode does."""

CLIENT_KEY_ALIAS, CLIENT_TRUST_ALIAS = "clientprivate", "clientpublic"
SERVER_KEY_ALIAS, SERVER_TRUST_ALIAS = "serverprivate", "serverpublic"

EMPTY_STORE = bytes.fromhex("3016020103301106092a864886f70d010701a00404023000")
"""A PKCS#12 file (RFC 7292, section 4) with no contents and no checksum, which `cryptography` does not make and
keytool lists as a store of 0 entries."""

KDF_ROUNDS = 2048
"""From a password to a key, as `openssl pkcs12` does it. More would protect a password that somebody has in his head:
these are public, or stand in a configuration beside the store. Every start of a manager goes through them: the
20,000 that are usual today kept a thread of it busy for 27 ms, where all of the start took some 150."""

DEFAULT_PASSWORDS = (TRUST_PASSWORD, CLIENT_KEY_PASSWORD, SERVER_KEY_PASSWORD)
"""What the tool tries where no password is given."""

MAX_CHAIN_CERTIFICATES = 10
"""OpenSSL's own bound on a chain is of this order; it also ends a circle of issuers."""


def open_stores(keys: Keys) -> Material:
    """Open both stores of a program. Raises `KeysError` for the first thing that is wrong with them."""
    chain_pem, key_pem = load_key_store(keys.key_store, keys.key_store_password)
    pins = load_trust_store(keys.trust_store, keys.trust_store_password)
    return Material(chain_pem, key_pem, pins, keys.expired_pins, keys.key_store, keys.trust_store)


def load_key_store(path: str, password: str) -> tuple[bytes, bytes]:
    """Give the certificate chain, leaf first, and the decrypted private key, both PEM.

    Raises `KeysError` where the store cannot be read or opened, holds no key, several, or one that does not fit.
    """
    contents = read_contents(path, password, "key store")
    if contents.key is None:
        raise KeysError(
            f"the key store {path!r} holds no private key: is it a trust store? (their names end in .public)"
        )
    if contents.key_count > 1:
        raise KeysError(
            f"the key store {path!r} holds several private keys: keep one, and take the others out with: "
            f"keytool -delete -alias ALIAS -keystore {shlex.quote(path)}"
        )
    if contents.leaf is None:
        raise KeysError(f"the key store {path!r} holds no certificate that belongs to its private key: {NEW_KEYS}")
    if spki(contents.leaf.public_key()) != spki(contents.key.public_key()):
        raise KeysError(f"the private key in the key store {path!r} does not match its certificate: {NEW_KEYS}")
    if fault := key_fault(contents.leaf.public_key()):
        raise KeysError(f"the key store {path!r} holds {fault}, which TLS 1.3 cannot use: {NEW_KEYS}")
    leaf_first = chain(contents.leaf, [certificate for certificate, _ in contents.certificates])
    key_pem = contents.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in leaf_first), key_pem


def load_trust_store(path: str, password: str) -> tuple[Pin, ...]:
    """Give the certificates of a trust store, at least one. Raises `KeysError`."""
    contents = read_contents(path, password, "trust store")
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
                "make new keys where it comes from, and copy its new certificate"
            )
        der = certificate.public_bytes(serialization.Encoding.DER)
        found.setdefault(der, Pin(der, alias or f"certificate {number}"))
    if not found:
        raise KeysError(f"the trust store {path!r} holds no certificate: nobody could be trusted")
    return tuple(found.values())


def key_store_bytes(issued: Issued, alias: str, password: str) -> bytes:
    """Write a key store as PKCS#12; keytool takes one password for the store and its key."""
    encryption = _encryption(password)
    return pkcs12.serialize_key_and_certificates(alias.encode(), issued.key, issued.certificate, None, encryption)


def trust_store_bytes(pins: Iterable[tuple[x509.Certificate, str]], password: str) -> bytes:
    """Write a trust store as PKCS#12, marked so that Java takes its entries for trusted certificates."""
    pins = tuple(pins)
    if not pins:
        return EMPTY_STORE
    entries = [pkcs12.PKCS12Certificate(certificate, alias.encode()) for certificate, alias in pins]
    return pkcs12.serialize_java_truststore(entries, _encryption(password))


def _encryption(password: str) -> serialization.KeySerializationEncryption:
    """What `BestAvailableEncryption` is, but for the number of rounds."""
    builder = serialization.PrivateFormat.PKCS12.encryption_builder().kdf_rounds(KDF_ROUNDS)
    builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC).hmac_hash(hashes.SHA256())
    return builder.build(password.encode())


def chain(leaf: x509.Certificate, others: list[x509.Certificate]) -> list[x509.Certificate]:
    """Give a certificate and those of the others that stand above it, by their names, lowest first."""
    found = [leaf]
    while len(found) < MAX_CHAIN_CERTIFICATES and found[-1].issuer != found[-1].subject:
        above = next((other for other in others if other.subject == found[-1].issuer and other not in found), None)
        if above is None:
            break
        found.append(above)
    return found

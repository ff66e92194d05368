"""What a store holds, whatever kind of store it is: PKCS#12, PEM or a bare certificate.

Whether it is the right kind for its place is judged by those who ask: `stores` for the programs, `listing` and
`trusting` for the tool. Whatever cannot be read at all is refused here, with the file and what mends it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from pki import pem
from pki.errors import KeysError, PasswordError
from pki.files import read_store
from pki.pkcs12 import key_count, printable_alias

_OLD_JAVA_STORES = {b"\xfe\xed\xfe\xed": "JKS", b"\xce\xce\xce\xce": "JCEKS"}

NEW_KEYS = "make new keys with cmapppki client on the host, or cmapppki server in the guest"
"""The cure of whatever is wrong with a key itself."""

_SETTINGS = {"key store": "keyStorePassword", "trust store": "trustStorePassword"}
"""Which key of the configuration holds the password of a store in that role; elsewhere it is the tool's option."""


@final
@dataclass(frozen=True, slots=True)
class Contents:
    """What a store of any format holds, before anybody asks whether it is the right kind of store.

    `leaf` is the certificate that stands with `key`, not yet proven to match it. `certificates` are all of them with
    their aliases, the leaf included. `key_count` may exceed one; then `key` is the first.
    """

    form: Literal["PKCS#12", "PEM", "DER"]
    key: PrivateKeyTypes | None = field(repr=False)
    leaf: x509.Certificate | None
    certificates: tuple[tuple[x509.Certificate, str | None], ...]
    key_count: int


def read_contents(path: str, password: str, what: str) -> Contents:
    """Read a store; `what` is its role in the messages, such as `key store`.

    Raises `PasswordError` for a wrong password, and `KeysError` for whatever else keeps it from being read.
    """
    data = read_store(path, what)
    if (kind := _OLD_JAVA_STORES.get(data[:4])) is not None:
        raise KeysError(f"the {what} {path!r} is an old {kind} file: convert it with: {_conversion(path, kind)}")
    if pem.is_pem(data):
        return _load_pem(data, path, password, what)
    if not data.startswith(b"\x30"):
        raise KeysError(f"the {what} {path!r} is neither PKCS#12 nor PEM: copy it again, or make it with cmapppki")
    bare = _bare_certificate(data)
    if bare is not None:
        return Contents("DER", None, None, ((bare, None),), 0)
    return _load_pkcs12(data, path, password, what)


def read_with_any(path: str, passwords: Sequence[str], what: str) -> tuple[Contents, str]:
    """Read a store with the first of several passwords that opens it; give that one too.

    Raises `PasswordError` where none does, and `KeysError`.
    """
    for password in passwords[:-1]:
        try:
            return read_contents(path, password, what), password
        except PasswordError:
            continue
    return read_contents(path, passwords[-1], what), passwords[-1]


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


def _load_pkcs12(data: bytes, path: str, password: str, what: str) -> Contents:
    try:
        store = pkcs12.load_pkcs12(data, password.encode())
    except ValueError as error:
        if str(error).startswith("Invalid password"):
            raise PasswordError(_wrong_password(path, what)) from error
        # The password was right. keytool writes a parameter into DSA certificates that cryptography does not read.
        raise KeysError(
            f"cannot read what is in the {what} {path!r}: a DSA key, as keytool made them by default, which TLS 1.3 "
            f"cannot use, or a damaged file: {NEW_KEYS}"
        ) from error
    except Exception as error:
        # UnsupportedAlgorithm, and whatever a parser of hostile bytes may raise: one line, not a traceback.
        raise KeysError(f"cannot open the {what} {path!r}: {type(error).__name__}: {error}") from error
    bundled = [*([store.cert] if store.cert else []), *store.additional_certs]
    named = tuple((entry.certificate, printable_alias(entry.friendly_name)) for entry in bundled)
    return Contents("PKCS#12", store.key, store.cert.certificate if store.cert else None, named, key_count(data))


def _wrong_password(path: str, what: str) -> str:
    setting = _SETTINGS.get(what, "--storepass")
    return (
        f"cannot open the {what} {path!r}: wrong password ({setting}), or a damaged file: try the password with: "
        f"cmapppki list {shlex.quote(path)} --storepass -"
    )


def _load_pem(data: bytes, path: str, password: str, what: str) -> Contents:
    blocks = pem.private_keys(data)
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in pem.certificates(data, path)]
    except ValueError as error:
        raise KeysError(f"the {what} {path!r} holds a damaged certificate: copy it again") from error
    unnamed = tuple((certificate, None) for certificate in certificates)
    if not blocks:
        return Contents("PEM", None, None, unnamed, 0)
    try:
        key = serialization.load_pem_private_key(blocks[0], password.encode() if pem.is_encrypted(blocks[0]) else None)
    except (ValueError, TypeError) as error:
        raise PasswordError(_wrong_password(path, what)) from error
    except Exception as error:
        raise KeysError(f"cannot open the {what} {path!r}: {type(error).__name__}: {error}") from error
    own = spki(key.public_key())
    # The leaf need not come first in a file put together by hand.
    leaf = next((found for found in certificates if spki(found.public_key()) == own), None)
    leaf = leaf or (certificates[0] if certificates else None)
    return Contents("PEM", key, leaf, unnamed, len(blocks))


def spki(key: object) -> bytes:
    """Give the DER bytes by which public keys of all algorithms are compared."""
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key of cryptography has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded

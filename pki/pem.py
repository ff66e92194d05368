"""PEM without `cryptography`: which blocks a file holds, and what they hold by their labels.

Stores in PEM then need no child process and no import; OpenSSL checks the contents when it loads them.
"""

from __future__ import annotations

import binascii
import re

from pki.errors import KeysError

_BLOCK = rb"(?s)-----BEGIN ([A-Z0-9 ]+)-----\r?\n(.*?)-----END \1-----"
"""Compiled at its first use: PKCS#12 needs none."""

_LINE_CHARACTERS = 64
"""RFC 7468, section 2."""

_BASE64 = rb"[A-Za-z0-9+/]*={0,2}"

KEY_LABELS = (b"PRIVATE KEY", b"EC PRIVATE KEY", b"RSA PRIVATE KEY", b"DSA PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")

_DSA_OID = bytes.fromhex("06072a8648ce380401")


def is_pem(data: bytes) -> bool:
    """Tell whether a file is PEM: text may stand before its blocks, as `openssl x509 -text` writes it."""
    return b"-----BEGIN " in data and not data.startswith((b"\x30", b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce"))


def certificates(data: bytes, path: str) -> tuple[bytes, ...]:
    """Give the DER bytes of all certificates of a PEM file, in its order. Raises `KeysError` for a damaged block."""
    return tuple(_der(match, path) for match in re.finditer(_BLOCK, data) if match[1].endswith(b"CERTIFICATE"))


def private_keys(data: bytes) -> tuple[bytes, ...]:
    """Give the whole blocks of all private keys of a PEM file, in its order."""
    return tuple(match[0] + b"\n" for match in re.finditer(_BLOCK, data) if match[1] in KEY_LABELS)


def is_encrypted(key: bytes) -> bool:
    """Tell whether the block of a private key wants a password."""
    return b"BEGIN ENCRYPTED" in key or b"Proc-Type: 4,ENCRYPTED" in key


def is_dsa(key: bytes, path: str) -> bool:
    """Tell whether the block of a private key that is not encrypted holds a DSA key, which TLS 1.3 cannot use."""
    match = re.search(_BLOCK, key)
    return b"BEGIN DSA" in key or (match is not None and _DSA_OID in _der(match, path))


def encode_certificate(der: bytes) -> bytes:
    """Write one certificate as a PEM block."""
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[start : start + _LINE_CHARACTERS] for start in range(0, len(text), _LINE_CHARACTERS)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----\n"])


def _der(match: re.Match[bytes], path: str) -> bytes:
    text = b"".join(match[2].split())
    try:
        if not re.fullmatch(_BASE64, text):
            raise binascii.Error("not base64")  # noqa: TRY301  (as for what is cut short)
        return binascii.a2b_base64(text)
    except binascii.Error as error:
        raise KeysError(f"{path!r} has a damaged PEM block, {match[1].decode()!r}: copy the file again") from error

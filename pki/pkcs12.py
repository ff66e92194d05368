"""PKCS#12 without `cryptography`: by the libcrypto that Python's `ssl` brings along, called through `ctypes`.

Importing `cryptography` for one store costs more processor time than all the rest of a manager's start but trio: thirty
managers that start at once pay it thirty times. OpenSSL can do the same; Python's `ssl` only does not hand it out.

Only what is usual is opened here: a key store of one key with its certificate, a trust store of certificates that
TLS 1.3 can use. Everything else (a wrong password, several keys, a chain, an odd algorithm, a damaged file, another
OpenSSL than 3, another system than Linux) is `NotUsualError`, and is judged and explained in one place, by the child
of `unlock`. So a doubt here is never a refusal, and costs a tenth of a second.

Ownership is OpenSSL's: what a function named `…0…` gives belongs to its parent, everything else is freed here. The
bytes of the files are the owner's own, of a bounded size; whatever a parser leaves in OpenSSL's queue of errors is
taken out, since `ssl` would find it there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeAlias, final

Certificate: TypeAlias = tuple[bytes, str | None]
"""The DER bytes and the alias of a certificate."""

_KEY_BAG_OIDS = (bytes.fromhex("060b2a864886f70d010c0a0101"), bytes.fromhex("060b2a864886f70d010c0a0102"))
"""keyBag and pkcs8ShroudedKeyBag (RFC 7292, appendix D). The bags' labels stand outside the encryption in what
keytool, OpenSSL and we write."""

_LIBCRYPTO = "libcrypto.so.3"

_RSA, _EC, _ED25519, _ED448 = 6, 408, 1087, 1088
"""Kinds of keys by OpenSSL's numbers (obj_mac.h)."""

MIN_RSA_BITS = 2048
"""OpenSSL refuses smaller keys at the security level that Python sets."""

_CURVES = (b"prime256v1", b"secp384r1", b"secp521r1")
"""OpenSSL's names of `certificates.TLS_CURVES`."""

_CURVE_NAME_BYTES = 80

_BIO_CTRL_INFO = 3

_Pointer = ctypes.c_void_p
_Address: TypeAlias = int | None


@final
class NotUsualError(Exception):
    """Not opened here, for whatever reason: leave it to `cryptography`."""


def key_count(data: bytes) -> int:
    """Count the private keys in the bytes of a PKCS#12 file."""
    return sum(data.count(oid) for oid in _KEY_BAG_OIDS)


def printable_alias(name: bytes | None) -> str | None:
    """Give an alias as it is shown: without control characters, `None` where there is none."""
    text = (name or b"").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text) or None


def open_key_store(data: bytes, password: str) -> tuple[bytes, bytes]:
    """Give the certificate (DER) and the decrypted private key (PEM) that are alone in a store and belong together.

    Blocks for some 10 ms, without the interpreter's lock. Raises `NotUsualError`.
    """
    if key_count(data) != 1:
        raise NotUsualError
    with _parsed(data, password) as (library, key, leaf, others):
        if not key or not leaf or library.OPENSSL_sk_num(others) > 0 or not _is_usable(library, leaf):
            raise NotUsualError
        return _der(library, leaf), _private_key(library, key)


def open_trust_store(data: bytes, password: str) -> list[Certificate]:
    """Give the certificates of a store without keys, at least one; blocks as above. Raises `NotUsualError`."""
    if key_count(data):
        raise NotUsualError
    with _parsed(data, password) as (library, key, leaf, others):
        found = [library.OPENSSL_sk_value(others, number) for number in range(library.OPENSSL_sk_num(others))]
        if key or leaf or not found or not all(_is_usable(library, certificate) for certificate in found):
            raise NotUsualError
        return [(_der(library, certificate), _alias(library, certificate)) for certificate in found]


@contextmanager
def _parsed(data: bytes, password: str) -> Iterator[tuple[ctypes.CDLL, _Address, _Address, _Address]]:
    """Give the library, and of a store its key, the certificate that fits, and the stack of the other ones."""
    if "\0" in password:
        raise NotUsualError
    library = _library()
    key, leaf, others = _Pointer(), _Pointer(), _Pointer()
    store = library.d2i_PKCS12(None, ctypes.byref(ctypes.c_char_p(data)), len(data))
    try:
        if not store or library.PKCS12_parse(store, password.encode(), key, leaf, others) != 1:
            raise NotUsualError
        yield library, key.value, leaf.value, others.value
    finally:
        library.PKCS12_free(store)
        library.EVP_PKEY_free(key)
        library.X509_free(leaf)
        library.OPENSSL_sk_pop_free(others, ctypes.cast(library.X509_free, _Pointer))
        library.ERR_clear_error()


@lru_cache(1)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBCRYPTO)
        for name, result, *arguments in _FUNCTIONS:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotUsualError from error
    return library


_POINTER_TO_POINTER = ctypes.POINTER(_Pointer)
_FUNCTIONS = (
    ("d2i_PKCS12", _Pointer, _Pointer, ctypes.POINTER(ctypes.c_char_p), ctypes.c_long),
    (
        "PKCS12_parse",
        ctypes.c_int,
        _Pointer,
        ctypes.c_char_p,
        _POINTER_TO_POINTER,
        _POINTER_TO_POINTER,
        _POINTER_TO_POINTER,
    ),
    ("PKCS12_free", None, _Pointer),
    ("EVP_PKEY_free", None, _Pointer),
    ("EVP_PKEY_get_base_id", ctypes.c_int, _Pointer),
    ("EVP_PKEY_get_bits", ctypes.c_int, _Pointer),
    (
        "EVP_PKEY_get_group_name",
        ctypes.c_int,
        _Pointer,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_size_t),
    ),
    ("X509_free", None, _Pointer),
    ("X509_get0_pubkey", _Pointer, _Pointer),
    ("X509_alias_get0", _Pointer, _Pointer, ctypes.POINTER(ctypes.c_int)),
    ("i2d_X509", ctypes.c_int, _Pointer, _POINTER_TO_POINTER),
    ("OPENSSL_sk_num", ctypes.c_int, _Pointer),
    ("OPENSSL_sk_value", _Pointer, _Pointer, ctypes.c_int),
    ("OPENSSL_sk_pop_free", None, _Pointer, _Pointer),
    ("BIO_s_mem", _Pointer),
    ("BIO_new", _Pointer, _Pointer),
    ("BIO_free", ctypes.c_int, _Pointer),
    ("BIO_ctrl", ctypes.c_long, _Pointer, ctypes.c_int, ctypes.c_long, _POINTER_TO_POINTER),
    (
        "PEM_write_bio_PKCS8PrivateKey",
        ctypes.c_int,
        _Pointer,
        _Pointer,
        _Pointer,
        ctypes.c_char_p,
        ctypes.c_int,
        _Pointer,
        _Pointer,
    ),
    ("ERR_clear_error", None),
)


def _is_usable(library: ctypes.CDLL, certificate: _Address) -> bool:
    """Tell whether TLS 1.3 can use the key of a certificate, for all that is known here."""
    key = library.X509_get0_pubkey(certificate)
    if not key:
        return False
    kind = library.EVP_PKEY_get_base_id(key)
    if kind == _EC:
        name = ctypes.create_string_buffer(_CURVE_NAME_BYTES)
        return bool(library.EVP_PKEY_get_group_name(key, name, len(name), None) == 1 and name.value in _CURVES)
    return kind in {_ED25519, _ED448} or bool(kind == _RSA and library.EVP_PKEY_get_bits(key) >= MIN_RSA_BITS)


def _der(library: ctypes.CDLL, certificate: _Address) -> bytes:
    size = library.i2d_X509(certificate, None)
    if size <= 0:
        raise NotUsualError
    buffer = ctypes.create_string_buffer(size)
    library.i2d_X509(certificate, ctypes.byref(_Pointer(ctypes.addressof(buffer))))
    return buffer.raw


def _alias(library: ctypes.CDLL, certificate: _Address) -> str | None:
    size = ctypes.c_int()
    name = library.X509_alias_get0(certificate, ctypes.byref(size))
    return printable_alias(ctypes.string_at(name, size.value) if name else None)


def _private_key(library: ctypes.CDLL, key: _Address) -> bytes:
    bio = library.BIO_new(library.BIO_s_mem())
    try:
        if library.PEM_write_bio_PKCS8PrivateKey(bio, key, None, None, 0, None, None) != 1:
            raise NotUsualError
        start = _Pointer()
        size = library.BIO_ctrl(bio, _BIO_CTRL_INFO, 0, ctypes.byref(start))
        return ctypes.string_at(start, size)
    finally:
        library.BIO_free(bio)

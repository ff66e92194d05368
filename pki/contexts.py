"""Opened stores become an `ssl.SSLContext`; the only place that sets TLS policy.

The policy: TLS 1.3, both sides authenticated, nobody trusted but the certificates in the trust store ("pins").
OpenSSL proves that the peer holds the key of a certificate that is a pin or was issued by one. What OpenSSL cannot
judge, `judge_peer` does, after the handshake and before anything is believed:

- **Dates.** An expired pin is accepted with a warning under `expiredPins=accept` (contract, section 4), as Java does
  with a trust anchor; but a certificate that a pinned authority *issued* must be in date. OpenSSL has one switch for
  both. It checks dates, so that a refused peer gets an alert that says why, unless a pin is out of date at this moment
  and the policy accepts it: then we look at the dates of the peer's own certificate. (An intermediate authority that
  the peer sent is then not checked for its dates; the one in the store is a pin.) Pins come out of date while a
  program runs, so `heed_dates` puts the switch right before each handshake.
- **Names.** A pin needs none: it *is* the identity. An issued certificate must carry the node's name as SAN. OpenSSL's
  host name check would demand names of pins as well, which keytool's certificates do not have; it is off.

Two pins with one subject are the normal case in a rotation. OpenSSL picks issuers by subject and refuses one of the
two unless `VERIFY_X509_PARTIAL_CHAIN` makes each certificate in the store an end of the chain by itself. A pinned
leaf does not become an authority by it: OpenSSL still wants a CA's basic constraints or key usage of an issuer.

TLS 1.3 lets a client whose certificate is refused complete its handshake: it learns of the refusal from its first
read. So "connected" means "greeted", which is the programs' business.
"""

from __future__ import annotations

import os
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn, final

from pki.der import describe
from pki.errors import KeysError as KeysError
from pki.errors import PeerRefused as PeerRefused
from pki.expiry import fault, out_of_date
from pki.frozen import dataclass
from pki.material import ExpiredPins as ExpiredPins
from pki.material import Keys as Keys
from pki.material import Material as Material
from pki.material import Pin as Pin
from pki.names import short_address
from pki.refusals import remember_certificates
from pki.unlock import load_material as load_material

X509_V_FLAG_NO_CHECK_TIME = 0x200000
"""OpenSSL's x509_vfy.h; the `ssl` module has no name for it."""

DATE_MARGIN_SECONDS = 60.0
"""A pin this near to one of its dates counts as out of date for `heed_dates`: the handshake takes its time."""

KEY_EXCHANGE_CURVE = "prime256v1"
"""All that Mozilla's *modern* profile allows is X25519, P-256 and P-384. OpenSSL's defaults have more, and `ssl` can
set a single one before Python 3.15; P-256 is the one that every peer has, Java's included."""

_REASONS = {
    "KEY_VALUES_MISMATCH": "its private key does not match its certificate: make new keys",
    "EE_KEY_TOO_SMALL": "its key is too small: make new keys with cmapppki",
    "CA_KEY_TOO_SMALL": "the key of an authority in its chain is too small",
    "CA_MD_TOO_WEAK": "a signature in its chain is too weak",
}


@final
@dataclass(frozen=True, slots=True)
class Peer:
    """An accepted peer.

    `subject` has no control characters; `alias` is the pin's name in the trust store, `None` for a certificate issued
    by an authority there; `warning` says that it is accepted though it is out of date.
    """

    subject: str
    alias: str | None
    warning: str | None


def server_context(material: Material) -> ssl.SSLContext:
    """Make the context of the listening side: demands a certificate of every client, gives no session tickets.

    Raises `KeysError` where OpenSSL does not take the material.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, material)
    # A resumed session would skip the certificate, and with it what a reload of the trust store has taken away.
    context.num_tickets = 0
    return context


def client_context(material: Material) -> ssl.SSLContext:
    """Make the context of the connecting side; wrap with `server_hostname=None`, names are judged by `judge_peer`.

    Raises `KeysError` where OpenSSL does not take the material.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, material)


def judge_peer(
    material: Material, der: bytes, certificate: Mapping[str, object], *, name: str | None, now_unix: float
) -> Peer:
    """Judge the peer of a completed handshake over one of our contexts; `material.expired_pins` is the policy for
    pins.

    `der` and `certificate` are `getpeercert(True)` and `getpeercert()`; `name` is the node that was meant, `None`
    where a manager is judged (any name will do); `now_unix` is wall time. Raises `PeerRefused` with the reason in
    words for the log.
    """
    try:
        described = describe(der)
    except ValueError as error:
        raise PeerRefused(f"the certificate of the peer cannot be read: {error}") from error
    wrong = fault(described, now_unix)
    for pin in material.pins:
        if pin.der == der:
            if wrong is None:
                return Peer(described.subject, pin.alias, None)
            if material.expired_pins == "refuse":
                raise PeerRefused(f"the certificate of {described} {wrong}, and expiredPins=refuse is set")
            warning = f"the certificate of {described} {wrong}: make new keys soon"
            return Peer(described.subject, pin.alias, warning)
    if wrong is not None:
        raise PeerRefused(
            f"the certificate of {described} {wrong}; an authority issued it, so it must be in date: have it renewed"
        )
    names = _alternative_names(certificate)
    if name is None and not names:
        raise PeerRefused(
            f"the certificate of {described} was issued by a trusted authority but carries no name as SAN"
        )
    if name is not None and _normal(name) not in names:
        raise PeerRefused(
            f"the certificate of {described} was issued by a trusted authority but not for {name!r}: "
            f"it carries {', '.join(sorted(names)) or 'no name'} as SAN"
        )
    return Peer(described.subject, None, None)


def heed_dates(context: ssl.SSLContext, material: Material, now_unix: float) -> None:
    """Have OpenSSL check dates in the handshakes that begin now, or leave them to `judge_peer` where a pin that is to
    be accepted is out of date. Call it before each handshake.
    """
    flags = context.verify_flags & ~X509_V_FLAG_NO_CHECK_TIME
    if material.expired_pins == "accept" and out_of_date(material, now_unix, DATE_MARGIN_SECONDS):
        flags |= X509_V_FLAG_NO_CHECK_TIME
    if flags != context.verify_flags:
        context.verify_flags = flags


def _context(protocol: int, material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_ecdh_curve(KEY_EXCHANGE_CURVE)
    remember_certificates(context)
    # A cut connection must not look like a proper close: an outcome hangs on the difference.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    heed_dates(context, material, time.time())
    _load_own(context, material)
    try:
        context.load_verify_locations(cadata=b"".join(dict.fromkeys(pin.der for pin in material.pins)))
    except (ssl.SSLError, ValueError) as error:
        raise KeysError(f"the trust store {material.trust_store!r} cannot be used: {_reason(error)}") from error
    return context


def _load_own(context: ssl.SSLContext, material: Material) -> None:
    # The module loads keys from paths only.
    try:
        with _path_of(material.key_pem + material.chain_pem) as path:
            context.load_cert_chain(path, password=_refuse_password)
    except ssl.SSLError as error:
        raise KeysError(f"the key store {material.key_store!r} cannot be used: {_reason(error)}") from error
    except OSError as error:
        raise KeysError(f"the key of {material.key_store!r} cannot be handed to OpenSSL: {error}") from error


@contextmanager
def _path_of(secret: bytes) -> Iterator[str]:
    """Give a path under which OpenSSL finds `secret`: on Linux that of a nameless file in memory."""
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("key")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(secret)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    import tempfile

    # Elsewhere there is no way without a name; it is private from the first byte and gone before the context is used.
    descriptor, path = tempfile.mkstemp(prefix="cmapp")
    try:
        with open(descriptor, "wb") as file:
            file.write(secret)
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _refuse_password() -> NoReturn:
    # Without this OpenSSL would ask on the terminal and freeze a daemon.
    raise KeysError("the private key is still encrypted where it must not be: make new keys with cmapppki")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return _REASONS.get(reason or "", str(error))


def _alternative_names(certificate: Mapping[str, object]) -> set[str]:
    entries = certificate.get("subjectAltName")
    found = entries if isinstance(entries, tuple) else ()
    return {_normal(str(value)) for kind, value in found if kind in {"DNS", "IP Address"}}


def _normal(name: str) -> str:
    bare = name.strip().strip("[]")
    return short_address(bare) or bare.rstrip(".").casefold()

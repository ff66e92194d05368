"""Why a TLS handshake failed, in words that say what to do: the one place where OpenSSL's reasons are translated.

Either we refused the peer (its certificate was judged, or it spoke something else), or the peer refused us (an alert).
Both programs say the same things about each other, so the words are made here, for either side.

Who was refused matters as much as why. OpenSSL forgets a client's certificate when it refuses it, and `ssl` has no way
to ask. So the handshake messages are looked at as they arrive, through the hook that `ssl` has for debugging
(`_msg_callback`; where an interpreter should lack it, the log names the address only).
"""

from __future__ import annotations

import functools
import ssl
from typing import Literal, TypeAlias
from weakref import WeakKeyDictionary

from pki.der import Description, describe
from pki.expiry import fault
from pki.material import Material

PeerKind: TypeAlias = Literal["manager", "server"]
"""What the peer is to us."""

CERTIFICATE_MESSAGE = 11
"""`certificate` in RFC 8446, section 4."""

MAX_CERTIFICATE_BYTES = 16384
"""Of a certificate that is kept until its handshake is over; ours have 500 bytes, real chains some 2000 each."""

EXPIRED, NOT_YET_VALID, INVALID_PURPOSE = 10, 9, 26
UNTRUSTED = frozenset({2, 7, 18, 19, 20, 21, 24, 27})
"""Codes of x509_vfy.h that come down to this: no pin, and not issued by one. (7, a wrong signature, comes where a
foreign certificate has the subject of a pin.)"""

_shown: WeakKeyDictionary[object, bytes] = WeakKeyDictionary()
"""What the peer of each handshake has shown; gone with the connection."""

NO_TLS_REASONS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "WRONG_SSL_VERSION"})
"""What OpenSSL calls a peer whose first bytes were no TLS."""

_PROTOCOL = "it does not speak TLS 1.3: this port takes nothing older and nothing in the clear"

_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate, and without one nobody is let in",
    "BAD_SIGNATURE": "it does not hold the private key of the certificate that it showed",
    "UNSUPPORTED_PROTOCOL": _PROTOCOL,
    "VERSION_TOO_LOW": _PROTOCOL,
    "WRONG_VERSION_NUMBER": _PROTOCOL,
    "WRONG_SSL_VERSION": _PROTOCOL,
    "HTTP_REQUEST": "it speaks HTTP in the clear, and this port takes TLS 1.3 only",
    "HTTPS_PROXY_REQUEST": "it speaks to a proxy, and this port takes TLS 1.3 only",
    "UNEXPECTED_EOF_WHILE_READING": "it hung up during the handshake",
    "NO_SHARED_CIPHER": "it knows no cipher suite of ours",
    "NO_SUITABLE_KEY_SHARE": "it knows no key exchange of ours (P-256)",
    "NO_SHARED_GROUPS": "it knows no key exchange of ours (P-256)",
}

_ALERTS = {
    "unknown ca": "our certificate is not in its trust store",
    "certificate unknown": "our certificate is not in its trust store",
    "certificate expired": "our certificate has expired, or its clock is wrong",
    "bad certificate": "our certificate is not valid yet by its clock, or damaged",
    "unsupported certificate": "our certificate is not meant for this use",
    "certificate revoked": "our certificate is revoked",
    "certificate required": "it wants a certificate, and we showed none",
    "decrypt error": "our key does not belong to our certificate",
}


def remember_certificates(context: ssl.SSLContext) -> None:
    """Look at the handshakes over `context` from now on, so that `presented` can tell what its peers showed."""
    if hasattr(context, "_msg_callback"):
        context._msg_callback = _on_message  # noqa: SLF001  (see the top of this module)


def stop_remembering(context: ssl.SSLContext) -> None:
    """Look at nothing over `context` until `remember_certificates` again: the peer is judged, and each record would
    cost a call. All connections of the context are looked at no more: for who wants one of them, and has it now.
    """
    if hasattr(context, "_msg_callback"):
        context._msg_callback = None  # noqa: SLF001  (see the top of this module)


def look_away(connection: ssl.SSLObject) -> None:
    """Look at the records of this connection no more, and go on with the others of its context.

    Nothing may be asked of the connection's context after that, but all of the connection itself.
    """
    _shown.pop(connection, None)
    if hasattr(ssl.SSLContext, "_msg_callback"):
        # A connection looks if its context does; there is no other way to have it stop.
        connection.context = _blind_context()


@functools.cache
def _blind_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED  # or `getpeercert` would say that there is none
    return context


def presented(connection: object) -> bytes | None:
    """Give the DER bytes of the certificate that the peer of this `SSLObject` showed, once; None where it showed
    none.
    """
    return _shown.pop(connection, None)


def first_certificate(message: bytes) -> bytes | None:
    """Give the first certificate of a TLS 1.3 `Certificate` message (RFC 8446, section 4.4.2); None without one."""
    at = 5 + message[4] if len(message) > 4 else len(message)
    at += 3  # the length of the list
    size = int.from_bytes(message[at : at + 3], "big")
    found = message[at + 3 : at + 3 + size]
    return found if len(found) == size and 0 < size <= MAX_CERTIFICATE_BYTES else None


def _on_message(
    connection: object, direction: str, _version: object, _content: object, message: object, data: bytes
) -> None:
    if message == CERTIFICATE_MESSAGE and direction == "read":
        shown = first_certificate(data)
        if shown is not None:
            _shown[connection] = shown


def kind_of_failure(error: ssl.SSLError) -> str:
    """Name the kind of a failure, one of a few dozen: what a limit on log lines may tell apart."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"verify {error.verify_code}"
    return error.reason or "unknown"


def is_alert(error: ssl.SSLError) -> bool:
    """Tell whether it was the peer that broke the handshake off."""
    return "_ALERT_" in (error.reason or "")


def explain_failure(
    error: ssl.SSLError, shown: bytes | None, material: Material, peer: PeerKind, now_unix: float
) -> str:
    """Say why a handshake with `peer` failed, and what to do.

    Args:
        error: what OpenSSL raised.
        shown: the DER bytes of the certificate that the peer showed, where known.
        material: our stores.
        peer: what the other side is to us.
        now_unix: wall time.
    """
    certificate = _describe(shown)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error, certificate, material, peer, now_unix)
    words = explain_tls(error, peer)
    return f"{words}: {certificate}" if certificate is not None and error.reason == "BAD_SIGNATURE" else words


def explain_tls(error: ssl.SSLError, peer: PeerKind) -> str:
    """Say what went wrong where it is not about the peer's certificate: its alert, or what else it said."""
    reason = error.reason or ""
    words = reason.lower().replace("_", " ")
    _, alert, name = words.partition(" alert ")
    if alert:
        return _explain_alert(name, peer)
    return _REASONS.get(reason) or f"the TLS handshake failed: {words or error}"


def _explain_verification(
    error: ssl.SSLCertVerificationError,
    certificate: Description | None,
    material: Material,
    peer: PeerKind,
    now_unix: float,
) -> str:
    who = f"the {peer}'s certificate {certificate or ''}".rstrip()
    if error.verify_code in {EXPIRED, NOT_YET_VALID}:
        return f"{who} {_explain_dates(error, certificate, material, peer, now_unix)}"
    if error.verify_code in UNTRUSTED:
        cure = f"if it is the right one, add it there (cmapppki trust) on this {_here(peer)}"
        return f"{who} is not in the trust store {material.trust_store!r}: {cure}"
    if error.verify_code == INVALID_PURPOSE:
        cure = f"make keys with cmapppki {'client' if peer == 'manager' else 'server'}"
        return f"{who} is not meant for a {peer} (key usage or extended key usage): {cure}"
    return f"{who} cannot be trusted: {error.verify_message}"


def _explain_dates(
    error: ssl.SSLCertVerificationError,
    certificate: Description | None,
    material: Material,
    peer: PeerKind,
    now_unix: float,
) -> str:
    when = fault(certificate, now_unix) if certificate is not None else None
    if certificate is None or when is None:
        what = "expired" if error.verify_code == EXPIRED else "is not valid yet"
        return f"or one in its chain {what}: look at both with cmapppki list"
    if any(_describe(pin.der) == certificate for pin in material.pins):
        return f"{when}, and expiredPins=refuse is set: it needs new keys (cmapppki renew on the {_there(peer)})"
    return f"{when}, and it is not in the trust store {material.trust_store!r} itself: have it renewed"


def _explain_alert(name: str, peer: PeerKind) -> str:
    if name == "internal error" and peer == "server":
        return (
            f"the guest let this connection go: too many are half open there, or it is in trouble (TLS alert: {name})"
        )
    words = _ALERTS.get(name)
    if words is None:
        return f"the {peer} broke the handshake off (TLS alert: {name})"
    where, ours = ("the guest", "host") if peer == "server" else ("the manager", "guest")
    words = words.replace("our certificate", f"this {ours}'s certificate", 1)
    return f"{where} does not accept our key: {words} (TLS alert: {name})"


def _describe(der: bytes | None) -> Description | None:
    try:
        return describe(der) if der else None
    except ValueError:
        return None


def _here(peer: PeerKind) -> str:
    return "guest" if peer == "manager" else "host"


def _there(peer: PeerKind) -> str:
    return "host" if peer == "manager" else "guest"

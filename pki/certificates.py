"""Issue and describe a self-signed certificate. Knows no files.

What is issued is a leaf that its peers pin, not an authority: one purpose each, finite life, no power to issue. Every
extension has its reason beside it in `issue`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.errors import DnameError
from pki.pkcs12 import MIN_RSA_BITS

DEFAULT_VALIDITY_DAYS = 400
"""The old guide's choice (contract, section 4)."""

MAX_VALIDITY_DAYS = 36500
"""A hundred years: beyond it, dates near the end of what X.509 can write come into reach."""

BACKDATING = timedelta(hours=1)
"""The peer's clock may be behind: guests boot with wild clocks, and the keys are often used minutes after they were
made."""

MAX_COMMON_NAME_CHARACTERS = 64
"""The upper bound of X.520; a longer host name is cut in the subject and whole in the SAN."""

TLS_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""TLS 1.3 has signature schemes for these and no other NIST or Koblitz curves (RFC 8446, section 4.2.3)."""

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
_ATTRIBUTES = {"S": NameOID.STATE_OR_PROVINCE_NAME, "E": NameOID.EMAIL_ADDRESS, "EMAILADDRESS": NameOID.EMAIL_ADDRESS}


@final
class Purpose(Enum):
    """What a certificate may be used for: one of the two ends, never both."""

    CLIENT = "client"
    SERVER = "server"


@final
@dataclass(frozen=True, slots=True)
class Issued:
    """A new key pair and its certificate."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate


def issue(
    purpose: Purpose,
    name: str,
    *,
    dname: str | None = None,
    validity_days: int = DEFAULT_VALIDITY_DAYS,
    now: datetime,
    like: x509.Certificate | None = None,
) -> Issued:
    """Make a P-256 key and a certificate for the host or guest `name`, valid `validity_days` from `now` (aware).

    `dname` is the subject, in keytool's order; without it, that of the certificate `like`, or else `CN=` the name. The
    names in the SAN are those of `like` where it has any, or else the name. Raises `DnameError` for a name, a subject
    or a validity that no certificate can have.
    """
    if not 1 <= validity_days <= MAX_VALIDITY_DAYS:
        raise DnameError(f"a validity of {validity_days!r} days is not between 1 and {MAX_VALIDITY_DAYS}")
    names = (like and alternative_names(like)) or x509.SubjectAlternativeName([_general_name(name)])
    subject = parse_dname(dname) if dname is not None else like.subject if like else _common_name(name)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if purpose is Purpose.CLIENT else ExtendedKeyUsageOID.SERVER_AUTH
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    now = now.replace(microsecond=0)
    builder = (
        x509
        .CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + timedelta(days=validity_days))
        # A pin that somebody takes for an authority must not be one.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # TLS 1.3 only ever signs with it.
        .add_extension(_signing_only(), critical=True)
        # A stolen client key must not serve as a guest.
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        # Beside a subject a SAN must not be critical: verifiers refuse that (RFC 5280, section 4.2.1.6).
        .add_extension(names, critical=False)
        # Tells old and new certificates of one subject apart during a rotation.
        .add_extension(identifier, critical=False)
        # Ties the pin to its own key, not to another one of the same subject.
        .add_extension(x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False)
    )
    return Issued(key, builder.sign(key, hashes.SHA256()))


def parse_dname(text: str) -> x509.Name:
    """Read a subject as keytool takes it: `CN=host, O=Example, C=JP`, most specific first, commas escaped by a
    backslash.

    Raises `DnameError`.
    """
    parts = [part.partition("=") for part in re.split(r"(?<!\\),", text)]
    tidy = ",".join(f"{key.strip().upper()}={value.strip()}" for key, _, value in parts)
    try:
        name = x509.Name.from_rfc4514_string(tidy, _ATTRIBUTES)
    except ValueError as error:
        reason = f": {error}" if str(error) else ""
        raise DnameError(f"{text!r:.200} is not a subject such as 'CN=host, O=Example'{reason.lower():.200}") from error
    if not list(name):
        raise DnameError("the subject is empty: expected one such as 'CN=host, O=Example'")
    return name


def fingerprint(certificate: x509.Certificate) -> str:
    """Give the SHA-256 fingerprint as keytool prints it: `AB:CD:…`."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def describe_subject(certificate: x509.Certificate) -> str:
    """Give the subject as keytool prints it, `CN=host, O=Example`, fit for a terminal."""
    text = re.sub(r"(?<!\\),", ", ", certificate.subject.rfc4514_string()) or "no subject"
    return "".join(character if character.isprintable() else "?" for character in text)


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    """Give the names in the SAN; `None` where there is none, or one that cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return names if list(names) else None


def describe_key(key: PublicKeyTypes) -> str:
    """Give algorithm and size: `EC secp256r1, 256 bits`."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}, {key.curve.key_size} bits"
    size = getattr(key, "key_size", None)
    name = type(key).__name__.removesuffix("PublicKey").lstrip("_")
    return f"{name}, {size} bits" if isinstance(size, int) else name


def purpose_fault(certificate: x509.Certificate, purpose: Purpose) -> str | None:
    """Say what in a certificate from elsewhere forbids this use of it; `None` where nothing does.

    OpenSSL judges the peer's certificate the same way (RFC 5280, sections 4.2.1.3 and 4.2.1.12).
    """
    wanted = ExtendedKeyUsageOID.CLIENT_AUTH if purpose is Purpose.CLIENT else ExtendedKeyUsageOID.SERVER_AUTH
    try:
        extensions = certificate.extensions
    except ValueError:
        return "its extensions cannot be read"
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            return "its key usage does not allow signatures, which TLS 1.3 needs"
        # OpenSSL does not take anyExtendedKeyUsage for either.
        if isinstance(value, x509.ExtendedKeyUsage) and wanted not in value:
            return f"its extended key usage does not allow it to be a {purpose.value}"
    return None


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may issue others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def key_fault(key: PublicKeyTypes) -> str | None:
    """Say why TLS 1.3 as we speak it cannot use a key, such as `a DSA key`; `None` where it can."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"an RSA key of {key.key_size} bits, fewer than {MIN_RSA_BITS}" if key.key_size < MIN_RSA_BITS else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.curve.name in TLS_CURVES else f"a key on the curve {key.curve.name}"
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return None
    return f"a {type(key).__name__.removesuffix('PublicKey').lstrip('_')} key"


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:MAX_COMMON_NAME_CHARACTERS])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise DnameError(f"{name!r:.100} is neither a host name nor an address") from None
        return x509.DNSName(name)


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )

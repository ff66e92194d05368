"""Stores of every kind for the tests of the key tool, made in memory and written where the test says."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki import stores
from pki.certificates import Issued, Purpose, fingerprint, issue

NOW = datetime.now(timezone.utc)
HOST = issue(Purpose.CLIENT, "host1", now=NOW)
OTHER_HOST = issue(Purpose.CLIENT, "host2", now=NOW)
GUEST = issue(Purpose.SERVER, "g1", now=NOW)
OTHER_GUEST = issue(Purpose.SERVER, "g2", now=NOW)


def expiring(purpose: Purpose, days_left: int, name: str = "old") -> Issued:
    """A certificate with so many days left, a few hours over; negative for one that has expired."""
    made = NOW + timedelta(days=days_left - 400, hours=6)
    return issue(purpose, name, now=made, validity_days=400)


def put(path: Path, data: bytes, mode: int = 0o644) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def pem(made: Issued) -> bytes:
    return made.certificate.public_bytes(Encoding.PEM)


def key_pem(made: Issued) -> bytes:
    return made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_store(path: Path, made: Issued, password: str = "clientpw", alias: str = "clientprivate") -> str:
    return put(path, stores.key_store_bytes(made, alias, password), 0o600)


def trust_store(path: Path, *trusted: Issued, password: str = "public", alias: str = "clientpublic") -> str:
    entries = [
        (made.certificate, f"{alias}{f'-{number}' if number > 1 else ''}") for number, made in enumerate(trusted, 1)
    ]
    return put(path, stores.trust_store_bytes(entries, password))


def print_of(made: Issued) -> str:
    return fingerprint(made.certificate)


def held(path: str | Path, password: str = "public") -> list[tuple[str, bytes]]:
    return [(pin.alias, pin.der) for pin in stores.load_trust_store(str(path), password)]


def der(made: Issued) -> bytes:
    return made.certificate.public_bytes(Encoding.DER)


def authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _sign(_builder("authority", "authority", key, NOW + timedelta(days=4000)), key, ca=True)


def issued_by(
    key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    san: str | None,
    *,
    purpose: Purpose,
    days: int = 300,
    own: ec.EllipticCurvePrivateKey | None = None,
) -> x509.Certificate:
    """A leaf that an authority issued; without `own` its key is thrown away."""
    own = own or ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if purpose is Purpose.CLIENT else ExtendedKeyUsageOID.SERVER_AUTH
    builder = _builder("leaf", "authority", own, NOW + timedelta(days=days))
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(san)]), critical=False)
    assert root.subject == _name("authority")
    return _sign(builder, key, ca=False)


def rsa_pair(bits: int) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(65537, bits)
    builder = _builder("rsa", "rsa", key, NOW + timedelta(days=300))
    return key, builder.sign(key, hashes.SHA256())


def rsa_key_store(bits: int) -> bytes:
    key, certificate = rsa_pair(bits)
    encryption = serialization.BestAvailableEncryption(b"clientpw")
    return pkcs12.serialize_key_and_certificates(b"clientprivate", key, certificate, None, encryption)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509
        .CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=800))
        .not_valid_after(end)
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
    return builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True).sign(
        key, hashes.SHA256()
    )

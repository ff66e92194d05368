"""What is issued: read back extension by extension, and through cryptography's own verifier."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from pki.certificates import (
    Issued,
    Purpose,
    alternative_names,
    describe_key,
    describe_subject,
    fingerprint,
    is_authority,
    issue,
    key_fault,
    parse_dname,
    purpose_fault,
)
from pki.errors import DnameError

NOW = datetime(2026, 7, 28, 17, 26, 6, 123456, tzinfo=timezone.utc)


def issued(purpose: Purpose = Purpose.SERVER, name: str = "g1", *, dname: str | None = None, days: int = 400) -> Issued:
    return issue(purpose, name, dname=dname, validity_days=days, now=NOW)


def test_a_certificate_is_a_p256_leaf_of_version_3_that_only_signs() -> None:
    made = issued()
    extensions = made.certificate.extensions
    assert made.certificate.version is x509.Version.v3
    assert isinstance(made.key.curve, ec.SECP256R1)
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier == x509.SubjectKeyIdentifier.from_public_key(made.key.public_key())
    assert 0 < made.certificate.serial_number.bit_length() <= 159


def test_it_is_valid_from_an_hour_ago_for_so_many_days() -> None:
    certificate = issued(days=10).certificate
    whole = NOW.replace(microsecond=0)
    assert certificate.not_valid_before_utc == whole - timedelta(hours=1)
    assert certificate.not_valid_after_utc == whole + timedelta(days=10)


@pytest.mark.parametrize(
    ("purpose", "oid"),
    [(Purpose.CLIENT, ExtendedKeyUsageOID.CLIENT_AUTH), (Purpose.SERVER, ExtendedKeyUsageOID.SERVER_AUTH)],
)
def test_it_has_exactly_one_purpose(purpose: Purpose, oid: x509.ObjectIdentifier) -> None:
    extension = issued(purpose).certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(extension.value) == [oid]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("g1.example.org", x509.DNSName("g1.example.org")),
        ("vm_1", x509.DNSName("vm_1")),
        ("10.0.0.1", x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
        ("fe80::1", x509.IPAddress(ipaddress.ip_address("fe80::1"))),
    ],
)
def test_the_name_is_the_subject_and_a_san_that_is_not_critical(name: str, expected: x509.GeneralName) -> None:
    certificate = issued(name=name).certificate
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not extension.critical
    assert list(extension.value) == [expected]
    assert describe_subject(certificate) == f"CN={name}"
    assert certificate.issuer == certificate.subject


def test_a_name_longer_than_a_common_name_is_cut_there_and_whole_in_the_san() -> None:
    name = "a" * 63 + ".example.org"
    certificate = issued(name=name).certificate
    assert describe_subject(certificate) == f"CN={name[:64]}"
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == [name]


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "-a", "a\n", "é", "a" * 300, "*.example.org"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(DnameError, match="is neither a host name nor an address"):
        issued(name=name)


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_a_validity_that_no_certificate_can_have_is_refused(days: int) -> None:
    with pytest.raises(DnameError, match="days is not between 1 and 36500"):
        issued(days=days)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CN=g1", "CN=g1"),
        ("cn = g1 , ou=Ops,  O=Example Org, C=JP", "CN=g1, OU=Ops, O=Example Org, C=JP"),
        (r"CN=g1, O=Example\, Inc", r"CN=g1, O=Example\, Inc"),
        ("CN=g1, S=Tokyo", "CN=g1, ST=Tokyo"),
        ("CN=é", "CN=é"),
    ],
)
def test_a_subject_is_read_in_keytools_order(text: str, expected: str) -> None:
    assert describe_subject(issued(dname=text).certificate) == expected


def test_the_most_general_part_of_a_subject_is_encoded_first() -> None:
    first = next(iter(parse_dname("CN=g1, C=JP")))
    assert first.value == "JP"


@pytest.mark.parametrize(
    "text", ["", " ", "g1", "CN", "CN=g1, X", "=g1", "CN=g1,", "NOSUCH=1", "C=Japan", "CN=" + "a" * 65]
)
def test_what_is_no_subject_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(DnameError) as caught:
        parse_dname(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_a_subject_or_refused(text: str) -> None:
    try:
        name = parse_dname(text)
    except DnameError:
        return
    assert list(name)


def test_the_fingerprint_is_written_as_keytool_writes_it() -> None:
    text = fingerprint(issued().certificate)
    assert len(text.split(":")) == 32
    assert text == text.upper()


def test_cryptographys_verifier_takes_it_for_its_purpose_and_no_other() -> None:
    # A CA:FALSE root is no anchor for that verifier: an authority signs the same extensions.
    leaf, authority = _under_authority(issued(Purpose.SERVER, "g1.example.org"))
    policy = PolicyBuilder().store(Store([authority])).time(NOW.replace(tzinfo=None))
    chain = policy.build_server_verifier(x509.DNSName("g1.example.org")).verify(leaf, [])
    assert chain[0] == leaf
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("g2.example.org")).verify(leaf, [])
    with pytest.raises(VerificationError):
        policy.build_client_verifier().verify(leaf, [])


def _under_authority(made: Issued) -> tuple[x509.Certificate, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = parse_dname("CN=authority")
    signing = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    start = x509.CertificateBuilder().issuer_name(name)
    root = (
        start
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(made.certificate.not_valid_before_utc)
        .not_valid_after(made.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    leaf = (
        start
        .subject_name(made.certificate.subject)
        .public_key(made.key.public_key())
        .serial_number(made.certificate.serial_number)
        .not_valid_before(made.certificate.not_valid_before_utc)
        .not_valid_after(made.certificate.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    for extension in made.certificate.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            leaf = leaf.add_extension(extension.value, extension.critical)
    return leaf.sign(key, hashes.SHA256()), root


def elsewhere(*extensions: x509.ExtensionType) -> x509.Certificate:
    """A certificate that another tool made, with just these extensions."""
    made = issued()
    builder = (
        x509
        .CertificateBuilder()
        .subject_name(made.certificate.subject)
        .issuer_name(made.certificate.subject)
        .public_key(made.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(made.key, hashes.SHA256())


def usage(*, signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signature, False, not signature, False, False, False, False, False, False)


ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


@pytest.mark.parametrize(
    ("extensions", "purpose", "fault"),
    [
        ((), Purpose.CLIENT, None),
        ((BOTH, usage(signature=True)), Purpose.CLIENT, None),
        ((BOTH,), Purpose.SERVER, None),
        ((ANY,), Purpose.SERVER, "its extended key usage does not allow it to be a server"),
        ((BOTH, usage(signature=False)), Purpose.SERVER, "its key usage does not allow signatures"),
    ],
)
def test_the_usage_that_a_certificate_from_elsewhere_names_is_honoured(
    extensions: tuple[x509.ExtensionType, ...], purpose: Purpose, fault: str | None
) -> None:
    found = purpose_fault(elsewhere(*extensions), purpose)
    assert found == fault or (found and fault and found.startswith(fault))


def test_ours_have_one_purpose_and_are_no_authorities() -> None:
    certificate = issued(Purpose.CLIENT).certificate
    assert purpose_fault(certificate, Purpose.CLIENT) is None
    assert purpose_fault(certificate, Purpose.SERVER) == "its extended key usage does not allow it to be a server"
    assert not is_authority(certificate)
    assert not is_authority(elsewhere())
    assert is_authority(elsewhere(x509.BasicConstraints(ca=True, path_length=None)))


def test_a_certificate_names_its_own_key_as_that_of_its_issuer() -> None:
    extensions = issued().certificate.extensions
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own.digest


def test_a_successor_has_subject_and_names_of_the_old_certificate_and_another_key() -> None:
    old = issued(name="10.0.0.1", dname="CN=x, O=y").certificate
    new = issue(Purpose.SERVER, "other", now=NOW, like=old).certificate
    assert (new.subject, alternative_names(new)) == (old.subject, alternative_names(old))
    assert new.public_key() != old.public_key()
    named = issue(Purpose.SERVER, "other", dname="CN=z", now=NOW, like=elsewhere()).certificate
    assert describe_subject(named) == "CN=z"
    assert alternative_names(named) == x509.SubjectAlternativeName([x509.DNSName("other")])


def test_keys_are_described_by_algorithm_and_size() -> None:
    assert describe_key(issued().key.public_key()) == "EC secp256r1, 256 bits"
    assert describe_key(rsa.generate_private_key(65537, 2048).public_key()) == "RSA, 2048 bits"
    assert describe_key(ed25519.Ed25519PrivateKey.generate().public_key()) == "Ed25519"


def test_a_subject_cannot_play_with_the_terminal() -> None:
    assert describe_subject(issued(dname="CN=a\x1b[2Jb").certificate) == "CN=a?[2Jb"


def test_keys_that_tls_13_cannot_use_are_told_from_those_it_can() -> None:
    assert key_fault(ec.generate_private_key(ec.SECP384R1()).public_key()) is None
    assert key_fault(ed25519.Ed25519PrivateKey.generate().public_key()) is None
    assert key_fault(rsa.generate_private_key(65537, 2048).public_key()) is None
    assert key_fault(rsa.generate_private_key(65537, 1024).public_key()) == "an RSA key of 1024 bits, fewer than 2048"
    assert key_fault(ec.generate_private_key(ec.SECP256K1()).public_key()) == "a key on the curve secp256k1"
    assert key_fault(x25519.X25519PrivateKey.generate().public_key()) == "a X25519 key"
    public_key = serialization.load_pem_public_key(_DSA_PUBLIC_KEY)
    assert isinstance(public_key, dsa.DSAPublicKey)
    assert key_fault(public_key) == "a DSA key"


# Made once: new DSA parameters take seconds.
_DSA_PUBLIC_KEY = b"""-----BEGIN PUBLIC KEY-----
MIIBtjCCASsGByqGSM44BAEwggEeAoGBAIX/Uft4RVzlPpyGR+Rh18Qwzn2xfk4R
mDPkfzTKw57vGBcgro7ARS7lWmPN9W1s9E1TrWJDHjwre7ywjHb+zGYhw5snt6WS
LPQAEw/1CWap6UOtMfg6IOHLxoS0A99kk6yMfyitDWOOhka1gLswk+kSLON8NIyK
JlWVnvWRifrtAhUAmY/FkLLtjbA6FsRIQP1gf6bJwXkCgYAZS/TyrdSvFJWb8aO9
VKvkskXsmTXaIKEr9usTWHtZ4TJk78mDY+8gEmFMIr2iWOVqtVGU4Mn5xHtQfB4s
jngs10L4bMX4u2IEvyE+XpyJuEhJpVaY6tGEM0bacw2PJhV+Uy7Rhp+ULDkW4S3O
8h8QVgC//p2odBmLPEbUmTCmZQOBhAACgYBdrhpol/L+2V/o1KFGdCwfFuW1gEXj
o4nrvJs+yKLSOee9UMnD90QhupqVYqmGocHO/npRPs/zzuKPn5rCIGAa5JKK3vEU
yl6EWHU7zMlemhP9bEUIgAJh30NfmuQlFpw0wWM5TdAhyqI1VdNC55jYqPIFf0YF
eXZgkb8pblc41w==
-----END PUBLIC KEY-----
"""

"""`cmapppki list`: what is in a store of any kind, for people and for programs."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from pki.certificates import describe_key, describe_subject, fingerprint, key_fault
from pki.dates import Level, count, days_left, expiry_words, moment
from pki.options import Answer, Commands, add_command, given_password, passwords_to_try
from pki.reading import Contents, read_with_any, spki
from pki.stores import chain

PRIVATE_KEY, TRUSTED, CHAIN = "private key", "trusted certificate", "chain certificate"
"""The first two are what keytool calls PrivateKeyEntry and trustedCertEntry."""

_HELP = """\
Show what a key store or a trust store holds: PKCS#12 (ours, keytool's, OpenSSL's),
PEM, or a bare certificate.

For each entry: alias, kind, subject, key, SHA-256 fingerprint, dates and days left;
warnings where fewer than 90, 30 or 7 days are left. The fingerprint is what
'cmapppki trust STORE --remove FINGERPRINT' takes.

example: cmapppki list /opt/hp/cmappserver/client.public
"""


def add_commands(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "list", "what is in a store", _HELP)
    command.add_argument("store", metavar="STORE", help="the file")
    command.add_argument(
        "--storepass",
        metavar="PASSWORD",
        help="its password; '-' reads it from standard input (default: the old default passwords are tried)",
    )
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """List a store. Raises `KeysError` where it cannot be read, and `UsageError`."""
    passwords = passwords_to_try(given_password("--storepass", arguments.storepass, new=False))
    contents, _ = read_with_any(arguments.store, passwords, "store")
    now = datetime.now(timezone.utc)
    return Answer(
        tuple(_lines(arguments.store, contents, now)),
        done="the store is read",
        data=_data(arguments.store, contents, now),
    )


def kind_of(contents: Contents, certificate: x509.Certificate) -> str:
    """Tell what a certificate of a store is there for."""
    if certificate == contents.leaf:
        return PRIVATE_KEY
    if contents.leaf is not None and certificate in chain(contents.leaf, [other for other, _ in contents.certificates]):
        return CHAIN
    return TRUSTED


def store_warnings(contents: Contents) -> list[str]:
    """Say what is wrong with a store as a whole."""
    found: list[str] = []
    if contents.key_count > 1:
        found.append(
            f"{count(contents.key_count, 'private key')} in one store: the programs refuse it; keep one "
            "(keytool -delete -alias ALIAS takes one out)"
        )
    if contents.key is not None and contents.leaf is None:
        found.append("a private key without its certificate: make new keys")
    elif contents.key is not None and contents.leaf is not None and not _fit(contents.key, contents.leaf):
        found.append("the private key does not match its certificate: make new keys")
    if not contents.certificates:
        found.append("no certificate: nobody is trusted by this store")
    return found


def _fit(key: PrivateKeyTypes, leaf: x509.Certificate) -> bool:
    return spki(leaf.public_key()) == spki(key.public_key())


def _lines(path: str, contents: Contents, now: datetime) -> list[str]:
    lines = [f"{path}: {contents.form}, {count(len(contents.certificates), 'certificate')}"]
    lines += [f"warning: {warning}" for warning in store_warnings(contents)]
    for number, (certificate, alias) in enumerate(contents.certificates, start=1):
        begins, ends = moment(certificate.not_valid_before_utc), moment(certificate.not_valid_after_utc)
        level, words = expiry_words(certificate, now)
        fault = key_fault(certificate.public_key())
        lines += [
            "",
            f"{alias or f'certificate {number}'}: {kind_of(contents, certificate)}",
            f"  subject  {describe_subject(certificate)}",
            f"  key      {describe_key(certificate.public_key())}",
            f"  SHA-256  {fingerprint(certificate)}",
            f"  dates    {begins} to {ends}, {count(days_left(certificate, now), 'day')} left",
        ]
        if level is not Level.FINE:
            lines.append(f"  warning: it {words}")
        if fault:
            lines.append(f"  warning: {fault}, which TLS 1.3 cannot use: make new keys with cmapppki")
    return lines


def _data(path: str, contents: Contents, now: datetime) -> dict[str, object]:
    return {
        "store": path,
        "format": contents.form,
        "warnings": store_warnings(contents),
        "entries": [_entry(contents, certificate, alias, now) for certificate, alias in contents.certificates],
    }


def _entry(contents: Contents, certificate: x509.Certificate, alias: str | None, now: datetime) -> dict[str, object]:
    level, words = expiry_words(certificate, now)
    fault = key_fault(certificate.public_key())
    return {
        "alias": alias,
        "kind": kind_of(contents, certificate),
        "subject": describe_subject(certificate),
        "key": describe_key(certificate.public_key()),
        "sha256": fingerprint(certificate),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "days_left": days_left(certificate, now),
        "warnings": [*([words] if level is not Level.FINE else []), *([fault] if fault else [])],
    }

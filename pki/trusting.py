"""`cmapppki trust`: put certificates into a trust store and take them out, so that old and new hold side by side.

A store is rewritten whole and put in its place by one rename; whatever goes wrong before leaves the old one as it was.
Since keytool finds entries by alias, case ignored, and lists only one of two with the same, every rewritten store has
unique ones. A PEM store has no aliases and stays PEM.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import stores
from pki.certificates import Purpose, describe_subject, fingerprint, is_authority, key_fault, purpose_fault
from pki.dates import count, date_fault
from pki.errors import KeysError
from pki.files import PUBLIC_MODE, prepare_directory, write_file
from pki.options import Answer, Commands, UsageError, add_command, given_password, passwords_to_try
from pki.pem import encode_certificate
from pki.reading import read_with_any

SAFE_MODE_BITS = 0o755
"""Of an old store's mode these are kept: who may write to a trust store may let himself in."""

_PUBLIC_ALIASES = {
    stores.CLIENT_KEY_ALIAS: stores.CLIENT_TRUST_ALIAS,
    stores.SERVER_KEY_ALIAS: stores.SERVER_TRUST_ALIAS,
}

_HELP = """\
Add the certificates of other stores, or of PEM or DER files, to the trust store
STORE, or take certificates out of it. Of a key store only the certificate is taken.
STORE is made where it does not exist, and never left half written.

In a rotation the new certificate is added beside the old one, and the old one goes
when nobody uses it any more. The server reads its trust store again on reload
(systemctl reload cmappserver), a manager when it starts or meets another key.

examples:
  cmapppki trust /opt/hp/cmappserver/client.public /tmp/client.public
  cmapppki trust /opt/hp/cmappserver/client.public --remove 3F:0A:...
"""


@final
@dataclass(frozen=True, slots=True)
class TrustStore:
    """A trust store in memory: its path with links resolved, its format, and what is in it.

    `mode` is that of the file to be written; `exists` tells whether there is one already.
    """

    path: str
    form: Literal["PKCS#12", "PEM"]
    password: str
    mode: int
    exists: bool
    entries: tuple[tuple[x509.Certificate, str | None], ...]


def add_commands(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "trust", "add certificates to a trust store, or remove them", _HELP)
    command.add_argument("store", metavar="STORE", help="the trust store to change")
    command.add_argument("sources", metavar="SOURCE", nargs="*", help="stores or certificates to add")
    command.add_argument(
        "--remove",
        metavar="FINGERPRINT",
        action="append",
        default=[],
        help="take out the certificate with this SHA-256 fingerprint, as 'list' prints it, colons or not; may repeat",
    )
    command.add_argument(
        "--storepass", metavar="PASSWORD", help="STORE's password; '-' reads it from standard input (default: public)"
    )
    command.add_argument(
        "--sourcepass",
        metavar="PASSWORD",
        help="the sources' password; '-' reads it from standard input (default: the old default passwords are tried)",
    )
    command.add_argument("--force", action="store_true", help="take out even the last certificate")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Change a trust store. Raises `UsageError` and `KeysError`; then the store is what it was."""
    if not arguments.sources and not arguments.remove:
        raise UsageError("expected a SOURCE to add or --remove FINGERPRINT")
    unwanted = [_fingerprint(text) for text in arguments.remove]
    store_password = given_password("--storepass", arguments.storepass, new=False)
    source_password = given_password("--sourcepass", arguments.sourcepass, new=False)
    store = open_trust_store(arguments.store, store_password)
    if not store.exists and not arguments.sources:
        raise KeysError(f"the trust store {arguments.store!r} does not exist: correct the path")
    offered = [
        entry for path in arguments.sources for entry in certificates_of(path, passwords_to_try(source_password))
    ]
    entries, said = add(store.entries, offered, datetime.now(timezone.utc))
    entries, removed = remove(store.path, entries, unwanted, force=arguments.force)
    said += removed
    if entries == store.entries and store.exists:
        return Answer((*said, f"nothing to change in {store.path}"), done="nothing was changed")
    save(store, entries)
    verb = "wrote" if store.exists else "made"
    said.append(f"{verb} {store.path}: {store.form}, {count(len(entries), 'certificate')}")
    said.append("a server that uses it has to be reloaded (HUP); a manager reads it by itself")
    return Answer(tuple(said), done="the trust store is written")


def open_trust_store(path: str, password: str | None) -> TrustStore:
    """Read the trust store to be changed; one that does not exist is empty. Raises `KeysError`."""
    real = os.path.realpath(path)
    if not os.path.lexists(real):
        prepare_directory(os.path.dirname(real))
        return TrustStore(real, "PKCS#12", password or stores.TRUST_PASSWORD, PUBLIC_MODE, exists=False, entries=())
    contents, opened_by = read_with_any(real, passwords_to_try(password), "trust store")
    if contents.key is not None:
        raise KeysError(
            f"{path!r} holds a private key: it is a key store, and the programs would refuse it as a trust store; "
            "name the trust store first (its name ends in .public), the sources after it"
        )
    mode = stat.S_IMODE(os.stat(real).st_mode) & SAFE_MODE_BITS
    form: Literal["PKCS#12", "PEM"] = "PEM" if contents.form == "PEM" else "PKCS#12"
    return TrustStore(real, form, opened_by, mode, exists=True, entries=contents.certificates)


def certificates_of(path: str, passwords: Sequence[str]) -> list[tuple[x509.Certificate, str | None]]:
    """Give what a source offers: all certificates of a trust store, but of a key store only its own.

    Raises `KeysError` where there is none, or one that TLS 1.3 cannot use.
    """
    contents, _ = read_with_any(path, passwords, "source")
    found = list(contents.certificates)
    if contents.key is not None:
        found = [(certificate, alias) for certificate, alias in found if certificate == contents.leaf]
    if not found:
        raise KeysError(f"the source {path!r} holds no certificate")
    for certificate, _ in found:
        if fault := key_fault(certificate.public_key()):
            raise KeysError(
                f"the source {path!r} holds {fault}, which TLS 1.3 cannot use: make new keys where it comes from"
            )
    return found


def add(
    held: Iterable[tuple[x509.Certificate, str | None]],
    offered: Iterable[tuple[x509.Certificate, str | None]],
    now: datetime,
) -> tuple[tuple[tuple[x509.Certificate, str | None], ...], list[str]]:
    """Put the offered certificates behind those held already; give all of them, and what to say about each. Pure."""
    entries = list(held)
    said: list[str] = []
    for certificate, alias in offered:
        if any(certificate == other for other, _ in entries):
            said.append(f"is there already: {_described(certificate)}")
            continue
        entries.append((certificate, _alias_for(certificate, alias)))
        said.append(f"added {_described(certificate)}")
        if fault := date_fault(certificate, now):
            said.append(f"  warning: it {fault}")
        if is_authority(certificate):
            said.append("  warning: it is an authority: whoever has a certificate of it with the right name is trusted")
    return tuple(entries), said


def remove(
    path: str, held: tuple[tuple[x509.Certificate, str | None], ...], unwanted: Iterable[str], *, force: bool
) -> tuple[tuple[tuple[x509.Certificate, str | None], ...], list[str]]:
    """Take certificates out by fingerprint; give the rest, and what to say. Pure.

    Raises `KeysError` for a fingerprint that is not there, and without `force` where nothing would be left.
    """
    entries = held
    said: list[str] = []
    for wanted in dict.fromkeys(unwanted):
        found = next((certificate for certificate, _ in entries if _bare(fingerprint(certificate)) == wanted), None)
        if found is None:
            raise KeysError(
                f"the trust store {path!r} holds no certificate with the fingerprint {wanted}: see cmapppki list"
            )
        entries = tuple(entry for entry in entries if entry[0] != found)
        said.append(f"removed {_described(found)}")
    if held and not entries:
        if not force:
            raise KeysError(
                f"that would take the last certificate out of {path!r}, and nobody could be trusted: add another "
                "first; --force does it all the same"
            )
        said.append(
            "the store is empty: programs refuse to start with it, and a server that runs keeps its old keys on "
            "reload: stop it to shut everybody out"
        )
    return entries, said


def save(store: TrustStore, entries: Iterable[tuple[x509.Certificate, str | None]]) -> None:
    """Write a trust store in its own format with unique aliases. Raises `KeysError`; then the old one is untouched."""
    entries = tuple(entries)
    if store.form == "PEM":
        # What stands between the blocks says which certificate is which.
        data = b"".join(
            f"# {describe_subject(certificate)}\n".encode() + encode_certificate(certificate.public_bytes(Encoding.DER))
            for certificate, _ in entries
        )
        # No PEM block says that there is none.
        data = data or stores.EMPTY_STORE
    else:
        data = stores.trust_store_bytes(unique_aliases(entries), store.password)
    owner_of = store.path if store.exists else None
    write_file(store.path, data, mode=store.mode, force=store.exists, owner_of=owner_of)


def unique_aliases(
    entries: Iterable[tuple[x509.Certificate, str | None]],
) -> list[tuple[x509.Certificate, str]]:
    """Name every certificate so that keytool tells them apart: `clientpublic`, `clientpublic-2`, … Pure."""
    taken: set[str] = set()
    named: list[tuple[x509.Certificate, str]] = []
    for certificate, alias in entries:
        base = alias or _alias_for(certificate, None)
        unique, number = base, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{re.sub(r'-[0-9]+$', '', base)}-{number}"
        taken.add(unique.casefold())
        named.append((certificate, unique))
    return named


def _alias_for(certificate: x509.Certificate, alias: str | None) -> str:
    if alias is not None:
        return _PUBLIC_ALIASES.get(alias, alias)
    fits = [purpose for purpose in Purpose if purpose_fault(certificate, purpose) is None]
    if len(fits) != 1:
        return "trusted"
    return stores.CLIENT_TRUST_ALIAS if fits[0] is Purpose.CLIENT else stores.SERVER_TRUST_ALIAS


def _fingerprint(text: str) -> str:
    bare = _bare(text)
    if not re.fullmatch("[0-9A-F]{64}", bare):
        raise UsageError(f"--remove: {text!r:.100} is not a SHA-256 fingerprint as 'cmapppki list' prints it")
    return bare


def _bare(text: str) -> str:
    return re.sub(r"[\s:]", "", text).upper()


def _described(certificate: x509.Certificate) -> str:
    return f"{describe_subject(certificate)}, SHA-256 {fingerprint(certificate)}"

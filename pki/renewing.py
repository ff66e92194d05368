"""`cmapppki renew`: change the key of one side without a moment in which the pair has no usable one.

A peer trusts what is in its trust store, which is copied by hand, maybe to many machines. So there are three steps,
with copying in between:

1. `renew SIDE` makes the new key store *beside* the one in use (`.new`) and puts the new certificate beside the old
   one into the public files. Nothing that runs sees a difference. Now the public files go to the other side.
2. `renew SIDE --switch`, when all of the other side hold both certificates: the new key store takes the place of the
   old one by a rename; the old one is kept (`.old`), for the way back.
3. `renew SIDE --finish`, when nobody uses the old key any more: the old certificate goes out of the public files, and
   the backup goes. Now the public files go to the other side again, which takes the old key out of use.

Each step can be repeated after an interruption: a step that finds its work half done does the other half. (A link to
the backup, then the rename: if the machine stops between the two, old and backup are one file.)
"""

from __future__ import annotations

import argparse
import glob
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import final

from cryptography import x509

from pki import stores, trusting
from pki.certificates import describe_subject, fingerprint, issue
from pki.dates import moment
from pki.errors import KeysError
from pki.files import NEW_SUFFIX, OLD_SUFFIX, PRIVATE_MODE, prepare_directory, replace_file, write_file
from pki.making import public_names, require_guest
from pki.options import (
    Answer,
    Commands,
    UsageError,
    add_command,
    add_key_options,
    given_password,
    passwords_to_try,
    require_directory,
    require_validity,
)
from pki.programs import GUEST_DIRECTORY, HOST_DIRECTORY, MANAGER, PROGRAMS, Program, for_file
from pki.reading import read_with_any

_HELP = """\
Change the key of one side without a gap, in three steps with copying in between:

  cmapppki renew SIDE            makes the new key store beside the old one (*.new),
                                 and public files that hold both certificates.
                                 Copy the public files to the other side.
  cmapppki renew SIDE --switch   puts the new key store in the place of the old one,
                                 which is kept (*.old). Reload the server.
  cmapppki renew SIDE --finish   takes the old certificate out of the public files,
                                 and removes the backup. Copy the public files again.

SIDE is 'client' on one host, or 'server' in a guest (with --guest NAME also for
server_NAME.public). Subject and names are those of the old certificate.

examples:
  cmapppki renew client
  cmapppki renew server --guest mmpf121 --switch
"""


@final
@dataclass(frozen=True, slots=True)
class Renewal:
    """Whose key is to change: the key store in use and the files that hold its certificate, all absolute."""

    program: Program
    directory: str
    guest: str | None
    passwords: tuple[str, ...] = field(repr=False)

    @property
    def private(self) -> str:
        """The key store in use."""
        return os.path.join(self.directory, self.program.private_name)

    def publics(self, old: x509.Certificate) -> list[str]:
        """Give the files that go to the other side, and any others that hold the old certificate for it.

        The last one is that to copy.
        """
        named = [os.path.join(self.directory, name) for name in public_names(self.program, self.guest)]
        if self.program is MANAGER:
            return named
        # Who made the keys with --guest and forgets it now must not be left with a stale file.
        beside = sorted(glob.glob(os.path.join(glob.escape(self.directory), "server_*.public")))
        return [*(path for path in beside if path not in named and _holds(path, old)), *named]


def add_commands(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "renew", "change the keys of one side without a gap", _HELP)
    command.add_argument("side", metavar="SIDE", choices=sorted(PROGRAMS), help="client or server")
    step = command.add_mutually_exclusive_group()
    step.add_argument("--switch", action="store_true", help="step 2: put the new key store in its place")
    step.add_argument("--finish", action="store_true", help="step 3: take the old certificate out")
    command.add_argument(
        "--guest", metavar="NAME", help="with server: the guest's name as the hosts know it, for server_NAME.public"
    )
    command.add_argument("--dir", help=f"where the keys are (default: {HOST_DIRECTORY}, with server {GUEST_DIRECTORY})")
    add_key_options(command, dname="that of the old certificate")
    command.add_argument(
        "--storepass",
        metavar="PASSWORD",
        help="password of the key store, old and new; '-' reads it from standard input (default: the old default one)",
    )
    command.add_argument(
        "--force", action="store_true", help="step 1: replace a new key store that was not switched to"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Answer:
    """Do one step. Raises `UsageError` and `KeysError`; then the pair works as before."""
    program = PROGRAMS[arguments.side]
    guest = require_guest(arguments.guest)
    if guest is not None and program is MANAGER:
        raise UsageError("--guest: only a guest's keys have it: cmapppki renew server --guest NAME")
    directory = program.directory if arguments.dir is None else os.path.abspath(require_directory(arguments.dir))
    given = given_password("--storepass", arguments.storepass, new=True)
    passwords = (program.key_password,) if given is None else (given,)
    renewal = Renewal(program, directory, guest, passwords)
    days = require_validity(arguments.validity)
    if (arguments.switch or arguments.finish) and (
        arguments.validity is not None or arguments.dname is not None or arguments.force
    ):
        raise UsageError("--dname, --validity and --force are for the first step, which makes the new key")
    if arguments.switch:
        return Answer(tuple(_switch(renewal)), done="the new key store is in its place")
    if arguments.finish:
        return Answer(tuple(_finish(renewal)), done="the old certificate is out")
    return Answer(tuple(_begin(renewal, arguments.dname, days, force=arguments.force)), done="the new keys are made")


def _begin(renewal: Renewal, dname: str | None, days: int, *, force: bool) -> list[str]:
    program, fresh = renewal.program, renewal.private + NEW_SUFFIX
    prepare_directory(renewal.directory)
    old, password = _certificate(renewal.private, renewal.passwords)
    if os.path.lexists(fresh) and not force:
        raise KeysError(
            f"{fresh!r} exists already, a renewal has begun: finish it with --switch, or replace it with --force"
        )
    # Whatever is wrong with the public files, nothing is made then.
    publics = renewal.publics(old)
    held = [trusting.open_trust_store(path, None) for path in publics]
    given_up = [_certificate(fresh, renewal.passwords)[0]] if os.path.lexists(fresh) else []
    name = renewal.guest or socket.gethostname()
    issued = issue(program.purpose, name, dname=dname, validity_days=days, now=datetime.now(timezone.utc), like=old)
    # The key first: a certificate that the other side gets then implies its key.
    key_data = stores.key_store_bytes(issued, program.key_alias, password)
    write_file(fresh, key_data, mode=PRIVATE_MODE, force=force, owner_of=renewal.private)
    certificate = issued.certificate
    for store in held:
        _change(store, program, wanted=[old, certificate], unwanted=given_up)
    return [
        f"made {fresh}: key store, to take the place of {renewal.private}, which stays in use",
        *(f"wrote {path}: holds the old and the new certificate" for path in publics),
        f"old: SHA-256 {fingerprint(old)}, expires {moment(old.not_valid_after_utc)}",
        f"new: SHA-256 {fingerprint(certificate)}, expires {moment(certificate.not_valid_after_utc)}",
        f"subject {describe_subject(certificate)}",
        "",
        "what to do now:",
        *_copy_words(renewal, publics[-1]),
        "",
        "then, when all of them hold both certificates:",
        f"  {_command(renewal)} --switch",
    ]


def _switch(renewal: Renewal) -> list[str]:
    private, fresh, backup = renewal.private, renewal.private + NEW_SUFFIX, renewal.private + OLD_SUFFIX
    if not os.path.lexists(fresh):
        raise KeysError(f"{fresh!r} does not exist: there is nothing to switch to; begin with {_command(renewal)}")
    new, _ = _certificate(fresh, renewal.passwords)
    old, _ = _certificate(private, renewal.passwords)
    for path in renewal.publics(old):
        if not _holds(path, new):
            raise KeysError(
                f"{path!r} does not hold the new certificate, so the other side cannot either: add it with "
                f"cmapppki trust {path} {fresh}, and copy the file first"
            )
    replace_file(private, fresh, backup)
    said = [
        f"{private} is the new key store, SHA-256 {fingerprint(new)}",
        f"{backup} is the old one, for the way back: mv {backup} {private}",
        "",
        "what to do now:",
    ]
    if renewal.program is MANAGER:
        said.append(f"  copy {private} to the same place on every other host of the cluster (mode 0600)")
        said.append("  restart the managers when it suits: each keeps the key that it started with")
    else:
        said.append("  reload the server in this guest: systemctl reload cmappserver, or signal HUP")
        said.append("  (a manager that runs reads its trust store again when it meets the new key)")
    return [*said, "", "then, when nobody uses the old key any more:", f"  {_command(renewal)} --finish"]


def _finish(renewal: Renewal) -> list[str]:
    private, fresh, backup = renewal.private, renewal.private + NEW_SUFFIX, renewal.private + OLD_SUFFIX
    if os.path.lexists(fresh):
        raise KeysError(f"{fresh!r} is not in use yet: {_command(renewal)} --switch comes first")
    if not os.path.lexists(backup):
        raise KeysError(f"{backup!r} does not exist: there is no renewal to finish; begin with {_command(renewal)}")
    new, _ = _certificate(private, renewal.passwords)
    old, _ = _certificate(backup, renewal.passwords)
    if old == new:
        raise KeysError(
            f"{backup!r} and {private!r} hold the same key, so the old one is still in use: nothing to finish"
        )
    publics = renewal.publics(old)
    for path in publics:
        _change(trusting.open_trust_store(path, None), renewal.program, wanted=[new], unwanted=[old])
    try:
        os.unlink(backup)
    except OSError as error:
        raise KeysError(f"cannot remove {backup!r}: {error.strerror} (errno:{error.errno})") from error
    return [
        *(f"wrote {path}: the old certificate is out" for path in publics),
        f"removed {backup}",
        "",
        "what to do now:",
        *_copy_words(renewal, publics[-1]),
        "where a trust store holds other keys too, take the old one out instead:",
        f"  cmapppki trust STORE --remove {fingerprint(old)}",
    ]


def _certificate(path: str, passwords: Sequence[str]) -> tuple[x509.Certificate, str]:
    """Give the certificate of a key store that can be used, and the password that opens it."""
    _, password = read_with_any(path, passwords, "key store")
    chain, _ = stores.load_key_store(path, password)
    return x509.load_pem_x509_certificate(chain), password


def _change(
    store: trusting.TrustStore,
    program: Program,
    *,
    wanted: Sequence[x509.Certificate],
    unwanted: Sequence[x509.Certificate],
) -> None:
    """Write a public file that holds the wanted certificates, not the unwanted ones, and the others as they were."""
    others = [entry for entry in store.entries if entry[0] not in (*wanted, *unwanted)]
    # Ours get the alias of the contract anew: after several renewals it would be clientpublic-7.
    kept = [*others, *((certificate, program.trust_alias) for certificate in wanted)]
    trusting.save(store, kept)


def _holds(path: str, certificate: x509.Certificate) -> bool:
    if not os.path.lexists(path):
        return False
    try:
        contents, _ = read_with_any(path, passwords_to_try(None), "trust store")
    except KeysError:
        return False
    return any(certificate == held for held, _ in contents.certificates)


def _copy_words(renewal: Renewal, public: str) -> list[str]:
    if renewal.program is MANAGER:
        return [
            f"  copy {public} to {GUEST_DIRECTORY} in every guest, and reload the server there",
            "  (where a guest trusts other keys too, add it there: cmapppki trust STORE client.public)",
        ]
    return [f"  copy {public} to {HOST_DIRECTORY}/server_{for_file(renewal.guest or 'NAME')}.public on every host"]


def _command(renewal: Renewal) -> str:
    words = ["cmapppki renew", renewal.program.side]
    if renewal.guest is not None:
        words += ["--guest", renewal.guest]
    if renewal.directory != renewal.program.directory:
        words += ["--dir", renewal.directory]
    return " ".join(words)

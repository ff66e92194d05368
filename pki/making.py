"""`cmapppki client` and `cmapppki server`: make the keys of a host or of a guest, and say what to do with them.

Each side makes its own private key, and only certificates travel: the public files are copied to the other side by
hand, as in the old guide (contract, section 4).
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import final

from pki import stores
from pki.certificates import Issued, describe_subject, fingerprint, issue
from pki.dates import moment
from pki.errors import KeysError
from pki.files import PRIVATE_MODE, PUBLIC_MODE, prepare_directory, write_file
from pki.options import (
    Answer,
    Commands,
    UsageError,
    add_command,
    add_key_options,
    given_password,
    require_directory,
    require_validity,
)
from pki.programs import GUEST_DIRECTORY, HOST_DIRECTORY, MANAGER, PROGRAMS, SERVER, Program, for_file

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,200}")

_CLIENT_HELP = """\
Make the keys of the hosts, once on one host of the cluster:

  client.private  key store: private key and certificate. Guard it like root's
                  password; copy it to the other hosts of the cluster only.
  client.public   trust store: the certificate alone. Goes to every guest.

Ends by printing the configuration lines and what to copy where.

example: cmapppki client --validity 800
"""

_SERVER_HELP = """\
Make the keys of a guest, once in each guest:

  server.private      key store: private key and certificate. Stays here.
  server.public       trust store: the certificate alone.
  server_NAME.public  the same under the name that it has on the hosts.

Ends by printing the configuration lines and what to copy where.

example: cmapppki server --guest mmpf121
"""


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for. `name` goes into the certificate; `guest` also into a file name."""

    program: Program
    directory: str
    name: str
    guest: str | None
    dname: str | None
    validity_days: int
    store_password: str | None = field(repr=False)
    force: bool


def add_commands(commands: Commands) -> None:
    """Add both commands to the parser."""
    client = add_command(commands, "client", "on one host: client.private and client.public", _CLIENT_HELP)
    server = add_command(commands, "server", "in each guest: server.private and server.public", _SERVER_HELP)
    add_guest_option(server)
    for command, program in ((client, MANAGER), (server, SERVER)):
        command.add_argument("--dir", default=program.directory, help="where to write them (default: %(default)s)")
        add_key_options(command, dname="CN= the host or guest name")
        command.add_argument(
            "--storepass",
            metavar="PASSWORD",
            help="password of the key store; '-' reads it from standard input. The trust store, which holds no secret, "
            "keeps its password 'public'",
        )
        command.add_argument("--force", action="store_true", help="replace existing files")
        command.set_defaults(run=run, guest=None)


def add_guest_option(command: argparse.ArgumentParser) -> None:
    """Add `--guest` to a command that makes keys of a guest."""
    command.add_argument(
        "--guest", metavar="NAME", help="the guest's name as the hosts know it: also writes server_NAME.public"
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Make the keys. Raises `UsageError` and `PkiError`; then nothing was replaced in part."""
    guest = require_guest(arguments.guest)
    order = Order(
        program=PROGRAMS[arguments.command],
        directory=os.path.abspath(require_directory(arguments.dir)),
        name=guest or socket.gethostname(),
        guest=guest,
        dname=arguments.dname,
        validity_days=require_validity(arguments.validity),
        store_password=given_password("--storepass", arguments.storepass, new=True),
        force=arguments.force,
    )
    lines = _make_client(order) if order.program is MANAGER else _make_server(order)
    return Answer(tuple(lines), done="the keys are made")


def require_guest(name: str | None) -> str | None:
    """Give the name back. Raises `UsageError` for one that cannot stand in a file name."""
    if name is not None and not _FILE_NAME.fullmatch(name):
        raise UsageError(f"--guest: {name!r:.60} is not a host name or an address")
    return name


def public_names(program: Program, guest: str | None) -> list[str]:
    """Give the names of the files that hold the certificate: the one that is copied last."""
    return [program.public_name, *([f"server_{for_file(guest)}.public"] if guest else [])]


def _make_client(order: Order) -> list[str]:
    issued, private, (public,) = _make(order)
    return [
        f"made {private}: key store, alias {stores.CLIENT_KEY_ALIAS}; it stays private",
        f"made {public}: trust store, alias {stores.CLIENT_TRUST_ALIAS}; its password is '{stores.TRUST_PASSWORD}'",
        *_describe(issued),
        "",
        "lines for /etc/cmappmgr.conf, before any node's section:",
        f"keyStore={private}",
        _password_line(order),
        "",
        "what to copy:",
        f"  {private} and {public} to the same place on every other host of the cluster (private: mode 0600)",
        f"  {public} to {GUEST_DIRECTORY} in every guest",
    ]


def _make_server(order: Order) -> list[str]:
    issued, private, publics = _make(order)
    node = order.guest or "NAME"
    copied = f"{HOST_DIRECTORY}/server_{for_file(node)}.public"
    return [
        f"made {private}: key store, alias {stores.SERVER_KEY_ALIAS}; it stays private",
        *(
            f"made {path}: trust store, alias {stores.SERVER_TRUST_ALIAS}; its password is '{stores.TRUST_PASSWORD}'"
            for path in publics
        ),
        *_describe(issued),
        "",
        f"lines for {SERVER.config_path} in this guest:",
        f"keyStore={private}",
        _password_line(order),
        f"trustStore={os.path.join(order.directory, MANAGER.public_name)}",
        "",
        "lines for /etc/cmappmgr.conf on every host:",
        f"[{node}]:" if ":" in node else f"{node}:",
        f"trustStore={copied}",
        "",
        "what to copy:",
        f"  client.public from the host to {os.path.join(order.directory, MANAGER.public_name)} in this guest",
        f"  {publics[-1]} to {copied} on every host",
    ]


def _make(order: Order) -> tuple[Issued, str, list[str]]:
    program = order.program
    private, *publics = _paths(order, program.private_name, *public_names(program, order.guest))
    issued = issue(
        program.purpose,
        order.name,
        dname=order.dname,
        validity_days=order.validity_days,
        now=datetime.now(timezone.utc),
    )
    key_data = stores.key_store_bytes(issued, program.key_alias, order.store_password or program.key_password)
    trust_data = stores.trust_store_bytes([(issued.certificate, program.trust_alias)], stores.TRUST_PASSWORD)
    # The key first: a certificate that is there then implies its key.
    write_file(private, key_data, mode=PRIVATE_MODE, force=order.force)
    for path in publics:
        write_file(path, trust_data, mode=PUBLIC_MODE, force=order.force)
    return issued, private, publics


def _paths(order: Order, *names: str) -> list[str]:
    prepare_directory(order.directory)
    paths = [os.path.join(order.directory, name) for name in names]
    # All are looked at before the first is written: half a set of keys is worse than none.
    for path in paths:
        if os.path.lexists(path) and not order.force:
            raise KeysError(
                f"{path!r} exists already: --force would replace it, and peers that trust the old key refuse the new; "
                "cmapppki renew changes keys without a gap"
            )
        if os.path.isdir(path):
            raise KeysError(f"{path!r} is a directory")
    return paths


def _describe(issued: Issued) -> list[str]:
    certificate = issued.certificate
    return [
        f"subject {describe_subject(certificate)}, SHA-256 {fingerprint(certificate)}",
        f"expires {moment(certificate.not_valid_after_utc)}",
    ]


def _password_line(order: Order) -> str:
    # A password that the user chose is not repeated on the terminal or into a log.
    return "keyStorePassword=" if order.store_password is None else "# keyStorePassword= the one that you gave"

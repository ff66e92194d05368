"""`cmapppki`: makes the keys of a host (`client`) or of a guest (`server`), and says what to do with them.

Each side makes its own private key, and only certificates travel: the public files are copied to the other side by
hand, as in the old guide (contract, section 4).
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import final

from pki import stores
from pki.certificates import (
    DEFAULT_VALIDITY_DAYS,
    MAX_VALIDITY_DAYS,
    Issued,
    Purpose,
    describe_subject,
    fingerprint,
    issue,
)
from pki.errors import KeysError, PkiError
from pki.files import PRIVATE_MODE, PUBLIC_MODE, prepare_directory, write_file

HOST_DIRECTORY = "/etc/cmcluster/cmappmgr"
GUEST_DIRECTORY = r"C:\Program Files\Hewlett-Packard\cmappserver" if sys.platform == "win32" else "/opt/hp/cmappserver"

MIN_PASSWORD_CHARACTERS = 6
"""keytool refuses to make or change stores with a shorter one."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,200}")


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for. `name` goes into the certificate; `guest` also into a file name."""

    side: str
    directory: str
    name: str
    guest: str | None
    dname: str | None
    validity_days: int
    store_password: str | None = field(repr=False)
    force: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; `argv` without its name, by default that of the process.

    Gives 0, or 1 after one line on standard error. Wrong usage ends by `SystemExit(2)`, as argparse does it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    order = _order(parser, arguments)
    try:
        lines = _make_client(order) if order.side == "client" else _make_server(order)
    except PkiError as error:
        print(f"cmapppki: {error}", file=sys.stderr)
        return 1
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:
        # Whoever closed the pipe did not want to read it, and the interpreter must not try again at its end.
        sys.stdout = None
        print(f"cmapppki: the keys are made, but not described: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cmapppki", description="Make the keys of both sides.", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="side", metavar="client | server")
    client = commands.add_parser("client", help="on one host: client.private and client.public", allow_abbrev=False)
    client.add_argument("--dir", default=HOST_DIRECTORY, help="where to write them (default: %(default)s)")
    server = commands.add_parser("server", help="in each guest: server.private and server.public", allow_abbrev=False)
    server.add_argument(
        "--guest", metavar="NAME", help="the guest's name as the hosts know it: also writes server_NAME.public"
    )
    server.add_argument("--dir", default=GUEST_DIRECTORY, help="where to write them (default: %(default)s)")
    for command in (client, server):
        command.add_argument(
            "--dname", help="subject, such as 'CN=host, O=Example' (default: CN= the host or guest name)"
        )
        command.add_argument(
            "--validity", type=int, default=DEFAULT_VALIDITY_DAYS, metavar="DAYS", help="default: %(default)s"
        )
        command.add_argument(
            "--storepass",
            metavar="PASSWORD",
            help="password of the key store; '-' reads it from standard input. The trust store, which holds no secret, "
            "keeps its password 'public'",
        )
        command.add_argument("--force", action="store_true", help="replace existing files")
    return parser


def _order(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Order:
    if arguments.version:
        from importlib.metadata import version

        print(f"cmapppki {version('cmapp')}")
        parser.exit(0)
    if arguments.side is None:
        parser.error("expected a command: client or server")
    guest: str | None = getattr(arguments, "guest", None)
    if guest is not None and not _FILE_NAME.fullmatch(guest):
        parser.error(f"--guest: {guest!r:.60} is not a host name or an address")
    if not arguments.dir:
        parser.error("--dir: the directory is empty")
    if not 1 <= arguments.validity <= MAX_VALIDITY_DAYS:
        parser.error(f"--validity: {arguments.validity} is not between 1 and {MAX_VALIDITY_DAYS} days")
    password: str | None = arguments.storepass
    if password == "-":
        password = sys.stdin.readline().rstrip("\r\n")
    if password is not None and len(password) < MIN_PASSWORD_CHARACTERS:
        parser.error(f"--storepass: shorter than {MIN_PASSWORD_CHARACTERS} characters, which keytool does not take")
    return Order(
        side=arguments.side,
        directory=os.path.abspath(arguments.dir),
        name=guest or socket.gethostname(),
        guest=guest,
        dname=arguments.dname,
        validity_days=arguments.validity,
        store_password=password,
        force=arguments.force,
    )


def _make_client(order: Order) -> list[str]:
    private, public = _paths(order, "client.private", "client.public")
    issued = _issue(order, Purpose.CLIENT)
    key_data = stores.key_store_bytes(
        issued, stores.CLIENT_KEY_ALIAS, order.store_password or stores.CLIENT_KEY_PASSWORD
    )
    trust_data = stores.trust_store_bytes([(issued.certificate, stores.CLIENT_TRUST_ALIAS)], stores.TRUST_PASSWORD)
    _write(order, private, key_data, [public], trust_data)
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
    names = ["server.public"] + ([f"server_{_for_file(order.guest)}.public"] if order.guest else [])
    private, *publics = _paths(order, "server.private", *names)
    issued = _issue(order, Purpose.SERVER)
    key_data = stores.key_store_bytes(
        issued, stores.SERVER_KEY_ALIAS, order.store_password or stores.SERVER_KEY_PASSWORD
    )
    trust_data = stores.trust_store_bytes([(issued.certificate, stores.SERVER_TRUST_ALIAS)], stores.TRUST_PASSWORD)
    _write(order, private, key_data, publics, trust_data)
    node = order.guest or "NAME"
    copied = f"{HOST_DIRECTORY}/server_{_for_file(node)}.public"
    return [
        f"made {private}: key store, alias {stores.SERVER_KEY_ALIAS}; it stays private",
        *(
            f"made {path}: trust store, alias {stores.SERVER_TRUST_ALIAS}; its password is '{stores.TRUST_PASSWORD}'"
            for path in publics
        ),
        *_describe(issued),
        "",
        f"lines for {os.path.join(GUEST_DIRECTORY, 'cmappserver.conf')} in this guest:",
        f"keyStore={private}",
        _password_line(order),
        f"trustStore={os.path.join(order.directory, 'client.public')}",
        "",
        "lines for /etc/cmappmgr.conf on every host:",
        f"[{node}]:" if ":" in node else f"{node}:",
        f"trustStore={copied}",
        "",
        "what to copy:",
        f"  client.public from the host to {os.path.join(order.directory, 'client.public')} in this guest",
        f"  {publics[-1]} to {copied} on every host",
    ]


def _for_file(name: str | None) -> str:
    # Windows has no colons in file names, and the file travels.
    return (name or "").replace(":", "-")


def _paths(order: Order, *names: str) -> list[str]:
    prepare_directory(order.directory)
    paths = [os.path.join(order.directory, name) for name in names]
    # All are looked at before the first is written: half a set of keys is worse than none.
    for path in paths:
        if os.path.lexists(path) and not order.force:
            raise KeysError(
                f"{path!r} exists already: --force would replace it, and peers that trust the old key refuse the new"
            )
        if os.path.isdir(path):
            raise KeysError(f"{path!r} is a directory")
    return paths


def _issue(order: Order, purpose: Purpose) -> Issued:
    now = datetime.now(timezone.utc)
    return issue(purpose, order.name, dname=order.dname, validity_days=order.validity_days, now=now)


def _write(order: Order, private: str, key_data: bytes, publics: list[str], trust_data: bytes) -> None:
    # The key first: a certificate that is there then implies its key.
    write_file(private, key_data, mode=PRIVATE_MODE, force=order.force)
    for path in publics:
        write_file(path, trust_data, mode=PUBLIC_MODE, force=order.force)


def _describe(issued: Issued) -> list[str]:
    certificate = issued.certificate
    return [
        f"subject {describe_subject(certificate)}, SHA-256 {fingerprint(certificate)}",
        f"expires {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
    ]


def _password_line(order: Order) -> str:
    # A password that the user chose is not repeated on the terminal or into a log.
    return "keyStorePassword=" if order.store_password is None else "# keyStorePassword= the one that you gave"

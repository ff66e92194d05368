"""`cmapppki check`: will these keys work, now and for how long.

Reads the configuration of either program as the program does, for every node that it names, and judges what it names
(`doctor`). Where the files of both sides are given, it also answers whether the manager and the server would accept
each other.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import final

from pki import stores
from pki.certificates import fingerprint
from pki.dates import Level, day, parse_moment
from pki.doctor import Finding, Identity, judge_acceptance, judge_keys, judge_modes
from pki.errors import KeysError, SettingsError
from pki.files import NEW_SUFFIX
from pki.material import EXPIRED_PINS, Keys, expired_pins
from pki.options import Answer, Commands, UsageError, add_command
from pki.programs import MANAGER, SERVER, Program
from pki.reading import read_with_any
from pki.settings import Document, Values, read_document

_MARKS = {Level.FINE: "fine", Level.WARNING: "warning", Level.UNUSABLE: "unusable"}

_HELP = """\
Look at the keys of a program before it does: are the stores readable, the passwords
right, does the key match its certificate, can TLS 1.3 use it, is anybody trusted, are
the files safe from others, how many days are left (warnings at 90, 30 and 7)?

Reads the configuration of cmappmgr, with every node's section, or of cmappserver; its
content tells which. With the files of both sides (--config twice, and the stores that
they name at hand) it also says whether this manager would reach this guest. Every
line names the cure.

Exit status: 0 fine, 1 warnings, 2 something cannot be used.

examples:
  cmapppki check
  cmapppki check --config /etc/cmappmgr.conf --at 2027-12-31
"""


@final
@dataclass(frozen=True, slots=True)
class Side:
    """One program with one set of keys: the server, or the manager of one node."""

    program: Program
    config: str
    node: str | None
    identity: Identity


def add_commands(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "check", "will these keys work, now and for how long", _HELP)
    command.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help=f"configuration of either program; may repeat (default: {MANAGER.config_path} and {SERVER.config_path}, "
        "where they exist)",
    )
    command.add_argument("--at", metavar="DATE", help="judge this date too, such as 2027-12-31 or 2027-12-31T12:00")
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.set_defaults(run=run, failure=int(Level.UNUSABLE))


def run(arguments: argparse.Namespace) -> Answer:
    """Check; the exit status is the worst finding. Raises `SettingsError` where no configuration is found."""
    moments = [datetime.now(timezone.utc)]
    if arguments.at is not None:
        try:
            moments.append(parse_moment(arguments.at))
        except ValueError as error:
            raise UsageError(f"--at: {arguments.at!r:.60} is not a date such as 2027-12-31") from error
    findings: list[Finding] = []
    sides: list[Side] = []
    for path, program in _programs(arguments.config):
        found, more = _check_file(path, program, moments)
        findings += found
        sides += more
    findings += _check_pairs(sides, moments)
    worst = max(finding.level for finding in findings)
    lines = [f"{_MARKS[finding.level]:<8}  {finding.about}: {finding.text}" for finding in findings]
    data = {
        "status": _MARKS[worst],
        "findings": [{"level": _MARKS[item.level], "about": item.about, "text": item.text} for item in findings],
    }
    return Answer((*lines, f"in all: {_MARKS[worst]}"), done="the keys are checked", status=int(worst), data=data)


def program_of(document: Document) -> Program:
    """Tell whose configuration a file is: by its sections and keys, or else by its name. Raises `SettingsError`."""
    everywhere = {entry.key for entry in document.entries}
    in_sections = {entry.key for entry in document.entries if entry.section is not None}
    server = bool(everywhere & (SERVER.config_keys | SERVER.section_keys) - MANAGER.config_keys)
    manager = bool(everywhere & MANAGER.config_keys - SERVER.config_keys or in_sections & MANAGER.section_keys)
    if manager and server:
        raise SettingsError(f"{document.path} has keys of cmappserver as well as nodes, which only cmappmgr's file has")
    if manager or server:
        return MANAGER if manager else SERVER
    key_stores = [os.path.basename(entry.value) for entry in document.entries if entry.key == "keyStore"]
    for word in (os.path.basename(document.path), *key_stores):
        for program in (MANAGER, SERVER):
            if word.startswith((program.name, program.side)):
                return program
    raise SettingsError(
        f"cannot tell whose configuration {document.path} is: name it {os.path.basename(MANAGER.config_path)} or "
        f"{os.path.basename(SERVER.config_path)}"
    )


def _programs(paths: Sequence[str] | None) -> list[tuple[str, Program]]:
    if paths:
        return [(path, program_of(read_document(path))) for path in paths]
    # Without a configuration a program runs on the defaults, so its default key store tells that it is used here.
    found = [
        (program.config_path, program)
        for program in (MANAGER, SERVER)
        if os.path.lexists(program.config_path) or os.path.lexists(program.key_store)
    ]
    if not found:
        raise SettingsError(
            f"nothing to check: neither {MANAGER.config_path} nor {SERVER.config_path} exists: name one with --config"
        )
    return found


def _check_file(path: str, program: Program, moments: Sequence[datetime]) -> tuple[list[Finding], list[Side]]:
    try:
        document = read_document(path, may_be_absent=path == program.config_path)
        common = _values(document, None, program)
        # The sections of the server's file are about who may do what, and name no keys.
        sections: tuple[str | None, ...] = (document.sections() if program is MANAGER else ()) or (None,)
    except SettingsError as error:
        return [Finding(Level.UNUSABLE, path, str(error))], []
    whose = f"configuration of {program.name}"
    findings = [
        Finding(Level.FINE, document.path, whose if os.path.exists(path) else f"absent: {program.name}'s defaults")
    ]
    findings += [item for item in _config_modes(document.path) if item.level is not Level.FINE]
    sides: list[Side] = []
    seen: set[Finding] = set()
    for section in sections:
        try:
            keys = _keys(program, common, _values(document, section, program))
        except SettingsError as error:
            findings.append(Finding(Level.UNUSABLE, document.path, str(error)))
            continue
        found, identity = judge_keys(program, keys, moments)
        found += _check_handed_out(program, keys, identity)
        # Nodes share the key store, and often more.
        findings += [finding for finding in found if finding not in seen]
        seen.update(found)
        sides.append(Side(program, document.path, section, identity))
    return findings + _check_distinct(sides), sides


def _config_modes(path: str) -> list[Finding]:
    return judge_modes(path, private=False) if os.path.exists(path) else []


def _values(document: Document, section: str | None, program: Program) -> Values:
    return Values(document.path, document.of_section(section), sorted(program.config_keys), repeatable=("allow",))


def _keys(program: Program, common: Values, own: Values) -> Keys:
    def scope(key: str) -> Values:
        return own if key in own else common

    return Keys(
        key_store=scope("keyStore").path("keyStore", program.key_store),
        key_store_password=scope("keyStorePassword").text("keyStorePassword", program.key_password),
        trust_store=scope("trustStore").path("trustStore", program.trust_store),
        trust_store_password=scope("trustStorePassword").text("trustStorePassword", stores.TRUST_PASSWORD),
        expired_pins=expired_pins(scope("expiredPins").one_of("expiredPins", EXPIRED_PINS)),
    )


def _check_handed_out(program: Program, keys: Keys, identity: Identity) -> list[Finding]:
    """Judge the public files beside a key store, which are what is copied to the other side."""
    findings: list[Finding] = []
    directory = os.path.dirname(keys.key_store)
    if os.path.lexists(keys.key_store + NEW_SUFFIX):
        words = f"a renewal has begun: when its certificate is everywhere, cmapppki renew {program.side} --switch"
        findings.append(Finding(Level.FINE, keys.key_store, words))
    own = identity.own
    if own is None:
        return findings
    paths = [os.path.join(directory, program.public_name)]
    if program is SERVER:
        paths += sorted(glob.glob(os.path.join(glob.escape(directory), "server_*.public")))
    for path in paths:
        if not os.path.lexists(path) or path == keys.trust_store:
            continue
        try:
            contents, _ = read_with_any(path, (stores.TRUST_PASSWORD,), "trust store")
        except KeysError as error:
            findings.append(Finding(Level.WARNING, path, str(error)))
            continue
        if any(certificate == own for certificate, _ in contents.certificates):
            findings.append(Finding(Level.FINE, path, "holds the certificate of the key store, for the other side"))
        else:
            words = f"does not hold the certificate of the key store: cmapppki trust {path} {keys.key_store}"
            findings.append(Finding(Level.WARNING, path, words))
    return findings


def _check_distinct(sides: Sequence[Side]) -> list[Finding]:
    """Warn where one guest could stand in for another."""
    findings: list[Finding] = []
    for number, side in enumerate(sides):
        for other in sides[:number]:
            if set(side.identity.pins) & set(other.identity.pins):
                words = (
                    f"the nodes {other.node} and {side.node} trust the same key, so one guest could stand in for the "
                    "other: give each node a trust store of its own"
                )
                findings.append(Finding(Level.WARNING, side.config, words))
    return findings


def _check_pairs(sides: Sequence[Side], moments: Sequence[datetime]) -> list[Finding]:
    """Say of each manager whether it reaches the guests whose server's configuration was given too."""
    managers = [side for side in sides if side.program is MANAGER]
    servers = [side for side in sides if side.program is SERVER]
    findings: list[Finding] = []
    for manager in managers:
        about = f"node {manager.node}" if manager.node else "every node"
        if not servers:
            findings.append(_alone(manager, about))
        # With several guests, a node's is the one whose certificate it pins.
        meant = [server for server in servers if server.identity.own in manager.identity.pins]
        single = len(servers) == 1 and len(managers) == 1
        for server in meant or (servers if single else []):
            findings += [_judge_pair(manager, server, about, at) for at in moments]
        if servers and not meant and not single:
            findings.append(Finding(Level.FINE, about, "none of these guests is this node, by its trust store"))
    for server in servers:
        own = server.identity.own
        if managers and own is not None and not any(own in manager.identity.pins for manager in managers):
            words = (
                "no node of the manager's configuration trusts this guest's certificate: copy server.public to the host"
            )
            findings.append(Finding(Level.UNUSABLE, server.config, words))
    return findings


def _alone(manager: Side, about: str) -> Finding:
    own, pins = manager.identity.own, manager.identity.pins
    if own is None or not pins:
        return Finding(Level.UNUSABLE, about, "cannot be reached: see above")
    words = f"this side is ready; the guest's trust store must hold SHA-256 {fingerprint(own)}"
    return Finding(Level.FINE, about, words)


def _judge_pair(manager: Side, server: Side, about: str, at: datetime) -> Finding:
    shown, guest = manager.identity.own, server.identity.own
    if shown is None or guest is None:
        return Finding(Level.UNUSABLE, about, "cannot be reached: see above")
    by_guest = judge_acceptance(shown, MANAGER.purpose, server.identity, None, at)
    by_manager = judge_acceptance(guest, SERVER.purpose, manager.identity, manager.node, at)
    level = max(by_guest[0], by_manager[0])
    verdict = "reaches the guest" if level is not Level.UNUSABLE else "does not reach the guest"
    words = f"on {day(at)} the manager {verdict} of {server.config}: the guest's certificate is {by_manager[1]}"
    return Finding(level, about, f"{words}; the manager's certificate is {by_guest[1]}")

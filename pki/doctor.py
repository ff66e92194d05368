"""What is right and wrong with the keys of one program, and whether two programs would accept each other.

Each judgement is a `Finding`: one line that names the fault and its cure. Reading files happens here and in `files`;
which files, and for whom, is the business of `checking`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from pki import stores
from pki.certificates import (
    Purpose,
    alternative_names,
    describe_key,
    describe_subject,
    fingerprint,
    is_authority,
    purpose_fault,
)
from pki.dates import Level, date_fault, day, expiry_words
from pki.errors import KeysError
from pki.material import ExpiredPins, Keys
from pki.programs import Program
from pki.settings import normal_name


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how bad it is, what it is about (a file or a node), and one line with the cure."""

    level: Level
    about: str
    text: str


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """What one program shows and whom it accepts, as far as its stores could be read."""

    own: x509.Certificate | None
    pins: tuple[x509.Certificate, ...]
    expired_pins: ExpiredPins


def judge_keys(program: Program, keys: Keys, moments: Sequence[datetime]) -> tuple[list[Finding], Identity]:
    """Judge both stores of a program at each of the moments, the first of which is now."""
    findings, own = judge_key_store(program, keys.key_store, keys.key_store_password, moments)
    more, identity_pins = judge_trust_store(program, keys, moments)
    return findings + more, Identity(own, identity_pins, keys.expired_pins)


def judge_key_store(
    program: Program, path: str, password: str, moments: Sequence[datetime]
) -> tuple[list[Finding], x509.Certificate | None]:
    """Judge a key store; give its certificate where it can be used at all."""
    try:
        chain, _ = stores.load_key_store(path, password)
    except KeysError as error:
        return [Finding(Level.UNUSABLE, path, str(error))], None
    own = x509.load_pem_x509_certificate(chain)
    words = f"key store, {describe_subject(own)}, {describe_key(own.public_key())}, SHA-256 {fingerprint(own)}"
    findings = [
        Finding(Level.FINE, path, f"{words}: the key matches its certificate"),
        *judge_modes(path, private=True),
    ]
    if fault := purpose_fault(own, program.purpose):
        findings.append(Finding(Level.UNUSABLE, path, f"{fault}: every peer refuses it: make new keys with cmapppki"))
    for at in moments:
        level, words = expiry_words(own, at)
        cure = f": renew it with cmapppki renew {program.side}" if level is not Level.FINE else ""
        if date_fault(own, at):
            cure = f": peers accept it only as a pin, while they have expiredPins=accept{cure.replace(':', ';', 1)}"
        findings.append(Finding(level, path, f"{_when(at, moments)}the certificate {words}{cure}"))
    return findings, own


def judge_trust_store(
    program: Program, keys: Keys, moments: Sequence[datetime]
) -> tuple[list[Finding], tuple[x509.Certificate, ...]]:
    """Judge a trust store; give its certificates where it can be used at all."""
    path = keys.trust_store
    try:
        loaded = stores.load_trust_store(path, keys.trust_store_password)
    except KeysError as error:
        return [Finding(Level.UNUSABLE, path, str(error))], ()
    findings = judge_modes(path, private=False)
    pins = tuple(x509.load_der_x509_certificate(pin.der) for pin in loaded)
    for pin, certificate in zip(loaded, pins, strict=True):
        words = f"trust store, {pin.alias}: {describe_subject(certificate)}, SHA-256 {fingerprint(certificate)}"
        findings.append(Finding(Level.FINE, path, words))
        if not is_authority(certificate) and (fault := purpose_fault(certificate, program.peer_purpose)):
            findings.append(Finding(Level.UNUSABLE, path, f"{pin.alias}: {fault}: it was made for the other side"))
        for at in moments:
            findings.append(_judge_pin_dates(path, pin.alias, certificate, keys.expired_pins, at, moments))
    return findings, pins


def judge_modes(path: str, *, private: bool) -> list[Finding]:
    """Judge who else may read a private file, write to any, or replace it in its directory."""
    if sys.platform == "win32":
        return []
    try:
        real = os.path.realpath(path)
        findings = [
            *_judge_file(path, os.stat(real), private=private),
            *_judge_directories(path, os.path.dirname(real)),
        ]
    except OSError as error:
        words = f"its mode cannot be seen: {error.strerror} (errno:{error.errno})"
        return [Finding(Level.WARNING, path, words)]
    if all(finding.level is Level.FINE for finding in findings):
        words = "only its owner may use it" if private else "only its owner may change it"
        findings.append(Finding(Level.FINE, path, words))
    return findings


def _judge_file(path: str, status: os.stat_result, *, private: bool) -> list[Finding]:
    findings: list[Finding] = []
    if private and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        findings.append(Finding(Level.WARNING, path, f"others may use its private key: chmod 600 {path}"))
    elif not private and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        words = f"others may write to it and let themselves in: chmod 644 {path}"
        findings.append(Finding(Level.WARNING, path, words))
    if sys.platform != "win32" and status.st_uid not in {0, os.geteuid()}:
        # A server need not run as root, so this may be as it should be.
        cure = f"if the program is not his, chown root {path}"
        words = f"it belongs to the user {status.st_uid}, who may change it: {cure}"
        findings.append(Finding(Level.FINE, path, words))
    return findings


def _judge_directories(path: str, directory: str) -> list[Finding]:
    """Judge a directory and all above it: who may rename one of them may replace what is in it."""
    findings: list[Finding] = []
    while True:
        mode = os.stat(directory).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            words = f"everybody may replace files in {directory!r}: chmod o-w {directory}"
            findings.append(Finding(Level.WARNING, path, words))
        if directory == os.path.dirname(directory):
            return findings
        directory = os.path.dirname(directory)


def judge_acceptance(
    shown: x509.Certificate, purpose: Purpose, judge: Identity, name: str | None, at: datetime
) -> tuple[Level, str]:
    """Say whether the certificate of one program is accepted by another one, and why not. Pure.

    `name` is the node that is meant where a guest is judged. The rules are those of the contract, section 4, "Trust is
    a pin".
    """
    fault = date_fault(shown, at)
    if use := purpose_fault(shown, purpose):
        return Level.UNUSABLE, f"refused: {use}"
    if shown in judge.pins:
        if fault is None:
            return Level.FINE, "accepted"
        if judge.expired_pins == "refuse":
            return Level.UNUSABLE, f"refused: it {fault}, and expiredPins=refuse is set"
        return Level.WARNING, f"accepted, though it {fault}"
    if not any(is_authority(pin) and _issued(shown, pin) for pin in judge.pins):
        return Level.UNUSABLE, "refused: it is not in the trust store: add it with cmapppki trust"
    if fault is not None:
        return Level.UNUSABLE, f"refused: it {fault}, and it was issued by an authority"
    names = _names(shown)
    if not names or (name is not None and normal_name(name) not in names):
        return Level.UNUSABLE, f"refused: an authority issued it for {', '.join(sorted(names)) or 'no name'}"
    return Level.FINE, "accepted"


def _judge_pin_dates(
    path: str, alias: str, pin: x509.Certificate, policy: ExpiredPins, at: datetime, moments: Sequence[datetime]
) -> Finding:
    level, words = expiry_words(pin, at)
    text = f"{_when(at, moments)}{alias} {words}"
    if date_fault(pin, at) is None:
        cure = ": renew it where it comes from" if level is not Level.FINE else ""
        return Finding(level, path, text + cure)
    if policy == "refuse":
        return Finding(Level.UNUSABLE, path, f"{text}, and expiredPins=refuse is set: renew it where it comes from")
    return Finding(Level.WARNING, path, f"{text}; it is accepted with a warning: renew it where it comes from")


def _when(at: datetime, moments: Sequence[datetime]) -> str:
    if len(moments) == 1:
        return ""
    return "now: " if at == moments[0] else f"on {day(at)}: "


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> set[str]:
    names = alternative_names(certificate)
    if names is None:
        return set()
    kinds: tuple[type[x509.DNSName], type[x509.IPAddress]] = (x509.DNSName, x509.IPAddress)
    return {normal_name(str(name.value)) for name in names if isinstance(name, kinds)}

"""The rules in the guest's file: sections `rule NAME:`, sections of certificates, `others:` (see `rules`).

allow=/apps/*

rule oracle:
allow=/apps/oracle/*
user=oracle
limit=nofile 65536

clientpublic:
start=/apps/oracle/*
maxProcesses=5
"""

from __future__ import annotations

import os
import re
import sys

from appserver.attributes import LIMITS, UNLIMITED, Limit
from appserver.rules import Grant, Patterns, Policy, Rule, Verb, bare_fingerprint, is_fingerprint
from pki.errors import SettingsError
from pki.settings import Document, Entry, Values, parse_size

RULE_KEYS = ("allow", "user", "group", "directory", "environment", "limit")
GRANT_KEYS = ("start", "attach", "stop", "user", "maxProcesses")

NOTHING = "nothing"
"""In place of a pattern in the section of a certificate: forbids the verb."""

MAX_LIMIT = 2**63 - 1
"""setrlimit(2) counts in 64 bits, the largest of which mean no limit."""

_RULE = re.compile(r"rule\b\s*(.*)", re.DOTALL)
_POSITION = re.compile(r"certificate \d+")
"""What certificates of a PEM trust store are called, which has no aliases."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_policy(document: Document, own: Values, max_processes_limit: int) -> Policy:
    """Read all rules of a file; `own` are the keys outside sections.

    Raises `SettingsError`, which names file, line and key.
    """
    rules: list[Rule] = []
    grants: list[Grant] = []
    for section, line in document.opened:
        entries = document.of_section(section)
        rule = _RULE.fullmatch(section)
        if rule is not None:
            values = Values(document.path, entries, RULE_KEYS, repeatable=("allow", "environment", "limit"))
            rules.append(_rule(rule.group(1), values, f"{document.path}:{line}"))
        else:
            values = Values(document.path, entries, GRANT_KEYS, repeatable=("start", "attach", "stop"))
            grant = _grant(section, values, max_processes_limit)
            if any(other.name == grant.name for other in grants):
                raise SettingsError(f"{document.path}:{line}: a second section of the certificate {section!r}")
            if _POSITION.fullmatch(section):
                text = f"{section!r} is its place in a PEM file, which changes: name its fingerprint"
                raise SettingsError(f"{document.path}:{line}: {text}")
            grants.append(grant)
    return Policy(_patterns(own, "allow"), tuple(rules), tuple(grants))


def _rule(name: str, values: Values, where: str) -> Rule:
    if not name:
        raise SettingsError(f"{where}: the section is named 'rule' only: write 'rule NAME:', with a name of your own")
    allow = _patterns(values, "allow")
    if not allow:
        raise SettingsError(f"{where}: the rule {name!r} has no 'allow': it must say which programs it is for")
    _refuse_impossible(values, RULE_KEYS)
    directory = values.entry("directory")
    if directory is not None and not os.path.isabs(directory.value):
        raise values.complaint(directory, f"{directory.value!r:.60} is not an absolute path")
    return Rule(
        name=name,
        allow=allow,
        user=_word(values, "user"),
        group=_word(values, "group"),
        directory=directory.value if directory else None,
        environment=tuple(_variable(values, entry) for entry in values.all_entries("environment")),
        limits=_limits(values),
    )


def _grant(section: str, values: Values, max_processes_limit: int) -> Grant:
    name = bare_fingerprint(section)
    _refuse_impossible(values, GRANT_KEYS)
    return Grant(
        name=name if is_fingerprint(name) else section,
        start=_verb(values, "start"),
        attach=_verb(values, "attach"),
        stop=_verb(values, "stop"),
        user=_word(values, "user"),
        max_processes=values.integer("maxProcesses", 0, 1, max_processes_limit) or None,
    )


def _refuse_impossible(values: Values, keys: tuple[str, ...]) -> None:
    # There are no users of that kind on Windows; limits are set between fork and exec, by the waiter of a process.
    impossible = {"win32": ("user", "group", "limit"), "linux": ()}.get(sys.platform, ("limit",))
    for key in impossible:
        for entry in values.all_entries(key) if key in keys else ():
            raise values.complaint(entry, f"cannot be set on this system ({sys.platform})")


def _word(values: Values, key: str) -> str | None:
    return values.text(key, "") or None


def _verb(values: Values, verb: Verb) -> Patterns | None:
    entries = values.all_entries(verb)
    if not entries:
        return None
    nothing = [entry for entry in entries if entry.value == NOTHING]
    if nothing and len(entries) > 1:
        raise values.complaint(nothing[0], f"{NOTHING!r} stands beside patterns: which of them is meant?")
    return () if nothing else _patterns(values, verb)


def _patterns(values: Values, key: str) -> Patterns:
    entries = values.all_entries(key)
    for entry in entries:
        # A pattern that no absolute path can match would silently forbid everything.
        if not entry.value.startswith(("/", "*", "?", "[")) and not re.match(r"[A-Za-z]:[\\/]", entry.value):
            raise values.complaint(entry, f"{entry.value!r:.60} is not a pattern for an absolute path")
    return tuple(entry.value for entry in entries)


def _variable(values: Values, entry: Entry) -> tuple[str, str]:
    name, equals, text = entry.value.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        # The value may be a secret, and a line without a name shows where it begins.
        raise values.complaint(entry, "NAME=VALUE was expected, with a name of letters, digits and underscores")
    return name, text


def _limits(values: Values) -> tuple[Limit, ...]:
    found: dict[str, Limit] = {}
    for entry in values.all_entries("limit"):
        name, _, numbers = entry.value.partition(" ")
        soft, colon, hard = numbers.strip().partition(":")
        if name not in LIMITS:
            raise values.complaint(entry, f"{name!r:.60} is no limit: expected one of {', '.join(LIMITS)}")
        if name in found:
            raise values.complaint(entry, f"a second limit {name!r}")
        lower, upper = _amount(soft), _amount(hard if colon else soft)
        if lower is None or upper is None:
            raise values.complaint(
                entry, f"{numbers!r:.60} is no limit: write 4096, 64 MiB or unlimited, or two of them as SOFT:HARD"
            )
        if upper != UNLIMITED and (lower == UNLIMITED or lower > upper):
            raise values.complaint(entry, f"{numbers!r:.60}: the soft limit is above the hard one")
        found[name] = Limit(name, lower, upper)
    return tuple(found.values())


def _amount(text: str) -> int | None:
    if text == "unlimited":
        return UNLIMITED
    size = parse_size(text)
    return size if size is not None and size <= MAX_LIMIT else None

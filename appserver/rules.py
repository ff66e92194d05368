"""Who may do what in this guest: the values, and what follows from them. Pure.

Two questions, answered by two kinds of sections of the guest's file (contract, section 3):

- *What may be started, and how?* `allow` patterns, alone or in sections `rule NAME:`, which also set the user, the
  directory, the environment and the limits of what they allow. Where there is any pattern, nothing else may be started.
  The first rule that matches is the one that counts; the patterns outside sections come last, and set nothing.
- *Which manager may do it?* A section named by a certificate narrows what whoever holds that one may start, attach to
  and stop, as which user, and how many at once. `others:` stands for all certificates without a section; without it,
  they may do everything. So a section can take away, never give.

Patterns are matched against the path of the program with all links resolved, in `commands`, since that looks at the
file system. What ran before the rules changed is judged by the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias, final

from appserver.attributes import UNLIMITED, Limit
from pki.frozen import dataclass

Verb: TypeAlias = Literal["start", "attach", "stop"]

Patterns: TypeAlias = tuple[str, ...]

SHA256_HEX_DIGITS = 64

OTHERS = "others"
"""The section for every certificate that has none."""


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """What may be started, and as what. `None` leaves what the server does by itself."""

    name: str
    allow: Patterns
    user: str | None = None
    group: str | None = None
    directory: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    limits: tuple[Limit, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Grant:
    """What the managers of one certificate may do; `None` does not narrow. An empty tuple of patterns forbids."""

    name: str
    start: Patterns | None = None
    attach: Patterns | None = None
    stop: Patterns | None = None
    user: str | None = None
    max_processes: int | None = None
    own_only: bool = False
    """Nothing may be started, and only what this certificate has started be attached to and stopped."""

    def patterns(self, verb: Verb) -> Patterns | None:
        """Give what limits a verb: where nothing is said of attaching or stopping, what is said of starting holds."""
        own = {"start": self.start, "attach": self.attach, "stop": self.stop}[verb]
        return self.start if own is None else own

    @property
    def is_narrow(self) -> bool:
        """Tell whether it takes anything away but a number of processes."""
        return self.own_only or not all(value is None for value in (self.start, self.attach, self.stop, self.user))


EVERYTHING = Grant("nobody's")

DISTRUSTED = Grant("trusted no more", start=(), own_only=True)
"""For the sessions of a certificate that a reload has taken out of the trust store: they stay, but nothing begins."""


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """What the guest's file says. `allow` are the patterns outside sections, `grants` the sections of certificates."""

    allow: Patterns = ()
    rules: tuple[Rule, ...] = ()
    grants: tuple[Grant, ...] = ()

    @property
    def is_closed(self) -> bool:
        """Tell whether nothing may be started but what a pattern matches."""
        return bool(self.allow) or bool(self.rules)


OPEN = Policy()


@final
class Grants:
    """The sections of certificates, and whose they are."""

    def __init__(
        self, grants: Iterable[Grant], aliases: Mapping[str, str | None], distrusted: Iterable[str] = ()
    ) -> None:
        """Take the grants, of every trusted certificate the fingerprint and the alias, and the fingerprints of those
        that have a session but are trusted no more.
        """
        by_name = {grant.name: grant for grant in grants}
        self._others = by_name.pop(OTHERS, EVERYTHING)
        # A name that is a fingerprint is nobody's alias, whatever somebody has called the certificate that he sent.
        self._of = {name: grant for name, grant in by_name.items() if is_fingerprint(name)}
        known = {bare_fingerprint(fingerprint): (alias or "").casefold() for fingerprint, alias in aliases.items()}
        used = set[str]()
        doubled: list[str] = []
        for fingerprint, alias in known.items():
            if fingerprint in self._of:
                used.add(fingerprint)
            if alias in by_name and not is_fingerprint(alias):
                used.add(alias)
                if fingerprint in self._of:
                    doubled.append(alias)
                self._of.setdefault(fingerprint, by_name[alias])
        for fingerprint in distrusted:
            self._of[bare_fingerprint(fingerprint)] = DISTRUSTED
        self.unknown = tuple(name for name in by_name if name not in used)
        """Sections that name no trusted certificate, in the order of the file."""
        self.doubled = tuple(doubled)
        """Sections by an alias whose certificate has one by its fingerprint, which counts."""

    def of(self, fingerprint: str) -> Grant:
        """Give what the holder of a certificate may do."""
        return self._of.get(bare_fingerprint(fingerprint), self._others)


NO_GRANTS = Grants((), {})


def bare_fingerprint(fingerprint: str) -> str:
    """Give the form in which fingerprints are compared: no colons, lower case."""
    return fingerprint.replace(":", "").casefold()


def is_fingerprint(name: str) -> bool:
    """Tell whether a bare name is a SHA-256 fingerprint; anything else is an alias."""
    return len(name) == SHA256_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in name)


def show_policy(policy: Policy) -> list[str]:
    """Say in lines for people, as `--check` prints them, what may be started and who may do what."""
    lines = [
        f"may be started {', '.join(rule.allow)}: rule {rule.name!r}{''.join(_show_rule(rule))}"
        for rule in policy.rules
    ]
    if policy.allow or not policy.rules:
        lines.append(f"may be started {', '.join(policy.allow) or 'any program'}")
    return lines + [
        f"manager        {grant.name}: {', '.join(_show_grant(grant)) or 'everything'}" for grant in policy.grants
    ]


def _show_rule(rule: Rule) -> Iterator[str]:
    if rule.user is not None:
        yield f", user {rule.user}"
    if rule.group is not None:
        yield f", group {rule.group}"
    if rule.directory is not None:
        yield f", directory {rule.directory}"
    if rule.environment:
        yield f", environment {' '.join(name for name, _ in rule.environment)}"
    for limit in rule.limits:
        yield f", limit {limit.name} {_show_amount(limit.soft)}:{_show_amount(limit.hard)}"


def _show_amount(amount: int) -> str:
    return "unlimited" if amount == UNLIMITED else str(amount)


def _show_grant(grant: Grant) -> Iterator[str]:
    verbs: tuple[Verb, ...] = ("start", "attach", "stop")
    for verb in verbs:
        patterns = grant.patterns(verb)
        if patterns is not None:
            yield f"{verb} {' '.join(patterns) or 'nothing'}"
    if grant.user is not None:
        yield f"as {grant.user} only"
    if grant.max_processes is not None:
        yield f"{grant.max_processes} at once"

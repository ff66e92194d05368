"""Which program a command means in this guest, and whether it may be started."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from typing import final

from appserver.rules import EVERYTHING, OPEN, Grant, Policy, Rule, Verb
from pki.frozen import dataclass


@final
class CommandError(Exception):
    """The command will not be started; `code` is the refusal's code on the wire."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@final
@dataclass(frozen=True, slots=True)
class Program:
    """What a command means here: `path` as it was found, `real` with all links resolved, and the rule for it."""

    path: str
    real: str
    rule: Rule | None


def resolve_command(
    word: str, environment: Mapping[str, str], policy: Policy = OPEN, grant: Grant = EVERYTHING
) -> Program:
    """Find the program that `word` means, and the rule that permits it. Blocks, as long as a file system hangs.

    A word with a slash is a path, relative to `/` (the working directory of applications); any other is looked for
    along PATH. Raises CommandError where there is none, it is a directory, not executable, or not permitted.
    """
    path = _find(word, environment)
    _check(path)
    real = os.path.realpath(path)
    if not permits(grant, "start", real):
        raise CommandError(
            "rule", f"{path!r} may not be started by this manager: its section {grant.name!r} has no {real!r}"
        )
    rule = next((rule for rule in policy.rules if matches(real, rule.allow)), None)
    if rule is None and policy.is_closed and not matches(real, policy.allow):
        raise CommandError("rule", f"{path!r} may not be started: no 'allow' rule of this guest matches {real!r}")
    return Program(path, real, rule)


def permits(grant: Grant, verb: Verb, real: str) -> bool:
    """Tell whether a grant permits a verb for a program, given by its path with all links resolved. Blocks, too."""
    patterns = grant.patterns(verb)
    return patterns is None or matches(real, patterns)


def matches(real: str, patterns: Iterable[str]) -> bool:
    """Tell whether any of the patterns (of `fnmatch`) matches a path with all links resolved. Blocks, too."""
    return any(fnmatch.fnmatchcase(real, _resolved(pattern)) for pattern in patterns)


def _resolved(pattern: str) -> str:
    """Resolve links in the part of a pattern before its first wildcard: `/bin/*` means `/usr/bin/*` where those are
    one.
    """
    plain = re.match(r"[^*?\[]*", pattern)
    assert plain is not None
    if plain.group() == pattern:
        return os.path.realpath(pattern)
    directory, start = os.path.split(plain.group())
    if not directory:
        return pattern
    return os.path.join(os.path.realpath(directory), start) + pattern[plain.end() :]


def _find(word: str, environment: Mapping[str, str]) -> str:
    if os.path.dirname(word):
        return os.path.normpath(os.path.join(os.path.sep, word))
    search_path = environment.get("PATH") or os.defpath
    for directory in search_path.split(os.pathsep):
        candidate = os.path.join(os.path.abspath(directory or os.path.sep), word)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise CommandError(
        "no-such-command", f"there is no command {word!r} in the server's PATH, {search_path}: give its path"
    )


def _check(path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        number = error.errno or errno.EIO
        code = "no-such-command" if number in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP} else "start-failed"
        if number == errno.EACCES:
            code = "not-executable"
        reason = "there is no such command" if code == "no-such-command" else os.strerror(number)
        raise CommandError(code, f"{path!r} cannot be started: {reason} (errno:{number})") from error
    if os.path.isdir(path):
        raise CommandError("is-a-directory", f"{path!r} is a directory, a command was expected")
    if not os.access(path, os.X_OK):
        raise CommandError(
            "not-executable", f"{path!r} is not executable: its x bit is not set, or the file system is noexec"
        )

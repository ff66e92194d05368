"""Which program a command means in this guest, and whether it may be started."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from typing import final


@final
class CommandError(Exception):
    """The command will not be started; `code` is the refusal's code on the wire."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def resolve_command(word: str, environment: Mapping[str, str], allow: Iterable[str] = ()) -> str:
    """Find the program that `word` means and give its absolute path.

    A word with a slash is a path, relative to `/` (the working directory of applications); any other is looked for
    along PATH. Raises CommandError where there is none, it is a directory, not executable, or not allowed by any
    pattern of `allow` (patterns of `fnmatch` for the path with all links resolved; where there are none, everything is
    allowed).
    """
    path = _find(word, environment)
    _check(path)
    patterns = tuple(allow)
    real = os.path.realpath(path)
    if patterns and not any(fnmatch.fnmatchcase(real, _resolved(pattern)) for pattern in patterns):
        raise CommandError("rule", f"{path!r} may not be started: no 'allow' rule of this guest matches {real!r}")
    return path


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

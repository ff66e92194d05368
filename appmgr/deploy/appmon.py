r"""An application monitor: what one asks for it, which rules its values keep, and the service command that comes of it.

The names of Serviceguard's services, the limits and the defaults are those that its manuals and the old guide publish.

**The form with colons**, `NAME:COMMAND:TIMEOUT:RESTART:HALT_TIMEOUT`, is older than commands with colons in them
(`C:\apps\web.exe`, `/apps/web --listen 127.0.0.1:80`). No value but the command can have a colon, so there is one
way to read it: the first colon ends the name, the last three begin the numbers, and all that is between is the
command. A number may be left out, its colon may not: how many there are is what tells where the command ends.

**The service command** goes through a shell once: Serviceguard runs it under `/bin/sh -c`. What the guest gets must be
the command as it was entered, blanks included, since that string identifies the application. So it is one word,
in single quotes where it needs any: nothing is special between those, neither backslash nor dollar nor double quote.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final, final

from appmgr.deploy.errors import AnswerRefused
from appmgr.options import ManagerOptions, UsageError, parse_options

MAX_NAME_CHARACTERS: Final = 39
MAX_SERVICES: Final = 30
"""In one package. Both are Serviceguard's."""

MAX_HALT_TIMEOUT_SECONDS: Final = 4294
"""Serviceguard's: it counts microseconds in 32 bits."""

MAX_TIMEOUT_SECONDS: Final = 86400
"""A day; a typing error should not make a monitor that never gives up."""

MAX_RESTARTS: Final = 999_999_999
"""Serviceguard publishes no limit; `unlimited` is the word for more."""

DEFAULT_NAME: Final = "appmon"
"""With a number behind it."""

DEFAULT_TIMEOUT_SECONDS: Final = 10
DEFAULT_RESTART: Final = "none"
DEFAULT_HALT_TIMEOUT_SECONDS: Final = 300

MANAGER_PATH: Final = "/usr/sbin/cmappmgr"

COLON_FORM: Final = "NAME:COMMAND:TIMEOUT:RESTART:HALT_TIMEOUT"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")


@final
@dataclass(frozen=True, slots=True)
class AppMonitor:
    """One application to be watched. `restart` is `none`, `unlimited` or a number; the timeouts are in seconds.

    `timeout_seconds` is for contact with the server in the guest, `halt_timeout_seconds` from TERM to KILL.
    """

    name: str
    command: str
    timeout_seconds: int = DEFAULT_TIMEOUT_SECONDS
    restart: str = DEFAULT_RESTART
    halt_timeout_seconds: int = DEFAULT_HALT_TIMEOUT_SECONDS


@final
@dataclass(frozen=True, slots=True)
class Manager:
    """How the manager of a guest is called: its program, the guest's name, and its configuration if not the default."""

    node: str
    program: str = MANAGER_PATH
    config: str | None = None

    def command(self, monitor: AppMonitor) -> str:
        """Give the command of a service, as a shell has to read it."""
        words = [self.program, "-node", self.node, "-cmappserver_timeout", str(monitor.timeout_seconds)]
        if self.config is not None:
            words += ["--config", self.config]
        return " ".join(quoted(word) for word in [*words, "-service", monitor.command])


def quoted(word: str) -> str:
    """Quote a word for a shell, without double quotes: those are for the file around it."""
    if _NEEDS_NO_QUOTES.fullmatch(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def watched_by(command: str) -> ManagerOptions | None:
    """Give what a service command has a manager do, read as a shell reads it; None where it calls no manager of ours.

    Variables and the like are not expanded, so a command with any is what it looks like.
    """
    try:
        words = shlex.split(command)
        if not words or not words[0].endswith("cmappmgr"):
            return None
        options = parse_options(words[1:])
    except (ValueError, UsageError):
        return None
    return options if isinstance(options, ManagerOptions) else None


def parse_name(text: str) -> str:
    """Give the name of a service. Raises `AnswerRefused` for one outside Serviceguard's rules."""
    if len(text) > MAX_NAME_CHARACTERS:
        raise AnswerRefused(f"{text!r:.60} has {len(text)} characters: {MAX_NAME_CHARACTERS} are allowed")
    if not _NAME.fullmatch(text):
        raise AnswerRefused(
            f"{text!r} is no name of a service: it begins and ends with a letter or digit of ASCII, "
            "and has only those, '.', '-' and '_' between"
        )
    return text


def parse_command(text: str) -> str:
    """Give the command line to run in the guest, as it is. Raises `AnswerRefused` for one that cannot be a service."""
    if not text.strip():
        raise AnswerRefused("the command line is empty: expected what to run in the guest, such as /apps/ping_mon")
    if not text.isprintable():
        raise AnswerRefused(f"{text!r:.100} has a control character, or bytes that are not UTF-8")
    try:
        parse_options(["-node", "guest", "-service", text])
    except UsageError as error:
        raise AnswerRefused(str(error).removeprefix("-service: ")) from error
    return text


def parse_timeout(text: str) -> int:
    """Give the seconds without an answer after which a manager gives up. Raises `AnswerRefused`."""
    return _whole(text, DEFAULT_TIMEOUT_SECONDS, 1, MAX_TIMEOUT_SECONDS, "seconds")


def parse_halt_timeout(text: str) -> int:
    """Give the seconds from TERM to KILL when the service is halted. Raises `AnswerRefused`."""
    return _whole(text, DEFAULT_HALT_TIMEOUT_SECONDS, 0, MAX_HALT_TIMEOUT_SECONDS, "seconds")


def parse_restart(text: str) -> str:
    """Give how often a service is started again: `none`, `unlimited` or a number. Raises `AnswerRefused`."""
    word = text.lower()
    if word in {"", "none", "unlimited"}:
        return word or DEFAULT_RESTART
    try:
        return str(_whole(text, 0, 1, MAX_RESTARTS, "restarts"))
    except AnswerRefused as error:
        raise AnswerRefused(f"{error}, 'none' or 'unlimited'") from error


def _whole(text: str, default: int, minimum: int, maximum: int, what: str) -> int:
    if not text:
        return default
    # Ten digits are beyond every maximum here; int() alone takes "1_000" and digits of every script, too.
    if text.isascii() and text.isdigit() and len(text) <= 10 and minimum <= int(text) <= maximum:
        return int(text)
    raise AnswerRefused(f"{text!r:.60} is not a whole number of {what} from {minimum} to {maximum}")


def parse_colons(text: str) -> AppMonitor:
    """Read `NAME:COMMAND:TIMEOUT:RESTART:HALT_TIMEOUT`; the last three may be empty. Raises `AnswerRefused`."""
    name, _, rest = text.partition(":")
    parts = rest.rsplit(":", 3)
    if len(parts) != 4:
        raise AnswerRefused(
            f"{text!r:.100} is not {COLON_FORM}: all four colons are needed, a number may be left empty for its default"
        )
    command, timeout, restart, halt_timeout = parts
    return AppMonitor(
        parse_name(name),
        parse_command(command),
        parse_timeout(timeout),
        parse_restart(restart),
        parse_halt_timeout(halt_timeout),
    )

"""The words of the command line to one frozen `ManagerOptions` (contract, section 1).

The vector is cut at the first `-service` before anything else looks at it: all that follows belongs to the
application, dashes and `--` included. What stands before goes through one small table, `OPTIONS`, of which `--help`,
the manual page and the completion are made. argparse is not used: it abbreviates options with one dash whatever
`allow_abbrev` says, takes `--` away, and takes its time to import.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn, final

from appserver.codec import encode
from appserver.identity import Service, ServiceError, service_from_words
from appserver.messages import (
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    MAX_TAIL_LINES,
    RUN_ID_DIGITS,
    MessageError,
    Run,
    Survivors,
    is_run_id,
)
from appserver.ports import MAX_PORT
from pki.frozen import dataclass

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_POLL_SECONDS = 5.0
DEFAULT_STOP_TIMEOUT_SECONDS = 30.0
DEFAULT_FAILURE_STATUS = 1
DEFAULT_TAIL_LINES = 20

SERVICE_SPELLINGS = ("-service", "--service")
"""The last option: what stands behind it belongs to the application."""

_TYPESET_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""What a word processor makes of `-` and `--`; the old guide itself was printed with them."""

OnHalt = Literal["detach", "stop"]
Wish = Literal["run", "attach", "stop"]
"""What the manager is there for: to have the application running, to watch it if it runs, or to end it if it runs."""

SHORT_HELP = """\
usage: cmappmgr -node NODE [-cmappserver_timeout SECONDS] [OPTION ...] -service COMMAND [ARG ...]
cmappmgr --help tells more
"""


class UsageError(ValueError):
    """The command line is wrong: exit status 2, and nothing was done."""


@final
@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """What one manager was asked to do. Times are in seconds; `port` and `config` are None where not given."""

    node: str
    service: Service
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    boot_timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    poll_seconds: float = DEFAULT_POLL_SECONDS
    port: int | None = None
    config: str | None = None
    on_halt: OnHalt = "detach"
    stop_timeout_seconds: float = DEFAULT_STOP_TIMEOUT_SECONDS
    survivors: Survivors = "leave"
    failure_status: int = DEFAULT_FAILURE_STATUS
    tail_lines: int = DEFAULT_TAIL_LINES
    action: Wish = "run"
    run_id: str | None = None
    status_file: str | None = None


def parse_options(words: Sequence[str]) -> ManagerOptions | Literal["help", "version"]:
    """Read the command line without the program's name.

    Raises `UsageError` for everything that the contract calls wrong usage, an option that is given twice, and a service
    that is longer than a message.
    """
    cut = next((index for index, word in enumerate(words) if word in SERVICE_SPELLINGS), len(words))
    given = _read_options([_utf8(word) for word in words[:cut]])
    if isinstance(given, str):
        return given
    if given.node is None:
        raise UsageError("-node is missing: name the guest")
    if cut == len(words):
        raise UsageError("-service is missing: give it last, with the command behind it")
    service = _service([_utf8(word) for word in words[cut + 1 :]], given.instance)
    return ManagerOptions(
        node=given.node,
        service=service,
        timeout_seconds=given.timeout_seconds,
        boot_timeout_seconds=given.boot_timeout_seconds or given.timeout_seconds,
        poll_seconds=given.poll_seconds,
        port=given.port,
        config=given.config,
        on_halt=given.on_halt,
        stop_timeout_seconds=given.stop_timeout_seconds,
        survivors=given.survivors,
        failure_status=given.failure_status,
        tail_lines=given.tail_lines,
        action=given.action,
        run_id=given.run_id,
        status_file=given.status_file,
    )


class _Given:
    """The options while they are being read."""

    def __init__(self) -> None:
        self.node: str | None = None
        self.instance: str | None = None
        self.timeout_seconds = DEFAULT_TIMEOUT_SECONDS
        self.boot_timeout_seconds: float | None = None
        self.poll_seconds = DEFAULT_POLL_SECONDS
        self.port: int | None = None
        self.config: str | None = None
        self.on_halt: OnHalt = "detach"
        self.stop_timeout_seconds = DEFAULT_STOP_TIMEOUT_SECONDS
        self.survivors: Survivors = "leave"
        self.failure_status = DEFAULT_FAILURE_STATUS
        self.tail_lines = DEFAULT_TAIL_LINES
        self.action: Wish = "run"
        self.run_id: str | None = None
        self.status_file: str | None = None

    def set_node(self, option: str, value: str) -> None:
        if not value or value.startswith("-") or not value.isprintable() or " " in value:
            raise UsageError(f"{option}: {value!r:.100} is no host name or address")
        self.node = value

    def set_timeout(self, option: str, value: str) -> None:
        self.timeout_seconds = _seconds(option, value)

    def set_boot_timeout(self, option: str, value: str) -> None:
        self.boot_timeout_seconds = _seconds(option, value)

    def set_poll(self, option: str, value: str) -> None:
        self.poll_seconds = _seconds(option, value)

    def set_port(self, option: str, value: str) -> None:
        self.port = _whole(option, value, 1, MAX_PORT)

    def set_config(self, option: str, value: str) -> None:
        if not value or "\0" in value:
            raise UsageError(f"{option}: {value!r:.100} is no path")
        self.config = value

    def set_instance(self, option: str, value: str) -> None:
        if not value or len(value) > MAX_NAME_CHARACTERS:
            raise UsageError(f"{option}: {value!r:.100} is no name of 1 to {MAX_NAME_CHARACTERS} characters")
        self.instance = value

    def set_on_halt(self, option: str, value: str) -> None:
        match value:
            case "detach" | "stop":
                self.on_halt = value
            case _:
                raise UsageError(f"{option}: {value!r:.100} is neither detach nor stop")

    def set_stop_timeout(self, option: str, value: str) -> None:
        self.stop_timeout_seconds = _seconds(option, value)

    def set_survivors(self, option: str, value: str) -> None:
        match value:
            case "leave" | "stop":
                self.survivors = value
            case _:
                raise UsageError(f"{option}: {value!r:.100} is neither leave nor stop")

    def set_failure_status(self, option: str, value: str) -> None:
        self.failure_status = _whole(option, value, 1, 255)

    def set_tail(self, option: str, value: str) -> None:
        self.tail_lines = _whole(option, value, 0, MAX_TAIL_LINES)

    def set_action(self, option: str, value: str) -> None:
        match value:
            case "run" | "attach" | "stop":
                self.action = value
            case _:
                raise UsageError(f"{option}: {value!r:.100} is neither run nor attach nor stop")

    def set_run_id(self, option: str, value: str) -> None:
        if not is_run_id(value):
            raise UsageError(f"{option}: {value!r:.100} is not {RUN_ID_DIGITS} lowercase hexadecimal digits")
        self.run_id = value

    def set_status_file(self, option: str, value: str) -> None:
        if not value or "\0" in value:
            raise UsageError(f"{option}: {value!r:.100} is no path")
        self.status_file = value


@final
@dataclass(frozen=True, slots=True)
class Option:
    """One option: how it is spelled, what its value is called, and what `--help` and the manual page say of it.

    `default` is empty where there is none. `take` reads the value; None where the option takes none or, as `-service`,
    is looked for before all others.
    """

    spellings: tuple[str, ...]
    value: str
    meaning: str
    default: str = ""
    take: Callable[[_Given, str, str], None] | None = None


OPTIONS = (
    Option(
        ("-node", "--node"),
        "NODE",
        "the guest: host name or address, and its section in the configuration file",
        take=_Given.set_node,
    ),
    Option(
        SERVICE_SPELLINGS,
        "COMMAND",
        "the last option: all that follows is the command. One word is a command line, split in the guest without a "
        "shell; several words are the exact argument vector",
    ),
    Option(
        ("-cmappserver_timeout", "--cmappserver-timeout", "-cmappmgr_timeout"),
        "SECONDS",
        "give up when the server has not answered for so long",
        f"{DEFAULT_TIMEOUT_SECONDS:g}",
        _Given.set_timeout,
    ),
    Option(
        ("--boot-timeout",),
        "SECONDS",
        "the same for the first contact, while the guest may boot",
        "the timeout above",
        _Given.set_boot_timeout,
    ),
    Option(
        ("--poll-interval",),
        "SECONDS",
        "between polls, at most a third of the timeout",
        f"{DEFAULT_POLL_SECONDS:g}",
        _Given.set_poll,
    ),
    Option(("--port",), "PORT", "the server's port", "the configuration's, else 5315", _Given.set_port),
    Option(
        ("--config",), "FILE", "the configuration file", "/etc/cmappmgr.conf, which may be absent", _Given.set_config
    ),
    Option(("--instance",), "NAME", "tells two runs of one command apart", take=_Given.set_instance),
    Option(
        ("--on-halt",),
        "detach|stop",
        "on TERM, INT or HUP: leave the application running, or stop it first",
        "detach",
        _Given.set_on_halt,
    ),
    Option(
        ("--stop-timeout",),
        "SECONDS",
        "between TERM and KILL when the application is stopped",
        f"{DEFAULT_STOP_TIMEOUT_SECONDS:g}",
        _Given.set_stop_timeout,
    ),
    Option(
        ("--survivors",),
        "leave|stop",
        "descendants that live on when the main process ends by itself",
        "leave",
        _Given.set_survivors,
    ),
    Option(
        ("--failure-status",),
        "N",
        "exit status for failures of the manager itself, 1 to 255",
        f"{DEFAULT_FAILURE_STATUS}",
        _Given.set_failure_status,
    ),
    Option(
        ("--tail",),
        "LINES",
        "last lines of its output to log when it ends by itself",
        f"{DEFAULT_TAIL_LINES}",
        _Given.set_tail,
    ),
    Option(
        ("--action",),
        "run|attach|stop",
        "start it unless it runs; only watch what runs; or stop what runs, and end with 0 when nothing of it is left. "
        "The latter two start nothing",
        "run",
        _Given.set_action,
    ),
    Option(
        ("--run-id",),
        "ID",
        "the id of the run, 32 hexadecimal digits; attach and stop mean that run only",
        "a new one",
        _Given.set_run_id,
    ),
    Option(
        ("--status-file",),
        "FILE",
        "how things stand, kept up to date in a small file that scripts can read",
        take=_Given.set_status_file,
    ),
    Option(("--version",), "", "print the version and end"),
    Option(("--help",), "", "print this help and end"),
)

_TAKERS = {spelling: option.take for option in OPTIONS if option.take is not None for spelling in option.spellings}


def _read_options(words: list[str]) -> _Given | Literal["help", "version"]:
    given = _Given()
    seen: set[Callable[[_Given, str, str], None]] = set()
    remaining = iter(words)
    for word in remaining:
        match word:
            case "--help":
                return "help"
            case "--version":
                return "version"
        option, equals, value = word.partition("=")
        take = _TAKERS.get(option)
        if take is None:
            _refuse_word(word)
        if take in seen:
            raise UsageError(f"{option} is given twice")
        seen.add(take)
        if not equals:
            value = next(remaining, None) or _refuse_missing(option)
            if value.partition("=")[0] in _TAKERS:
                _refuse_missing(option)
        take(given, option, value)
    return given


def _refuse_missing(option: str) -> NoReturn:
    raise UsageError(f"{option} needs a value")


def _refuse_word(word: str) -> NoReturn:
    if word[:1] and word[0] in _TYPESET_DASHES:
        raise UsageError(f"{word!r:.100} starts with the dash of a word processor: type '-' or '--' instead")
    if word.startswith(tuple(f"{option}=" for option in SERVICE_SPELLINGS)):
        raise UsageError(f"{word!r:.100}: write the command as words of their own behind -service")
    if word.startswith("-"):
        raise UsageError(f"unknown option {word!r:.100} (options cannot be abbreviated)")
    raise UsageError(f"unexpected word {word!r:.100}: the command stands behind -service")


def _service(words: list[str], instance: str | None) -> Service:
    try:
        service = service_from_words(words, instance)
        encode(Run(1, "0" * RUN_ID_DIGITS, service, "leave", MAX_SECONDS, MAX_TAIL_LINES))
    except (ServiceError, MessageError) as error:
        raise UsageError(f"-service: {error}") from error
    return service


def _utf8(word: str) -> str:
    """Give the word as the UTF-8 that the caller wrote, whatever the locale made of it."""
    try:
        return word if sys.platform == "win32" else os.fsencode(word).decode("utf-8")
    except UnicodeError as error:
        raise UsageError(f"{word!r:.100} is not UTF-8") from error


def _seconds(option: str, value: str) -> float:
    try:
        seconds = float(value) if value and set(value) <= set("0123456789.eE+-") else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"{option}: {value!r:.100} is not a positive finite number of seconds")
    return min(seconds, MAX_SECONDS)


def _whole(option: str, value: str, minimum: int, maximum: int) -> int:
    # Ten digits are beyond every maximum here, and int() must not be fed more than it converts in no time.
    if value.isascii() and value.isdigit() and len(value) <= 10 and minimum <= int(value) <= maximum:
        return int(value)
    raise UsageError(f"{option}: {value!r:.100} is not a whole number from {minimum} to {maximum}")

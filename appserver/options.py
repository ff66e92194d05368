"""The words of `cmappserver`.

A server serves for months, and would keep what `argparse` brings along for all that time. So the words of one that is
to serve, options with a value and nothing else, are read here. For all other words, help and errors included, the
parser is asked, which knows all of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from appserver.settings import default_config_path
from appserver.version import VERSION
from pki.frozen import dataclass

if TYPE_CHECKING:
    import argparse

STOP_ALL_SECONDS = 60.0
"""What applications are given at most to end by themselves when all are stopped; the unit for the shutdown waits a
little longer.
"""

PROGRAM = "cmappserver"

_PLAIN = {
    "--config": "config",
    "--listen": "listen",
    "--port": "port",
    "--state-dir": "state_dir",
    "--log-dir": "log_dir",
}
"""The options of a server that is to serve; each has a value."""

_EPILOG = """\
signals:
  TERM, INT   let the managers go and end with 0; applications go on, and the next server finds them again
  HUP         read configuration and keys again; if anything is wrong with them the old ones stay in force

exit status:
  0 ended by TERM or INT, --check found all in order, or --stop-all has left nobody; 1 configuration, keys,
  port or state directory cannot be used, or an application cannot be stopped; 2 wrong usage

examples:
  cmappserver                              serve as /opt/hp/cmappserver/cmappserver.conf says
  cmappserver --check                      say what that would be, and whether the keys work
  cmappserver --config ./g.conf --port 0   try it out on a free port
  cmappserver --stop-all 120               stop every application of this guest, with or without a server
"""


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What the words say, each as its option says it; None, or False, where it was not there."""

    config: str | None = None
    listen: tuple[str, ...] | None = None
    port: int | None = None
    state_dir: str | None = None
    log_dir: str | None = None
    check: bool = False
    stop_all: float | None = None
    until_boot: bool = False


def read_plainly(argv: Sequence[str]) -> Options | None:
    """Read the words of a server that is to serve; None where the parser has to be asked."""
    found: dict[str, str] = {}
    listen: list[str] = []
    words = iter(argv)
    for word in words:
        name, is_joined, value = word.partition("=")
        if name not in _PLAIN or (not is_joined and (value := next(words, "-")).startswith("-")):
            return None
        if name == "--listen":
            listen.append(value)
        if name == "--port" and _port_of(value) is None:
            return None
        found[_PLAIN[name]] = value
    port = found.get("port")
    return Options(
        config=found.get("config"),
        listen=tuple(listen) or None,
        port=None if port is None else _port_of(port),
        state_dir=found.get("state_dir"),
        log_dir=found.get("log_dir"),
    )


def read_all(argv: Sequence[str]) -> Options:
    """Have the parser read the words. Raises SystemExit as `main` does."""
    parser = command_line()
    options = parser.parse_args(argv)
    if options.stop_all is None and options.until_boot:
        parser.error("--until-boot goes with --stop-all")
    if options.stop_all is not None and options.check:
        parser.error("--check and --stop-all exclude each other")
    found = vars(options)
    return Options(**{**found, "listen": tuple(options.listen) if options.listen else None})


def command_line() -> argparse.ArgumentParser:
    """Give the parser; the manual page and the completion are made of it too."""
    import argparse

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run and watch applications in this guest for the cluster on the host. One for each guest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"configuration file (default {default_config_path()}, may be absent)"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        help="address to listen on, may repeat (default: the file's 'listen', else all, IPv4 and IPv6)",
    )
    parser.add_argument(
        "--port", metavar="N", type=_port, help="TCP port, 0 for a free one (default: the file's 'port', else 5315)"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the runs are recorded (default: the file's 'stateDir', else /run/cmappserver)",
    )
    parser.add_argument(
        "--log-dir", metavar="DIR", help="where output goes (default: the file's 'logDir', else /var/log/cmappserver)"
    )
    parser.add_argument(
        "--check", action="store_true", help="validate configuration and keys, say what would be done, and end"
    )
    parser.set_defaults(stop_all=None, until_boot=False)
    if sys.platform == "linux":
        _add_stopping(parser)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    return parser


def _add_stopping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop-all",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=STOP_ALL_SECONDS,
        help="stop every application of this guest, whether a server runs or not, and end: TERM to each, KILL after "
        f"the stop timeout of each, but SECONDS at most (default {STOP_ALL_SECONDS:g}); nothing is started meanwhile",
    )
    parser.add_argument(
        "--until-boot",
        action="store_true",
        help="with --stop-all: have nothing started any more until the next boot; for the shutdown of the system",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"{text!r} is no time: a positive number of seconds was expected")
    return seconds


def _port(text: str) -> int:
    port = _port_of(text)
    if port is None:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535 was expected")
    return port


def _port_of(text: str) -> int | None:
    digits = text.lstrip("0") or text[-1:]  # of very many digits Python makes no number
    if not text.isascii() or not text.isdigit() or len(digits) > 5 or int(digits) > 65535:
        return None
    return int(digits)

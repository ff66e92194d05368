"""The words of the command line to one frozen `DeployOptions`.

Of the old script's options those are here that concern application monitors. The others are known by name, so that
the refusal can say what this program does and does not do.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, final

from appmgr.deploy.appmon import (
    COLON_FORM,
    DEFAULT_HALT_TIMEOUT_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    MANAGER_PATH,
    AppMonitor,
    parse_colons,
)
from appmgr.deploy.errors import AnswerRefused, UsageError
from appserver.version import software

PROGRAM = "cmdeployvpkg"

Engine = Literal["serviceguard", "pacemaker"]

_DESCRIPTION = """\
Give the package of a guest application monitors: services that have cmappmgr run
a command in the guest and watch it. The package must exist already, with its
configuration file in the cluster's configuration directory, and the server in
the guest must be running, since the communication with it is tried.
"""

_EPILOG = f"""\
what -x takes:
  merge            merge into the package's existing configuration file (with
                   Serviceguard required, since this program makes no packages)
  appmon           ask for the monitors
  appmon={COLON_FORM}
                   a monitor; may be repeated. The first colon ends the name, the
                   last three begin the numbers, all between is the command,
                   whatever colons it has. Empty numbers have their defaults:
                   TIMEOUT {DEFAULT_TIMEOUT_SECONDS} (seconds without contact until the monitor gives up),
                   RESTART none (or unlimited, or a number: how often the
                   application is started again before the guest moves),
                   HALT_TIMEOUT {DEFAULT_HALT_TIMEOUT_SECONDS} (seconds from TERM to KILL at a halt)
  engine=pacemaker make the same a configuration of a Pacemaker cluster
                   (engine=serviceguard is the default)

The changed file takes the place of the old one whole; the old one is kept in
.backup beside it. What is there already stays as it is: a second run of the same
command changes nothing.

examples:
  cmdeployvpkg -P vm1 -x merge -x appmon
  cmdeployvpkg -Q -P vm1 -x merge -x appmon=ping_mon:/apps/ping_mon:240:3:300
  cmdeployvpkg -n -Q -P vm1 -x merge -x 'appmon=web:C:\\apps\\web.exe -p 80:60::'
  cmdeployvpkg -n -Q -P vm1 -x appmon=db:/apps/db:60:3:300 -x engine=pacemaker

exit status: 0 done, or nothing to do; 1 it could not be done; 2 wrong usage;
128 and the number of the signal that ended it.
"""

_REFUSED = {
    "-C": "converts packages of an older toolkit",
    "-U": "removes packages",
    "-m": "switches maintenance modes",
}
"""Options of the old script, with what they did there."""

_GUEST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@final
@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What is to be deployed. `monitors` is None where one is to ask for them; paths are None where not given."""

    package: str
    node: str
    monitors: tuple[AppMonitor, ...] | None
    engine: Engine = "serviceguard"
    quiet: bool = False
    only_show: bool = False
    directory: str | None = None
    file: str | None = None
    config: str | None = None
    manager: str = MANAGER_PATH


@final
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@final
class _Refuse(argparse.Action):
    """An option of the old script that is not rebuilt."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: object,
        option_string: str | None = None,
    ) -> None:
        raise UsageError(
            f"{option_string} {_REFUSED[str(option_string)]} in the old script; this program "
            "only adds application monitors to packages that exist (-x merge -x appmon)"
        )


def command_line() -> argparse.ArgumentParser:
    """Make the parser; what cannot be parsed raises `UsageError`."""
    parser = _Parser(
        prog=PROGRAM,
        usage="cmdeployvpkg -P PACKAGE -x merge -x appmon[=...] [-Q] [-n] [OPTION ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-P", dest="package", metavar="PACKAGE", help="the guest's package, which also names the guest")
    add("-x", dest="extras", metavar="EXTRA", action="append", default=[], help="what to do, see below; repeatable")
    add("-Q", dest="quiet", action="store_true", help="ask nothing; the monitors come from -x appmon=...")
    add("-n", dest="only_show", action="store_true", help="only show what would be changed")
    add("--node", metavar="NODE", help="the guest, where its name is not that of the package")
    add("--file", metavar="FILE", help="the package's configuration file (DIRECTORY/PACKAGE/PACKAGE.conf)")
    add(
        "--directory",
        metavar="DIRECTORY",
        help="of the cluster's configuration (SGCONF in /etc/cmcluster.conf, else /etc/cmcluster)",
    )
    add("--config", metavar="FILE", help="cmappmgr's configuration file, also written into the service if given")
    add("--cmappmgr", metavar="PATH", default=MANAGER_PATH, help=f"the manager's program ({MANAGER_PATH})")
    add("--version", action="version", version=software(PROGRAM))
    for option in _REFUSED:
        add(option, action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    return parser


def parse_options(words: Sequence[str]) -> DeployOptions:
    """Read the command line without the program's name.

    Raises `UsageError`. `--help` and `--version` write to standard output and raise `SystemExit(0)`, as argparse does.
    """
    given, rest = command_line().parse_known_args(list(words))
    if rest:
        _refuse_rest(rest, only_show=given.only_show)
    package: str | None = given.package
    if package is None:
        raise UsageError("-P is missing: name the package of the guest")
    if not _GUEST_NAME.fullmatch(package):
        raise UsageError(f"-P: {package!r:.100} is no name of a package")
    extras: list[str] = given.extras
    monitors, engine, merge = _read_extras(extras)
    quiet: bool = given.quiet
    if quiet and monitors is None:
        raise UsageError(f"-Q asks no questions: give the monitors by -x appmon={COLON_FORM}")
    if engine == "serviceguard" and not merge:
        raise UsageError(
            "-x merge is missing: this program makes no packages, it adds application monitors to one that exists"
        )
    if engine == "pacemaker" and (given.file or given.directory):
        raise UsageError("--file and --directory are about package files, which Pacemaker has not")
    return DeployOptions(
        package,
        given.node or package,
        monitors,
        engine,
        quiet=quiet,
        only_show=given.only_show,
        directory=given.directory,
        file=given.file,
        config=given.config,
        manager=given.cmappmgr,
    )


def _read_extras(extras: Sequence[str]) -> tuple[tuple[AppMonitor, ...] | None, Engine, bool]:
    monitors: list[AppMonitor] = []
    asked = merge = False
    engine: Engine = "serviceguard"
    for extra in extras:
        key, equals, value = extra.partition("=")
        match key, bool(equals), value:
            case "merge", False, _:
                merge = True
            case "appmon", False, _:
                asked = True
            case "appmon", True, _:
                monitors.append(_monitor(value))
            case "engine", True, "serviceguard" | "pacemaker":
                engine = "pacemaker" if value == "pacemaker" else "serviceguard"
            case "engine", _, _:
                raise UsageError(f"-x {extra!r:.100}: the engines are serviceguard and pacemaker")
            case _:
                raise UsageError(f"-x {extra!r:.100} is none of merge, appmon, appmon={COLON_FORM}, engine=pacemaker")
    if asked and monitors:
        raise UsageError("-x appmon asks for the monitors, -x appmon=... gives them: choose one of the two")
    if not asked and not monitors:
        raise UsageError("-x appmon is missing: of the old script only the part about application monitors is here")
    return tuple(monitors) or None, engine, merge


def _monitor(text: str) -> AppMonitor:
    try:
        return parse_colons(text)
    except AnswerRefused as error:
        raise UsageError(f"-x appmon: {error}") from error


def _refuse_rest(rest: Sequence[str], *, only_show: bool) -> NoReturn:
    word = rest[0]
    if only_show and not word.startswith("-"):
        raise UsageError(
            f"unexpected word {word!r:.100}: -n only shows the changes and takes no node, as it did in the old script; "
            "the nodes of a package are in its configuration file"
        )
    raise UsageError(f"unknown option or unexpected word {word!r:.100}")

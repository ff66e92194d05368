"""`cmappserver`: what its words have it do, and what can be said before anything serves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

from appserver.options import PROGRAM, read_all, read_plainly
from appserver.report import Report, hold_standard_descriptors
from appserver.settings import (
    ServerOverrides,
    ServerSettings,
    default_config_path,
    default_state_dir,
    load_server_settings,
)
from pki.encoding import restart_in_utf8
from pki.errors import KeysError, SettingsError

EXIT_OK = 0
EXIT_UNUSABLE = 1
"""Configuration, keys, port or state directory cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cmappserver` with the words `argv`; give the exit status.

    Without `argv` this is the program itself: it takes the process's own words and leaves the process at once. Python's
    way of ending gives TERM its default back, and one that came then would take the place of the status.

    Wrong usage, `--help` and `--version` raise SystemExit, as argparse does.
    """
    hold_standard_descriptors()
    if argv is not None:
        return _run(argv)
    restart_in_utf8()
    status = _run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(argv: Sequence[str]) -> int:
    options = read_plainly(argv) or read_all(argv)
    overrides = ServerOverrides(
        listen=options.listen,
        port=options.port,
        state_dir=options.state_dir,
        log_dir=options.log_dir,
    )
    reread = partial(load_server_settings, options.config, overrides)
    report = Report(PROGRAM, journal=True)
    if not options.check and options.stop_all is None:
        _end_quietly()
    try:
        if options.stop_all is not None:
            state_dir = _state_dir_of(reread, options.state_dir, report)
            return _stop_all(state_dir, options.stop_all, report, until_boot=options.until_boot)
        return _check(reread()) if options.check else _serve(reread(), reread, report)
    except SettingsError as error:
        report.error(str(error))
        return EXIT_UNUSABLE
    finally:
        report.close()


def _end_quietly() -> None:
    """Have a TERM end the program with 0 also before the daemon heeds it, and when the daemon has ended already."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(EXIT_OK))


def _serve(settings: ServerSettings, reread: partial[ServerSettings], report: Report) -> int:
    from pki.later import import_trio

    import_trio()
    import trio

    from appserver.beforehand import load_what_may_be_needed
    from appserver.daemon import load_trust, run_daemon
    from appserver.recordformat import RecordError
    from appserver.sockets import ListenError
    from appserver.statelock import StateDirError

    load_what_may_be_needed()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon heeds it: a reload asked for now needs none
    try:
        trust = load_trust(settings)
        trio.run(run_daemon, settings, reread, trust, report)
    except (KeysError, StateDirError, RecordError, ListenError) as error:
        report.error(str(error))
        return EXIT_UNUSABLE
    return EXIT_OK


def _state_dir_of(reread: partial[ServerSettings], named: str | None, report: Report) -> str:
    """Find where the runs are recorded, also with a configuration that no server would start with."""
    try:
        return reread().state_dir
    except SettingsError as error:
        state_dir = os.path.abspath(named) if named else default_state_dir()
        report.warning(f"what runs by the records in {state_dir} is stopped, whatever the configuration says: {error}")
        return state_dir


def _stop_all(state_dir: str, seconds: float, report: Report, *, until_boot: bool) -> int:
    from appserver.statelock import StateDirError

    if sys.platform == "linux":
        from appserver.stopall import stop_all

        try:
            return EXIT_OK if stop_all(state_dir, seconds, report, until_boot=until_boot) else EXIT_UNUSABLE
        except StateDirError as error:
            report.error(str(error))
            return EXIT_UNUSABLE
    raise AssertionError("the option is not there elsewhere")


def _check(settings: ServerSettings) -> int:
    from appserver.daemon import grants_of, load_trust, odd_sections
    from appserver.rules import show_policy
    from appserver.runas import odd_rules
    from appserver.statelock import StateDirError, check_state_dir

    try:
        trust = load_trust(settings)
        check_state_dir(settings.state_dir)
        check_state_dir(settings.log_dir)
    except (KeysError, StateDirError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    where = ", ".join(settings.listen) or "all addresses"
    lines = [
        f"configuration  {settings.config_path or f'none at {default_config_path()}, all defaults'}",
        f"listen         {where} port {settings.port or 'any that is free'}",
        f"key store      {settings.keys.key_store}",
        f"trust store    {settings.keys.trust_store}: {len(trust.material.pins)} trusted",
        f"processes      {settings.max_processes} at once",
        f"state          {settings.state_dir}",
        f"logs           {settings.log_dir}, {settings.log_max_bytes} bytes each",
        *show_policy(settings.policy),
    ]
    odd = odd_sections(settings, grants_of(settings, trust)) + odd_rules(settings.policy)
    print("\n".join([*lines, *odd, *([] if odd else ["all in order"])]))
    return EXIT_OK

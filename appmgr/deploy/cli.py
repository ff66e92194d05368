"""`cmdeployvpkg`: from the command line to an exit status."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from appmgr.deploy import cluster, serviceguard
from appmgr.deploy.closing import Surroundings
from appmgr.deploy.contact import check_contact
from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.errors import Abandoned, DeployError, UsageError
from appmgr.deploy.options import PROGRAM, DeployOptions, parse_options
from appmgr.deploy.serviceguard import Done
from appserver.outcome import signal_name
from appserver.report import hold_standard_descriptors, host_name, printable
from pki.encoding import restart_in_utf8

FAILED = 1
USAGE_STATUS = 2

HEARD_SECONDS = 0.5
"""How late a signal may be heard that comes between a question and the wait for its answer: Python heeds what came
before a wait when that ends, and an alarm ends it for a moment."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with the words after its name, by default the process's own; give its exit status.

    An expected failure is one line on standard error, which says what has been changed by then.
    """
    if argv is None:
        hold_standard_descriptors()
        restart_in_utf8()
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        return _complain(f"{error}\n{PROGRAM} --help tells more", USAGE_STATUS)
    except SystemExit:
        return 0
    done = Done()
    try:
        with _signals_heard():
            return _deploy(options, done)
    except DeployError as error:
        return _complain(f"{error}; {done.describe()}", FAILED)
    except Abandoned as error:
        return _complain(f"{error}: {done.describe()}", error.status)
    except KeyboardInterrupt:
        return _complain(f"{signal_name(signal.SIGINT)}: {done.describe()}", 128 + signal.SIGINT)


def _deploy(options: DeployOptions, done: Done) -> int:
    # Python has None for a stream that was closed before the start.
    dialogue = Dialogue(sys.stdin or io.StringIO(), sys.stdout or io.StringIO())
    host = Surroundings(host_name(), os.environ)
    if options.engine == "pacemaker":
        return cluster.deploy(options, dialogue, host, check_contact, done)
    return serviceguard.deploy(options, dialogue, host, check_contact, done)


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """Have TERM and HUP raise `Abandoned`, as INT raises `KeyboardInterrupt`."""
    before = {number: signal.signal(number, _on_signal) for number in ([signal.SIGTERM, *_hangup()])}
    try:
        with _waits_that_hear():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _waits_that_hear() -> Iterator[None]:
    """Have every wait of this thread look for signals each `HEARD_SECONDS`."""
    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, HEARD_SECONDS, HEARD_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _hangup() -> list[signal.Signals]:
    if sys.platform == "win32":
        return []
    # One that was ignored when the program began stays ignored, as nohup wants it.
    return [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]


def _on_signal(number: int, _frame: FrameType | None) -> None:
    raise Abandoned(signal_name(number), 128 + number)


def _complain(text: str, status: int) -> int:
    lines = "\n".join(printable(line) for line in text.split("\n"))
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
        sys.stderr.write(f"{PROGRAM}: {lines}\n")
        sys.stderr.flush()
    return status

"""`cmappmgr`: from the command line to an exit status.

Everything that may end the program early has its place before trio is imported: wrong usage, an unusable
configuration, a TERM. The stores are opened beside it while trio is being imported. The order of the first lines
matters: first descriptors 0 to 2 (or a socket would take the place of a closed standard error), then the signals,
then the rest.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn, TextIO, final

from appmgr.options import SHORT_HELP, ManagerOptions, UsageError, parse_options
from appmgr.settings import NodeSettings, load_node_settings
from appmgr.standing import Standing, StatusFile
from appmgr.wording import too_early
from appserver.report import Report, hold_standard_descriptors, host_name, printable
from appserver.version import software
from pki.encoding import restart_in_utf8
from pki.errors import PkiError

if TYPE_CHECKING:
    from appmgr.dial import Dialer
    from appserver.messages import Hello
    from pki.unlock import Unlocking

PROGRAM = "cmappmgr"

USAGE_STATUS = 2

RUN_ID_BYTES = 16
"""Drawn from the system's random numbers; the `secrets` module would cost 10 ms of imports to do the same."""

HANDSHAKE_TIMEOUT_SHARE = 1 / 3
"""Of the timeout: a server that is frozen in the middle of one attempt leaves time for another."""

LOG_SECONDS = 0.05
"""How late a line may be: what ends sooner writes it by itself, and has no threads to start and to end."""

SILENCE_TIMEOUT_SHARE = 1 / 2
"""Of the timeout: after this the kernel gives a silent connection up, as the manager does with an unanswered poll."""


class HaltedError(BaseException):
    """A TERM, INT or HUP came before the manager could hear of it in any other way: leave with 128 + `number`."""

    def __init__(self, number: int) -> None:
        self.number = number


@final
class EarlySignals:
    """Hears the signals that end the program, from its first moments until the loop has its own ears.

    At first a signal interrupts whatever is being done, by `HaltedError`. After that one, or from `collect` on, signals
    are kept for the loop, since an exception in the middle of trio's own code would break it.
    """

    def __init__(self, *, to_the_end: bool = False) -> None:
        """Where it is to hear `to_the_end` of the process, nobody gets the signals back."""
        self._to_the_end = to_the_end
        self._collecting = False
        self._collected: list[int] = []
        self._unraisablehook = sys.unraisablehook
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        """The signals that are heard. One that was ignored when the program began stays ignored, as nohup wants it."""
        return tuple(self._before)

    def __enter__(self) -> EarlySignals:
        wanted = [signal.SIGTERM, signal.SIGINT]
        if sys.platform != "win32":
            wanted.append(signal.SIGHUP)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        for number in wanted:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        # The end of a process that leaves: a TERM in its last moments must not take the place of its exit status.
        if not self._to_the_end:
            sys.unraisablehook = self._unraisablehook
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def collect(self) -> None:
        """Keep what comes from now on for `take_over`."""
        self._collecting = True

    def ignore(self) -> None:
        """Hear nothing any more: the exit status is certain. A handler, even trio's, would run for each that comes, and
        where they come faster than they are handled, one within the other until Python gives up.
        """
        import _signal  # type: ignore[import-not-found]  # without what `signal` says of each handler that goes

        for number in self._before:
            _signal.signal(number, _signal.SIG_IGN)

    def take_over(self) -> Sequence[int]:
        """Give the signals that were kept."""
        return self._collected

    def _on_unraisable(self, what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, HaltedError):
            self._unraisablehook(what)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._collecting:
            self._collected.append(number)
            return
        self._collecting = True
        # Kept too: raised in the callback of a weak reference, as imports have them, it ends nothing.
        self._collected.append(number)
        raise HaltedError(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with the words after its name, and give its exit status.

    Without `argv` this is the program itself: it takes the process's own words and leaves the process at once, since
    threads that are stuck in a log or in a name look-up must not hold up its end.
    """
    if argv is not None:
        return run(argv)
    gc.disable()  # until all is imported: none of it is garbage, and looking for some is a twentieth of the start
    hold_standard_descriptors()
    restart_in_utf8()
    return _leave_process(run(sys.argv[1:], leaving=True))


def _leave_process(status: int) -> NoReturn:
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def run(words: Sequence[str], *, leaving: bool = False) -> int:
    """Do all that the program does, except for leaving the process; `leaving` says that this comes next."""
    if not words:
        return _say(sys.stderr, SHORT_HELP, USAGE_STATUS)
    try:
        options = parse_options(words)
    except UsageError as error:
        return _say(sys.stderr, f"{PROGRAM}: {error}\n{SHORT_HELP}", USAGE_STATUS)
    if isinstance(options, str):
        return _inform(options)
    report = Report(PROGRAM)
    status_file = StatusFile(options.status_file, report.warning)
    with EarlySignals(to_the_end=leaving) as early:
        try:
            try:
                status = _run_reported(options, report, early, status_file, leaving=leaving)
            finally:
                early.collect()  # from here on nothing may interrupt the last line
        except HaltedError as halted:
            status = _halted(report, halted.number, status_file)
        _say_status(report, status)
    return status


def _say_status(report: Report, status: int) -> None:
    report.info(_exit_line(status))
    report.close()


def _exit_line(status: int) -> str:
    return f"PROGRAM EXIT CODE {status}"


def _inform(wish: Literal["help", "version"]) -> int:
    if wish == "version":
        return _say(sys.stdout, f"{software(PROGRAM)}\n", 0)
    from appmgr.usage import help_text

    return _say(sys.stdout, help_text(), 0)


def _say(stream: TextIO | None, text: str, status: int) -> int:
    """Write for a person, who may have closed the stream before the start (None) or since; the status is the same."""
    if stream is None:
        return status
    with contextlib.suppress(OSError, ValueError):
        stream.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return status


def _halted(report: Report, number: int, status_file: StatusFile) -> int:
    # HUP is taken as TERM (contract, section 1).
    number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    report.info(too_early(number))
    status_file.show(Standing("detached", cause="signal", status=128 + number, text=too_early(number)))
    return 128 + number


def _run_reported(
    options: ManagerOptions, report: Report, early: EarlySignals, status_file: StatusFile, *, leaving: bool
) -> int:
    try:
        status_file.begin()
    except OSError as error:
        report.error(f"the status file {options.status_file!r} cannot be written: {error.strerror}")
        return options.failure_status
    try:
        from pki.unlock import start_unlock

        settings = load_node_settings(options.config, options.node)
        for warning in settings.warnings:
            report.warning(warning)
        unlocking = start_unlock(settings.keys)
        try:
            return _watch(options, settings, unlocking, report, early, status_file, leaving=leaving)
        finally:
            unlocking.abandon()
    except PkiError as error:
        report.error(str(error))
        status_file.show(
            Standing("failed", cause="unusable", status=options.failure_status, text=printable(str(error)))
        )
    except Exception as error:  # noqa: BLE001 - the cluster must get the failure status, not Python's 1, whatever breaks
        report.error(f"internal error, please report it: {type(error).__name__}: {error}")
        with contextlib.suppress(ImportError, OSError):  # the status stands, also where nothing more can be loaded
            import traceback

            report.error(traceback.format_exc().rstrip())
        status_file.show(Standing("failed", cause="error", status=options.failure_status, text="internal error"))
    return options.failure_status


def _watch(
    options: ManagerOptions,
    settings: NodeSettings,
    unlocking: Unlocking,
    report: Report,
    early: EarlySignals,
    status_file: StatusFile,
    *,
    leaving: bool,
) -> int:
    """Import what the run needs while the stores are being opened, then run the loop."""
    import time

    from pki.later import import_trio

    import_trio()
    import trio

    from appmgr.link import GREETING_SECONDS
    from appmgr.manager import Manager
    from appmgr.quickend import quick_end
    from appmgr.watch import watch
    from appserver.latelog import written_late

    # The timeout for the first contact counts from here; trio's clock has an origin of its own, hence the difference.
    began = time.perf_counter()
    attempt_seconds = max(1.0, options.timeout_seconds * HANDSHAKE_TIMEOUT_SHARE)
    dialer = _dialer(options, settings, unlocking, attempt_seconds)

    def end(status: int) -> NoReturn:
        early.ignore()
        report.info(_exit_line(status))
        _flush()
        report.leave(status, end=quick_end)

    async def drive() -> int:
        now = trio.current_time()
        run_id = options.run_id or os.urandom(RUN_ID_BYTES).hex()
        begin = now - (time.perf_counter() - began)
        manager = Manager(options, run_id, begin, clock_offset_seconds=time.monotonic() - now)
        with written_late(report, LOG_SECONDS):
            return await watch(
                manager,
                dialer.dial,
                partial(_hello, manager.poll_seconds),
                report,
                signals=early.numbers,
                early=early,
                greeting_seconds=min(GREETING_SECONDS, attempt_seconds),
                reminders=dialer.reminders,
                show=status_file.show,
                leave=end if leaving else lambda _: None,
                settle=_load_for_later,
            )

    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    early.collect()
    return trio.run(drive)


def _dialer(options: ManagerOptions, settings: NodeSettings, unlocking: Unlocking, attempt_seconds: float) -> Dialer:
    from appmgr.dial import HANDSHAKE_SECONDS, Dialer
    from pki.unlock import load_material

    return Dialer(
        settings.node,
        settings.address,
        options.port or settings.port,
        unlocking.result(),
        reopen=partial(load_material, settings.keys),
        handshake_seconds=min(HANDSHAKE_SECONDS, attempt_seconds),
        silence_seconds=options.timeout_seconds * SILENCE_TIMEOUT_SHARE,
    )


def _load_for_later() -> None:
    """Load what another key of the guest will ask for, while it can be had: an upgrade, or somebody who removes the
    package, takes the files of a manager away while it runs. And make ready what the end will be glad of.
    """
    from appmgr.quickend import prepare_quick_end

    # Files in the middle of an upgrade raise anything: half of one, or those of two versions. Watching needs none.
    with contextlib.suppress(Exception):
        import hashlib  # noqa: F401  (whose key it is)

        from trio.to_thread import run_sync  # noqa: F401
    with contextlib.suppress(Exception):
        prepare_quick_end()


def _hello(poll_seconds: float, version: int) -> Hello:
    from appserver.messages import Hello

    return Hello(version, software(PROGRAM), host_name(), os.getpid(), poll_seconds)

"""Start the application: fork a child that gets everything ready by itself, and executes.

What a waiter touches after its fork it has for itself from then on, and it lives as long as its application. So it does
nothing for the start that its child can do: the child reads what is to be run, opens the log, puts its *own* pid on
record (`preparing`), and becomes the application, upon which all that memory is gone.

An application never runs unrecorded, whoever is killed: a child killed before the record has executed nothing, and the
start may be tried again; from the record on there is a pid that can be found. Until it executes the child holds the
run's lock as its waiter does, so nobody else takes over between the two.

The child speaks to its parent through one pipe, which exec closes: first the length of what the parent is to know, and
that, then, if something goes wrong, at which step, with the number of the error. Standard library only; runs in the
waiter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping

from pki.typed import NamedTuple, NoReturn

assert sys.platform != "win32"

from appserver.attributes import LIMITS, Account, Attributes
from appserver.execerrors import explain_exec_error

_RESOURCES: dict[str, int] = {name: getattr(resource, f"RLIMIT_{name.upper()}") for name in LIMITS}

_READ_BYTES = 1 << 16
"""What a pipe holds."""


class SpawnError(Exception):
    """The application could not be executed; `code` is the refusal's code on the wire."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Program(NamedTuple):
    """What is executed: with the null device as standard input and `log_fd` as output, as `attributes` say."""

    executable: str
    argv: tuple[str, ...]
    environment: Mapping[bytes, bytes]
    log_fd: int
    attributes: Attributes


def spawn(prepare: Callable[[], tuple[bytes, Program | None]]) -> tuple[int, bytes, bytes]:
    """Start an application in its own session; return once it executes, or its child has ended.

    Gives the child's pid, what it told, empty where it was not ready to execute, and its report where that failed then.

    `prepare` is called in the child. It gives what the parent is to know, and what to execute; the
    child ends where that is nothing. The application gets default signal dispositions, an empty signal mask, working
    directory `/`, umask 022, `oom_score_adj` 0 and no descriptor beyond the standard ones (contract, section 2), but
    for what its attributes say. Raises OSError where there is no pipe or no process to be had.
    """
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid == 0:
        _become_application(prepare, write)
    os.close(write)
    said = b""
    while data := os.read(read, _READ_BYTES):
        said += data
    os.close(read)
    length, _, rest = said.partition(b" ")
    count = int(length or b"0")
    return pid, rest[:count], rest[count:]


def _become_application(prepare: Callable[[], tuple[bytes, Program | None]], write: int) -> NoReturn:
    # In the child: nothing may return or raise from here.
    try:
        os.setsid()
        told, program = prepare()
        os.write(write, b"%d %s" % (len(told), told))
        if program is not None:
            os.write(write, _execute(program))
    except BaseException:  # noqa: ASYNC103, BLE001  (it must not go up into the waiter's own loop)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(127)


def _execute(program: Program) -> bytes:
    """Become the program; where that fails, give the step and the number of the error."""
    attributes = program.attributes
    step = "exec"
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(program.log_fd, 1)
        os.dup2(program.log_fd, 2)
        os.umask(0o022)
        # In bytes: a text file would have each child import its codec, after the fork.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"0")
        for limit in attributes.limits:
            step = limit.name
            resource.setrlimit(_RESOURCES[limit.name], (limit.soft, limit.hard))
        step = "user"
        _change_user(attributes.account)
        step = "directory"
        os.chdir(attributes.directory or "/")  # as the user: it may be one that only that one may enter
        step = "exec"
        _reset_signals()
        os.execve(program.executable, program.argv, program.environment)  # noqa: S606  (no shell: that is the promise)
    except OSError as error:
        return f"{step} {error.errno}".encode()
    except ValueError:  # a vector, or a limit, that Python does not hand to the kernel
        return f"{step} {errno.EINVAL}".encode()


def _change_user(account: Account | None) -> None:
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def explain_report(executable: str, attributes: Attributes, report: bytes) -> SpawnError:
    """Turn a child's report into what is told of it."""
    step, _, digits = report.decode("ascii").partition(" ")
    number = int(digits)
    why = f"{os.strerror(number)} (errno:{number})"
    match step:
        case "exec":
            if number in {errno.EACCES, errno.EISDIR} and os.path.isdir(executable):
                return SpawnError("is-a-directory", f"{executable!r} is a directory, a command was expected")
            code, text = explain_exec_error(number)
            return SpawnError(code, f"{executable!r} cannot be executed: {text} (errno:{number})")
        case "directory":
            where = attributes.directory or "/"
            return SpawnError("start-failed", f"the directory {where!r} that its rule names cannot be entered: {why}")
        case "user":
            return SpawnError("start-failed", f"the user of its rule cannot be taken on: {why}")
        case limit:
            return SpawnError("start-failed", f"the limit {limit!r} of its rule cannot be set: {why}")

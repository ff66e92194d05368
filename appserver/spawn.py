"""Start the application: fork, wait until its pid is on record, execute.

The child waits between fork and exec until its parent has recorded its pid. So an application never runs unrecorded: a
waiter killed before the record leaves a child that ends without having executed anything, and the start may be tried
again; one killed after it leaves a pid that can be found. Standard library only; runs in the waiter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping

assert sys.platform != "win32"

from appserver.attributes import LIMITS, PLAIN, Account, Attributes
from appserver.execerrors import explain_exec_error

_RESOURCES: dict[str, int] = {name: getattr(resource, f"RLIMIT_{name.upper()}") for name in LIMITS}

_MAX_REPORT_BYTES = 64
"""What the child says of its failure: the step, a blank, the number of the error."""


class SpawnError(Exception):
    """The application could not be executed; `code` is the refusal's code on the wire."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def spawn(
    executable: str,
    argv: tuple[str, ...],
    environment: Mapping[bytes, bytes],
    log_fd: int,
    record: Callable[[int], None],
    attributes: Attributes = PLAIN,
) -> int:
    """Start an application in its own session and return its pid once it executes.

    It gets the null device as standard input, `log_fd` as output, working directory `/`, default signal dispositions,
    an empty signal mask, umask 022, `oom_score_adj` 0 and no other descriptor (contract, section 2), but for what
    `attributes` say. `record` is called with the pid before anything is executed; an exception of it is passed on and
    nothing is executed.

    Raises SpawnError where it cannot be forked or executed.
    """
    go_read, go_write = os.pipe()
    error_read, error_write = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        _close(go_read, go_write, error_read, error_write)
        raise SpawnError("start-failed", f"cannot fork: {error.strerror}") from error
    if pid == 0:
        _become_application(executable, argv, environment, log_fd, attributes, go_read, go_write, error_write)
    _close(go_read, error_write)
    try:
        record(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(go_write, b"!")
        os.close(go_write)
        go_write = -1
        report = os.read(error_read, _MAX_REPORT_BYTES)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _close(error_read, *([go_write] if go_write >= 0 else []))
    if report:
        os.waitpid(pid, 0)
        raise _spawn_error(executable, attributes, report)
    return pid


def _become_application(
    executable: str,
    argv: tuple[str, ...],
    environment: Mapping[bytes, bytes],
    log_fd: int,
    attributes: Attributes,
    go_read: int,
    go_write: int,
    error_write: int,
) -> None:
    # In the child: nothing may return or raise from here.
    step = "exec"
    try:
        os.close(go_write)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
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
        if os.read(go_read, 1):
            os.execve(executable, argv, environment)  # noqa: S606  (no shell: that is the promise)
    except OSError as error:
        os.write(error_write, f"{step} {error.errno}".encode())
    except ValueError:  # a vector, or a limit, that Python does not hand to the kernel
        os.write(error_write, f"{step} {errno.EINVAL}".encode())
    finally:
        os._exit(127)


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


def _spawn_error(executable: str, attributes: Attributes, report: bytes) -> SpawnError:
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


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)

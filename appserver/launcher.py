"""The launcher: forks a waiter for each application, so that none has to load an interpreter of its own.

The server starts one launcher: a fresh interpreter (`-I -S`, own session, nothing inherited, the state directory as
working directory, standard library only) which gets its orders on descriptor 0, a SOCK_SEQPACKET socket:

    {"launch": RUN}   start the application of the run
    {"adopt": RUN}    watch a process whose waiter died

and answers {"run": RUN, "waiter": PID} or {"run": RUN, "error": TEXT}.

What it looks at for an order costs each waiter the page it lies in: the launcher's next look leaves the former page to
that waiter alone. So it does as little as a waiter does.

It ends when the server does. What keeps starts from happening twice: the launcher takes the run's lock *before* it
forks, and the waiter inherits it. As long as the lock is held somebody is responsible for the run; where it is free,
and no process is on record, none was executed (see `spawn`). A second launcher could still take an order that the first
has not read, so each holds `launcher.lock`, and a server makes sure that it is free before it follows any run.

It is subreaper too, with SIGCHLD ignored: what a killed waiter leaves behind is reaped at once, which is when the
kernel tells strangers how it ended (see `kernel.outcome_of_stranger`).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import sys

from pki.typed import NoReturn

assert sys.platform != "win32"

import _socket  # the bare class below `socket.socket`, without the enumerations that `socket` makes of all words
import fcntl

from appserver.kernel import become_subreaper, set_process_name
from appserver.procfs import process_stat
from appserver.recordformat import DamagedRecordError, RecordError
from appserver.records import LAUNCHER_LOCK, RunRecord
from appserver.rehearsal import fill_gaps, rehearse
from appserver.waiter import run_substitute, run_waiter, wake_on_children

MAX_ORDER_BYTES = 4096
EXIT_LOCKED = 3
"""Exit code where another launcher holds the lock."""

_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC
_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB

_LOCK_TEXT_BYTES = 63
"""Room for two numbers of 64 bits."""


def main() -> NoReturn:
    """Take orders until the server is gone. Called with the state directory as working directory."""
    _close_others()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_process_name(b"cmapp-launcher")
    lock_fd = _take_lock(LAUNCHER_LOCK, os.O_CREAT)
    if lock_fd is None:
        os._exit(EXIT_LOCKED)
    stat = process_stat(os.getpid())
    # Over what is there, never shorter: a full disk has room for that. Where even the first one finds none, the lock
    # counts; the pid only helps a later server to end a launcher that does not leave by itself.
    with contextlib.suppress(OSError):
        os.pwrite(lock_fd, f"{os.getpid()} {stat.start_ticks if stat else 0}".ljust(_LOCK_TEXT_BYTES).encode(), 0)
    rehearse()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        become_subreaper()
    orders = _socket.socket(fileno=0)
    environment = _initial_environment()
    gc.collect()
    fill_gaps()
    gc.disable()
    gc.freeze()  # so that no collection in a waiter touches, and thereby copies, the memory that all share
    orders.send(b'{"ready": true}')
    while order := orders.recv(MAX_ORDER_BYTES):
        reply = _obey(order, environment, (orders.fileno(), lock_fd))
        try:  # noqa: SIM105  (`suppress` is a class and three functions more for each waiter)
            orders.send(reply)
        except OSError:
            pass
    os._exit(0)


def _close_others() -> None:
    # What the server has inherited itself: a log that would stay open as long as an application runs.
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # that of the list
                os.close(int(name))


def _obey(order: bytes, environment: dict[bytes, bytes], not_for_waiter: tuple[int, ...]) -> bytes:
    verb, run_id = order[2:-2].decode().split('": "')  # neither has anything that JSON would have to escape
    record = RunRecord(f"runs/{run_id}")
    lock_fd = listener = None
    try:
        lock_fd = _take_lock(record.file("lock"))
        if lock_fd is None:
            return _refusal(run_id, "a waiter lives already")
        listener = _listen(record.file("control"))
        pid = os.fork()
        if pid == 0:
            _become_waiter(verb, record, listener, environment, not_for_waiter)
        return b'{"run": "%s", "waiter": %d}' % (run_id.encode(), pid)
    except OSError as error:
        return _refusal(run_id, f"cannot make a waiter: {error.strerror or error} (errno:{error.errno})")
    finally:
        if lock_fd is not None:
            os.close(lock_fd)
        if listener is not None:
            listener.close()


def _refusal(run_id: str, text: str) -> bytes:
    return json.dumps({"run": run_id, "error": text}).encode()


def _become_waiter(
    verb: str,
    record: RunRecord,
    listener: _socket.socket,
    environment: dict[bytes, bytes],
    not_for_waiter: tuple[int, ...],
) -> NoReturn:
    try:
        for fd in not_for_waiter:
            os.close(fd)
        os.setsid()
        set_process_name(b"cmapp-waiter")
        if verb == "adopt":
            run_substitute(record, listener, wake_on_children())
        become_subreaper()
        run_waiter(record, listener, environment)
    except (OSError, RecordError, DamagedRecordError) as error:
        sys.stderr.write(f"cannot be the waiter of run {record.run_id}: {error}\n")
        sys.stderr.flush()
    except BaseException:  # noqa: ASYNC103, BLE001  (it must not go up into the launcher's own loop)
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(1)


def _take_lock(path: str, flags: int = 0) -> int | None:
    # A run's lock is never made here: where it is missing, a waiter may live that holds one without a name.
    fd = os.open(path, _LOCK_FLAGS | flags, 0o600)
    try:
        fcntl.flock(fd, _EXCLUSIVE)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def _listen(path: str) -> _socket.socket:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        try:
            listener.bind(path)  # relative to the state directory: a socket's path may have 107 bytes only
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            os.unlink(path)  # a former waiter's
            listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _initial_environment() -> dict[bytes, bytes]:
    # As the server gave it: the interpreter may since have set LC_CTYPE for itself, which is no business of
    # applications.
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry)
        return {name: value for name, _, value in pairs}

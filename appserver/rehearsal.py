"""A life of a waiter without an application, gone through by the launcher before it forks any.

CPython writes down what it learns while code runs: which class has a method, how often a function was called, which
kinds of values an instruction meets. What the launcher has learnt, all its waiters share; what a waiter learns costs it
a page of its own each time, and some time as well, most of all in the moment of the end, which somebody waits for.
Measured: 1.2 MiB of a waiter's own without this, and 0.9 with it.

And what a waiter makes, CPython puts where something was given back, each size in places of its own, and a waiter would
have one more page for each of them. So the launcher fills what is free between the objects (`fill_gaps`): new ones lie
together then, in pages that are new anyway. Measured: another 0.08 MiB less, for 0.3 MiB of the launcher's.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from pki.frozen import replace

assert sys.platform != "win32"

import _socket
import _thread

from appserver.identity import Service
from appserver.kernel import become_subreaper, set_process_name
from appserver.preparing import read_known, write_known
from appserver.procfs import boot_id, oom_kills, process_stat
from appserver.recordformat import Request, State, newest, request_from_json, request_to_json, slot
from appserver.recording import Recording
from appserver.spawn import spawn
from appserver.waiter import DESCRIBE, Waiter, wake_on_children

LIVES = 12
"""After eight calls CPython begins to learn from a function, and some more until it is done."""

LOCKS = 300
"""What the interpreter makes anew in each child are locks of its own, a dozen of them; far more are made here than
there are gaps of that size."""

_POOL_BYTES, _HEADER_BYTES = 16384, 48
"""CPython keeps objects of one size together, in pools that have a header; the first one behind a header is in a pool
that was empty. Where that is otherwise, `MOST_FILLERS` ends the search, and nothing is gained."""

MOST_FILLERS = 3000
"""For each size: the gaps are some hundred of one at most."""

_fillers: list[object] = []

_REQUEST = Request("0" * 32, Service("line", ("a b",)), "/a", ("a", "b"), os.devnull, 1 << 20, "boot", 1.5)


def rehearse() -> None:
    """Go through `LIVES` lives, which leaves nothing behind. Where something is short, that costs only memory."""
    try:
        for _ in range(LIVES):
            _live()
    except OSError:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)  # a child ends at once


def fill_gaps() -> None:
    """Fill what is free between the objects, for as long as the process lives."""
    _fillers.extend(_thread.allocate_lock() for _ in range(LOCKS))
    empty = sys.getsizeof(b"")
    for size in range(32, 512 + 1, 16):
        for number in range(MOST_FILLERS):
            filler = bytes(size - empty) if size > empty else float(number)
            _fillers.append(filler)
            if id(filler) % _POOL_BYTES == _HEADER_BYTES:
                break


def _live() -> None:
    with contextlib.ExitStack() as stack:
        set_process_name(b"cmapp-launcher")
        become_subreaper()
        wakeup = wake_on_children()
        stack.callback(os.close, wakeup)
        stack.callback(lambda: os.close(signal.set_wakeup_fd(-1)))
        listener, server = (_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET) for _ in range(2))
        stack.callback(listener.close)
        stack.callback(server.close)
        listener.bind("")  # the kernel finds a name that is nobody's
        listener.listen()
        server.connect(listener.getsockname())
        server.send(DESCRIBE)
        record = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, record)
        pid = spawn(_nothing)[0]
        run = Recording.of_new(record, read_known(_prepare(pid)))
        run.write_ready()
        waiter = Waiter(run, listener, wakeup)
        stack.callback(waiter.close)
        for _ in range(2):
            waiter.attend(0.0)  # who comes, and then what is said
        waiter.trim(now=True)
        os.kill(os.getpid(), signal.SIGCHLD)  # that of the child may have been heard by now
        waiter.wait()
        Recording.of_new(record, read_known(_prepare(pid))).write(phase="ended")  # as at an end that is not so simple


def _nothing() -> tuple[bytes, None]:
    return b"", None


def _prepare(pid: int) -> bytes:
    stat = process_stat(os.getpid())
    state = State(pid=pid, started_at=time.time(), started_monotonic=time.monotonic(), oom_kills=oom_kills())
    state = newest(slot(1, replace(state, start_ticks=stat.start_ticks if stat else 0, boot=boot_id())))[1]
    request = request_from_json(json.loads(json.dumps(request_to_json(_REQUEST))))
    return write_known(1, replace(state, phase="running"), b"{}", request)

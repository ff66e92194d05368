"""A life of a waiter without an application, gone through by the launcher before it forks any.

CPython writes down what it learns while code runs: which class has a method, how often a function was called, which
kinds of values an instruction meets. What the launcher has learnt, all its waiters share; what a waiter learns costs it
a page of its own each time, and some time as well, most of all in the moment of the end, which somebody waits for.
Measured: 1.2 MiB of a waiter's own without this, and 0.9 with it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

from pki.frozen import replace

assert sys.platform != "win32"

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

_REQUEST = Request("0" * 32, Service("line", ("a b",)), "/a", ("a", "b"), os.devnull, 1 << 20, "boot", 1.5)


def rehearse() -> None:
    """Go through `LIVES` lives, which leaves nothing behind. Where something is short, that costs only memory."""
    try:
        for _ in range(LIVES):
            _live()
    except OSError:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)  # a child ends at once


def _live() -> None:
    with contextlib.ExitStack() as stack:
        set_process_name(b"cmapp-launcher")
        become_subreaper()
        wakeup = wake_on_children()
        stack.callback(os.close, wakeup)
        stack.callback(lambda: os.close(signal.set_wakeup_fd(-1)))
        listener, server = (socket.SocketType(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
        stack.callback(listener.close)
        stack.callback(server.close)
        listener.bind("")  # the kernel finds a name that is nobody's
        listener.listen()
        server.connect(listener.getsockname())
        server.send(DESCRIBE)
        record = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, record)
        run = Recording.of_new(record, read_known(_prepare()))
        run.write_running()
        waiter = Waiter(run, listener, wakeup)
        stack.callback(waiter.close)
        for _ in range(2):
            waiter.attend(0.0)  # who comes, and then what is said
        waiter.trim(now=True)
        run.write(pid=spawn(_nothing)[0])
        waiter.wait()


def _nothing() -> tuple[bytes, None]:
    return b"", None


def _prepare() -> bytes:
    stat = process_stat(os.getpid())
    state = State(pid=1, started_at=time.time(), started_monotonic=time.monotonic(), oom_kills=oom_kills())
    state = newest(slot(1, replace(state, start_ticks=stat.start_ticks if stat else 0, boot=boot_id())))[1]
    request = request_from_json(json.loads(json.dumps(request_to_json(_REQUEST))))
    return write_known(1, replace(state, phase="running"), b"{}", request)

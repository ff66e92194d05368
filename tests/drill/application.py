"""The application of the drill: notes what it does and ends as it was told. Run with `python -I -S`, words `key=value`.

    notes=PATH      where it notes, one line each, in one write: "start PID ORDINAL TIME", "double PID TIME",
                    "child PID TIME", "term PID TIME", "end PID ENDING TIME"; times are of the monotonic clock
    seconds=0.4     how long it lives
    ending=code:7   exits with that, plus the number of starts before this one; or signal:11: by that signal;
                    or memory: grows in the control group `group` until the kernel kills it
    term=default    what it does on TERM: dies of it, `code:9`: exits with that, `ignore`
    children=2      so many daemons, in sessions of their own, which live `linger` seconds longer than it
    stubborn=1      those ignore TERM
    flood=1000000   so many bytes of output first
    group=PATH      the control group

While it lives it holds a lock on its notes, so that a second copy beside the first gives itself away.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from types import FrameType

LINE = b"so many words, and nobody reads them all, since a log has its bound\n"
GROWTH_MIB = 128
"""Far more than the control group allows."""


class Notes:
    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, what: str, *more: object) -> None:
        words = " ".join(map(str, (what, os.getpid(), *more)))
        os.write(self.fd, f"{words} {time.monotonic():.4f}\n".encode())

    def count_starts(self) -> int:
        return os.pread(self.fd, 1 << 20, 0).count(b"start ")


def main(words: list[str]) -> None:
    options = dict(word.partition("=")[::2] for word in words)
    notes = Notes(options["notes"])
    try:
        fcntl.flock(notes.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        notes.add("double")
    heed_term(options.get("term", "default"), notes)
    ordinal = notes.count_starts()
    notes.add("start", ordinal)
    over = time.monotonic() + float(options["seconds"])
    for _ in range(int(options.get("children", "0"))):
        make_daemon(options)
    flood(int(options.get("flood", "0")))
    time.sleep(max(0.0, over - time.monotonic()))
    kind, _, number = options["ending"].partition(":")
    if kind == "memory":
        notes.add("end", "memory")  # before it joins: others may grow there, and the kernel takes whom it likes
        with open(os.path.join(options["group"], "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
        grow()
        os._exit(99)  # the kernel has let it grow: the oracle will complain
    if kind == "signal":
        if int(number) != signal.SIGKILL:
            signal.signal(int(number), signal.SIG_DFL)  # Python has taken INT and PIPE, and we may have taken TERM
        notes.add("end", f"signal:{number}")
        os.kill(os.getpid(), int(number))
        time.sleep(10)
    code = (int(number) + ordinal) % 256
    notes.add("end", f"code:{code}")
    os._exit(code)


def heed_term(policy: str, notes: Notes) -> None:
    kind, _, number = policy.partition(":")

    def on_term(_number: int, _frame: FrameType | None) -> None:
        notes.add("term")
        if kind == "code":
            os._exit(int(number))

    if kind != "default":
        signal.signal(signal.SIGTERM, on_term)


def make_daemon(options: dict[str, str]) -> None:
    """Fork twice, as daemons do; return when the daemon has noted itself."""
    ready_read, ready_write = os.pipe()
    living_read, _living_write = os.pipe()  # the main process keeps the writing end as long as it lives
    if os.fork() != 0:
        os.close(ready_write)
        os.close(living_read)
        os.read(ready_read, 1)
        os.close(ready_read)
        os.wait()
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in options else signal.SIG_DFL)
    notes = Notes(options["notes"])
    notes.add("child")
    os.write(ready_write, b"!")
    for fd in range(notes.fd + 1):
        if fd != living_read:
            os.close(fd)
    os.read(living_read, 1)
    time.sleep(float(options["linger"]))
    os._exit(0)


def flood(size: int) -> None:
    block = LINE * 100
    for _ in range(0, size, len(block)):
        os.write(1, block)


def grow() -> None:
    kept = [bytearray(1 << 20) for _ in range(GROWTH_MIB)]  # bytearray(n) is zeroed, and touched only as it is used
    for block in kept:
        for page in range(0, len(block), 4096):
            block[page] = 1


main(sys.argv[1:])

"""The output of one run: a file that never blocks the application and stays within its bound.

The application holds the file open for appending, perhaps in many processes, so it can be neither renamed away nor
replaced. When it has grown past the bound, the newest half of the bound is copied to the front and the rest cut off.
The order of lines is kept; what is written between the last copy and the cut is lost, which is the price of a bound.

Standard library only; the waiter trims, the server reads the tail and prunes.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import re
import time
from collections.abc import Container

from appserver.fileio import OPEN_FLAGS, read_at, write_at
from appserver.identity import Service

KEPT_LOGS = 5
"""Logs kept of each service, the running one included: enough to see the last crashes, bounded whatever restarts."""

MAX_LOGS = 1000
"""Logs kept in all, as many as outcomes are: who starts ever new services must not fill the disk."""

MAX_TAIL_BYTES = 8 * 1024
"""The contract's bound of what a manager shows of a run's output."""

_CLOCK_SLACK_SECONDS = 60.0
"""A log that is so much ahead of the clock is not from the future: clocks are nudged all the time."""

_LOG_NAME = re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{8}\.\d{8}T\d{6}-\d{6}Z\.[0-9a-z]{1,8}\.log")
"""What `log_path` makes: other files may lie in the directory too."""

_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0)
"""A run's user may own its log and hold a lease on it (fcntl(2), F_SETLEASE): an open that waits for it to be given up
would take 45 seconds of the server's only thread."""

_COPY_BYTES = 256 * 1024
_MAX_NAME_CHARACTERS = 40


def service_digest(service: Service) -> str:
    """Give eight hexadecimal digits that tell services apart."""
    identity = "\0".join((service.form, service.instance or "", *service.words))
    return f"{binascii.crc32(identity.encode()):08x}"


def log_name_prefix(service: Service, executable: str) -> str:
    """Give the part of the log file's name that all runs of one service share: the program's name and a digest of the
    identity.
    """
    digest = service_digest(service)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(executable))[:_MAX_NAME_CHARACTERS].lstrip(".") or "run"
    return f"{name}-{digest}."


def log_path(log_dir: str, service: Service, executable: str, run_id: str) -> str:
    """Name the log of a run: `LOG_DIR/PROGRAM-DIGEST.TIME.RUN.log`; names of one service sort by the time (UTC) of
    their start.
    """
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}-{fraction // 1000:06}Z"
    return os.path.join(log_dir, f"{log_name_prefix(service, executable)}{stamp}.{run_id[:8]}.log")


def prune(path: str, in_use: Container[str], keep: int = KEPT_LOGS) -> None:
    """Remove the oldest logs of the service that `path` is a log of, so that `keep` remain, and of all services, so
    that `MAX_LOGS` do. Failures are ignored.

    Those of `in_use` stay: somebody still writes there, and would go on unseen and unbounded in a file without a name.
    """
    directory, name = os.path.split(path)
    prefix = name.rsplit(".", 3)[0] + "."
    with contextlib.suppress(OSError):
        names = [entry for entry in os.listdir(directory) if _LOG_NAME.fullmatch(entry)]
        own = [entry for entry in names if entry.startswith(prefix)]
        doomed = set(_oldest(directory, own, len(own) - keep))
        excess = len(names) - len(doomed) - MAX_LOGS
        doomed.update(_oldest(directory, [entry for entry in names if entry not in doomed], excess))
        for entry in doomed:
            old = os.path.join(directory, entry)
            if old != path and old not in in_use:
                os.unlink(old)


def _oldest(directory: str, names: list[str], count: int) -> list[str]:
    """Give the oldest logs. One from the future was written before the clock was set back, so it counts as older than
    those of the past.
    """
    if count <= 0:
        return []
    now = time.time() + _CLOCK_SLACK_SECONDS
    ages = [(os.path.getmtime(os.path.join(directory, name)), name) for name in names]
    return [name for _, _, name in sorted((mtime <= now, mtime, name) for mtime, name in ages)[:count]]


def open_log(path: str) -> int:
    """Open the log of a run for appending, 0600 from its first byte. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | OPEN_FLAGS | getattr(os, "O_NOFOLLOW", 0), 0o600)


def fits(path: str, max_bytes: int) -> bool:
    """Tell whether the log at `path` is within its bound, or not to be looked at."""
    try:
        return os.stat(path).st_size <= max_bytes
    except OSError:
        return True


def trim(path: str, max_bytes: int) -> bool:
    """Cut the log at `path` down to its newest half if it is larger than `max_bytes`; tell whether it was.

    Raises OSError. A crash in the middle leaves a log with its lines out of order, never a larger one.
    """
    if os.stat(path).st_size <= max_bytes:
        return False
    fd = os.open(path, os.O_RDWR | OPEN_FLAGS | _NEVER_WAIT)
    try:
        size = os.fstat(fd).st_size
        if size <= max_bytes:
            return False
        source = _start_of_line(fd, size - max_bytes // 2, size)
        marker = b"[%d bytes of output trimmed]\n" % source
        end = write_at(fd, marker, 0)
        while data := read_at(fd, _COPY_BYTES, source):
            source += len(data)
            end += write_at(fd, data, end)
            if end >= max_bytes:
                break
        os.ftruncate(fd, end)
        return True
    finally:
        os.close(fd)


def tail(path: str, lines: int) -> list[str]:
    """Read the last `lines` lines of a log, `MAX_TAIL_BYTES` of UTF-8 at most; what is not UTF-8 is escaped.

    A log that cannot be read has no lines.
    """
    if lines <= 0:
        return []
    try:
        # Not by a file object, which asks the system five more questions: this comes before an end is told.
        fd = os.open(path, os.O_RDONLY | OPEN_FLAGS | _NEVER_WAIT)
        try:
            start = max(0, os.fstat(fd).st_size - MAX_TAIL_BYTES)
            data = read_at(fd, MAX_TAIL_BYTES, start)
        finally:
            os.close(fd)
    except OSError:
        return []
    found = data.split(b"\n")
    if not found[-1]:
        found.pop()
    if start and len(found) > 1:
        del found[0]
    return _within_bound([line.decode("utf-8", "backslashreplace") for line in found[-lines:]])


def _within_bound(lines: list[str]) -> list[str]:
    # A byte that is not UTF-8 has become four, so what was within the bound may not be any more: the newest stays.
    room = MAX_TAIL_BYTES
    kept: list[str] = []
    for line in reversed(lines):
        data = line.encode()
        if len(data) > room:
            if not kept:
                kept.append(data[-room:].decode("utf-8", "ignore"))
            break
        room -= len(data)
        kept.append(line)
    return kept[::-1]


def _start_of_line(fd: int, position: int, size: int) -> int:
    ahead = read_at(fd, min(_COPY_BYTES, size - position), position)
    newline = ahead.find(b"\n")
    return position + newline + 1 if newline >= 0 else position

"""No start while everything is being stopped: a file in the state directory that closes it.

Whoever stops everything holds a lock on the file meanwhile, so that nothing stays closed where he is killed over it. At
a shutdown the file also names the boot, and closes the directory until the next one: between the last application's end
and the server's own nobody may start another.

A server looks after it has recorded a run, and before anything is executed. So a start that found the directory open is
on record, and found, before anybody counts what there is to stop.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from appserver.fileio import OPEN_FLAGS, read_at, write_at
from appserver.procfs import UNKNOWN_BOOT, boot_id

CLOSED = "closed"
_MAX_BOOT_BYTES = 64


@contextlib.contextmanager
def closed(state_dir: str, *, until_boot: bool) -> Iterator[None]:
    """Keep servers of a state directory from starting anything, with `until_boot` also after this. Raises OSError.

    Waits for nobody but a server that looks at that moment.
    """
    if sys.platform == "win32":
        raise AssertionError("nobody stops everything there")
    import fcntl

    fd = os.open(os.path.join(state_dir, CLOSED), os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if until_boot and (boot := boot_id()) != UNKNOWN_BOOT:
            write_at(fd, f"{boot}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def why_closed(state_dir: str) -> str | None:
    """Say why nothing may be started at this moment; None where it may."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fd = os.open(os.path.join(state_dir, CLOSED), os.O_RDWR | OPEN_FLAGS)
    except OSError:
        return None
    try:
        if read_at(fd, _MAX_BOOT_BYTES, 0).decode("ascii", "replace").strip() == boot_id():
            return f"this guest is being shut down; if it is not, remove {os.path.join(state_dir, CLOSED)}"
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "every application of this guest is being stopped"
    except OSError:
        return None
    finally:
        os.close(fd)
    return None

"""Hold whoever opens a file, as a network file system does whose server is away: by a lease (fcntl(2), F_SETLEASE).

The kernel lets the other one wait in its `open` until the lease is given back, 45 s at most, and the holder can see
that somebody does: so a program is stopped at a known place, without a change to it. `stat` is not held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pair import wait_until

from pki import pkcs12


class Lease:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait_wanted(self) -> None:
        """Wait until somebody stands in `open`."""
        wait_until(lambda: fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK, "somebody who opens the file")

    def give_back(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@contextlib.contextmanager
def leased(path: Path) -> Iterator[Lease]:
    """Hold a file of ours that nobody has open."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel says by it that somebody waits
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"this file system gives no leases: {error}")
        yield Lease(fd)
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


@contextlib.contextmanager
def held_stores(key_store: Path, trust_store: Path, *, child: bool) -> Iterator[Callable[[], None]]:
    """Hold whoever opens stores, in the program itself or in the child that opens them for it.

    Gives what waits until it stands there. The program reads both stores before its child does, so the child is held
    at the first one, which nobody has open while the program waits for the second. A child opens only what is unusual:
    the key store is damaged for it.
    """
    if child:
        with key_store.open("ab") as file:
            file.write(pkcs12._KEY_BAG_OIDS[1])
    with contextlib.ExitStack() as stack:
        trust = stack.enter_context(leased(trust_store))

        def wait_standing() -> None:
            trust.wait_wanted()
            if child:
                key = stack.enter_context(leased(key_store))
                trust.give_back()
                key.wait_wanted()

        yield wait_standing

"""A child process that is waited for without a thread: started by `posix_spawn`, awaited through its pidfd.

The server has one child at a time, its launcher. The library for any child on any system, with locales, selectors and
threads, takes half a megabyte for it. Linux only, where the server needs pidfds anyway.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import final

assert sys.platform != "win32"

import trio

_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them, and who is started would, too."""


@final
class Child:
    """A child process. Close it in the end."""

    def __init__(self, words: list[str], environment: Mapping[str, str], streams: tuple[int, int, int]) -> None:
        """Start the program whose path is the first of `words`, in a session of its own, with these descriptors as its
        standard ones. It has others only where we have inherited them ourselves. Raises OSError, leaves nothing then.
        """
        self.pid = os.posix_spawn(
            words[0],
            words,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, standard) for standard, fd in enumerate(streams)],
            setsid=True,
            setsigdef=_DEFAULT_SIGNALS,
        )
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()
            raise
        self._code: int | None = None
        self._is_closed = False
        self._one_at_a_time = trio.Lock()  # a descriptor may have one task that waits for it

    async def wait(self) -> int:
        """Wait until it has ended; give its exit code, or the negative number of the signal. Cancelled, it lets go of
        the child; any number of tasks may wait.
        """
        async with self._one_at_a_time:
            if self._code is None:
                await trio.lowlevel.wait_readable(self._pidfd)
                self._code = self._reap()
            return self._code

    def kill(self) -> None:
        """Kill it; one that has ended, or was let go of by `close`, is fine."""
        # Whoever notices last that it has ended may come after its descriptor was given back, and taken by others.
        if self._code is None and not self._is_closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Give back the descriptor. Whoever still waits gets `trio.ClosedResourceError`."""
        self._is_closed = True
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)

    def _reap(self) -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # whoever started us has us ignore the ends of children, and nobody knows
            return 0

"""A trio run that a test without `async` drives step by step, as Hypothesis's state machines have to.

The run is a guest of the test's own thread: it moves only inside `play`, so nothing happens between two steps, and its
clock stands unless a step moves it.
"""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable
from typing import final

import outcome
import trio
import trio.testing

PATIENCE_SECONDS = 60.0
"""Of real time, for one step."""


@final
class Stage:
    """One run. What is started in `nursery` goes on between the steps; an error there ends the step it comes in."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._end: outcome.Outcome[None] | None = None
        self._jobs: trio.MemorySendChannel[Callable[[], Awaitable[None]]] | None = None
        self._played = False
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._calls.put,
            done_callback=self._ended,
            clock=self.clock,
        )
        self._pump(lambda: self._jobs is not None)

    def play(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run one step to its end. Raises what it raises, and what anybody in the nursery has raised."""
        assert self._jobs is not None
        self._played = False
        self._token.run_sync_soon(self._jobs.send_nowait, job)
        self._pump(lambda: self._played or self._end is not None)
        if self._end is not None:
            self._end.unwrap()

    def close(self) -> None:
        """Cancel everything, and wait for its end."""
        if self._end is None:
            self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
            self._pump(lambda: self._end is not None)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        send, jobs = trio.open_memory_channel[Callable[[], Awaitable[None]]](1)
        async with trio.open_nursery() as self.nursery:
            self._jobs = send
            async for job in jobs:
                await job()
                self._played = True

    def _ended(self, end: outcome.Outcome[None]) -> None:
        self._end = end

    def _pump(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._calls.get(timeout=PATIENCE_SECONDS)()

"""What one session has asked and not been answered, and which outcomes it was told and may acknowledge. Pure.

News come of a run by its own id, while a manager may have asked under another one, an alias; so each is matched by what
the ids mean at that moment. News of a run that the session only wants stopped are no answer to its `run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from appserver.effects import Run
from pki.frozen import dataclass

MAX_UNACKNOWLEDGED = 64
"""Outcomes that this session was told and may still acknowledge. A manager does so at once; of more, the oldest is told
again to whoever starts its service next, which loses nothing."""


@final
@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is not answered yet: its number, and the id that it named."""

    seq: int
    run_id: str


@final
class Pending:
    """The requests of one session. `find` tells what an id means; methods give the number of the request answered."""

    def __init__(self, find: Callable[[str], Run | None]) -> None:
        self._find = find
        self._run: _Request | None = None
        self._stop: _Request | None = None
        self._stopped: str | None = None
        """The run that this session has asked to stop last."""
        self._unacknowledged: dict[str, None] = {}

    @property
    def awaits_run(self) -> bool:
        """Tell whether a `run` or `watch` is not answered yet."""
        return self._run is not None

    def ask_run(self, seq: int, run_id: str) -> None:
        """A `run` or `watch` takes the place of all that was asked before."""
        self._run, self._stop = _Request(seq, run_id), None

    def ask_stop(self, seq: int, run_id: str) -> None:
        """A stop takes the place of the one before."""
        self._stop = _Request(seq, run_id)

    def note_stopped(self, run_id: str) -> None:
        """Note what the id of a stop means, now that the table has heeded it."""
        run = self._find(run_id)
        self._stopped = run.run_id if run is not None else None

    def answer_run(self, run_id: str) -> int | None:
        """Take the `run` that news of a run answer; None where none was asked that means it."""
        if self._run is None or not self._names(self._run, run_id):
            return None
        seq, self._run = self._run.seq, None
        return seq

    def answer_stop(self, run_id: str | None = None) -> int | None:
        """Take the stop that news of a run answer, or any; None where none was asked."""
        if self._stop is None or (run_id is not None and not self._names(self._stop, run_id)):
            return None
        seq, self._stop = self._stop.seq, None
        return seq

    def answer_both(self, run_id: str) -> int | None:
        """Take all that the end of a run answers; give the number of the `run` where there was one, else the stop's."""
        of_run, of_stop = self.answer_run(run_id), self.answer_stop(run_id)
        return of_stop if of_run is None else of_run

    def refuse(self, run_id: str) -> int | None:
        """Take what is answered by the refusal of a run."""
        seq = self.answer_both(run_id)
        if seq is None and self._run is not None and run_id != self._stopped:
            # The run that it had joined is forgotten already, and its own id with it.
            seq, self._run = self._run.seq, None
        return seq

    def expect_ack(self, run_id: str) -> None:
        """An outcome was told."""
        self._unacknowledged[run_id] = None
        if len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
            del self._unacknowledged[next(iter(self._unacknowledged))]

    def take_ack(self, run_id: str) -> str | None:
        """Give the run that may be acknowledged; None for an outcome that this session was not told."""
        run = self._find(run_id)
        if run is None or run.run_id not in self._unacknowledged:
            return None
        del self._unacknowledged[run.run_id]
        return run.run_id

    def _names(self, request: _Request, run_id: str) -> bool:
        """Tell whether a request named this run, by its own id or by an alias."""
        if request.run_id == run_id:
            return True
        run = self._find(request.run_id)
        return run is not None and run.run_id == run_id

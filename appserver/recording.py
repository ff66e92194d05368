"""What a waiter knows of its run, on record and in words.

A waiter lives as long as its application, and whatever it looks at it has for itself from then on. So it keeps the
state as JSON beside the values, and the request as JSON only: what it tells a server is put together from those, and
the text that goes into the record is the text that is told.

A record that cannot be written (it never needs room, so the disk is broken) must not end the waiter, nor keep it from
ending: it goes on with what it knows, and says so.
"""

from __future__ import annotations

import json
import sys
import time

from pki.frozen import replace
from pki.typed import final

assert sys.platform != "win32"

from appserver.preparing import PID, STARTED_MONOTONIC, Known, Values, known_state
from appserver.recordformat import (
    DamagedRecordError,
    RecordError,
    Request,
    State,
    ended_text,
    request_from_json,
    sealed_state,
    state_from_json,
    state_text,
)
from appserver.records import RunRecord, StateFile, write_slot

MAX_TOLD_BYTES = 160 * 1024
"""Of a record that is told: what Linux takes for one packet by default is a little more, and the longest request less.
"""

NUDGE = b'{"event": "state"}'


@final
class Recording:
    """The state of one run, its request as JSON (None where that is not known), and where its log lies."""

    def __init__(
        self,
        file: StateFile | None,
        request: bytes | None,
        log_path: str | None,
        log_max_bytes: int,
        text: bytes | None = None,
    ) -> None:
        self.request = request
        self.log_path = log_path
        self.log_max_bytes = log_max_bytes
        self.is_quiet = file is None
        """Nothing has happened since the start: no outcome, no stop. As long as that is so nobody asks for the state.
        """
        self.is_over = file is not None and file.state.gone
        """All is over, and recorded as far as that is possible."""
        self._file = file
        self._next: tuple[int, int, Values, bytes] = (-1, 0, (), b"")
        """For as long as there is no file: its descriptor, and of the slot that is to be written its number, the values
        of its state, and the bytes.
        """
        self._text = text
        self._is_recorded = True

    @classmethod
    def of_new(cls, fd: int, known: Known) -> Recording:
        """Take over from our child, which wrote into the record that is open as `fd`."""
        sequence, values, text, sealed, request, log_path, log_max_bytes = known
        recording = cls(None, request, log_path, log_max_bytes, text)
        recording._next = fd, sequence, values, sealed
        return recording

    @classmethod
    def of_record(cls, record: RunRecord) -> Recording:
        """Read what is on record, for a substitute: it watches on, and stops, also where nobody can tell any more what
        it was that was started. Raises RecordError, DamagedRecordError where the state cannot be read.
        """
        file = StateFile(record)
        try:
            request, text = record.read_request(), record.read_request_text()
        except DamagedRecordError:
            return cls(file, None, None, 0)
        return cls(file, text, request.log_path, request.log_max_bytes)

    @property
    def state(self) -> State:
        """The state as it is known, be it on record or not."""
        return self._writer().state

    @property
    def pid(self) -> object:
        """The pid of the main process."""
        return self._next[2][PID] if self._file is None else self._file.state.pid

    def _writer(self) -> StateFile:
        if self._file is None:
            fd, sequence, values, _ = self._next
            known = state_from_json(json.loads(self._text or b"")) if self.is_over else known_state(values)
            self._file = StateFile.take_over(fd, sequence - (not self._is_recorded), known)
        return self._file

    def read_request(self) -> Request:
        """Give the request, which has to be known. Raises DamagedRecordError."""
        assert self.request is not None
        return request_from_json(json.loads(self.request))

    def write(self, **changes: object) -> None:
        """Change the state, and put it on record, where that is possible."""
        file = self._writer()
        self.is_quiet = False
        state = replace(file.state, **changes)  # type: ignore[arg-type]  # checked by the fields of State
        self.is_over = state.gone
        self._text = state_text(state)
        try:
            file.write(state, self._text)
            self._is_recorded = True
        except RecordError:
            file.state = state
            self._is_recorded = False

    def write_ready(self) -> None:
        """Put on record what is ready for that: at first that the process executes, as our child has written it."""
        fd, sequence, _, sealed = self._next
        try:
            write_slot(fd, sequence, sealed)
        except RecordError:
            self._is_recorded = False

    def write_end(self, kind: bytes, user_seconds: float, system_seconds: float, max_rss_bytes: int) -> None:
        """Put on record that all is over, as long as it is quiet: the process ended as `kind` says in JSON, by itself,
        and nobody of its tree lives.

        This is what nearly every run comes to, and somebody waits for it: it goes from text to text, and makes neither
        a state nor an outcome, whose fields a waiter would look at for the first time.
        """
        fd, sequence, values, _ = self._next
        started = values[STARTED_MONOTONIC]
        now = time.monotonic()
        ran_seconds = round(now - started if isinstance(started, float) else 0.0, 3)
        outcome = (
            b'{%s,"ended_at":%a,"ran_seconds":%a,"user_seconds":%a,"system_seconds":%a,"max_rss_bytes":%d,'
            b'"killed_for_memory":false,"survivors":0}'
            % (kind, time.time(), ran_seconds, user_seconds, system_seconds, max_rss_bytes)
        )
        self._text = ended_text(self._text or b"", outcome)
        self.is_quiet = False
        self.is_over = True
        self._file = None  # somebody may have looked at the state
        sequence += self._is_recorded  # a slot that could not be written is tried again
        self._next = fd, sequence, values, sealed_state(sequence, self._text)
        self._is_recorded = True
        self.write_ready()

    def nudge(self) -> bytes:
        """Give the event that tells the state."""
        return b'{"event": "state", %s}' % self._told_state()

    def describe(self) -> bytes:
        """Give the event that tells all of the record."""
        state = self._told_state()
        told = b'{"event": "record", "request": %s, %s}' % (self.request or b"null", state)
        return told if len(told) <= MAX_TOLD_BYTES else b'{"event": "record", "request": null, %s}' % state

    def _told_state(self) -> bytes:
        if self._text is None:
            self._text = state_text(self._writer().state)
        return b'"state": %s, "recorded": %s' % (self._text, b"true" if self._is_recorded else b"false")

    def close(self) -> None:
        """Close the record."""
        self._writer().close()

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
from dataclasses import replace
from typing import final

assert sys.platform != "win32"

from appserver.preparing import Known
from appserver.recordformat import (
    DamagedRecordError,
    RecordError,
    Request,
    State,
    request_from_json,
    state_text,
)
from appserver.records import RunRecord, StateFile

MAX_TOLD_BYTES = 160 * 1024
"""Of a record that is told: what Linux takes for one packet by default is a little more, and the longest request less.
"""

NUDGE = b'{"event": "state"}'


@final
class Recording:
    """The state of one run, its request as JSON (None where that is not known), and where its log lies."""

    def __init__(self, file: StateFile, request: bytes | None, log_path: str | None, log_max_bytes: int) -> None:
        self.request = request
        self.log_path = log_path
        self.log_max_bytes = log_max_bytes
        self._file = file
        self._text: bytes | None = None
        self._is_recorded = True

    @classmethod
    def of_new(cls, fd: int, known: Known) -> Recording:
        """Take over from our child, which wrote into the record that is open as `fd`."""
        file = StateFile.take_over(fd, known.sequence, known.state)
        recording = cls(file, known.request, known.log_path, known.log_max_bytes)
        recording._text = known.text
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
        return self._file.state

    def read_request(self) -> Request:
        """Give the request, which has to be known. Raises DamagedRecordError."""
        assert self.request is not None
        return request_from_json(json.loads(self.request))

    def write(self, **changes: object) -> None:
        """Change the state, and put it on record, where that is possible."""
        state = replace(self._file.state, **changes)  # type: ignore[arg-type]  # checked by the fields of State
        self._put(state, state_text(state))

    def write_running(self) -> None:
        """Put on record that the process executes, as our child has written it down."""
        assert self._text is not None
        self._put(self._file.state, self._text)

    def _put(self, state: State, text: bytes) -> None:
        self._text = text
        try:
            self._file.write(state, text)
            self._is_recorded = True
        except RecordError:
            self._file.state = state
            self._is_recorded = False

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
            self._text = state_text(self._file.state)
        return b'"state": %s, "recorded": %s' % (self._text, b"true" if self._is_recorded else b"false")

    def close(self) -> None:
        """Close the record."""
        self._file.close()

"""What the child of a waiter does before it becomes the application: read, open the log, go on record.

It reads what is to be run, opens the log, and writes its own pid into the record. Its waiter, which reads nothing, gets
from it what it has to know for as long as the application lives, and what it is to write next (`Known`); the two are
one program after a fork, so that goes as `marshal` writes it, which the reader pays next to nothing for.

Standard library only; nothing is imported after the fork.
"""

from __future__ import annotations

import errno
import marshal
import os
import sys
import time
from collections.abc import Mapping

from pki.frozen import fields, replace
from pki.typed import TypeAlias

assert sys.platform != "win32"

from appserver import runlog
from appserver.procfs import oom_kills, process_stat
from appserver.recordformat import DamagedRecordError, RecordError, Request, State, sealed_state, state_text
from appserver.records import RunRecord, StateFile
from appserver.spawn import Program

WATCH = b"watch"
"""Told in place of what is `Known` where there is nothing to start: a predecessor did so, and that is to be watched."""

_FIELDS = tuple(field.name for field in fields(State))
PID, STARTED_MONOTONIC = _FIELDS.index("pid"), _FIELDS.index("started_monotonic")
"""Where these are among the values of a state."""

Values: TypeAlias = tuple[str | float | None, ...]

Known: TypeAlias = tuple[int, Values, bytes, bytes, bytes, str, int]
"""What a waiter knows of a run that was just started: the number of the slot that is to be written next, the values of
the state that belongs there, the same as JSON and as the slot wants it, the request as JSON, the log and its bound.

A bare tuple, and a state that is not made before somebody asks: each field of a class is a page of the waiter's own.
"""


def prepare(record: RunRecord, environment: Mapping[bytes, bytes]) -> tuple[bytes, Program | None]:
    """Put this process on record as the main process of the run; give what its waiter is to know, and what to execute.

    That is nothing where the run was started before, or cannot be started; the latter is on record then, if there is a
    record. Raises RecordError where it cannot be written.

    The order to launch may come twice: its launcher died before it could answer, and then our predecessor. What that
    one has started is watched, as by a substitute, and never started again.
    """
    try:
        file = StateFile(record)
        if file.state.pid is not None or file.state.phase != "starting":
            return WATCH, None
        request, text = record.read_request(), record.read_request_text()
    except (RecordError, DamagedRecordError) as error:
        sys.stderr.write(f"the record of run {record.run_id} cannot be used: {error}\n")
        sys.stderr.flush()
        return b"", None
    try:
        program = _program(request, environment)
        _record_ourselves(file)
    except (OSError, RecordError) as error:
        record_failure(file, "start-failed", str(error))
        return b"", None
    running = replace(file.state, phase="running")
    return write_known(file.sequence + 1, running, text, request), program


def write_known(sequence: int, state: State, text: bytes, request: Request) -> bytes:
    """Write a `Known` for the waiter to read; `text` is the request as JSON. The state has neither stop nor outcome."""
    values = tuple(getattr(state, name) for name in _FIELDS)
    written = state_text(state)
    sealed = sealed_state(sequence, written)
    return marshal.dumps((sequence, values, written, sealed, text, request.log_path, request.log_max_bytes))


def read_known(told: bytes) -> Known:
    """Read what `write_known` wrote."""
    known: Known = marshal.loads(told)  # noqa: S302  (our own child wrote it)
    return known


def known_state(values: Values) -> State:
    """Make the state of its values."""
    return State(*values)  # type: ignore[arg-type]  # our own, in the order of the fields


def record_failure(file: StateFile, code: str, text: str) -> None:
    """Put on record that the run could not be started. Raises RecordError."""
    file.write(replace(file.state, phase="failed", failure=(code, text), gone=True))


def _program(request: Request, environment: Mapping[bytes, bytes]) -> Program:
    account = request.attributes.account
    log_fd = runlog.open_log(request.log_path)
    if account is not None:
        # Its owner may open /dev/stderr anew, as scripts do.
        os.fchown(log_fd, account.uid, account.gid)
    added = {os.fsencode(name): os.fsencode(text) for name, text in request.attributes.environment}
    return Program(request.executable, request.argv, {**environment, **added}, log_fd, request.attributes)


def _record_ourselves(file: StateFile) -> None:
    stat = process_stat(os.getpid())
    if stat is None:
        raise ProcessLookupError(errno.ESRCH, "the kernel does not show the new process under /proc")
    file.write(
        replace(
            file.state,
            pid=stat.pid,
            start_ticks=stat.start_ticks,
            started_at=time.time(),
            started_monotonic=time.monotonic(),
            oom_kills=oom_kills(),
        )
    )

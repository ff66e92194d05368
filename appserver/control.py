"""The server's end of a waiter's control socket: reach it, and read what it tells; see `waiter` for what is said there.

A waiter that has been asked to `describe` its run repeats the whole record, and tells its state along with each nudge
from then on. So a run whose files have been damaged or removed is followed to its true end all the same. Waiters of
older servers ignore that order, as they do every one that they do not know, and go on nudging.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import NamedTuple

assert sys.platform != "win32"

from appserver.recordformat import DamagedRecordError, Request, State, request_from_json, state_from_json
from appserver.records import RunRecord

MAX_EVENT_BYTES = 256 * 1024
"""Of one packet: a request of the longest service fits; the kernel's own bound is lower."""

DESCRIBE_SECONDS = 2.0
"""A waiter answers within a millisecond; one that was stopped, or is of an older server, not at all."""

DESCRIBE = b'{"order": "describe"}'


class Told(NamedTuple):
    """What a waiter says of its run. `is_recorded` is false where it could not write that into the record."""

    request: Request | None
    state: State
    is_recorded: bool


def connect(record: RunRecord) -> socket.socket:
    """Connect to the waiter of a run; the socket does not block. Raises OSError where there is none."""
    # A socket's path may have 107 bytes only; the run's directory may lie deeper than that.
    directory = os.open(record.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(f"/proc/self/fd/{directory}/control")
        except BaseException:
            connection.close()
            raise
    finally:
        os.close(directory)
    return connection


def read_told(event: dict[str, object]) -> Told | None:
    """Read what an event says of the run; None where it says nothing, or nothing that we understand."""
    state, request = event.get("state"), event.get("request")
    if not isinstance(state, dict):
        return None
    try:
        return Told(
            request_from_json(request) if isinstance(request, dict) else None,
            state_from_json(state),
            event.get("recorded") is not False,
        )
    except DamagedRecordError:
        return None


def describe(record: RunRecord) -> Told | None:
    """Ask the waiter of a run what its record should say; None where it does not answer. Blocks, `DESCRIBE_SECONDS` at
    most.
    """
    deadline = time.monotonic() + DESCRIBE_SECONDS
    try:
        with connect(record) as connection:
            connection.settimeout(DESCRIBE_SECONDS)
            connection.send(DESCRIBE)
            while time.monotonic() < deadline and (data := connection.recv(MAX_EVENT_BYTES)):
                event = json.loads(data)
                if isinstance(event, dict) and event.get("event") == "record":
                    return read_told(event)
    except (OSError, ValueError):
        pass
    return None

"""How a manager and its application stand, for scripts: one small file that is replaced whole at each change.

A resource agent, or a customer's run script, has to know when the application really runs, and afterwards how it ended,
in words and not only by a number that an application may also give. It must not have to read a log for that. So with
`--status-file` the manager keeps lines `key=value` in that file, without quoting; a value ends with its line. Whoever
reads sees one state or the next, never half of one. The file outlives the manager: where its last `state` is not a
final one and the manager is gone, that one was killed, and the application goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Literal, final

from pki.frozen import dataclass, fields

StandingState = Literal["connecting", "running", "lost", "ended", "stopped", "failed", "detached"]
"""`connecting`: no word of the application yet. `running`: it runs, and there is contact. `lost`: it ran when there was
contact last. The others are final: `ended`, the outcome of the application is known; `stopped`, it does not run, as was
asked; `failed`, the manager gave up; `detached`, the manager was told to leave."""

Cause = Literal[
    "exited", "signaled", "lost", "no-contact", "refused", "not-running", "not-stopped", "unusable", "error", "signal"
]


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand. `text` is the line that the log has about it, printable; None is what is not known (yet).

    `code` goes with `cause`: an exit code, the number of a signal, the code of a refusal. `pid` is the application's in
    the guest; `attached` tells that it ran before. `status` is the exit status that the manager ends with.
    `outcome` says only how the application ended, and after how long.
    """

    state: StandingState
    run: str | None = None
    pid: int | None = None
    attached: bool | None = None
    cause: Cause | None = None
    code: str | None = None
    status: int | None = None
    outcome: str | None = None
    text: str | None = None


def lines(standing: Standing) -> str:
    """Write what is known as lines `key=value`."""
    known = ((field.name, getattr(standing, field.name)) for field in fields(standing))
    return "".join(f"{name}={_value(value)}\n" for name, value in known if value is not None)


def _value(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@final
class StatusFile:
    """Keeps the file at `path`, or nothing where that is None."""

    def __init__(self, path: str | None, warn: Callable[[str], None]) -> None:
        """Prepare; `warn` is told, once, that the file cannot be written."""
        self._path = path
        self._warn = warn
        self._warned = False

    def begin(self) -> None:
        """Write the first state. Raises OSError: a script that hears nothing would wait for ever."""
        if self._path is not None:
            self._write(self._path, Standing("connecting"))

    def show(self, standing: Standing) -> None:
        """Replace what the file holds. Raises nothing: a full disk must not end the watch."""
        if self._path is None:
            return
        try:
            self._write(self._path, standing)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"the status file {self._path!r} cannot be written: {error.strerror}")

    def _write(self, path: str, standing: Standing) -> None:
        beside = f"{path}.{os.getpid()}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)  # of one that was killed with our pid
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(lines(standing).encode("utf-8", "backslashreplace"))
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise

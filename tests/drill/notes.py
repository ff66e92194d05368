"""What an application of the drill noted of itself, read back. See `application` for the lines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Start:
    """One execution of the application."""

    pid: int
    at: float
    ending: str | None = None
    """What it meant to do, noted right before: `code:7`, `signal:11`, `memory`; None if it was ended before."""
    ended_at: float | None = None
    children: list[int] = field(default_factory=list)


@dataclass
class Notes:
    """All executions of one service, in their order; `doubles` found another one alive beside them."""

    starts: list[Start] = field(default_factory=list)
    doubles: int = 0

    def of(self, pid: int) -> Start | None:
        """Find an execution; the latest where a pid has come round."""
        return next((start for start in reversed(self.starts) if start.pid == pid), None)


def read_notes(text: str) -> Notes:
    notes = Notes()
    for line in text.splitlines():
        what, pid, *more, at = line.split()
        match what:
            case "start":
                notes.starts.append(Start(int(pid), float(at)))
            case "double":
                notes.doubles += 1
            case "child":
                notes.starts[-1].children.append(int(pid))
            case "end":
                start = notes.of(int(pid))
                assert start is not None
                start.ending, start.ended_at = more[0], float(at)
    return notes

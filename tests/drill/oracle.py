"""Compares what the managers of a service reported with what its application did. Pure: it can be fed wrong reports.

The rules are the contract's ("Exit status", "What survives what", sections 1 and 2):

- Whoever sees an application end reports that very ending, with the status that belongs to it, and only when it has
  ended. An ending that no manager collected is told to whoever starts the service next.
- Only where a waiter was killed may an outcome be lost, and only where the kernel could not tell a stranger: before
  Linux 6.15, or where nobody held a handle on the process when it ended. The server takes one when it hears that the
  process runs, before it tells a manager so. So a process was held if a manager had said that it runs, and no server
  was away from then on; or if it lived for `HOLD_SECONDS`, and no server was away in the last such span.
- Nothing is started twice: no copy beside another, and no more executions than managers that can have asked for one.
- After a stop nobody of the tree lives. Whoever left session and parents is out of reach if the waiter was killed.
- A manager that is told to stop and has no contact tries for the stop timeout, then ends with the failure status.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from drill.notes import Notes, Start
from drill.plan import Service
from drill.reports import FAILURE_STATUS, LOST, Report, status_of

HOLD_SECONDS = 1.0
"""What a server is granted, on a busy machine, to take hold of a process that was started or is found again, and to
write down how one ended."""

TERM_STATUS = 143

RIGHT = "outcomes right"
WRONG = "outcomes wrong"
LOST_ALLOWED = "outcomes lost where the table allows it"
LOST_FORBIDDEN = "outcomes lost where it does not"
UNTOLD = "outcomes that nobody was told of"
DOUBLE = "double starts"
ALIVE = "processes alive after a stop"
OUT_OF_REACH = "processes out of reach of a stop, their waiter killed"
GAVE_UP = "stops given up without contact, as the contract says"
OVER_BOUND = "logs over their bound"
OVER_BOUND_ALLOWED = "logs over their bound, their waiter killed"


@dataclass
class Circumstances:
    """What the drill did to one service and around it. Times are of the monotonic clock."""

    kernel_tells: bool = True
    """Whether it tells strangers how a process ended (Linux 6.15)."""
    memory_is_told: bool = True
    """Whether the kernel's messages, which tell who was killed for memory, can be read."""
    waiter_kills: list[float] = field(default_factory=list)
    waiter_pauses: list[float] = field(default_factory=list)
    server_away: list[tuple[float, float]] = field(default_factory=list)
    """From when to when there was none, or it was paused."""
    contact_away: list[tuple[float, float]] = field(default_factory=list)
    """The same, and when connections were cut or held up."""
    unstopped: list[int] = field(default_factory=list)
    """Processes that the survivors policy should have ended, and has not."""
    logs_over_bound: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """One thing counted: its column, and words for who reads a complaint."""

    column: str
    words: str


def judge(service: Service, notes: Notes, reports: list[Report], around: Circumstances) -> list[Finding]:
    """Give everything there is to be counted about one service whose managers have all ended."""
    case = _Case(service, notes, reports, around)
    findings = [finding for report in reports for finding in case.judge_report(report)]
    findings += case.judge_starts()
    findings += case.judge_untold()
    findings += [case.alive(pid, "the survivors policy") for pid in around.unstopped]
    over_bound = OVER_BOUND_ALLOWED if around.waiter_kills else OVER_BOUND  # the waiter it is that trims
    findings += [Finding(over_bound, words) for words in around.logs_over_bound]
    return findings


class _Case:
    def __init__(self, service: Service, notes: Notes, reports: list[Report], around: Circumstances) -> None:
        self._traits = service.traits
        self._service = service
        self._notes = notes
        self._reports = reports
        self._around = around
        self._told: set[int] = set()
        """Which starts, by their place in the notes, somebody was told the end of."""

    def judge_report(self, report: Report) -> list[Finding]:
        findings = [self._judge_previous(ending, report) for ending in report.previous]
        if "Traceback" in report.log:
            findings.append(Finding(WRONG, "a traceback in a manager's log"))
        if report.ending is not None:
            findings += self._judge_ending(report)
        elif (report.killed and report.status == -9) or self._left_alone(report):
            pass
        elif report.halted_at is not None and self._gave_up(report):
            findings.append(Finding(GAVE_UP, "no contact"))
        else:
            findings.append(Finding(WRONG, f"a manager ended with {report.status} and tells of no ending"))
        return findings

    @staticmethod
    def _left_alone(report: Report) -> bool:
        """Whether it was told to go, and went as the contract says: nothing is known of the application."""
        if not (report.detached or report.halted_at is not None):
            return False
        if report.status == -signal.SIGTERM and not report.log:
            return True  # while its interpreter still started: a shell shows that as the same status
        if report.status != TERM_STATUS:
            return False
        return "nothing was started" in report.log or (report.detached and "detached from the node" in report.log)

    def _gave_up(self, report: Report) -> bool:
        assert report.halted_at is not None
        words = ("could not be asked to stop", "its completion was not heard of")
        return (
            report.status == FAILURE_STATUS
            and any(word in report.log for word in words)
            and _overlaps(self._around.contact_away, report.halted_at - HOLD_SECONDS, report.ended_at)
        )

    def _judge_ending(self, report: Report) -> list[Finding]:
        assert report.ending is not None
        start = self._start_of(report)
        if start is not None:
            self._told.add(self._notes.starts.index(start))
        findings = []
        if not (report.killed and report.status == -9):  # a manager may be killed after its last word but one
            expected = status_of(report.ending)
            if report.status != expected or report.last_line_status not in {expected, None}:
                words = f"status {report.status}, last line {report.last_line_status}, where the log says {report.said}"
                findings.append(Finding(WRONG, words))
        if start is not None and start.pid in report.alive:
            findings.append(Finding(WRONG, f"reports the end of {start.pid}, which lives"))
        if report.ending == LOST:
            return [*findings, self._judge_lost(report, start)]
        wrong = self._what_is_wrong(report, start)
        findings.append(Finding(WRONG, wrong) if wrong else Finding(RIGHT, report.said))
        if report.stopped and start is not None:
            findings += [self.alive(pid, "a stop") for pid in start.children if pid in report.alive]
        return findings

    def _start_of(self, report: Report) -> Start | None:
        """Find the execution that a report is about: by its pid; or, for one that had ended before the manager was
        told that it runs, the latest that can be meant, of several that which ended so.
        """
        if report.pid is not None:
            return self._notes.of(report.pid)
        possible = [
            start
            for start in self._notes.starts
            if start.at <= report.ended_at and (start.ended_at is None or start.ended_at >= report.began_at)
        ]
        fitting = [start for start in possible if report.ending in self._endings_of(start, report.ended_at)]
        candidates = fitting or possible
        return candidates[-1] if candidates else None

    def _judge_lost(self, report: Report, start: Start | None) -> Finding:
        if "stopped before it was started" in report.said and report.halted_at is not None:
            if start is None or start.at < report.began_at:
                return Finding(RIGHT, report.said)
            return Finding(WRONG, f"it says that nothing was started, and {start.pid} was")
        return self._lost(start, report.ended_at, report.said)

    def _lost(self, start: Start | None, known_at: float, words: str) -> Finding:
        column = LOST_ALLOWED if self._may_be_lost(start, known_at) else LOST_FORBIDDEN
        return Finding(column, f"{words}; {self._when(start, known_at)}")

    def _when(self, start: Start | None, known_at: float) -> str:
        """Tell what a loss hangs on, in seconds from the execution's start."""
        if start is None:
            return "it never came to note anything"
        ended_at = start.ended_at if start.ended_at is not None else known_at
        heard = [report.claimed_at for report in self._reports if report.pid == start.pid and report.claimed_at]
        away = [span for span in self._around.server_away if span[1] >= start.at and span[0] <= ended_at + HOLD_SECONDS]
        points = {"ended": [ended_at], "waiter killed": self._around.waiter_kills, "heard of": heard}
        words = [f"{what} at {[round(at - start.at, 3) for at in times]}" for what, times in points.items()]
        spans = [(round(begin - start.at, 3), round(end - start.at, 3)) for begin, end in away]
        return ", ".join([*words, f"server away {spans}"])

    def _may_be_lost(self, start: Start | None, known_at: float) -> bool:
        if start is None:
            return bool(self._around.waiter_kills)  # between its fork and its first word
        ended_at = start.ended_at if start.ended_at is not None else known_at
        kills = self._around.waiter_kills
        if not any(start.at - HOLD_SECONDS <= at <= ended_at + HOLD_SECONDS for at in kills):
            return False
        return not self._around.kernel_tells or not self._was_held(start, ended_at)

    def _was_held(self, start: Start, ended_at: float) -> bool:
        """Whether a server must have had a handle on a process when it ended, and time to ask about it."""
        heard = [report.claimed_at for report in self._reports if report.pid == start.pid]
        return any(
            at is not None
            and start.at <= at <= ended_at
            and not _overlaps(self._around.server_away, at, ended_at + HOLD_SECONDS)
            for at in (*heard, ended_at - HOLD_SECONDS)
        )

    def _what_is_wrong(self, report: Report, start: Start | None) -> str | None:
        """Say what is wrong with an ending that was reported as known."""
        allowed = self._endings_of(start, report.ended_at)
        if report.ending not in allowed:
            return f"{report.said}, where the process {report.pid} can only have ended so: {sorted(allowed)}"
        if report.stopped and not self._was_halted(report.ended_at):
            return f"{report.said}, and nobody asked for a stop"
        touched = bool(self._around.waiter_kills or self._around.waiter_pauses)
        is_memory = start is not None and start.ending == "memory"
        if report.killed_for_memory and not is_memory:
            return f"{report.said}, and it was not"
        if is_memory and not report.killed_for_memory and self._around.memory_is_told and not touched:
            return f"{report.said}, and not that it was killed for memory"
        if start is not None and not touched and not report.stopped and report.survivors != len(start.children):
            return f"{report.said}, where {len(start.children)} descendants lived on"
        return None

    def _endings_of(self, start: Start | None, before: float) -> set[str]:
        """List the endings that can be true of an execution; None stands for one that never came to note its start.

        Such a one may have been ended before it had its answer to TERM in place, or right after.
        """
        endings = set()
        if start is not None and start.ending is not None:
            endings.add("signal:9" if start.ending == "memory" else start.ending)
        if self._was_halted(before):
            policy = self._traits.get("term", "default")
            if start is None or policy == "default":
                endings.add("signal:15")
            if policy != "default":
                endings.add("signal:9" if policy == "ignore" else policy)
        return endings

    def _was_halted(self, before: float) -> bool:
        return any(report.halted_at is not None and report.halted_at <= before for report in self._reports)

    def _judge_previous(self, ending: str, report: Report) -> Finding:
        """Judge what a manager was told of an earlier run: it must be the ending of one that nobody collected."""
        own = self._start_of(report)
        earlier = [
            (place, start)
            for place, start in enumerate(self._notes.starts)
            if start is not own and start.at < report.ended_at
        ]
        if ending == LOST:
            allowed = [pair for pair in earlier if self._may_be_lost(pair[1], report.ended_at)]
            self._told |= {place for place, _ in allowed[:1]}
            words = "told to the next manager"
            if allowed or (not earlier and self._may_be_lost(None, report.ended_at)):
                return Finding(LOST_ALLOWED, words)
            return Finding(LOST_FORBIDDEN, words)
        fitting = [place for place, start in earlier if ending in self._endings_of(start, report.ended_at)]
        if fitting:
            # Many end alike: it is the latest that nobody was told of.
            self._told.add(next((place for place in reversed(fitting) if place not in self._told), fitting[-1]))
            return Finding(RIGHT, "told to the next manager")
        if ending in self._endings_of(None, report.ended_at):
            return Finding(RIGHT, "told to the next manager, of one that was stopped before it came to note anything")
        return Finding(WRONG, f"an earlier run is said to have ended so: {ending}")

    def judge_starts(self) -> list[Finding]:
        findings = [Finding(DOUBLE, "a copy beside another")] * self._notes.doubles
        started = [report for report in self._reports if report.claim == "started"]
        seen = {report.pid for report in started if report.pid is not None}
        unseen = [report for report in self._reports if report.claim is None or (report in started and not report.pid)]
        excess = len(self._notes.starts) - len(seen) - len(unseen)
        words = f"{len(self._notes.starts)} executions, {len(seen)} reported, {len(unseen)} more possible"
        return findings + [Finding(DOUBLE, words)] * max(0, excess)

    def judge_untold(self) -> list[Finding]:
        """Find endings that got lost in silence. A manager that was killed, or sent away, may have been told."""
        findings = []
        for place, start in enumerate(self._notes.starts):
            if place in self._told or start.ended_at is None:
                continue
            gone = [report for report in self._reports if report.killed or report.detached]
            if not any(report.ended_at >= start.ended_at for report in gone):
                findings.append(Finding(UNTOLD, f"{start.pid} ended with {start.ending}"))
        return findings

    def alive(self, pid: int, stopped_by: str) -> Finding:
        column = OUT_OF_REACH if self._around.waiter_kills else ALIVE
        return Finding(column, f"{pid} lives after {stopped_by}")


def _overlaps(spans: list[tuple[float, float]], begin: float, end: float) -> bool:
    return any(start <= end and begin <= stop for start, stop in spans)

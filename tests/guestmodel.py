"""What a guest's services look like to somebody who knows the contract but not the table: the model that sequences of
requests are checked against.

It keeps apart what the applications really do, what is *on disk* (all that a restarted server has), and what each
watcher wants. Every method takes what is asked or what happens, and gives what the table has to answer by the rules of
the contract, section 1: words such as `("ended", watcher, run)`, in any order. Aliases come and records go as the
table says; whether a record *may* go is asked of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from appserver.effects import Tell, Watcher
from appserver.identity import Service
from appserver.outcome import Outcome


@dataclass(frozen=True)
class Manager:
    """A session, by its name."""

    name: str

    @property
    def audit_name(self) -> str:
        return self.name

    @property
    def fingerprint(self) -> str:
        return "AB"

    def tell(self, what: Tell, /) -> None:
        raise AssertionError(f"the table only says what is to be told, it tells nothing itself: {what!r}")


Word: TypeAlias = tuple[Literal["launch", "stop", "running", "stopping", "ended", "refused"], Watcher | None, str]


@dataclass
class Application:
    """One run as it really is. `ordered` is a stop that the server knows of, `accepted` one that is on disk."""

    service: Service
    starter: Watcher | None
    started: bool = False
    failed: bool = False
    outcome: Outcome | None = None
    gone: bool = False
    ordered: bool = False
    accepted: bool = False
    told: bool = False
    """The server has told the outcome to whoever watched."""

    @property
    def in_the_way(self) -> bool:
        """Another run of its service has to wait for it, or joins it."""
        return not self.told or (self.accepted and not self.gone)


@dataclass
class Model:
    """The guest. `aliases` and `records` are on disk, in the order of their making; `ended` in that of the ends."""

    limit: int
    records: dict[str, Application] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    collected: set[str] = field(default_factory=set)
    ended: dict[str, None] = field(default_factory=dict)
    watching: dict[str, set[Watcher]] = field(default_factory=dict)
    stop_askers: dict[str, set[Watcher]] = field(default_factory=dict)
    waiting: dict[str, list[tuple[Watcher, str]]] = field(default_factory=dict)
    """By the run that is waited for: who, and under which id."""

    def find(self, run_id: str) -> str | None:
        """Give the run that an id means."""
        run_id = self.aliases.get(run_id, run_id)
        return run_id if run_id in self.records else None

    def active(self) -> list[str]:
        """List the runs that take one of the places that the limit gives."""
        return [run for run, application in self.records.items() if not application.told]

    def uncollected(self, service: Service) -> str | None:
        """Give the latest run of a service whose outcome nobody has."""
        found = [run for run in self.ended if self.records[run].service == service and run not in self.collected]
        return found[-1] if found else None

    def ask_run(self, watcher: Watcher, run_id: str, service: Service) -> list[Word]:
        known = self.find(run_id)
        if known is not None:
            if self.records[known].service != service:
                return [("refused", watcher, run_id)]
            if known == run_id:
                self.records[known].starter = watcher
            return self._join(known, watcher)
        for run, application in self.records.items():
            if application.service == service and application.in_the_way:
                if application.told or application.ordered or application.accepted:
                    self.waiting.setdefault(run, []).append((watcher, run_id))
                    return []
                self.aliases[run_id] = run
                return self._join(run, watcher)
        if len(self.active()) >= self.limit:
            return [("refused", watcher, run_id)]
        self.records[run_id] = Application(service, watcher)
        self.watching[run_id] = {watcher}
        return [("launch", None, run_id)]

    def ask_attach(self, watcher: Watcher, run_id: str, service: Service) -> list[Word]:
        known = self.find(run_id)
        found = known or self._attachable(service)
        if found is None or self.records[found].service != service:
            return [("refused", watcher, run_id)]
        if known is None:
            self.aliases[run_id] = found
        return self._join(found, watcher)

    def _attachable(self, service: Service) -> str | None:
        """What stands in the way of a start, else the newest run that has ended, unless somebody has its outcome."""
        for run, application in self.records.items():
            if application.service == service and application.in_the_way:
                return run
        ended = [run for run in self.ended if self.records[run].service == service]
        return ended[-1] if ended and ended[-1] not in self.collected else None

    def ask_watch(self, watcher: Watcher, run_id: str) -> list[Word]:
        known = self.find(run_id)
        return [("ended", watcher, run_id)] if known is None else self._join(known, watcher)

    def ask_stop(self, watcher: Watcher, run_id: str) -> list[Word]:
        known = self.find(run_id)
        if known is None:
            known = self._take_part(run_id)
        if known is None:
            return [("ended", watcher, run_id)]
        application = self.records[known]
        if application.told:
            return [("ended", watcher, known)]
        self.watching.setdefault(known, set()).add(watcher)
        self.stop_askers.setdefault(known, set()).add(watcher)
        application.ordered = True
        return [("stop", None, known)]

    def _take_part(self, run_id: str) -> str | None:
        """Whoever waits under an id that is to be stopped takes part in the stop of the run in its way."""
        for run, entries in self.waiting.items():
            taking_part = [watcher for watcher, waits_as in entries if waits_as == run_id]
            if taking_part:
                self.waiting[run] = [entry for entry in entries if entry[1] != run_id]
                self.watching.setdefault(run, set()).update(taking_part)
                self.aliases[run_id] = run
                return run
        return None

    def acknowledge(self, run_id: str) -> None:
        run = self.find(run_id)
        if run is not None and self.records[run].told:
            self.collected.add(run)

    def leave(self, watcher: Watcher) -> None:
        for watchers in (*self.watching.values(), *self.stop_askers.values()):
            watchers.discard(watcher)
        for run, entries in self.waiting.items():
            self.waiting[run] = [entry for entry in entries if entry[0] != watcher]

    def started(self, run: str) -> list[Word]:
        self.records[run].started = True
        return [("running", watcher, run) for watcher in self.watching.get(run, ())]

    def not_started(self, run: str) -> list[Word]:
        self.records[run].failed = self.records[run].told = self.records[run].gone = True
        self._forget_aliases(run)  # it is forgotten before whoever waited begins, maybe under one of them
        words: list[Word] = [("refused", watcher, run) for watcher in self.watching.get(run, ())]
        return words + self._begin_waiting(run)

    def stop_accepted(self, run: str) -> list[Word]:
        self.records[run].accepted = True
        return [("stopping", watcher, run) for watcher in self.stop_askers.pop(run, ())]

    def main_ended(self, run: str, outcome: Outcome, *, gone: bool) -> list[Word]:
        """The main process has ended, or told again with `gone`, all of its tree."""
        application = self.records[run]
        application.outcome, application.gone = outcome, gone
        words: list[Word] = []
        if not application.told and (gone or not application.ordered):
            application.told = True
            self.ended[run] = None
            words = [("ended", watcher, run) for watcher in self.watching.get(run, ())]
        return words if application.in_the_way else words + self._begin_waiting(run)

    def forget(self, run: str) -> None:
        del self.records[run]
        self.ended.pop(run, None)
        self.collected.discard(run)
        for kept in (self.watching, self.stop_askers, self.waiting):
            kept.pop(run, None)
        self._forget_aliases(run)

    def _forget_aliases(self, run: str) -> None:
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != run}

    def is_superseded(self, run: str) -> bool:
        """A collected outcome that nobody watches is of no use once a newer one of its service stands."""
        last = [other for other in self.ended if self.records[other].service == self.records[run].service][-1]
        return self.records[run].gone and run in self.collected and last != run and not self.watching.get(run)

    def restart(self) -> None:
        """Another server reads what is on disk: orders that had not arrived are gone, and so is every session."""
        for kept in (self.watching, self.stop_askers, self.waiting):
            kept.clear()
        self.ended.clear()
        for run, application in self.records.items():
            application.starter = None
            application.ordered = application.accepted
            outcome = application.outcome
            if outcome is not None and (application.gone or outcome.account.stopped_by is None):
                application.told = True
                self.ended[run] = None

    def _join(self, run: str, watcher: Watcher) -> list[Word]:
        application = self.records[run]
        if application.told:
            return [("ended", watcher, run)]
        self.watching.setdefault(run, set()).add(watcher)
        return [("running", watcher, run)] if application.started else []

    def _begin_waiting(self, run: str) -> list[Word]:
        service = self.records[run].service
        words: list[Word] = []
        for watcher, run_id in self.waiting.pop(run, []):
            words += self.ask_run(watcher, run_id, service)
        return words

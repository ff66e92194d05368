"""The table of services: who gets what, when. Pure: no clock, no process, no network, nothing awaits.

Every method takes what was asked or what happened and returns the *effects* that follow, in order; the supervisor
carries them out. A run goes STARTING → RUNNING → ENDED, by way of STOPPING where somebody asked for a stop. The rules
(contract, section 1):

- A service runs once. Asking for one that runs, or is being started, joins it; one that is being stopped is waited for.
- A run has an id. Asking again with the same id leads to the same run, also after its end. An id that led to a run of
  another id (attach) is that run's *alias* from then on.
- Whoever watches a run is told of its end. The end of a run that is being stopped is told when nobody of its tree
  lives.
- An outcome that nobody acknowledged is shown to whoever starts the service next. The last ones of each service are
  kept, older ones as long as nobody has acknowledged them or somebody still watches, within bounds (`retention`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from appserver.effects import (
    Asker,
    Effect,
    Forget,
    ForgetAlias,
    Launch,
    NoteAlias,
    NoteCollected,
    OrderStop,
    Phase,
    Run,
    SetTerms,
    TellEnded,
    TellRefused,
    TellRunning,
    TellStopping,
    Terms,
    Watcher,
)
from appserver.identity import Service
from appserver.outcome import Lost, Outcome
from appserver.retention import Ended

MAX_ALIASES_OF_A_RUN = 100
"""Ids kept that led to one run: an application may run for years while managers come and go. An older one is of use
only to a manager whose reply was lost, and that asks again within its timeout."""

MAX_ALIASES = 1000
"""The same for all runs together: each is a file."""

NOBODY_IN_PARTICULAR = Asker()


@final
class Services:
    """The table. `max_processes` bounds the runs that have not ended."""

    def __init__(self, max_processes: int) -> None:
        self.max_processes = max_processes
        self._runs: dict[str, Run] = {}
        self._aliases: dict[str, str] = {}
        self._current: dict[Service, Run] = {}
        """For each service the run that stands in the way of another start: not ended, or ended and clearing."""
        self._ended = Ended()

    def find(self, run_id: str) -> Run | None:
        """Find the run that an id, or an alias, means."""
        return self._runs.get(self._aliases.get(run_id, run_id))

    def active(self) -> list[Run]:
        """List the runs that have not ended."""
        return [run for run in self._runs.values() if run.phase is not Phase.ENDED]

    def logs_in_use(self) -> set[str]:
        """List the logs that somebody may still write to."""
        return {run.log_path for run in self._runs.values() if run.log_path is not None and not run.gone}

    def restore(self, run: Run, aliases: Iterable[str] = ()) -> list[Effect]:
        """Take in a run found on disk; call it in the order of their making."""
        self._runs[run.run_id] = run
        self._aliases.update((alias, run.run_id) for alias in aliases)
        if run.phase is Phase.ENDED:
            self._ended.add(run)
        if run.phase is not Phase.ENDED or run.clearing:
            self._current[run.service] = run
        return self._drop_old()

    def standing(self, service: Service) -> Run | None:
        """Find the run that stands in the way of another start of a service."""
        return self._current.get(service)

    def would_join(self, run_id: str, service: Service) -> Run | None:
        """Find the run that `ask_run` would have a manager attach to, or show the end of."""
        known = self.find(run_id)
        if known is not None:
            return known
        current = self._current.get(service)
        return current if current is not None and _is_attachable(current) else None

    def ask_run(
        self, watcher: Watcher, run_id: str, service: Service, terms: Terms, asker: Asker = NOBODY_IN_PARTICULAR
    ) -> list[Effect]:
        """A manager wants `service` to run, as run `run_id` unless it runs already."""
        known = self.find(run_id)
        if known is not None:
            if known.service != service:
                text = f"run {run_id} is one of {known.service.describe()}"
                return [TellRefused(watcher, "bad-service", text, run_id)]
            if known.run_id == run_id:
                known.starter = watcher  # the reply to whoever asked first was lost, and with it what it told
            return self._join(known, watcher, terms, asker)
        current = self._current.get(service)
        if current is not None:
            if _is_attachable(current):
                return [*self._add_alias(run_id, current), *self._join(current, watcher, terms, asker)]
            current.waiting.append((watcher, run_id, terms, asker))
            return []
        return self._begin(watcher, run_id, service, terms, asker)

    def would_attach(self, run_id: str, service: Service) -> Run | None:
        """Find the run that `ask_attach` would have a manager attach to, or show the end of."""
        known = self.find(run_id)
        if known is not None:
            return known
        current = self._current.get(service)
        if current is not None:
            return current
        newest = next(self._ended.newest_first(service), None)
        return newest if newest is not None and not newest.collected else None

    def ask_attach(
        self, watcher: Watcher, run_id: str, service: Service, terms: Terms, asker: Asker = NOBODY_IN_PARTICULAR
    ) -> list[Effect]:
        """A manager wants what runs of `service`, or the end of its newest run if nobody has that. Nothing is started.

        An older end that nobody has is not shown: it would be taken for that of the newest run.
        """
        run = self.would_attach(run_id, service)
        if run is None:
            return [TellRefused(watcher, "not-running", f"{service.describe()} does not run", run_id)]
        if run.service != service:
            return [TellRefused(watcher, "bad-service", f"run {run_id} is one of {run.service.describe()}", run_id)]
        alias = [] if self.find(run_id) is run else self._add_alias(run_id, run)
        return [*alias, *self._join(run, watcher, terms, asker)]

    def ask_watch(
        self, watcher: Watcher, run_id: str, terms: Terms, asker: Asker = NOBODY_IN_PARTICULAR
    ) -> list[Effect]:
        """A manager comes back for a run that it knows to exist. Nothing is started."""
        run = self.find(run_id)
        if run is None:
            return [
                TellEnded(
                    watcher, run_id, Lost("this guest knows nothing of the run: it was rebooted, or lost its state")
                )
            ]
        return self._join(run, watcher, terms, asker)

    def would_stop(self, run_id: str) -> Run | None:
        """Find the run that `ask_stop` would stop."""
        return self.find(run_id) or self._waited_for(run_id)

    def ask_stop(self, watcher: Watcher, run_id: str, by: str, timeout_seconds: float) -> list[Effect]:
        """A manager wants a run stopped; one that still waits for a stop takes part in that one."""
        run = self.would_stop(run_id)
        if run is None:
            return [TellEnded(watcher, run_id, Lost("it was stopped before it was started"))]
        effects = [] if self.find(run_id) is run else self._take_part(run_id, run)
        if run.phase is Phase.ENDED:
            return [*effects, *self._join(run, watcher, None, NOBODY_IN_PARTICULAR)]
        run.watchers[watcher] = None
        run.stop_askers[watcher] = None
        run.stop_ordered = True
        if run.phase is Phase.RUNNING:
            run.phase = Phase.STOPPING
        return [*effects, OrderStop(run.run_id, by, timeout_seconds, watcher.audit_name)]

    def acknowledge(self, run_id: str) -> list[Effect]:
        """A manager has the outcome of a run."""
        run = self.find(run_id)
        if run is None or run.phase is not Phase.ENDED:
            return []
        effects: list[Effect] = [] if run.collected else [NoteCollected(run.run_id)]
        run.collected = True
        return effects + self._drop_old()

    def leave(self, watcher: Watcher) -> list[Effect]:
        """A manager is gone. What it watches goes on; a start that it only waited for is not made."""
        for run in self._runs.values():
            if run.watchers:  # nobody watches most of those that have ended, of which there may be a thousand
                run.watchers.pop(watcher, None)
                run.stop_askers.pop(watcher, None)
            if run.waiting:
                run.waiting = [entry for entry in run.waiting if entry[0] != watcher]
        return self._drop_old()

    def evict(self, run_id: str, watcher: Watcher, text: str) -> list[Effect]:
        """A manager joined a start before it was known what would run, and may not attach to that."""
        run = self._runs.get(run_id)
        if run is None or watcher not in run.watchers:
            return []
        del run.watchers[watcher]
        run.stop_askers.pop(watcher, None)
        return [TellRefused(watcher, "rule", text, run_id)]

    def started(
        self, run_id: str, pid: int, start_ticks: int | None, started_at: float | None, started_monotonic: float | None
    ) -> list[Effect]:
        """The application of a run executes."""
        run = self._runs[run_id]
        run.pid, run.start_ticks = pid, start_ticks
        run.started_at, run.started_monotonic = started_at, started_monotonic
        if run.phase is not Phase.STARTING:
            return []
        run.phase = Phase.STOPPING if run.stop_ordered else Phase.RUNNING
        return [self._running(run, watcher) for watcher in run.watchers]

    def not_started(self, run_id: str, code: str, text: str) -> list[Effect]:
        """A run cannot be started: everybody who waited for it is told, and it is forgotten."""
        run = self._runs[run_id]
        told: list[Effect] = [TellRefused(watcher, code, text, run_id) for watcher in run.watchers]
        return [*told, *self._forget(run), *self._begin_waiting(run)]

    def stop_accepted(self, run_id: str) -> list[Effect]:
        """The stop of a run is in hands that will complete it."""
        run = self._runs.get(run_id)
        if run is None or run.phase is Phase.ENDED:
            return []
        if run.phase is Phase.RUNNING:
            run.phase = Phase.STOPPING
        askers, run.stop_askers = list(run.stop_askers), {}
        return [TellStopping(watcher, run_id) for watcher in askers]

    def ended(self, run_id: str, outcome: Outcome, *, gone: bool, stopping: bool) -> list[Effect]:
        """The main process of a run has ended; or, told again with `gone`, nobody of its tree lives any more.

        `stopping` says that what is left of the tree is being stopped.
        """
        run = self._runs.get(run_id)
        if run is None:
            return []
        if run.phase is Phase.ENDED:
            run.gone = run.gone or gone
            run.clearing = run.clearing and not gone
            return self._drop_old() if run.clearing else [*self._begin_waiting(run), *self._drop_old()]
        run.outcome = outcome
        if run.phase is Phase.STOPPING and not gone:
            return []
        was_told = run.phase is not Phase.STARTING
        run.phase = Phase.ENDED
        run.gone = gone
        run.clearing = stopping and not gone
        self._ended.add(run)
        told: list[Effect] = [
            TellEnded(watcher, run_id, outcome, run.log_path, None if was_told else self._previous(run, watcher))
            for watcher in run.watchers
        ]
        begun = [] if run.clearing else self._begin_waiting(run)
        return [*told, *begun, *self._drop_old()]

    def _begin(self, watcher: Watcher, run_id: str, service: Service, terms: Terms, asker: Asker) -> list[Effect]:
        active = self.active()
        own = sum(run.owner == asker.fingerprint for run in active)
        full = None
        if len(active) >= self.max_processes:
            run_already = "1 process runs" if len(active) == 1 else f"{len(active)} processes run"
            full = f"{run_already} already and no more than {self.max_processes} may"
        elif asker.max_processes is not None and own >= asker.max_processes:
            has = "1 process" if own == 1 else f"{own} processes"
            full = f"this manager's certificate has {has} running already, and may have {asker.max_processes}"
        if full is not None:
            return [TellRefused(watcher, "limit", f"{full}: {service.describe()} was not started", run_id)]
        run = Run(run_id, service, owner=asker.fingerprint, asked_by=watcher.audit_name, starter=watcher)
        run.watchers[watcher] = None
        self._runs[run_id] = run
        self._current[service] = run
        return [Launch(run_id, service, terms, run.owner, run.asked_by)]

    def _begin_waiting(self, ended: Run) -> list[Effect]:
        if self._current.get(ended.service) is ended:
            del self._current[ended.service]
        waiting, ended.waiting = ended.waiting, []
        effects: list[Effect] = []
        for watcher, run_id, terms, asker in waiting:
            effects += self.ask_run(watcher, run_id, ended.service, terms, asker)
        return effects

    def _join(self, run: Run, watcher: Watcher, terms: Terms | None, asker: Asker) -> list[Effect]:
        if run.phase is Phase.ENDED and run.outcome is not None:
            # Whoever asked for it again may not have been told yet that it ever ran.
            return [TellEnded(watcher, run.run_id, run.outcome, run.log_path, self._previous(run, watcher))]
        run.watchers[watcher] = None
        effects: list[Effect] = [] if run.phase is Phase.STARTING else [self._running(run, watcher)]
        if terms is not None and asker.sets_terms and run.phase is not Phase.STOPPING:
            effects.append(SetTerms(run.run_id, terms))
        return effects

    def _running(self, run: Run, watcher: Watcher) -> TellRunning:
        is_starter = watcher == run.starter
        return TellRunning(watcher, run, attached=not is_starter, previous=self._previous(run, watcher))

    def _previous(self, run: Run, watcher: Watcher) -> tuple[str, Outcome] | None:
        """Find, for whoever has started a run, the latest outcome of the service that nobody has; newer ones that
        somebody has do not hide it.
        """
        if watcher != run.starter:
            return None
        for other in self._ended.newest_first(run.service):
            if other is not run and other.outcome is not None and not other.collected:
                return other.run_id, other.outcome
        return None

    def _add_alias(self, alias: str, run: Run) -> list[Effect]:
        self._aliases[alias] = run.run_id
        others = [known for known, target in self._aliases.items() if target == run.run_id]
        effects: list[Effect] = [NoteAlias(alias, run.run_id)]
        too_many = max(0, len(self._aliases) - MAX_ALIASES)
        for old in dict.fromkeys([*others[:-MAX_ALIASES_OF_A_RUN], *list(self._aliases)[:too_many]]):
            del self._aliases[old]
            effects.append(ForgetAlias(old))
        return effects

    def _waited_for(self, run_id: str) -> Run | None:
        """Find the run that stands in the way of one that was asked for."""
        waited_for = (run for run in self._current.values() if any(entry[1] == run_id for entry in run.waiting))
        return next(waited_for, None)

    def _take_part(self, run_id: str, run: Run) -> list[Effect]:
        """Have everybody who waits for `run` under an id take part in its stop, and the id mean it from now on."""
        run.watchers.update((entry[0], None) for entry in run.waiting if entry[1] == run_id)
        run.waiting = [entry for entry in run.waiting if entry[1] != run_id]
        return self._add_alias(run_id, run)

    def _drop_old(self) -> list[Effect]:
        effects: list[Effect] = []
        for run in self._ended.to_forget():
            effects += self._forget(run)
        return effects

    def _forget(self, run: Run) -> list[Effect]:
        del self._runs[run.run_id]
        self._ended.discard(run)
        for alias in [alias for alias, target in self._aliases.items() if target == run.run_id]:
            del self._aliases[alias]
        return [Forget(run.run_id)]


def _is_attachable(run: Run) -> bool:
    """Tell whether whoever asks for the service of a run joins it; else it waits until the run is cleared away."""
    return run.phase in {Phase.STARTING, Phase.RUNNING} and not run.stop_ordered

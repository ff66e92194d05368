"""The table of services under any sequence of requests and events, restarts of the server included, against a model
that was written from the contract (`guestmodel`).
"""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

from guestmodel import Manager, Model, Word
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appserver import retention, services
from appserver.effects import (
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
from appserver.outcome import Account, Exited, Lost, Outcome
from appserver.services import Services

MOST_KEPT = 3
MOST_ALIASES = 2
"""Bounds small enough to be reached in thirty steps."""

LIMIT = 1
IDS = ["r1", "r2", "r3", "r4", "r5", "r6"]
KINDS = [Service("line", ("/apps/1",)), Service("line", ("/apps/2",))]
TERMS = Terms()


class Sequences(RuleBasedStateMachine):
    """Three managers, two services, six ids that are used again and again."""

    managers = st.sampled_from([Manager("a"), Manager("b"), Manager("c")])
    ids = st.sampled_from(IDS)
    kinds = st.sampled_from(KINDS)
    picks = st.integers(0, 5)

    @initialize(limit=st.sampled_from([1, 2]))
    def begin(self, limit: int) -> None:
        self.bounds = (
            patch.object(retention, "MAX_KEPT_OUTCOMES", MOST_KEPT),
            patch.object(retention, "KEPT_OF_A_SERVICE", 1),
            patch.object(services, "MAX_ALIASES_OF_A_RUN", MOST_ALIASES),
        )
        for bound in self.bounds:
            bound.start()
        self.table = Services(limit)
        self.model = Model(limit)
        self.codes = 0

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        while self.model.active():
            run = self.model.active()[0]
            if not self.model.records[run].started:
                self.come_up(0, fails=False)
            self.end_all_of(run)
        for bound in self.bounds:
            bound.stop()

    # What managers ask.

    @rule(watcher=managers, run_id=ids, what=kinds)
    def ask_run(self, watcher: Manager, run_id: str, what: Service) -> None:
        self.leave(watcher)  # as a session does before each new wish
        words = self.model.ask_run(watcher, run_id, what)
        self.expect(words, self.table.ask_run(watcher, run_id, what, TERMS))

    @rule(watcher=managers, run_id=ids, what=kinds)
    def ask_attach(self, watcher: Manager, run_id: str, what: Service) -> None:
        self.leave(watcher)
        words = self.model.ask_attach(watcher, run_id, what)
        self.expect(words, self.table.ask_attach(watcher, run_id, what, TERMS))

    @rule(watcher=managers, run_id=ids)
    def ask_watch(self, watcher: Manager, run_id: str) -> None:
        self.leave(watcher)
        words = self.model.ask_watch(watcher, run_id)
        self.expect(words, self.table.ask_watch(watcher, run_id, TERMS))

    @rule(watcher=managers, run_id=ids)
    def ask_stop(self, watcher: Manager, run_id: str) -> None:
        words = self.model.ask_stop(watcher, run_id)
        self.expect(words, self.table.ask_stop(watcher, run_id, watcher.name, 5.0))

    @rule(run_id=ids)
    def acknowledge(self, run_id: str) -> None:
        self.model.acknowledge(run_id)
        self.expect([], self.table.acknowledge(run_id))

    @rule(watcher=managers)
    def leave(self, watcher: Manager) -> None:
        self.model.leave(watcher)
        self.expect([], self.table.leave(watcher))

    # What happens.

    def not_yet_started(self) -> list[str]:
        return [run for run, it in self.model.records.items() if not it.started]

    def living(self) -> list[str]:
        return [run for run, it in self.model.records.items() if it.started and not it.gone]

    @precondition(lambda self: self.not_yet_started())
    @rule(pick=picks, fails=st.booleans())
    def come_up(self, pick: int, fails: bool) -> None:
        found = self.not_yet_started()
        run = found[pick % len(found)]
        if fails:
            self.expect(self.model.not_started(run), self.table.not_started(run, "start-failed", "no memory"))
        else:
            self.expect(self.model.started(run), self.table.started(run, 1, 2, 3.0, 4.0))

    @precondition(lambda self: any(it.ordered and not it.told for it in self.model.records.values()))
    @rule(pick=picks)
    def accept_stop(self, pick: int) -> None:
        found = [run for run, it in self.model.records.items() if it.ordered and not it.told]
        run = found[pick % len(found)]
        self.expect(self.model.stop_accepted(run), self.table.stop_accepted(run))

    @precondition(lambda self: self.living())
    @rule(pick=picks, gone=st.booleans(), policy_stops=st.booleans())
    def end(self, pick: int, gone: bool, policy_stops: bool) -> None:
        found = self.living()
        run = found[pick % len(found)]
        application = self.model.records[run]
        outcome = application.outcome
        if outcome is None:
            self.codes += 1
            outcome = Exited(self.codes, Account(stopped_by="somebody" if application.accepted else None))
            if policy_stops and not gone:
                application.accepted = True  # survivors are to be stopped
        elif not gone:
            return
        words = self.model.main_ended(run, outcome, gone=gone)
        self.expect(words, self.table.ended(run, outcome, gone=gone, stopping=application.accepted))

    def end_all_of(self, run: str) -> None:
        self.end(self.living().index(run), gone=True, policy_stops=False)

    @rule()
    def restart(self) -> None:
        """Another server finds what is on disk, in the order of its making, as the supervisor restores it."""
        self.model.restart()
        self.table = Services(self.model.limit)
        for run_id, it in list(self.model.records.items()):
            run = Run(run_id, it.service, collected=run_id in self.model.collected, gone=it.gone)
            if it.started:
                run.phase = Phase.STOPPING if it.accepted else Phase.RUNNING
            if it.told:
                run.phase, run.outcome = Phase.ENDED, it.outcome
            run.stop_ordered = it.accepted and not it.told
            run.clearing = it.told and it.accepted and not it.gone
            aliases = [alias for alias, target in self.model.aliases.items() if target == run_id]
            self.expect([], self.table.restore(run, aliases))

    # What follows.

    def expect(self, words: list[Word], effects: list[Effect]) -> None:
        """Hold the effects to the words that the model gave, and put on disk what they say."""
        said: list[Word] = []
        for effect in effects:
            match effect:
                case Launch(run_id):
                    said.append(("launch", None, run_id))
                case OrderStop(run_id):
                    said.append(("stop", None, run_id))
                case TellRunning(watcher, run):
                    said.append(("running", watcher, run.run_id))
                    self.check_running(watcher, run, effect)
                case TellStopping(watcher, run_id):
                    said.append(("stopping", watcher, run_id))
                case TellEnded(watcher, run_id, outcome):
                    said.append(("ended", watcher, run_id))
                    self.check_outcome(run_id, outcome)
                case TellRefused(watcher, _, _, run_id):
                    said.append(("refused", watcher, run_id))
                case Forget(run_id):
                    self.check_forgetting(run_id)
                    self.model.forget(run_id)
                case ForgetAlias(alias):
                    del self.model.aliases[alias]
                case NoteAlias(alias, run_id):
                    assert self.model.aliases.get(alias, run_id) == run_id
                case NoteCollected(run_id):
                    assert run_id in self.model.collected
                case SetTerms(run_id):
                    assert run_id in self.model.records
        assert Counter(said) == Counter(words)

    def check_running(self, watcher: Watcher, run: Run, effect: TellRunning) -> None:
        application = self.model.records[run.run_id]
        assert run.service == application.service
        assert effect.attached == (watcher != application.starter)
        if not effect.attached:
            previous = self.model.uncollected(run.service)
            shown = self.model.records[previous].outcome if previous is not None else None
            assert effect.previous == (None if shown is None else (previous, shown))

    def check_outcome(self, run_id: str, outcome: Outcome) -> None:
        if run_id in self.model.records:
            assert outcome == self.model.records[run_id].outcome
        else:
            assert isinstance(outcome, Lost)

    def check_forgetting(self, run: str) -> None:
        application = self.model.records[run]
        assert application.told
        assert application.gone
        over_the_bound = len(self.model.ended) > MOST_KEPT
        assert application.failed or over_the_bound or self.model.is_superseded(run)

    # What always holds.

    @invariant()
    def a_service_runs_once(self) -> None:
        in_the_way = [it.service for it in self.model.records.values() if it.in_the_way]
        assert len(in_the_way) == len(set(in_the_way))

    @invariant()
    def the_limit_holds(self) -> None:
        assert len(self.table.active()) == len(self.model.active()) <= self.model.limit

    @invariant()
    def the_table_holds_what_is_on_disk_and_nothing_else(self) -> None:
        assert set(self.table._runs) == set(self.model.records)
        assert self.table._aliases == self.model.aliases
        assert set(self.table._ended) == set(self.model.ended)

    @invariant()
    def nobody_is_kept_who_has_left(self) -> None:
        for run_id, run in self.table._runs.items():
            assert set(run.watchers) == self.model.watching.get(run_id, set())
            assert set(run.stop_askers) == self.model.stop_askers.get(run_id, set())
            assert [entry[:2] for entry in run.waiting] == self.model.waiting.get(run_id, [])

    @invariant()
    def a_stop_that_was_ordered_is_in_force(self) -> None:
        for run_id, it in self.model.records.items():
            run = self.table._runs[run_id]
            if (it.ordered or it.accepted) and not it.told:
                assert run.stop_ordered or run.phase is Phase.STOPPING

    @invariant()
    def kept_is_what_somebody_may_still_want(self) -> None:
        assert not any(self.model.is_superseded(run) for run in self.model.ended)
        assert len(self.model.ended) <= MOST_KEPT or not any(self.model.records[run].gone for run in self.model.ended)


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    deadline=None, max_examples=60, stateful_step_count=30, derandomize=True, database=None
)

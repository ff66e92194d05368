"""Carries out what the table of services decides, and tells the table what happens: the impure half of `services`.

It owns one task for each run that is followed. Effects are carried out at once and without awaiting, so the table is
never seen between a decision and its consequences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import final

import trio

from appserver import runlog
from appserver.closing import why_closed
from appserver.commands import CommandError
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
    Terms,
    Watcher,
)
from appserver.identity import Service, ServiceError
from appserver.outcome import Lost, Outcome, describe
from appserver.permissions import Permissions
from appserver.processes import Processes, StartError, Usage
from appserver.recordformat import DamagedRecordError, RecordError, State
from appserver.records import Records
from appserver.recovery import Found, find_again
from appserver.report import Report
from appserver.rules import NO_GRANTS, Grants, Verb
from appserver.services import NOBODY_IN_PARTICULAR, Services
from appserver.settings import ServerSettings
from appserver.starting import Starting

DAMAGED_WATCH_SECONDS = 1.0
"""How often it is looked whether a run whose record cannot be read is over."""

FOLLOWED_AT_ONCE = 10
"""Of the runs found again, in one turn of the loop. Each wakes its waiter, which takes up to a millisecond: a server
beside hundreds of them listens before that, and lets their managers in meanwhile."""


@final
class Supervisor:
    """The services of one guest."""

    def __init__(
        self,
        settings: ServerSettings,
        records: Records,
        processes: Processes,
        environment: Mapping[str, str],
        report: Report,
        grants: Grants = NO_GRANTS,
    ) -> None:
        self._records = records
        self._processes = processes
        self._report = report
        self._permissions = Permissions(grants)
        self._starting = Starting(settings, records, environment, self._permissions)
        self._table = Services(settings.max_processes)
        self._following: trio.Nursery | None = None
        self._found_again: list[str] = []
        self._strays: dict[str, str | None] = {}
        """Runs found again whose service cannot be read, and its digest where that can."""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow what runs until cancelled; the applications go on."""
        async with trio.open_nursery() as background:
            await background.start(self._processes.serve)
            async with trio.open_nursery() as self._following:
                found_again = [run_id for run_id in self._found_again if not self._drop_never_executed(run_id)]
                task_status.started()
                for number, run_id in enumerate(found_again):
                    if number % FOLLOWED_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
                    self._following.start_soon(self._follow, run_id)
                await trio.sleep_forever()

    def _drop_never_executed(self, run_id: str) -> bool:
        if not self._was_never_executed(run_id):
            return False
        self._report.info(f"dropped a start that was asked for, but not made: {self._name(run_id)}")
        self._apply(self._table.not_started(run_id, "start-failed", "the server ended before its start"))
        return True

    def _was_never_executed(self, run_id: str) -> bool:
        """Tell whether a run found again is but a wish of the past: rules and times may have changed, and a manager
        that still has it asks again.
        """
        if self._processes.is_watched(run_id):
            return False
        # Read after the lock was seen free, with no launcher of a former server alive: nobody will change it any more.
        try:
            state = self._records.get(run_id).read_state()
        except DamagedRecordError:
            return False
        return state.phase == "starting" and state.pid is None and state.started_at is None

    def reconfigure(self, settings: ServerSettings, grants: Grants = NO_GRANTS) -> None:
        """Heed new settings from the next request on; what runs goes on, also over a lowered limit."""
        self._starting.settings = settings
        self._permissions.grants = grants
        self._table.max_processes = settings.max_processes

    async def run(self, watcher: Watcher, run_id: str, service: Service, terms: Terms) -> None:
        """A manager wants a service to run, or to attach to it. Cancelled, nothing has been asked."""
        judged: Run | None = None
        asker = await self._permissions.asker(watcher, self._table.standing(service))
        while (run := self._table.would_join(run_id, service)) is not None and run is not judged:
            if await self._is_refused(watcher, "attach", run, run_id):
                return
            asker = await self._permissions.asker(watcher, run)
            judged = run
        self._apply(self._table.ask_run(watcher, run_id, service, terms, asker))

    async def attach(self, watcher: Watcher, run_id: str, service: Service, terms: Terms) -> None:
        """A manager wants to attach to what runs of a service, and to start nothing. Cancelled, nothing has been
        asked.
        """
        judged: Run | None = None
        asker = NOBODY_IN_PARTICULAR
        while (run := self._table.would_attach(run_id, service)) is not None and run is not judged:
            if await self._is_refused(watcher, "attach", run, run_id):
                return
            asker = await self._permissions.asker(watcher, run)
            judged = run
        self._apply(self._table.ask_attach(watcher, run_id, service, terms, asker))

    async def watch(self, watcher: Watcher, run_id: str, terms: Terms) -> None:
        """A manager comes back for a run. Cancelled, nothing has been asked."""
        run = self._table.find(run_id)
        if run is not None and await self._is_refused(watcher, "attach", run, run_id):
            return
        asker = await self._permissions.asker(watcher, run)
        self._apply(self._table.ask_watch(watcher, run_id, terms, asker))

    async def stop(self, watcher: Watcher, run_id: str, by: str, timeout_seconds: float) -> None:
        """A manager wants a run stopped. Cancelled, nothing has been asked."""
        judged: Run | None = None
        while (run := self._table.would_stop(run_id)) is not None and run is not judged:
            if await self._is_refused(watcher, "stop", run, run_id):
                return
            if run.phase is Phase.ENDED and await self._is_refused(watcher, "attach", run, run_id):
                return  # there is nothing to stop any more, only an outcome to be told
            judged = run
        self._apply(self._table.ask_stop(watcher, run_id, by, timeout_seconds))

    async def _is_refused(self, watcher: Watcher, verb: Verb, run: Run, asked_for: str) -> bool:
        text = await self._permissions.objection(watcher, verb, run)
        if text is not None:
            self._apply([TellRefused(watcher, "rule", text, asked_for, of_stop=verb == "stop")])
        return text is not None

    def acknowledge(self, run_id: str) -> None:
        """A manager has the outcome of a run."""
        self._apply(self._table.acknowledge(run_id))

    def leave(self, watcher: Watcher) -> None:
        """A manager is gone."""
        self._apply(self._table.leave(watcher))

    def find(self, run_id: str) -> Run | None:
        """Find what an id means at this moment."""
        return self._table.find(run_id)

    def usage(self, run: Run) -> Usage | None:
        """Tell what the main process of a run uses."""
        return self._processes.usage(run.pid, run.start_ticks) if run.pid is not None else None

    def count_active(self) -> int:
        """Count the runs that have not ended."""
        return len(self._table.active())

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Launch():
                    self._launch(effect)
                case OrderStop(run_id, by, timeout_seconds, asked_by):
                    self._report.info(f"stopping {self._name(run_id)}, asked by {asked_by}")
                    self._processes.order_stop(run_id, by, timeout_seconds)
                case SetTerms(run_id, terms):
                    self._processes.set_terms(run_id, terms)
                case NoteAlias(alias, run_id) if self._table.find(alias) is not None:
                    with self._said("an alias cannot be recorded"):
                        self._records.add_alias(alias, run_id)
                case ForgetAlias(alias):
                    self._records.remove_alias(alias)
                case NoteCollected(run_id):
                    with self._said("that an outcome was collected cannot be recorded"):
                        self._records.get(run_id).mark_collected()
                case Forget(run_id):
                    self._remove_record(run_id)
                case NoteAlias():
                    pass  # the start that it would lead to has failed at once
                case TellRunning(watcher, run, attached=True):
                    self._report.info(f"attached to {self._name(run.run_id)}, asked by {watcher.audit_name}")
                    watcher.tell(effect)
                case TellRefused(watcher, code, text):
                    self._report.warning(f"refused ({code}): {text}; asked by {watcher.audit_name}")
                    watcher.tell(effect)
                case _:
                    effect.watcher.tell(effect)

    def _launch(self, launch: Launch) -> None:
        assert self._following is not None
        self._following.start_soon(self._start_and_follow, launch)

    async def _start_and_follow(self, launch: Launch) -> None:
        run_id = launch.run_id
        try:
            self._check_strays(launch.service)
            request = await self._starting.prepare(launch, self._table.logs_in_use)
            self._check_open()
        except CommandError as error:
            self._refuse(run_id, error.code, str(error))
        except ServiceError as error:
            self._refuse(run_id, "bad-service", str(error))
        except StartError as error:
            self._refuse(run_id, "start-failed", f"{launch.service.describe()} was not started: {error}")
        except RecordError as error:
            text = f"{launch.service.describe()} was not started, since it cannot be recorded: {error}"
            self._refuse(run_id, "storage", text)
        except Exception as error:  # noqa: BLE001  (one start's bug must not end the server, nor the watch of the others)
            self._report.error(
                f"a bug kept {launch.service.describe()} from being started: {type(error).__name__}: {error}"
            )
            self._refuse(run_id, "start-failed", f"a bug of the server: {type(error).__name__}: {error}")
        else:
            run = self._table.find(run_id)
            assert run is not None
            run.log_path, run.program, run.user = request.log_path, request.program, request.user
            await self._show_out(run)
            if run.stop_ordered:
                self._drop_unstarted(run_id)
            else:
                await self._follow(run_id)

    async def _show_out(self, run: Run) -> None:
        """Refuse those who joined the start before it was known what would run, and may not attach to that."""
        async with trio.open_nursery() as judges:
            for watcher in list(run.watchers):
                judges.start_soon(self._judge_joiner, watcher, run)

    async def _judge_joiner(self, watcher: Watcher, run: Run) -> None:
        text = await self._permissions.objection(watcher, "attach", run)
        if text is not None:
            self._apply(self._table.evict(run.run_id, watcher, text))

    def _drop_unstarted(self, run_id: str) -> None:
        # The program took so long to be found that a stop came first; the guest may have been failed over since.
        self._processes.forget(run_id)
        self._remove_record(run_id)
        run = self._table.find(run_id)
        assert run is not None
        run.collected = True  # nothing ran, so there is nothing that the next one had to know
        self._finish(run_id, Lost("it was stopped before it was started"), gone=True, stopping=False)

    def _refuse(self, run_id: str, code: str, text: str) -> None:
        self._processes.forget(run_id)
        self._apply(self._table.not_started(run_id, code, text))

    async def _follow(self, run_id: str) -> None:
        try:
            await self._processes.follow(
                run_id,
                changed=partial(self._changed, run_id),
                stopping=lambda: self._apply(self._table.stop_accepted(run_id)),
            )
        except StartError as error:
            run = self._table.find(run_id)
            text = f"{run.service.describe() if run else run_id} cannot be started: {error}"
            self._apply(self._table.not_started(run_id, "start-failed", text))
        except DamagedRecordError as error:
            self._report.error(f"the record of {self._name(run_id)} cannot be read: {error}")
            # It runs, so no second one may be started beside it; a lock that is given back tells nobody.
            while self._processes.is_watched(run_id) or self._is_alive(run_id):  # noqa: ASYNC110
                await trio.sleep(DAMAGED_WATCH_SECONDS)
            self._finish(run_id, Lost(f"its record cannot be read: {error}"), gone=True, stopping=False)

    def _is_alive(self, run_id: str) -> bool:
        run = self._table.find(run_id)
        return run is not None and run.phase is not Phase.ENDED and self.usage(run) is not None

    def _changed(self, run_id: str, state: State) -> None:
        run = self._table.find(run_id)
        if run is None:
            return
        if state.phase == "failed":
            code, text = state.failure or ("start-failed", "it cannot be started")
            self._apply(self._table.not_started(run_id, code, text))
            return
        if state.phase != "starting" and run.pid is None and state.pid is not None:
            self._report.info(
                f"started {run.service.describe()}, run {run_id}, pid {state.pid}, output in {run.log_path}, "
                f"as {run.user or self._permissions.own_user}, asked by {run.asked_by}"
            )
            times = (state.started_at, state.started_monotonic)
            self._apply(self._table.started(run_id, state.pid, state.start_ticks, *times))
        if state.stop is not None and (state.outcome is None or state.outcome.account.stopped_by is not None):
            self._apply(self._table.stop_accepted(run_id))  # by whomever, `--stop-all` for one, which asks waiters
        if state.outcome is not None:
            self._finish(run_id, state.outcome, gone=state.gone, stopping=state.stop is not None)

    def _finish(self, run_id: str, outcome: Outcome, *, gone: bool, stopping: bool) -> None:
        run = self._table.find(run_id)
        before = run.phase if run else Phase.ENDED
        effects = self._table.ended(run_id, outcome, gone=gone, stopping=stopping)
        first = next((at for at, effect in enumerate(effects) if not isinstance(effect, TellEnded)), len(effects))
        self._apply(effects[:first])  # somebody waits for it, before all else
        if run is not None and before is not Phase.ENDED and run.phase is Phase.ENDED:
            log = self._report.warning if isinstance(outcome, Lost) else self._report.info
            log(f"ended {run.service.describe()}, run {run_id}: {describe(outcome)}")
        self._apply(effects[first:])

    def recover(self) -> None:
        """Find again, before serving, what a former server of this state directory has left. Raises RecordError."""
        found = find_again(self._records, self._processes, self._report)
        known = {one.run.run_id for one in found}
        aliases: dict[str, list[str]] = {}
        for alias, run_id in self._records.aliases():
            if run_id in known and alias not in known:
                aliases.setdefault(run_id, []).append(alias)
            else:
                self._records.remove_alias(alias)  # of a run that is no more, or torn
        for one in found:
            self._take_in(one, aliases.get(one.run.run_id, []))
            if one.request is not None:
                self._starting.serial = max(self._starting.serial, one.request.serial)

    def _take_in(self, found: Found, aliases: list[str]) -> None:
        run = found.run
        self._apply(self._table.restore(run, aliases))
        if run.outcome is not None and not run.collected:
            how = describe(run.outcome)
            self._report.info(f"{run.service.describe()}, run {run.run_id}, {how}: no manager has collected that yet")
        if found.alive:
            what = "an application that runs" if run.phase is not Phase.ENDED else "what is left of an application"
            self._report.info(f"found again {what}: {run.service.describe()}, run {run.run_id}, pid {run.pid}")
            self._found_again.append(run.run_id)
            if found.request is None:
                self._strays[run.run_id] = found.digest
                self._report.error(
                    f"which service run {run.run_id} is of cannot be read: starts that may be of the same one are "
                    "refused until it has ended"
                )

    def _check_strays(self, service: Service) -> None:
        """Refuse a start beside a run that may be one of the same service. Raises StartError."""
        for run_id, digest in list(self._strays.items()):
            run = self._table.find(run_id)
            if run is None or (run.phase is Phase.ENDED and not run.clearing):
                del self._strays[run_id]
            elif digest in {None, runlog.service_digest(service)}:
                who = f"run {run_id}, process {run.pid}," if run.pid is not None else f"run {run_id}"
                raise StartError(
                    f"{who} still runs and may be one of the same service, which its damaged record does not tell: "
                    "end it by hand first"
                )

    def _check_open(self) -> None:
        """Refuse a start while everything is being stopped; its record stands, see `closing`. Raises StartError."""
        reason = why_closed(self._records.state_dir)
        if reason is not None:
            raise StartError(f"nothing is started any more, {reason}")

    def _remove_record(self, run_id: str) -> None:
        with self._said(f"the record of run {run_id} cannot be removed"):
            self._records.remove(run_id)

    def _name(self, run_id: str) -> str:
        run = self._table.find(run_id)
        return f"{run.service.describe()}, run {run_id}" if run else f"run {run_id}"

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except RecordError as error:
            self._report.warning(f"{what}: {error}")

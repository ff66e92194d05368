"""What comes before a start: find the program and the rule for it, make the log and the record."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import final

import trio

from appserver import runlog
from appserver.commands import resolve_command
from appserver.effects import Launch
from appserver.permissions import Permissions
from appserver.recordformat import RecordError, Request, State
from appserver.records import Records
from appserver.recovery import this_boot
from appserver.runas import attributes_for, effective_user
from appserver.settings import ServerSettings
from pki.frozen import replace

MAX_LOOK_UPS = 100
"""Programs looked for at one time, each in a thread: so many may lie on file systems that hang before a start waits."""


@final
class Starting:
    """Prepares starts. `settings` may be changed at any moment; `serial` is that of the last run."""

    def __init__(
        self, settings: ServerSettings, records: Records, environment: Mapping[str, str], permissions: Permissions
    ) -> None:
        self.settings = settings
        self.serial = 0
        self.looking_up = trio.CapacityLimiter(MAX_LOOK_UPS)
        self._records = records
        self._environment = dict(environment)
        self._permissions = permissions

    async def prepare(self, launch: Launch, logs_in_use: Callable[[], set[str]]) -> Request:
        """Put a run on record, with all that its waiter has to know.

        Raises CommandError, ServiceError, RecordError. Cancelled before the record is made, it leaves nothing.
        """
        # In a thread: the program may lie on a network file system that hangs, and that must hold up this start only.
        request = await trio.to_thread.run_sync(
            self._make_request, launch, abandon_on_cancel=True, limiter=self.looking_up
        )
        self.serial += 1
        request = replace(request, serial=self.serial)
        _make_log(request.log_path)
        state = State(
            survivors=launch.terms.survivors,
            stop_timeout_seconds=launch.terms.stop_timeout_seconds,
            boot=request.boot,
            service_digest=runlog.service_digest(launch.service),
        )
        try:
            self._records.create(request, state)
        except RecordError:
            with contextlib.suppress(OSError):
                os.unlink(request.log_path)
            raise
        # Only now: starts that a full disk refuses must not cost the logs of real ones.
        runlog.prune(request.log_path, logs_in_use())
        return request

    def _make_request(self, launch: Launch) -> Request:
        argv = launch.service.argv()
        policy, grant = self.settings.policy, self._permissions.grants.of(launch.owner)
        program = resolve_command(argv[0], self._environment, policy, grant)
        return Request(
            run_id=launch.run_id,
            service=launch.service,
            # Where rules decide, what was judged is what is executed: a link may be changed in between.
            executable=program.real if policy.is_closed or grant.start is not None else program.path,
            argv=argv,
            log_path=runlog.log_path(self.settings.log_dir, launch.service, program.path, launch.run_id),
            log_max_bytes=self.settings.log_max_bytes,
            boot=this_boot(),
            requested_at=time.time(),
            program=program.real,
            owner=launch.owner,
            asked_by=launch.asked_by,
            user=effective_user(program.rule, grant),
            attributes=attributes_for(program.rule, grant),
        )


def _make_log(path: str) -> None:
    try:
        os.close(runlog.open_log(path))
    except OSError as error:
        raise RecordError(f"its log {path}: {error.strerror}") from error

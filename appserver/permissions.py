"""What the section of a manager's certificate has against what it asks: the impure half of `rules`.

A pattern is matched with all links resolved, which may hang with a file system. So the question is asked in a thread,
and only for a certificate whose section narrows anything; that one manager waits for the answer, nobody else.
"""

from __future__ import annotations

from typing import final

import trio

from appserver.commands import permits
from appserver.effects import Asker, Run, Watcher
from appserver.rules import NO_GRANTS, Grant, Grants, Verb
from appserver.runas import own_user

MAX_LOOK_UPS = 100
"""Programs and patterns looked up at one time, each in a thread: so many may lie on file systems that hang before
anything else waits."""


@final
class Permissions:
    """The sections in force. `grants` may be changed at any moment; `looking_up` bounds the threads."""

    def __init__(self, grants: Grants = NO_GRANTS) -> None:
        self.grants = grants
        self.looking_up = trio.CapacityLimiter(MAX_LOOK_UPS)
        self.own_user = own_user()

    async def asker(self, watcher: Watcher, run: Run | None) -> Asker:
        """Say on whose behalf a manager asks for a run, or for a service that none is there of."""
        grant = self.grants.of(watcher.fingerprint)
        sets_terms = run is None or await self.objection(watcher, "stop", run) is None
        return Asker(watcher.fingerprint, grant.max_processes, sets_terms)

    async def objection(self, watcher: Watcher, verb: Verb, run: Run) -> str | None:
        """Say what is against a verb for a run that is there; None for nothing."""
        grant = self.grants.of(watcher.fingerprint)
        is_own = run.owner == watcher.fingerprint
        if not grant.is_narrow or (is_own and verb == "attach"):
            return None
        if run.program is None:  # it is being looked for: whoever joins now is judged when it has been found
            return None if verb == "attach" or is_own else "what it runs is still being looked for: try again"
        return self._wrong_user(grant, verb, run) or await self._wrong_program(grant, verb, run.program)

    def _wrong_user(self, grant: Grant, verb: Verb, run: Run) -> str | None:
        user = run.user or self.own_user
        if grant.user is None or user == grant.user:
            return None
        only = f"may {_IN_WORDS[verb]} what runs as {grant.user!r} only, not as {user!r}"
        return f"this manager's section {grant.name!r} {only}"

    async def _wrong_program(self, grant: Grant, verb: Verb, program: str) -> str | None:
        if grant.patterns(verb) is None or await trio.to_thread.run_sync(
            permits, grant, verb, program, abandon_on_cancel=True, limiter=self.looking_up
        ):
            return None
        return f"this manager's section {grant.name!r} does not permit to {_IN_WORDS[verb]} {program!r}"


_IN_WORDS: dict[Verb, str] = {"start": "start", "attach": "attach to", "stop": "stop"}

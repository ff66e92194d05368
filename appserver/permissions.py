"""What the section of a manager's certificate has against what it asks: the impure half of `rules`.

A pattern is matched with all links resolved, which may hang with a file system. So the question is asked in a thread,
and only for a certificate whose section narrows anything, and within a bound. That one manager waits for the answer;
where it had joined a start, the start does, too.
"""

from __future__ import annotations

from typing import final

import trio

from appserver.commands import permits
from appserver.effects import Asker, Run, Watcher
from appserver.rules import NO_GRANTS, Grant, Grants, Verb
from appserver.runas import own_user

MAX_JUDGED = 50
"""Patterns looked at at one time, each in a thread; starts have threads of their own."""

JUDGE_SECONDS = 5.0
"""For one of them. A session that waits for longer hears neither its manager nor its end."""


@final
class Permissions:
    """The sections in force. `grants` may be changed at any moment."""

    def __init__(self, grants: Grants = NO_GRANTS) -> None:
        self.grants = grants
        self._judging = trio.CapacityLimiter(MAX_JUDGED)
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
        if not grant.is_narrow or (is_own and (verb == "attach" or grant.own_only)):
            return None
        if grant.own_only:
            return f"this manager's certificate is {grant.name}, and it has not started this"
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
        if grant.patterns(verb) is None:
            return None
        patterns = f"the patterns of this manager's section {grant.name!r}"
        with trio.move_on_after(JUDGE_SECONDS) as patience:
            try:
                if await trio.to_thread.run_sync(
                    permits, grant, verb, program, abandon_on_cancel=True, limiter=self._judging
                ):
                    return None
            except RuntimeError as error:  # there is no thread to be had: who cannot be judged may not
                return f"{patterns} cannot be looked at now ({error}): try again"
        if patience.cancelled_caught:
            return f"{patterns} lie on a file system that hangs: try again"
        return f"this manager's section {grant.name!r} does not permit to {_IN_WORDS[verb]} {program!r}"


_IN_WORDS: dict[Verb, str] = {"start": "start", "attach": "attach to", "stop": "stop"}

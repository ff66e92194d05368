"""Which outcomes are forgotten, and when. Pure.

The last outcomes of each service are kept, older ones as long as nobody has acknowledged them or somebody still
watches. One would do, were it not for several managers of one service: one of them may be away when another collects
the outcome and starts the next run, and comes back for it within its timeout.

That is a promise to honest managers, and a way to fill the memory for others: so there are bounds, in number and in
bytes. Where one is passed, it is at the expense of the certificate that takes the largest share, so that nobody can
push out what somebody else has not collected; and there what was collected goes first, the oldest before the others,
then what nobody has collected, and the last outcome of a service after all others.

Each event asks what is to be forgotten, and the answer is nearly always nothing. `Ended` counts along, so that this
answer costs no look at the thousand that may be kept: thirty applications that end at once would pay for it ninety
times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import final

from appserver.effects import Run
from appserver.identity import Service

MAX_KEPT_OUTCOMES = 1000
"""The contract's bound; a record takes three pages on disk."""

KEPT_OF_A_SERVICE = 10
"""A service that fails at once is started again a few times within the timeout of a manager that is away."""

MAX_KEPT_BYTES = 16 * 1024 * 1024
"""Of memory, for what the services are called: a vector of many short words takes ten times what it took on the wire,
and a thousand of those would fill a guest."""


def to_forget(ended: Iterable[Run]) -> list[Run]:
    """Choose from all runs that have ended, given oldest first. Those of whose tree somebody is still watched stay."""
    runs = list(ended)
    last = {run.service: run for run in runs}
    gone = [run for run in runs if run.gone]
    newer = Counter[Service]()
    superseded: set[int] = set()
    for run in reversed(runs):
        if newer[run.service] >= KEPT_OF_A_SERVICE:
            superseded.add(id(run))
        newer[run.service] += 1
    forgotten = [run for run in gone if run.collected and not run.watchers and id(run) in superseded]
    for_good = set(map(id, forgotten))
    droppable = [run for run in gone if id(run) not in for_good]
    droppable.sort(key=lambda run: (not run.collected, not run.collected and last[run.service] is run))
    kept = Counter(run.owner for run in runs if id(run) not in for_good)
    kept_bytes = Counter[str]()
    for run in runs:
        kept_bytes[run.owner] += 0 if id(run) in for_good else run.service_bytes
    while droppable and (kept.total() > MAX_KEPT_OUTCOMES or kept_bytes.total() > MAX_KEPT_BYTES):
        shares = kept if kept.total() > MAX_KEPT_OUTCOMES else kept_bytes
        greatest = max((run.owner for run in droppable), key=shares.__getitem__)
        run = next(run for run in droppable if run.owner == greatest)
        droppable.remove(run)
        forgotten.append(run)
        kept[greatest] -= 1
        kept_bytes[greatest] -= run.service_bytes
    return forgotten


@final
class Ended:
    """The runs that have ended, oldest first."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._of: dict[Service, dict[str, Run]] = {}
        self._crowded: dict[Service, None] = {}
        """The services with more than `KEPT_OF_A_SERVICE` ended runs."""
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        """Give the ids, those of the oldest runs first."""
        return iter(self._runs)

    def add(self, run: Run) -> None:
        """Take in a run that has ended after all others, or was found on disk."""
        self._runs[run.run_id] = run
        self._bytes += run.service_bytes
        of_service = self._of.setdefault(run.service, {})
        of_service[run.run_id] = run
        if len(of_service) > KEPT_OF_A_SERVICE:
            self._crowded[run.service] = None

    def discard(self, run: Run) -> None:
        """Take out a run; one that is not here is fine."""
        if self._runs.pop(run.run_id, None) is None:
            return
        self._bytes -= run.service_bytes
        of_service = self._of[run.service]
        del of_service[run.run_id]
        if len(of_service) <= KEPT_OF_A_SERVICE:
            self._crowded.pop(run.service, None)
        if not of_service:
            del self._of[run.service]

    def newest_first(self, service: Service) -> Iterator[Run]:
        """Give the runs of a service."""
        return reversed(self._of.get(service, {}).values())

    def to_forget(self) -> list[Run]:
        """Choose as the function of that name does."""
        if len(self._runs) > MAX_KEPT_OUTCOMES or self._bytes > MAX_KEPT_BYTES:
            return to_forget(self._runs.values())
        return [run for service in self._crowded for run in to_forget(self._of[service].values())]

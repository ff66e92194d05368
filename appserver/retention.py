"""Which outcomes are forgotten, and when. Pure.

The last outcomes of each service are kept, older ones as long as nobody has acknowledged them or somebody still
watches. One would do, were it not for several managers of one service: one of them may be away when another collects
the outcome and starts the next run, and comes back for it within its timeout.

That is a promise to honest managers, and a way to fill the memory for others: so there are bounds, in number and in
bytes. Where one is passed, it is at the expense of the certificate that takes the largest share, so that nobody can
push out what somebody else has not collected; and there what was collected goes first, the oldest before the others,
then what nobody has collected, and the last outcome of a service after all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

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

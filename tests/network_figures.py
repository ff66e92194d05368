"""The table of the network's cases, put together by the process that collects the results of all the others.

Cases run side by side in several processes. Each attaches its lines to its report (pytest's `record_property`), and the
lines of all reports make the table when the run is over.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone

from figures import record
from pytest import TestReport  # noqa: PT013  (only the type)

PROPERTY = "figures: network"
COLUMNS = ["case", "timeout", "pause", "what happened", "last answer to end"]


def line(case: str, timeout: float, pause: float | None, what: str, seconds: float | None) -> tuple[str, str]:
    """Give the property that carries one line: spans in seconds, a pause of None lasts until the manager has ended."""
    spans = [f"{timeout:g} s", "to the end" if pause is None else f"{pause:.1f} s"]
    return PROPERTY, json.dumps([case, *spans, what, "" if seconds is None else f"{seconds:.2f} s"])


def publish(reports: Iterable[object]) -> None:
    """Record the table of the lines that hang on these reports, in the order of the tests; none, no table."""
    rows: list[tuple[int, list[str]]] = []
    for report in reports:
        if isinstance(report, TestReport) and report.when == "call":
            texts = [str(value) for name, value in report.user_properties if name == PROPERTY]
            rows += [(report.location[1] or 0, json.loads(text)) for text in texts]
    if rows:
        rows.sort()
        day = datetime.now(timezone.utc).date()
        note = f"{len(rows)} cases on Linux {platform.release()}, {os.cpu_count()} cores, {day}."
        record("network", COLUMNS, [cells for _, cells in rows], note)

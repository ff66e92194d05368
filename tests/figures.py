"""Tables of measured figures: printed by whoever measured them, and kept in `docs/reliability.md` where that is asked.

A run with `CMAPP_FIGURES=1` in its environment replaces the table of its section, between the section's two markers,
which stand alone on their lines. What is around the markers is written by hand and stays.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
VARIABLE = "CMAPP_FIGURES"
END = "<!-- end -->"


def record(section: str, columns: list[str], rows: list[list[str]], note: str, *, page: Path = PAGE) -> None:
    """Print a table under its note; where `CMAPP_FIGURES` is 1, make it the table of `section` on the page.

    `note` says in a sentence or two where the figures are from: machine, length, seed, date. It becomes the paragraph
    before the table. Raises `ValueError` for a row of another length and for a section that the page does not have.
    """
    table = _table(columns, rows)
    print(f"{section}: {note}\n{table}", flush=True)
    if os.environ.get(VARIABLE) == "1":
        with page.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two suites may end at the same time
            text = replace(file.read(), section, f"{note}\n\n{table}")
            file.seek(0)
            file.truncate()
            file.write(text)


def replace(text: str, section: str, content: str) -> str:
    """Give the page with `content` between the markers of `section`. Raises `ValueError` where it has no such pair."""
    start = f"<!-- figures: {section} -->"
    pattern = re.compile(rf"^{re.escape(start)}$.*?^{re.escape(END)}$", re.MULTILINE | re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page must have {start!r}, and {END!r} after it, exactly once, each alone on a line")
    return pattern.sub(lambda _: f"{start}\n\n{content}\n\n{END}", text)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(columns)} cells was expected, not {row!r}")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

"""The difference between a file before and after, for people, and in the form that `patch` reads."""

from __future__ import annotations

import difflib

from appmgr.deploy.packagefile import Change, lines_of

CONTEXT_LINES = 3


def difference(change: Change) -> str:
    """Give the unified difference of one file; empty where there is none.

    Control characters are escaped, since a terminal would obey them; tabs and line ends are what they are.
    """
    before = [_shown(line) for line in lines_of(change.before)]
    after = [_shown(line) for line in lines_of(change.after)]
    found = difflib.unified_diff(before, after, change.path, f"{change.path} (new)", n=CONTEXT_LINES)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in found)


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() or character in "\t\r\n" else f"\\x{ord(character):02x}"
        for character in text
    )

"""Text and the guide's Markdown as the language of manual pages, man(7)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

WIDTH = 76
"""Of a source line: mandoc's style asks for no more than 80 bytes, and a line may still get a macro before it."""

_MARKUP = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\([^)]+\)")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`])")


def escape(text: str) -> str:
    """Give plain text that means itself."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("^", r"\(ha").replace("~", r"\(ti")
    return "".join(character if ord(character) < 128 else f"\\[u{ord(character):04X}]" for character in text)


def inline(markdown: str) -> str:
    """Give one run of the guide's Markdown: code and bold become bold, of a link the words stay."""
    found: list[str] = []
    at = 0
    for match in _MARKUP.finditer(markdown):
        code, bold, link = match.groups()
        found.append(escape(markdown[at : match.start()]))
        found.append(inline(link) if link else rf"\fB{escape(code or bold)}\fR")
        at = match.end()
    return "".join([*found, escape(markdown[at:])])


def paragraph(markdown: str) -> str:
    """Give a paragraph: each sentence begins a line, none is long, and none begins as a request of roff does."""
    lines: list[str] = []
    for sentence in _SENTENCE_END.split(" ".join(markdown.split())):
        lines += textwrap.wrap(inline(sentence), WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in lines)


def tagged(tag: str, text: str) -> str:
    """Give one item of a tagged list; `tag` is roff, `text` Markdown."""
    return f".TP\n{tag}\n{paragraph(text) or chr(92) + '&'}"


def literal(text: str) -> str:
    """Give lines as they are, as examples."""
    return "\n".join([".RS 4", ".nf", *(_literal_line(line) for line in text.splitlines()), ".fi", ".RE"])


def _literal_line(line: str) -> str:
    escaped = escape(line)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) or not escaped else escaped


def table_rows(markdown: str, heading: str) -> Iterator[list[str]]:
    """Give the rows of the first table under a heading, without its own two head lines.

    Raises `ValueError` where there is no such heading or no table.
    """
    below = re.split(rf"^#+ {re.escape(heading)}$", markdown, maxsplit=1, flags=re.MULTILINE)
    lines = below[1].splitlines() if len(below) == 2 else []
    rows = list(_first_table(lines))
    if not rows:
        raise ValueError(f"no table under the heading {heading!r}: has it been renamed?")
    return iter(rows[2:])


def _first_table(lines: Iterable[str]) -> Iterator[list[str]]:
    inside = False
    for line in lines:
        if line.startswith("| "):
            inside = True
            yield [cell.strip() for cell in line.strip("|").split("|")]
        elif inside or line.startswith("#"):
            return

"""Stand-ins that several tests of the server's rooms share."""

from __future__ import annotations

import math
from typing import cast

import trio

from appserver.report import Report


class Log:
    """Keeps what is reported, at once and in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._news = trio.Event()

    def info(self, text: str) -> None:
        self._add("info", text)

    def warning(self, text: str) -> None:
        self._add("warning", text)

    def error(self, text: str) -> None:
        self._add("error", text)

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.lines)

    def count(self, part: str) -> int:
        return sum(part in text for _, text in self.lines)

    async def until(self, part: str, *, times: int = 1, patience_seconds: float = math.inf) -> str:
        """Wait until so many lines hold `part`; give the last of them."""
        with trio.fail_after(patience_seconds):
            while self.count(part) < times:
                await self._news.wait()
        return next(text for _, text in reversed(self.lines) if part in text)

    def as_report(self) -> Report:
        return cast("Report", self)

    def _add(self, level: str, text: str) -> None:
        self.lines.append((level, text))
        self._news.set()
        self._news = trio.Event()

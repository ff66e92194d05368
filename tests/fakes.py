"""Stand-ins that several tests of the server's rooms share."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import pytest
import trio

from appserver.effects import Run, Terms, Watcher
from appserver.identity import Service
from appserver.messages import Message
from appserver.processes import Usage
from appserver.protocol import CLOSED, NEED_DATA, Connection, Event
from appserver.report import Report
from appserver.supervisor import Supervisor


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

    def hold(self, on_line: Callable[[], None]) -> None:
        """Nothing is ever held back here."""

    def release(self) -> None:
        """Nothing was held back."""

    def pass_on(self) -> bool:
        """Nothing was held back."""
        return True

    def as_report(self) -> Report:
        return cast("Report", self)

    def _add(self, level: str, text: str) -> None:
        self.lines.append((level, text))
        self._news.set()
        self._news = trio.Event()


class FakeSupervisor:
    """Notes what it is asked; the test tells the session what it wants told."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.runs: dict[str, Run] = {}
        self.usages: dict[str, Usage] = {}
        self.watchers: list[Watcher] = []
        self.left: list[Watcher] = []

    async def run(self, watcher: Watcher, run_id: str, service: Service, terms: Terms) -> None:
        self.watchers.append(watcher)
        self.asked.append(("run", run_id, service, terms))

    async def attach(self, watcher: Watcher, run_id: str, service: Service, terms: Terms) -> None:
        self.watchers.append(watcher)
        self.asked.append(("attach", run_id, service, terms))

    async def watch(self, watcher: Watcher, run_id: str, terms: Terms) -> None:
        self.watchers.append(watcher)
        self.asked.append(("watch", run_id, terms))

    async def stop(self, watcher: Watcher, run_id: str, by: str, timeout_seconds: float) -> None:
        self.watchers.append(watcher)
        self.asked.append(("stop", run_id, by, timeout_seconds))

    def acknowledge(self, run_id: str) -> None:
        self.asked.append(("ack", run_id))

    def leave(self, watcher: Watcher) -> None:
        self.left.append(watcher)

    def find(self, run_id: str) -> Run | None:
        return self.runs.get(run_id)

    def usage(self, run: Run) -> Usage | None:
        return self.usages.get(run.run_id)

    def as_supervisor(self) -> Supervisor:
        return cast("Supervisor", self)


class Manager:
    """The other end; of a link, it is a server's."""

    def __init__(self, stream: trio.abc.Stream, role: Literal["manager", "server"] = "manager") -> None:
        self.stream = stream
        self.connection = Connection(role)

    async def say(self, *messages: Message) -> None:
        for message in messages:
            await self.stream.send_all(self.connection.send(message))

    async def hear(self) -> Event:
        while (event := self.connection.next_event()) is NEED_DATA:
            self.connection.receive_data(await self.stream.receive_some(65536))
        return event

    async def hear_closed(self) -> None:
        """The next thing is the end of the stream."""
        assert await self.hear() is CLOSED

    async def hear_cut(self) -> None:
        """The next thing is the end of the stream, without the goodbye of TLS."""
        with pytest.raises(trio.BrokenResourceError):
            await self.hear()


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[Path]:
    path.mkdir(parents=True)
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "cmapp-test", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(directory: Path) -> Path:
    path = directory / "filler"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(b"x" * 4096))
    return path


def kernel_that_takes(taken: int | None) -> Callable[[int, bytes], int]:
    """Give an `os.write` that takes so many bytes, or finds the connection broken."""

    def write(_descriptor: int, _data: bytes) -> int:
        if taken is None:
            raise BrokenPipeError
        return taken

    return write

"""Managers that speak the protocol over true TLS to a server that is a process, many of them in one program."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import trio
from fakes import Manager
from pair import NODE, Guest

from appmgr.dial import Dialer
from appserver.identity import Service
from appserver.messages import Greeting, Hello, Poll, Run, Running, Status
from appserver.protocol import Event
from pki.contexts import load_material
from pki.material import Keys, Material

HELLO = Hello(1, "cmappmgr 1", "host1", 77, 60.0)
"""It promises a poll a minute, so that a test which takes its time is not taken for one that is gone."""


def host_material(guest: Guest) -> Material:
    """Open the stores of the guest's host."""
    private, public = (str(guest.directory / name) for name in ("client.private", "server.public"))
    return load_material(Keys(private, "clientpw", public, "public", "accept"))


class Caller:
    """One manager with one session."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._seq = 0

    @classmethod
    async def greeted(cls, guest: Guest, own: Material) -> Caller:
        """Dial, and be greeted. Raises ContactError or trio.BrokenResourceError."""
        dialer = Dialer(
            NODE, "127.0.0.1", guest.port, own, reopen=lambda: own, handshake_seconds=10.0, silence_seconds=30.0
        )
        manager = Manager((await dialer.dial()).stream)
        try:
            assert isinstance(await manager.hear(), Greeting)
            await manager.say(HELLO)
        except BaseException:
            await trio.aclose_forcefully(manager.stream)
            raise
        return cls(manager)

    async def say_run(self, *argv: str) -> None:
        """Ask for a run, and do not wait for what the server says to it."""
        self._seq += 1
        run = Run(self._seq, secrets.token_hex(16), Service("vector", argv), "leave", 30.0, 0)
        await self._manager.say(run)

    async def ask_run(self, *argv: str) -> Event:
        """Ask for a run; give what the server says to it."""
        await self.say_run(*argv)
        return await self._manager.hear()

    async def run(self, *argv: str) -> Running:
        """Have a run started."""
        answer = await self.ask_run(*argv)
        assert isinstance(answer, Running), answer
        return answer

    async def poll(self) -> Status:
        """Poll once."""
        self._seq += 1
        await self._manager.say(Poll(self._seq))
        answer = await self._manager.hear()
        assert isinstance(answer, Status), answer
        return answer

    async def hear(self) -> Event:
        """Give what the server says next."""
        return await self._manager.hear()

    async def close(self) -> None:
        """Hang up."""
        await trio.aclose_forcefully(self._manager.stream)


def open_descriptors(guest: Guest) -> set[int]:
    """Give the descriptors that the server has."""
    assert guest.server is not None
    return {int(name) for name in os.listdir(f"/proc/{guest.server.pid}/fd")}


def resident_bytes(guest: Guest) -> int:
    """Give the memory that the server has in use."""
    assert guest.server is not None
    status = Path(f"/proc/{guest.server.pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024

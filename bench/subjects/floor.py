"""The floor: the same thing in the plainest form there is, so that it can be seen what nobody could save.

Locally, the harness is the application's parent, and waits for it. Over TCP, a server forks for each connection, runs
what it is told, waits, and sends one byte; the client ends with it. That pair has no encryption and no identity, its
client imports nothing but sockets, and it runs on the same interpreter: what the real one takes beyond it is the price
of TLS, trio and the protocol.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import final

from bench.goals import FLOOR_LOCAL, FLOOR_TCP
from bench.subjects.subject import Subject

_SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "floor")
_PYTHON = (sys.executable, "-I", "-S")


@final
class LocalFloor(Subject):
    """No server and no client: the application itself is what is started and waited for."""

    name = FLOOR_LOCAL

    def open(self, most: int) -> float:
        """Do nothing: there is no server."""
        del most
        return 0.0

    def client(self, words: Sequence[str]) -> list[str]:
        """Give the application's own command."""
        return list(words)


@final
class TcpFloor(Subject):
    """The barest server and client over TCP."""

    name = FLOOR_TCP
    client_mib = 9.0

    def open(self, most: int) -> float:
        """Start the server; it has no limit."""
        del most
        seconds, match = self.listen([*_PYTHON, os.path.join(_SCRIPTS, "server.py")], r"listening on port (\d+)")
        self._port = match[1]
        return seconds

    def client(self, words: Sequence[str]) -> list[str]:
        """Give the command of a client."""
        return [*_PYTHON, os.path.join(_SCRIPTS, "client.py"), self._port, *words]

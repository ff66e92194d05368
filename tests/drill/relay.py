"""The network between managers and server: a relay on loopback whose connections can be cut, and held up one way."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Literal

import trio

Direction = Literal["to server", "to manager"]

_CHUNK_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)
"""A linger time of zero: closing sends a reset."""


class _Gate:
    """Bytes wait before it while it is shut."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        await self._open.wait()


class Relay:
    """Relays to a port on loopback, which may change hands meanwhile."""

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self._gates: dict[Direction, _Gate] = {"to server": _Gate(), "to manager": _Gate()}
        self._open: dict[trio.CancelScope, tuple[trio.SocketStream, ...]] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled; reports `started` when `port` is known."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._relay, [listener])

    def cut(self, choice: float | None = None) -> bool:
        """Cut the connection that `choice` (0 to 1) falls on, or all; False where there was none.

        Every other one ends with a reset in place of an orderly end.
        """
        scopes = list(self._open)
        if choice is not None and scopes:
            scopes = [scopes[int(choice * len(scopes))]]
        for place, scope in enumerate(scopes):
            if (place + int((choice or 0) * 1000)) % 2:
                for stream in self._open[scope]:
                    with contextlib.suppress(OSError):
                        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            scope.cancel()
        return bool(scopes)

    async def hush(self, direction: Direction, seconds: float) -> None:
        """Hold up everything that goes in one direction for a while, then pass it on."""
        gate = self._gates[direction]
        gate.shut()
        try:
            await trio.sleep(seconds)
        finally:
            gate.open()

    async def _relay(self, manager: trio.SocketStream) -> None:
        async with manager:
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                server = await trio.open_tcp_stream("127.0.0.1", self.target)
                async with server, trio.open_nursery() as nursery:
                    self._open[nursery.cancel_scope] = (manager, server)
                    try:
                        nursery.start_soon(self._pump, manager, server, "to server", nursery.cancel_scope)
                        await self._pump(server, manager, "to manager", nursery.cancel_scope)
                    finally:
                        del self._open[nursery.cancel_scope]

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, direction: Direction, both: trio.CancelScope
    ) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(_CHUNK_BYTES):
                await self._gates[direction].pass_through()
                await sink.send_all(data)
            await self._gates[direction].pass_through()
        both.cancel()  # TLS has no use for a connection that is half open

"""A relay between manager and server that cuts a connection at a chosen moment, once, and then relays faithfully."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType

from typing_extensions import Self

SETTLE_SECONDS = 0.3
"""How long the relay lets the server work on what it got, before it cuts: the reply is ready by then, and never
arrives."""


class Cutter:
    """Relays to `port` on loopback; cuts the first connection instead of passing on the server's flight number
    `flights`.

    A flight is what comes from the server before the client speaks again: 1 the handshake, 2 the greeting, 3 the reply.
    Without a number nothing is cut but by `cut_all`.
    """

    def __init__(self, port: int, *, flights: int | None) -> None:
        self._target = port
        self._flights = flights
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def cut_all(self) -> None:
        """Cut every connection that there is."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        relays = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            relay = threading.Thread(target=self._relay, args=(client,), daemon=True)
            relay.start()
            relays.append(relay)

    def _relay(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            try:
                with selectors.DefaultSelector() as selector:
                    selector.register(client, selectors.EVENT_READ, server)
                    selector.register(server, selectors.EVENT_READ, client)
                    self._pump(selector, client, server)
            finally:
                self._open -= {client, server}

    def _pump(self, selector: selectors.BaseSelector, client: socket.socket, server: socket.socket) -> None:
        flights = 0
        speaker: object = client
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(65536)
                if not data:
                    return
                if key.fileobj is server and speaker is client:
                    flights += 1
                speaker = key.fileobj
                if self._flights and self.cuts == 0 and flights >= self._flights and key.fileobj is server:
                    self.cuts += 1
                    server.settimeout(SETTLE_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        while server.recv(65536):
                            pass
                    return
                key.data.sendall(data)

"""Where the server may be: the addresses of a name, looked up anew for each attempt, and remembered.

A guest may move to another address, so the name server is asked each time. But it may be behind the network that is
away, and then it must not be what keeps contact away: once a name was known, a look-up has little time, and where it
fails the addresses of the last one are tried again.
"""

from __future__ import annotations

import socket
from typing import TypeAlias, cast, final

import trio

RESOLVE_SECONDS = 10.0
"""For a name to be looked up: two tries of the resolver at one name server. A slower look-up is left behind in its
thread, so that it delays neither a TERM nor the timeout."""

RESOLVE_AGAIN_SECONDS = 1.0
"""The same where addresses are known from before: a name server that answers does so sooner, save when a packet is
lost, and then the next attempt asks again."""

MAX_ADDRESSES = 8
"""Tried per attempt, in the resolver's order."""

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


@final
class Addresses:
    """The addresses of one host and port."""

    def __init__(self, host: str, port: int) -> None:
        # As text it would be encoded by the rules for names in other alphabets, which have to be imported for it.
        self._host = host.encode() if host.isascii() else host
        self._port = port
        self._known: list[tuple[int, Address]] = []

    async def find(self) -> list[tuple[int, Address]]:
        """Give (family, socket address) in the resolver's order, `MAX_ADDRESSES` at most.

        Raises `OSError` or `UnicodeError` where the name is not known and never was, `trio.TooSlowError` where that is
        not to be had within `RESOLVE_SECONDS`. Cancellation leaves a look-up behind in its thread.
        """
        try:
            with trio.fail_after(RESOLVE_AGAIN_SECONDS if self._known else RESOLVE_SECONDS):
                found = await trio.socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, trio.TooSlowError):
            if not self._known:
                raise
        else:
            self._known = [(int(each[0]), cast("Address", each[4])) for each in found[:MAX_ADDRESSES]]
        return self._known

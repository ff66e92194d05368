"""Who waits at the door, whose turn it is to shake hands, and who gives way. Pure.

A connection costs whoever makes it next to nothing, so any number may come; and until its handshake is over a real
manager is one of them. Nothing that a peer *says* tells the two apart before that, only how far it gets:

    silent     its first record is not whole: it says nothing, or a byte a second. A manager's comes with its connection
    ready      its first record is whole, and it waits for its turn
    shaking    it has TLS state, and we have spent a millisecond of computing on it

Each step costs the peer more than the one before it, so where a bound is reached those give way who got the least far,
and of these the oldest: a crowd that sits there loses against whoever speaks. A flood of whole first records is
something else: if the oldest handshake gave way to each, none would last longer than it takes sixteen others to come,
a few milliseconds, and a manager needs tens on a busy host. So a handshake has `PATIENCE_SECONDS` in which it gives way
to nobody; newcomers wait meanwhile, and it is they who crowd each other out. What is left to chance is only which of
those that came at the same time have their turn: a manager comes again until its timeout, and one try in a few is
enough.

Addresses share alike: the next turn is that of the address with the fewest handshakes under way, so a flood from one
address delays only those who share it.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from enum import IntEnum
from typing import Generic, TypeVar, final

from pki.frozen import dataclass

MAX_HALF_OPEN = 64
MAX_HALF_OPEN_PER_ADDRESS = 16
"""Contract, section 2. Each costs a task, a descriptor and, once it is shaking hands, some 50 KiB of TLS state; a host
that restarts thirty managers at once has a handful of them under way."""

MAX_SHAKING = 48
MAX_SHAKING_PER_ADDRESS = 12
"""Three quarters: the others are room for those who come to say their first words meanwhile."""

PATIENCE_SECONDS = 0.5
"""From its turn on, in which a handshake gives way to nobody. One takes a round trip and the computing of both sides:
some 10 ms beside each other, 350 ms over a link of 300 ms. Longer, and a flood of handshakes that are never finished
would leave fewer turns to managers: twelve in this time for each address."""

IPV6_NETWORK_BYTES = 8
"""One host has all addresses of its network, so they count as one (RFC 4291, section 2.5.1)."""

_Token = TypeVar("_Token")


class Stage(IntEnum):
    """How far a stranger got."""

    SILENT = 0
    READY = 1
    SHAKING = 2


@final
@dataclass(eq=False, slots=True)
class _Stranger:
    network: str
    stage: Stage = Stage.SILENT
    since: float = -math.inf
    """When its turn came."""


@final
class Strangers(Generic[_Token]):
    """All who have connected but not yet proved who they are, the oldest first. Times are monotonic seconds."""

    def __init__(self, most: int = MAX_HALF_OPEN, most_per_address: int = MAX_HALF_OPEN_PER_ADDRESS) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._most_shaking = max(1, most * MAX_SHAKING // MAX_HALF_OPEN)
        self._most_shaking_per_address = max(1, most_per_address * MAX_SHAKING_PER_ADDRESS // MAX_HALF_OPEN_PER_ADDRESS)
        self._here: dict[_Token, _Stranger] = {}

    def __len__(self) -> int:
        return len(self._here)

    def __contains__(self, token: _Token) -> bool:
        return token in self._here

    def stage(self, token: _Token) -> Stage:
        """Tell how far one got who is still here."""
        return self._here[token].stage

    def enter(self, token: _Token, address: str, now: float) -> _Token | None:
        """Let one more in; give the one that has to leave for it."""
        network = network_of(address)
        same = [each for each in self._here.items() if each[1].network == network]
        leaving = None
        if len(same) >= self._most_per_address:
            leaving = _least(same, now)
        elif len(self._here) >= self._most:
            leaving = _least(list(self._here.items()), now)
        if leaving is not None:
            del self._here[leaving]
        self._here[token] = _Stranger(network)
        return leaving

    def speak(self, token: _Token) -> None:
        """Its first record is whole: it wants its turn. Call `next_turns` then."""
        if token in self._here:
            self._here[token].stage = Stage.READY

    def leave(self, token: _Token) -> None:
        """It has proved who it is, or is gone; one that had to leave before is fine. Call `next_turns` then."""
        self._here.pop(token, None)

    def next_turns(self, now: float) -> Iterator[tuple[_Token, _Token | None]]:
        """Give those whose turn it is now, each with the one that has to leave for it."""
        while (found := self._next_turn(now)) is not None:
            token, leaving = found
            if leaving is not None:
                del self._here[leaving]
            self._here[token].stage, self._here[token].since = Stage.SHAKING, now
            yield token, leaving

    def next_change(self) -> float:
        """Tell when a handshake's time is over in which it gives way to nobody: `next_turns` is worth a call then."""
        since = [each.since for each in self._here.values() if each.stage is Stage.SHAKING]
        return min(since, default=math.inf) + PATIENCE_SECONDS

    def _next_turn(self, now: float) -> tuple[_Token, _Token | None] | None:
        shaking: dict[str, list[tuple[_Token, _Stranger]]] = {}
        ready: list[tuple[_Token, _Stranger]] = []
        for token, each in self._here.items():
            if each.stage is Stage.SHAKING:
                shaking.setdefault(each.network, []).append((token, each))
            elif each.stage is Stage.READY:
                ready.append((token, each))
        full = sum(map(len, shaking.values())) >= self._most_shaking
        for token, each in sorted(ready, key=lambda one: len(shaking.get(one[1].network, ()))):
            same = shaking.get(each.network, [])
            if len(same) < self._most_shaking_per_address and not full:
                return token, None
            among = same if len(same) >= self._most_shaking_per_address else max(shaking.values(), key=len)
            overdue = min(among, key=lambda one: one[1].since)
            if overdue[1].since + PATIENCE_SECONDS <= now:
                return token, overdue[0]
        return None


def _least(among: list[tuple[_Token, _Stranger]], now: float) -> _Token:
    """Give the one that gives way: a handshake whose time is over counts as one that has not begun."""

    def rank(one: tuple[_Token, _Stranger]) -> Stage:
        stranger = one[1]
        overdue = stranger.stage is Stage.SHAKING and stranger.since + PATIENCE_SECONDS <= now
        return Stage.READY if overdue else stranger.stage

    return min(among, key=rank)[0]


def network_of(address: str) -> str:
    """Give what counts as one address: an IPv4 address, or the network of an IPv6 address."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    network = packed[:IPV6_NETWORK_BYTES].ljust(len(packed), b"\0")
    return f"{socket.inet_ntop(socket.AF_INET6, network)}/{8 * IPV6_NETWORK_BYTES}"

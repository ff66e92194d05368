"""A crowd of strangers before a server's door: every kind at once, each back again as soon as it was sent away.

Run as a program of its own, so that what it burns is not burnt by whoever measures. It prints one line of JSON: for
each kind how many connections were made, how many of them the server closed, and how many were told something first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio
from door import GUEST, OTHER_HOST, material, rest

from pki.contexts import client_context

PATIENCE_SECONDS = 20.0
"""For the server to close: twice the time it gives anybody."""

CONNECT_SECONDS = 3.0
AGAIN_SECONDS = 0.05
"""Pause before another try where there was no connection at all."""

DRIP_SECONDS = 1.0

Speech: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


def hello(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Give a whole ClientHello, as an honest peer begins."""
    context = client_context(material(OTHER_HOST, GUEST))
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake was over before it began")


HELLO = hello()
OLD_HELLO = hello(ssl.TLSVersion.TLSv1_2)
FOREIGN = client_context(material(OTHER_HOST, GUEST))
FOREIGN.verify_mode = ssl.CERT_NONE  # the server's own key is not what this is about


async def say_nothing(_: trio.SocketStream) -> None:
    """Connect, and sit there."""
    await trio.lowlevel.checkpoint()


async def drip(stream: trio.SocketStream) -> None:
    """Begin a handshake at one byte a second."""
    for at in range(len(HELLO)):
        await stream.send_all(HELLO[at : at + 1])
        await trio.sleep(DRIP_SECONDS)


async def show_a_foreign_certificate(stream: trio.SocketStream) -> None:
    """Go through the whole handshake; the refusal comes at its end."""
    secured = trio.SSLStream(stream, FOREIGN)
    await secured.receive_some(1)


def saying(words: bytes) -> Speech:
    """Say that, and listen."""

    async def speak(stream: trio.SocketStream) -> None:
        await stream.send_all(words)

    return speak


KINDS: dict[str, Speech] = {
    "silent": say_nothing,
    "dripping": drip,
    "HTTP": saying(b"GET / HTTP/1.1\r\nHost: g1\r\n\r\n"),
    "garbage": saying(bytes(range(256)) * 4),
    "half a hello": saying(HELLO[: len(HELLO) // 2]),
    "hello, then nothing": saying(HELLO),
    "TLS 1.2": saying(OLD_HELLO),
    "foreign": show_a_foreign_certificate,
}


class Crowd:
    """Strangers of `kinds` who come to `port` from `sources`."""

    def __init__(self, port: int, sources: Sequence[str], kinds: Sequence[str], patience_seconds: float) -> None:
        self._port = port
        self._sources = sources
        self._kinds = kinds
        self._patience_seconds = patience_seconds
        self.counts = {kind: Counter[str]() for kind in kinds}

    async def storm(self, crowd: int, seconds: float) -> None:
        """Keep `crowd` of them at the door for `seconds`; then wait until the last is sent away."""
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(crowd):
                nursery.start_soon(self._come_again_and_again, number, until)

    async def _come_again_and_again(self, number: int, until: float) -> None:
        kind, source = self._kinds[number % len(self._kinds)], self._sources[number % len(self._sources)]
        while trio.current_time() < until:
            await self._come(kind, source)

    async def _come(self, kind: str, source: str) -> None:
        count = self.counts[kind]
        with trio.socket.socket() as sock:
            try:
                with trio.fail_after(CONNECT_SECONDS):
                    await sock.bind((source, 0))
                    await sock.connect(("127.0.0.1", self._port))
            except (OSError, trio.TooSlowError):
                count["no connection"] += 1
                await trio.sleep(AGAIN_SECONDS)
                return
            count["connected"] += 1
            count[await _ending(trio.SocketStream(sock), KINDS[kind], self._patience_seconds)] += 1


async def _ending(stream: trio.SocketStream, speech: Speech, patience_seconds: float) -> str:
    """Speak until the server closes; give how it did."""
    with trio.move_on_after(patience_seconds):
        if speech is show_a_foreign_certificate:
            return await _refusal(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_speak, stream, speech)
            heard = await rest(stream)
            nursery.cancel_scope.cancel()
        return "told" if heard else "closed"
    return "hung up"


async def _speak(stream: trio.SocketStream, speech: Speech) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await speech(stream)


async def _refusal(stream: trio.SocketStream) -> str:
    try:
        await show_a_foreign_certificate(stream)
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        return "told" if isinstance(cause, ssl.SSLError) and "_ALERT_" in (cause.reason or "") else "closed"
    return "let in"


def main(words: Sequence[str]) -> None:
    """Storm a server and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--crowd", type=int, default=1000)
    parser.add_argument("--sources", type=int, default=1, help="addresses that they come from, 127.0.0.1 and on")
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, help="seconds until one hangs up")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args(words)
    sources = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(options.sources)]
    crowd = Crowd(options.port, sources, options.kinds, options.patience)
    trio.run(crowd.storm, options.crowd, options.seconds)
    print(json.dumps(crowd.counts))


if __name__ == "__main__":
    main(sys.argv[1:])

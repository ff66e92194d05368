"""Is there a server in the guest, and will it talk to this host? One attempt, as a manager makes it.

Configuration, keys, addresses, TLS and greeting are the manager's own: what answers here answers there. Nothing is
asked for.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from appmgr.deploy.errors import Abandoned, ContactFailed
from appmgr.dial import HANDSHAKE_SECONDS, Dialer
from appmgr.link import CLOSE_SECONDS, Connected, Dial, Disconnected, Link, LinkEvent, Received
from appmgr.link import ContactFailed as AttemptFailed
from appmgr.settings import load_node_settings
from appserver.messages import Hello, Refused
from appserver.outcome import signal_name
from appserver.report import host_name, printable
from appserver.version import software
from pki.errors import PkiError
from pki.unlock import load_material

CONTACT_SECONDS: Final = 15.0
"""For all of it. A guest that runs answers within a second; somebody waits for this with a hand on the keyboard."""

PROGRESS_SECONDS: Final = 2.0
"""After which one says that one still waits, again and again."""

POLL_SECONDS: Final = 5.0
"""Said in the introduction, as a manager does; we leave before the first one."""

PROGRAM: Final = "cmdeployvpkg"


def check_contact(node: str, config: str | None, progress: Callable[[float], None]) -> None:
    """Greet the server of a guest, and leave.

    Blocks for at most `CONTACT_SECONDS` and the opening of the stores. `progress` is called with the seconds waited
    so far, every `PROGRESS_SECONDS`.

    Raises:
        ContactFailed: no answer, or not for us, or our own configuration or keys cannot be used; the text says which.
        Abandoned: a signal came.
    """
    try:
        settings = load_node_settings(config, node)
        dialer = Dialer(
            settings.node,
            settings.address,
            settings.port,
            load_material(settings.keys),
            reopen=partial(load_material, settings.keys),
            handshake_seconds=HANDSHAKE_SECONDS,
            silence_seconds=CONTACT_SECONDS,
        )
    except PkiError as error:
        raise ContactFailed(str(error)) from error
    trio.run(greet, dialer.dial, progress)


async def greet(dial: Dial, progress: Callable[[float], None]) -> None:
    """Make one attempt by `dial`, as `check_contact` says. Cancellation closes what was opened."""
    happened: list[LinkEvent] = []
    met = trio.Event()

    def hear_of(event: LinkEvent) -> None:
        happened.append(event)
        met.set()

    link = Link(dial, _hello, hear_of)
    failure: ContactFailed | Abandoned | None = ContactFailed(f"no answer within {CONTACT_SECONDS:g} s")
    with trio.open_signal_receiver(*_signals()) as signals:
        async with trio.open_nursery() as tasks:

            async def hear() -> None:
                nonlocal failure
                async for number in signals:
                    failure = Abandoned(signal_name(number), 128 + number)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(hear)
            tasks.start_soon(_tell, progress)
            tasks.start_soon(link.run)
            with trio.move_on_after(CONTACT_SECONDS):
                await met.wait()
                failure = _verdict(happened[0])
            link.leave()
            with trio.move_on_after(CLOSE_SECONDS):
                await link.delivered.wait()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _verdict(event: LinkEvent) -> ContactFailed | None:
    match event:
        case Connected():
            return None
        case Received(Refused(_, code, text)):
            return ContactFailed(f"the server refused: {printable(text)} ({printable(code)})")
        case AttemptFailed(reason) | Disconnected(reason):
            return ContactFailed(reason)
        case Received():
            raise AssertionError("a message came before the greeting")


async def _tell(progress: Callable[[float], None]) -> None:
    began = trio.current_time()
    while True:
        await trio.sleep(PROGRESS_SECONDS)
        progress(trio.current_time() - began)


def _signals() -> Sequence[int]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        numbers.append(signal.SIGHUP)
    return numbers


def _hello(version: int) -> Hello:
    return Hello(version, software(PROGRAM), host_name(), os.getpid(), POLL_SECONDS)

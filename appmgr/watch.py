"""The loop around the policy: events of the link, signals and time go in, actions come out and are carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from appmgr.link import CLOSE_SECONDS, Connected, ContactFailed, Dial, Disconnected, Link, LinkEvent, Received
from appmgr.manager import Action, Finish, Log, Manager, Reconnect, Send, Show
from appmgr.standing import Standing
from appserver.messages import Hello
from appserver.report import Level
from pki.expiry import CHECK_SECONDS


class Logger(Protocol):
    """What the loop needs of a log."""

    def log(self, level: Level, text: str) -> None:
        """Log one text; returns at once and raises nothing."""


class PendingSignals(Protocol):
    """Signals that came before the loop could hear them."""

    def take_over(self) -> Sequence[int]:
        """Give the signals that have come so far, in their order."""


async def watch(
    manager: Manager,
    dial: Dial,
    hello: Callable[[int], Hello],
    logger: Logger,
    *,
    signals: Sequence[int],
    early: PendingSignals,
    greeting_seconds: float,
    reminders: Callable[[], Sequence[str]],
    show: Callable[[Standing], None] = lambda _: None,
    leave: Callable[[int], None] = lambda _: None,
) -> int:
    """Drive `manager` until it finishes, and give the exit status.

    Args:
        manager: the policy; its clock is trio's.
        dial: makes one attempt to connect.
        hello: makes the introduction for a protocol version.
        logger: where log lines go.
        signals: which signals to hear.
        early: the signals that came before.
        greeting_seconds: how long an attempt waits for the greeting.
        reminders: gives what is to be said now about keys that come near their end; asked every `CHECK_SECONDS`.
        show: shows how things stand, at each change; raises nothing.
        leave: called with the exit status once all is said and the connection closed. A program ends its process there:
            unwinding the loop would only keep the cluster waiting.
    """
    # No buffer: see `link`.
    to_loop, events = trio.open_memory_channel[LinkEvent | int](0)
    link = Link(dial, hello, to_loop, greeting_seconds=greeting_seconds)
    with trio.open_signal_receiver(*signals) as heard:
        async with trio.open_nursery() as services:

            async def hear() -> None:
                async for number in heard:
                    await to_loop.send(number)

            async def remind() -> None:
                while True:
                    for line in reminders():
                        logger.log("warning", line)
                    await trio.sleep(CHECK_SECONDS)

            actions = manager.opening()
            for number in early.take_over():
                actions += manager.signalled(number, trio.current_time())
            status = _carry_out(actions, link, logger, show)
            if status is None:
                services.start_soon(hear)
                services.start_soon(remind)
                services.start_soon(link.run)
                status = await _drive(manager, link, events, logger, show)
                await _part(link)
                leave(status)
            services.cancel_scope.cancel()
    return status


async def _drive(
    manager: Manager,
    link: Link,
    events: trio.MemoryReceiveChannel[LinkEvent | int],
    logger: Logger,
    show: Callable[[Standing], None],
) -> int:
    while True:
        actions: list[Action] = []
        with trio.move_on_at(manager.deadline()):
            actions = _handle(manager, await events.receive())
        if not actions:
            actions = manager.tick(trio.current_time())
        status = _carry_out(actions, link, logger, show)
        if status is not None:
            return status


def _handle(manager: Manager, event: LinkEvent | int) -> list[Action]:
    now = trio.current_time()
    match event:
        case Connected():
            return manager.connected(now)
        case Received(message):
            return manager.received(message, now)
        case Disconnected(reason):
            return manager.disconnected(reason, now)
        case ContactFailed(reason):
            return manager.contact_failed(reason, now)
        case int():
            return manager.signalled(event, now)


def _carry_out(actions: list[Action], link: Link, logger: Logger, show: Callable[[Standing], None]) -> int | None:
    """Carry out actions; give the exit status where one of them ends it."""
    for action in actions:
        match action:
            case Send(message):
                link.send(message)
            case Log(level, text):
                logger.log(level, text)
            case Show(standing):
                show(standing)
            case Reconnect():
                link.drop()
            case Finish(status):
                return status
    return None


async def _part(link: Link) -> None:
    link.leave()
    with trio.move_on_after(CLOSE_SECONDS):
        await link.idle.wait()

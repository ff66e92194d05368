"""The loop around the policy: events of the link, signals and time go in, actions come out and are carried out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, final

import trio

from appmgr.link import CLOSE_SECONDS, Connected, ContactFailed, Dial, Disconnected, Link, LinkEvent, Received
from appmgr.manager import Action, Finish, Log, Manager, Reconnect, Send, Show
from appmgr.standing import Standing
from appserver.messages import Hello
from appserver.report import Level
from pki.expiry import CHECK_SECONDS

SETTLE_SECONDS = 1.0
"""By then a manager has its application, or has to wait for the guest anyway."""


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
    settle: Callable[[], None] = lambda: None,
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
        leave: called with the exit status as soon as all is said and sent, from wherever that is. A program ends its
            process there: closing the connection and unwinding the loop would only keep the cluster waiting.
        settle: called once, `SETTLE_SECONDS` after the start, for what need not be done at the start.
    """
    watching = _Watching(manager, logger, show, leave)
    link = Link(dial, hello, watching.heed, greeting_seconds=greeting_seconds)
    with trio.open_signal_receiver(*signals) as heard:
        async with trio.open_nursery() as services:
            watching.begin(link, early.take_over())
            if watching.status is None:
                services.start_soon(_hear, heard, watching)
                services.start_soon(_remind, reminders, logger)
                services.start_soon(_settle_down, settle)
                services.start_soon(link.run)
                status = await watching.wait()
                with trio.move_on_after(CLOSE_SECONDS):
                    await link.delivered.wait()
                leave(status)
            services.cancel_scope.cancel()
    assert watching.status is not None
    return watching.status


async def _hear(signals: AsyncIterator[int], watching: _Watching) -> None:
    async for number in signals:
        watching.heed(number)


async def _remind(reminders: Callable[[], Sequence[str]], logger: Logger) -> None:
    while True:
        for line in reminders():
            logger.log("warning", line)
        await trio.sleep(CHECK_SECONDS)


async def _settle_down(settle: Callable[[], None]) -> None:
    await trio.sleep(SETTLE_SECONDS)
    settle()


@final
class _Watching:
    """What happens, to the policy; what the policy wants, to the link, the log and whoever looks on."""

    def __init__(
        self,
        manager: Manager,
        logger: Logger,
        show: Callable[[Standing], None],
        leave: Callable[[int], None],
    ) -> None:
        self._manager = manager
        self._logger = logger
        self._show = show
        self._leave = leave
        self._link: Link | None = None
        self._until_deadline = trio.CancelScope()
        self.status: int | None = None
        """The exit status, from when it is certain; nothing that happens from then on changes anything."""

    def begin(self, link: Link, signals: Sequence[int]) -> None:
        """Have the policy begin, with the signals that came so far."""
        self._link = link
        actions = self._manager.opening()
        for number in signals:
            actions += self._manager.signalled(number, trio.current_time())
        self._carry_out(actions)

    async def wait(self) -> int:
        """Wait until the policy has finished, and wake it at its deadlines. Give the exit status."""
        while self.status is None:
            with trio.CancelScope(deadline=self._manager.deadline()) as self._until_deadline:
                await trio.sleep_forever()
            if self.status is None:
                self._carry_out(self._manager.tick(trio.current_time()))
        return self.status

    def heed(self, event: LinkEvent | int) -> None:
        """Take an event of the link, or a signal."""
        if self.status is not None:
            return
        now = trio.current_time()
        match event:
            case Received(message):
                actions = self._manager.received(message, now)
            case Connected():
                actions = self._manager.connected(now)
            case Disconnected(reason):
                actions = self._manager.disconnected(reason, now)
            case ContactFailed(reason):
                actions = self._manager.contact_failed(reason, now)
            case int():
                actions = self._manager.signalled(event, now)
        self._carry_out(actions)
        self._until_deadline.deadline = self._manager.deadline()

    def _carry_out(self, actions: list[Action]) -> None:
        assert self._link is not None
        for action in actions:
            match action:
                case Send(message):
                    self._link.send(message)
                case Log(level, text):
                    self._logger.log(level, text)
                case Show(standing):
                    self._show(standing)
                case Reconnect():
                    self._link.drop()
                case Finish(status):
                    self.status = status
                    self._link.leave()
                    if self._link.delivered.is_set():
                        self._leave(status)
                    self._until_deadline.cancel()
                    return

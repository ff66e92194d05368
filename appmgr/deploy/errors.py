"""What can go wrong with a deployment: one class for each thing that the caller does about it."""

from __future__ import annotations

from typing import final


class DeployError(Exception):
    """It cannot be done as things are; exit status 1. The text is one line: what, why, and what to do."""


@final
class ContactFailed(DeployError):
    """The server in the guest does not answer, or not to us. Somebody who sits there may want to go on without."""


@final
class UsageError(Exception):
    """The words of the command line make no sense; exit status 2, and nothing was done."""


@final
class AnswerRefused(ValueError):
    """A value breaks a rule. Who asked for it asks again; on a command line it is wrong usage."""


@final
class Abandoned(Exception):
    """Nobody is there any more to answer: end of input, a closed terminal, a signal, or only senseless answers.

    `status` is the exit status that it leads to.
    """

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status

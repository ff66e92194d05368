"""Talking with a person, or with a script that stands in for one: lines out, prompts out, answers in.

Answers that do not come from a terminal are written behind their prompts, so that what is kept of an unattended
dialogue can be read.
"""

from __future__ import annotations

import contextlib
from typing import Final, TextIO, final

from appmgr.deploy.errors import Abandoned

MAX_TRIES: Final = 10
"""Answers in a row that a question does not understand. A script that got out of step would go on for ever."""

MAX_ANSWER_CHARACTERS: Final = 65536
"""One message to a guest holds no more."""


@final
class Dialogue:
    """A conversation over two streams. Every method raises `Abandoned` where nobody is at the other end any more."""

    def __init__(self, answers: TextIO, out: TextIO) -> None:
        self._answers = answers
        self._out = out
        self._echo = not answers.isatty()

    def say(self, text: str = "") -> None:
        """Write a line."""
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """Write text that ends its own lines."""
        self._write(text)

    def ask(self, prompt: str) -> str:
        """Ask for a line, and give it without its end; blanks in it count."""
        self._write(prompt)
        try:
            line = self._answers.readline(MAX_ANSWER_CHARACTERS)
        except (OSError, ValueError) as error:  # the terminal has gone, or bytes that are no text
            raise Abandoned(f"the answers cannot be read: {error}") from error
        if not line.endswith("\n"):
            with contextlib.suppress(Abandoned):
                self.say()
            raise Abandoned("the answers ended in the middle of the questions")
        answer = line.rstrip("\r\n")
        if self._echo:
            self.say(answer)
        return answer

    def confirm(self, prompt: str) -> bool:
        """Ask a question that is answered with `y` or `n`."""
        for _ in range(MAX_TRIES):
            match self.ask(f"{prompt} (y/n):").strip().lower():
                case "y" | "yes":
                    return True
                case "n" | "no":
                    return False
                case _:
                    self.say("Please answer y or n.")
        raise Abandoned(f"no y or n in {MAX_TRIES} answers")

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        try:
            self._out.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._out.flush()
        except (OSError, ValueError) as error:
            raise Abandoned(f"nobody reads what is written any more: {error}") from error

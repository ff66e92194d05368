"""Which application a manager means: the service string, its form and the instance name.

The identity of a service is the raw string as the manager was given it, the form (one line to be split in the guest, or
the exact vector) and the instance name (contract, section 1). Blanks count: the old guide tells administrators to add
one to tell two runs of a command apart. Standard library only.
"""

from __future__ import annotations

import os

from pki.frozen import dataclass
from pki.typed import Literal, final

MAX_DESCRIBED_CHARACTERS = 200
"""Enough to tell services apart in a log, short enough to read one."""

Form = Literal["line", "vector"]


class ServiceError(ValueError):
    """The service cannot be run as it stands: blank, holding a NUL, or a line that does not split. Ask for another
    one.
    """


@final
@dataclass(frozen=True, slots=True)
class Service:
    """One application as its managers name it; equal and hashable by what identifies it.

    For form `line`, `words` holds the one line; for form `vector`, the argument vector.
    """

    form: Form
    words: tuple[str, ...]
    instance: str | None = None

    def __post_init__(self) -> None:
        if self.form == "line" and len(self.words) != 1:
            raise ServiceError(f"a command line is one word, not {len(self.words)}")
        if not self.words or not self.words[0].strip():
            raise ServiceError("the service is empty or blank: a command was expected")
        for word in (*self.words, self.instance or ""):
            if "\0" in word:
                raise ServiceError(f"{word!r:.100} holds a NUL byte, which no command can")
            if not _is_unicode(word):
                raise ServiceError(f"{word!r:.100} is not UTF-8: write the command in UTF-8")

    @property
    def text(self) -> str:
        """The service string: the line as given, or the words quoted by `shlex.join`."""
        if self.form == "line":
            return self.words[0]
        import shlex

        return shlex.join(self.words)

    def describe(self) -> str:
        """Name the service for a log line: the string, cut where it is long, and the instance where there is one."""
        text = self.text
        if len(text) > MAX_DESCRIBED_CHARACTERS:
            text = text[: MAX_DESCRIBED_CHARACTERS - 1] + "…"
        return f"{text!r} instance {self.instance!r}" if self.instance else repr(text)

    def argv(self) -> tuple[str, ...]:
        """Give the vector to execute: the words, or the line split by the rules of this system, without a shell.

        Raises `ServiceError` where the line has an open quotation or splits into nothing.
        """
        if self.form == "vector":
            return self.words
        import shlex

        try:
            words = shlex.split(self.text, posix=os.name == "posix")
        except ValueError as error:
            raise ServiceError(f"{self.text!r:.200} cannot be split into words: {str(error).lower()}") from error
        if os.name != "posix":
            words = [word.strip('"') for word in words]
        if not words or not words[0]:
            raise ServiceError(f"{self.text!r:.200} names no command")
        return tuple(words)


def _is_unicode(word: str) -> bool:
    # Bytes that are not UTF-8 arrive in arguments as lone surrogates, which can neither be sent nor recorded.
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def service_from_words(words: list[str], instance: str | None) -> Service:
    """Make the service that the words after `-service` mean: one word is a line, several are a vector.

    Raises `ServiceError` for no word, a blank line or an empty command.
    """
    return Service("line" if len(words) == 1 else "vector", tuple(words), instance)

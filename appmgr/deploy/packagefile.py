r"""Package files as bytes: lines, parameters, and adding lines so that every other byte stays as it was.

A file of a package is older than this program and belongs to somebody: it may have `\r\n` here and there, no newline
at its end, comments in the encoding of a former decade. So nothing is decoded that is written back. Lines are split
at `\n` only and kept with it; what is added is encoded as UTF-8 and gets the line ends that most lines of the file
have.

A line of a configuration file is blank, a comment (`#` first), or a parameter: a name, blanks, a value. Names are
case-insensitive. A value in double quotes is what stands between the first and the last of them, as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from appmgr.deploy.errors import DeployError

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""The template with all its comments has 60 KiB; a wrong path must not fill the memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@final
@dataclass(frozen=True, slots=True)
class Service:
    """A service of a package, in the words of modular packages whatever the kind of the file.

    `command` is what the shell is to read; `restart` is `none`, `unlimited` or a number. A timeout of None is not set.
    """

    name: str
    command: str
    restart: str = "none"
    fail_fast: str = "no"
    halt_timeout: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a configuration file; `name` is in lower case, `line` is the index of its line."""

    name: str
    value: str
    line: int

    @property
    def word(self) -> str:
        """The first word of the value, without quotes: what a name or a number is, whatever comment follows."""
        return next(iter(self.value.split()), "")


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One file before and after."""

    path: str
    before: bytes
    after: bytes


def read_file(path: str, what: str) -> bytes:
    """Read a whole file; `what` is its role for the message. Raises `DeployError`."""
    try:
        # A named pipe would block the open for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DeployError(f"the {what} {path!r} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise DeployError(f"the {what} {path!r} does not exist: make it first, or name another with --file") from error
    except (OSError, ValueError) as error:
        raise DeployError(f"cannot read the {what} {path!r}: {reason(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise DeployError(f"the {what} {path!r} is larger than {MAX_FILE_BYTES} bytes: is it the right file?")
    if b"\0" in data:
        raise DeployError(f"the {what} {path!r} has NUL bytes: is it text, and not in UTF-16?")
    return data


def reason(error: Exception) -> str:
    """Give the reason behind an error of the system, for a message."""
    return f"{error.strerror} (errno:{error.errno})" if isinstance(error, OSError) else str(error)


def lines_of(data: bytes) -> list[bytes]:
    """Split at newlines, which stay where they are; joined again, the lines are the data."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def text_of(line: bytes) -> str:
    """Give a line as text without its end; bytes that are not UTF-8 are kept as surrogates."""
    return line.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def parameters(data: bytes) -> list[Parameter]:
    """Give the parameters of a configuration file, in their order."""
    found: list[Parameter] = []
    for index, line in enumerate(lines_of(data)):
        words = text_of(line).split(None, 1)
        if words and not words[0].startswith("#"):
            found.append(Parameter(words[0].lower(), _value(words[1] if len(words) > 1 else ""), index))
    return found


def _value(text: str) -> str:
    text = text.strip()
    last = text.rfind('"')
    if text.startswith('"') and last > 0:
        rest = text[last + 1 :].strip()
        if not rest or rest.startswith("#"):
            return text[1:last]
    return text


def values(data: bytes, name: str) -> list[str]:
    """Give the values of all parameters of that name (lower case), without comments behind them."""
    return [parameter.word for parameter in parameters(data) if parameter.name == name]


def with_lines(data: bytes, after: int | None, added: Sequence[str]) -> bytes:
    """Add lines behind the line with index `after`, or at the end; all other bytes stay.

    Where the last line had no end it gets one, and the last one added has none in its place.
    """
    lines = lines_of(data)
    end = b"\r\n" if sum(line.endswith(b"\r\n") for line in lines) * 2 > len(lines) else b"\n"
    place = len(lines) if after is None else after + 1
    new = [line.encode("utf-8", "surrogateescape") + end for line in added]
    if new and place == len(lines) and lines and not lines[-1].endswith(b"\n"):
        lines[-1] += end
        new[-1] = new[-1].removesuffix(end)
    return b"".join([*lines[:place], *new, *lines[place:]])

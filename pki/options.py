"""What the commands of `cmapppki` share: options, passwords, and the form of their answers."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TypeAlias, final

from pki.certificates import DEFAULT_VALIDITY_DAYS, MAX_VALIDITY_DAYS
from pki.stores import DEFAULT_PASSWORDS

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001
"""What `add_subparsers` gives; argparse has no public name for it, and it is no generic class at run time."""

MIN_PASSWORD_CHARACTERS = 6
"""keytool refuses to make or change stores with a shorter one."""

FAILED = 1
"""What a command ends with that could not do its work."""


class UsageError(Exception):
    """The words of a command line make no sense together. The text names the option."""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found or did: lines for people, or `data` for `--json`; and the exit status.

    `done` says what has been done already, should the answer be impossible to print.
    """

    lines: tuple[str, ...]
    done: str
    status: int = 0
    data: object = None


def add_command(commands: Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """Add a command whose `--help` shows its description as it is written."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_key_options(command: argparse.ArgumentParser, *, dname: str) -> None:
    """Add what every command takes that makes a key; `dname` is the default of that option in words."""
    command.add_argument("--dname", help=f"subject, such as 'CN=host, O=Example' (default: {dname})")
    command.add_argument(
        "--validity",
        type=int,
        metavar="DAYS",
        help=f"how long the certificate holds (default: {DEFAULT_VALIDITY_DAYS})",
    )


def require_validity(days: int | None) -> int:
    """Give the number of days, or the default. Raises `UsageError` for one that no certificate can have."""
    if days is None:
        return DEFAULT_VALIDITY_DAYS
    if not 1 <= days <= MAX_VALIDITY_DAYS:
        raise UsageError(f"--validity: {days} is not between 1 and {MAX_VALIDITY_DAYS} days")
    return days


def require_directory(path: str) -> str:
    """Give the path back. Raises `UsageError` where it is empty."""
    if not path:
        raise UsageError("--dir: the directory is empty")
    return path


def given_password(option: str, word: str | None, *, new: bool) -> str | None:
    """Give the password of an option; `-` reads a line of standard input, which keeps it out of the process list.

    Raises `UsageError` for a `new` one that is too short for keytool.
    """
    password = sys.stdin.readline().rstrip("\r\n") if word == "-" else word
    if new and password is not None and len(password) < MIN_PASSWORD_CHARACTERS:
        raise UsageError(f"{option}: shorter than {MIN_PASSWORD_CHARACTERS} characters, which keytool does not take")
    return password


def passwords_to_try(given: str | None) -> tuple[str, ...]:
    """Give the passwords to open a store with: the given one, or else the old default ones."""
    return DEFAULT_PASSWORDS if given is None else (given,)

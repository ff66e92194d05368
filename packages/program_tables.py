"""The programs as tables: what their manual pages and completions are made of.

Nothing is written down here that a program knows itself: the manager has a table of options, the others an argparse
parser, and both are what `--help` is made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import appmgr.deploy.options
import appserver.options
import pki.cli
from appmgr.options import OPTIONS


@final
@dataclass(frozen=True, slots=True)
class Option:
    """One option. `value` is what its value is called, or the words that it may be as `one|other`; empty for none."""

    spellings: tuple[str, ...]
    value: str
    meaning: str


@final
@dataclass(frozen=True, slots=True)
class Command:
    """A command with options of its own. `operands` are what is given without an option, each called as in the help."""

    name: str
    summary: str
    description: str
    options: tuple[Option, ...]
    operands: tuple[Option, ...]


@final
@dataclass(frozen=True, slots=True)
class Program:
    """One program. `commands` is empty where it has none; `operands` as for a command.

    `after` is what its help says after the options, in parts that begin with a word and a colon.
    """

    name: str
    options: tuple[Option, ...]
    commands: tuple[Command, ...] = ()
    operands: tuple[Option, ...] = ()
    after: str = ""

    def spellings(self) -> Iterator[str]:
        """Give every spelling of every option, those of the commands included."""
        for options in (self.options, *(command.options for command in self.commands)):
            for option in options:
                yield from option.spellings


def programs() -> tuple[Program, ...]:
    """Give all programs that are installed."""
    parsers = (appmgr.deploy.options.command_line(), appserver.options.command_line(), pki.cli.command_line())
    return (manager(), *(from_parser(parser) for parser in parsers))


def manager() -> Program:
    """Give `cmappmgr`."""
    return Program(
        "cmappmgr",
        tuple(
            Option(option.spellings, option.value, option.meaning + (f" ({option.default})" if option.default else ""))
            for option in OPTIONS
        ),
    )


def from_parser(parser: argparse.ArgumentParser) -> Program:
    """Give the program of an argparse parser."""
    options, operands, commands = _actions(parser)
    return Program(parser.prog, options, commands, operands, parser.epilog or "")


def _actions(
    parser: argparse.ArgumentParser,
) -> tuple[tuple[Option, ...], tuple[Option, ...], tuple[Command, ...]]:
    options: list[Option] = []
    operands: list[Option] = []
    commands: list[Command] = []
    for action in parser._actions:  # noqa: SLF001  (argparse has no public list)
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            commands += _commands(action)
        elif action.option_strings:
            value = _value(action, action.dest.upper()) if action.nargs != 0 else ""
            options.append(Option(tuple(action.option_strings), value, _meaning(parser, action)))
        else:
            repeated = " ..." if action.nargs in {"*", "+"} else ""
            operands.append(Option((), _value(action, action.dest) + repeated, _meaning(parser, action)))
    return tuple(options), tuple(operands), tuple(commands)


def _commands(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[Command]:
    summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
    for name, parser in action.choices.items():
        options, operands, _ = _actions(parser)
        yield Command(name, summaries.get(name, ""), parser.description or "", options, operands)


def _value(action: argparse.Action, fallback: str) -> str:
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return action.metavar if isinstance(action.metavar, str) else fallback


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog}

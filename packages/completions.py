"""Make the shell completions: `completions.py DIRECTORY` writes `bash/PROGRAM` and `zsh/_PROGRAM` for every program.

They are made of the same tables as `--help` and the manual pages. What a value is completed with follows from what it
is called: a FILE, a DIR, a NODE (the sections of the configuration), or one of several words. What is no table stands
in `packages/completion/`: `head.bash` and `head.zsh` begin every file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from program_tables import Command, Option, Program, programs

from appmgr.options import SERVICE_SPELLINGS

HEADS = Path(__file__).resolve().parent / "completion"

FILES = frozenset({"FILE", "PATH", "STORE", "SOURCE", "SOURCE ..."})
DIRECTORIES = frozenset({"DIR", "DIRECTORY"})
NODES = frozenset({"NODE"})
EXTRAS = "merge|appmon|engine=pacemaker"
"""What `cmdeployvpkg -x` takes, as far as it can be completed."""


def main() -> int:
    """Write all completions below the directory that the command line names."""
    if len(sys.argv) != 2:
        print("usage: completions.py DIRECTORY", file=sys.stderr)
        return 2
    for name, text in completions().items():
        file = Path(sys.argv[1]) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


def completions() -> dict[str, str]:
    """Give every completion by its path, such as `bash/cmappmgr`."""
    found: dict[str, str] = {}
    for program in programs():
        found[f"bash/{program.name}"] = bash(program)
        found[f"zsh/_{program.name}"] = zsh(program)
    return found


def bash(program: Program) -> str:
    """Give the completion of a program for bash: the common head, and its tables in one function."""
    function = _function(program)
    lines = [f"# bash completion of {program.name}", (HEADS / "head.bash").read_text(encoding="utf-8")]
    lines += [f"{function}() {{", "    _cmapp_words"]
    if any(option.spellings == SERVICE_SPELLINGS for option in program.options):
        lines.append(f"    _cmapp_command_after {' '.join(SERVICE_SPELLINGS)} && return")
    if program.commands:
        names = [command.name for command in program.commands]
        lines += [f"    case $(_cmapp_one_of {' '.join(names)}) in"]
        for command in program.commands:
            lines += [
                f"        {command.name})",
                *_bash_choice(command, " " * 12),
                "            return",
                "            ;;",
            ]
        lines += ["    esac", *_bash_choice(Command("", "", "", program.options, (_one_of(names),)), " " * 4)]
    else:
        lines += _bash_choice(Command("", "", "", program.options, program.operands), " " * 4)
    return "\n".join([*lines, "}", f"complete -F {function} {program.name}", ""])


def _one_of(words: list[str]) -> Option:
    # With a bar at its end also one word is a choice and no name.
    return Option((), "|".join([*words, ""]), "")


def _function(program: Program) -> str:
    return f"_cmapp_{program.name.replace('-', '_')}"


def _bash_choice(command: Command, indent: str) -> list[str]:
    """Give the lines that complete a value after its option, else an option, else an operand."""
    arms: dict[str, list[str]] = {}
    for option in command.options:
        if option.value and option.spellings != SERVICE_SPELLINGS:
            arms.setdefault(_bash_value(option.value), []).extend(option.spellings)
    lines = ["case $_cmapp_before in"] if arms else []
    for action, spellings in arms.items():
        lines += [f"    {'|'.join(spellings)})", f"        {action}", "        return", "        ;;"]
    lines += ["esac"] if arms else []
    offer = f"_cmapp_offer '{' '.join(_spellings(command.options))}'"
    operands = [_bash_value(operand.value) for operand in command.operands]
    if operands:
        lines += ["if [[ $_cmapp_word == -* ]]; then", f"    {offer}", "else", f"    {operands[-1]}", "fi"]
    else:
        lines.append(offer)
    return [f"{indent}{line}" for line in lines]


def _bash_value(value: str) -> str:
    value = EXTRAS if value == "EXTRA" else value
    if "|" in value:
        return f"_cmapp_offer '{' '.join(word for word in value.split('|') if word)}'"
    if value in FILES:
        return "_cmapp_files -f"
    if value in DIRECTORIES:
        return "_cmapp_files -d"
    return "_cmapp_offer_nodes" if value in NODES else ":"


def zsh(program: Program) -> str:
    """Give the completion of a program for zsh, by its own `_arguments`."""
    lines = [f"#compdef {program.name}", f"# zsh completion of {program.name}"]
    lines.append((HEADS / "head.zsh").read_text(encoding="utf-8"))
    if not program.commands:
        return "\n".join([*lines, *_arguments([*_zsh_options(program.options), *_zsh_operands(program.operands)]), ""])
    lines += _arguments([*_zsh_options(program.options), "'(-)1:command:->command'", "'(-)*:: :->rest'"], "-C ")
    lines += ["case $state in", "    command)", "        local -a commands=("]
    lines += [f"            {_quoted(f'{command.name}:{command.summary}')}" for command in program.commands]
    lines += ["        )", "        _describe command commands", "        ;;", "    rest)", "        case $words[1] in"]
    for command in program.commands:
        specs = [*_zsh_options(command.options), *_zsh_operands(command.operands)]
        lines += [f"            {command.name})", *(" " * 16 + line for line in _arguments(specs)), " " * 16 + ";;"]
    return "\n".join([*lines, "        esac", "        ;;", "esac", ""])


def _arguments(specs: Iterable[str], flags: str = "") -> list[str]:
    return [f"_arguments {flags}\\", *(f"    {spec} \\" for spec in specs), "    && return"]


def _zsh_options(options: tuple[Option, ...]) -> list[str]:
    found: list[str] = []
    for option in options:
        described = f"[{_zsh_escape(option.meaning)}]"
        if option.spellings == SERVICE_SPELLINGS:
            value = ":*::command:_cmapp_guest_command"
        else:
            value = f":{_zsh_escape(option.value)}:{_zsh_value(option.value)}" if option.value else ""
        others = f"({' '.join(option.spellings)})" if len(option.spellings) > 1 else ""
        found += [_quoted(f"{others}{spelling}{described}{value}") for spelling in option.spellings]
    return found


def _zsh_operands(operands: tuple[Option, ...]) -> list[str]:
    found: list[str] = []
    for place, operand in enumerate(operands, 1):
        where = "*" if operand.value.endswith(" ...") else str(place)
        found.append(_quoted(f"{where}:{_zsh_escape(operand.value)}:{_zsh_value(operand.value)}"))
    return found


def _zsh_value(value: str) -> str:
    value = EXTRAS if value == "EXTRA" else value
    if "|" in value:
        return f"({value.replace('|', ' ')})"
    if value in FILES:
        return "_files"
    if value in DIRECTORIES:
        return "_files -/"
    return "_cmapp_nodes" if value in NODES else " "


def _zsh_escape(text: str) -> str:
    for character in "\\:[]":
        text = text.replace(character, f"\\{character}")
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _spellings(options: tuple[Option, ...]) -> list[str]:
    return [spelling for option in options for spelling in option.spellings]


if __name__ == "__main__":
    sys.exit(main())

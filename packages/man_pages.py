"""Make the manual pages: `man_pages.py DIRECTORY` writes them all, as `man1/cmappmgr.1m` and so on.

A page is a template of `packages/man/` with what can be made filled in, so that it cannot drift from the programs. A
template is man(7); a line of it that starts with `@` asks for something:

- `@title` the header line, of the template's name and the release;
- `@options` the options of the page's program, of the table that `--help` is made of;
- `@commands` its commands, with theirs;
- `@help WORDS` what follows after `WORDS:` at the end of its help;
- `@table HEADING` the first table under that heading of the administrator's guide, as a tagged list: the first cell is
  the tag, the others are its text;
- `@keys HEADING` the same for configuration keys, whose second cell is the default; in `@keys-without HEADING` it is
  what holds where the key is absent.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from program_tables import Option, Program, programs
from roff import escape, inline, literal, paragraph, table_rows, tagged

from appserver.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "packages" / "man"
GUIDE = ROOT / "docs" / "guide.md"


def main() -> int:
    """Write all pages below the directory that the command line names."""
    if len(sys.argv) != 2:
        print("usage: man_pages.py DIRECTORY", file=sys.stderr)
        return 2
    epoch_seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    for name, text in pages(epoch_seconds).items():
        file = Path(sys.argv[1]) / f"man{name.rpartition('.')[2][0]}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


def pages(epoch_seconds: int) -> dict[str, str]:
    """Give every page by its file name; `epoch_seconds` is the date that they bear."""
    tables = {program.name: program for program in programs()}
    guide = GUIDE.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for template in sorted(TEMPLATES.iterdir()):
        name, _, section = template.name.rpartition(".")
        lines = template.read_text(encoding="utf-8").splitlines()
        made = [_made(line, name, section, tables.get(name), guide, epoch_seconds) for line in lines]
        found[template.name] = "\n".join(made) + "\n"
    return found


def _made(line: str, name: str, section: str, program: Program | None, guide: str, epoch_seconds: int) -> str:
    asked, _, heading = line.partition(" ")
    match asked:
        case "@title":
            date = time.strftime("%Y-%m-%d", time.gmtime(epoch_seconds))
            return f'.TH {name.upper()} {section} "{date}" "cmapp {VERSION}" "cmapp"'
        case "@options" if program is not None:
            return _options(program.options)
        case "@commands" if program is not None:
            return _commands(program)
        case "@help" if program is not None:
            return _part(program.after, heading)
        case "@table":
            rows = table_rows(guide, heading)
            return "\n".join(tagged(inline(row[0]), " ".join(_told(row[1:]))) for row in rows)
        case "@keys":
            return "\n".join(_key("Default", *row) for row in table_rows(guide, heading))
        case "@keys-without":
            return "\n".join(_key("Without it", *row) for row in table_rows(guide, heading))
    if line.startswith("@"):
        raise ValueError(f"{name}.{section}: {line!r} asks for nothing that is known")
    return line


def _part(help_text: str, words: str) -> str:
    for block in re.split(r"\n{2,}", help_text.strip()):
        first, _, rest = block.partition("\n")
        if first == f"{words}:":
            return literal(textwrap.dedent(rest))
        if block.startswith(f"{words}: "):
            return paragraph(_sentence(block.removeprefix(f"{words}: ")))
    raise ValueError(f"the help has no part {words!r}: has it been renamed?")


def _told(cells: list[str]) -> Iterator[str]:
    # That there is nothing to do needs no telling.
    return (_sentence(cell) for cell in cells if cell.rstrip(".").lower() not in {"", "nothing"})


def _sentence(text: str) -> str:
    if not text.startswith("cm"):  # a program is called as it is
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?")) else f"{text}."


def _key(word: str, key: str, default: str, meaning: str) -> str:
    text = f"{_sentence(meaning)} {f'{word}: {default}.' if default else ''}".strip()
    return tagged(inline(key), text)


def _options(options: tuple[Option, ...]) -> str:
    return "\n".join(_option(option) for option in options)


def _option(option: Option) -> str:
    spellings = ", ".join(rf"\fB{escape(spelling)}\fR" for spelling in option.spellings)
    return tagged(spellings + (f" {_value(option.value)}" if option.value else ""), _sentence(option.meaning))


def _value(value: str) -> str:
    # Words to choose from are typed as they are, the name of a value is not.
    return "|".join(rf"\f{'B' if '|' in value else 'I'}{escape(word)}\fR" for word in value.split("|"))


def _commands(program: Program) -> str:
    found: list[str] = []
    for command in program.commands:
        operands = "".join(f" {_value(operand.value)}" for operand in command.operands)
        found += [f".SS {escape(command.name)}", rf"\fB{escape(program.name)} {escape(command.name)}\fR{operands}"]
        found += [_description(block) for block in re.split(r"\n{2,}", command.description.strip())]
        found += [tagged(_value(operand.value), _sentence(operand.meaning)) for operand in command.operands]
        found.append(_options(tuple(option for option in command.options if "--help" not in option.spellings)))
    return "\n".join(found)


def _description(block: str) -> str:
    """Give a part of a command's help: what is laid out by blanks stays as it is."""
    if any(line.startswith("  ") for line in block.splitlines()):
        return f".PP\n{literal(block)}"
    return f".PP\n{paragraph(block)}"


if __name__ == "__main__":
    sys.exit(main())

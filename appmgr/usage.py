"""The text of `cmappmgr --help`, made of the table of options. Imported only where somebody asks for it."""

from __future__ import annotations

import textwrap

from appmgr.options import OPTIONS, SHORT_HELP, Option

WIDTH = 112
MEANING_COLUMN = 32

DESCRIPTION = (
    "Has the cmappserver of the guest NODE run COMMAND, watches it, and ends with its exit status. If COMMAND runs "
    "there already, attaches to it: nothing is started twice."
)

_REST = """\
examples:
  cmappmgr -node mmpf121 -cmappserver_timeout 240 -service /apps/ping_mon
  cmappmgr -node mmpf121 --on-halt stop -service /bin/sh -c 'exec /apps/db --name "two words"'

exit status:
  N        the application exited with N (of a larger Windows code the low byte, or 255 where that is 0)
  128 + N  the application was ended by signal N; or, with --on-halt detach, cmappmgr itself was
  1        no contact, refused, keys or configuration unusable, outcome lost (see --failure-status)
  2        wrong usage
  0        with --action stop: the application does not run, or not any more
"""


def help_text() -> str:
    """Give the whole help, lines of at most `WIDTH` characters."""
    usage = SHORT_HELP.partition("\n")[0]
    description = textwrap.fill(DESCRIPTION, WIDTH)
    options = "\n".join(_line(option) for option in OPTIONS)
    return f"{usage}\n\n{description}\n\n{options}\n\n{_REST}"


def _line(option: Option) -> str:
    """Write one option: beside its meaning, or above where its spellings leave no room."""
    head = "  " + ", ".join(option.spellings) + (f" {option.value}" if option.value else "")
    meaning = option.meaning + (f" ({option.default})" if option.default else "")
    wrapped = textwrap.wrap(meaning, WIDTH - MEANING_COLUMN)
    if len(head) < MEANING_COLUMN:
        head = head.ljust(MEANING_COLUMN) + wrapped.pop(0)
    return "\n".join([head, *(" " * MEANING_COLUMN + line for line in wrapped)])

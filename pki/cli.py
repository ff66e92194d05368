"""`cmapppki`: makes and looks after the keys of both sides. One module for each command; this one dispatches."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from pki import checking, listing, making, renewing, trusting
from pki.errors import PkiError
from pki.options import FAILED, Answer, UsageError

_DESCRIPTION = """\
Make and look after the keys by which hosts and guests know each other.

Each side has a key store (private key and certificate, *.private), which stays,
and hands out a trust store (the certificate alone, *.public), which is copied to
the other side. Nobody is trusted but the certificates in the trust store.
"""

_EPILOG = """\
cmapppki COMMAND --help explains each. Exit status: 0; 1 where it could not be done
(check: 1 for warnings, 2 for keys that cannot be used); 2 for wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; `argv` without its name, by default that of the process.

    Gives the exit status; an expected failure is one line on standard error. Wrong usage ends by `SystemExit(2)`, as
    argparse does it.
    """
    parser = command_line()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes `STORE --option VALUE SOURCE` for a STORE without sources, and has the SOURCE left over.
    if rest and (arguments.command != "trust" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.sources += rest
    if arguments.version:
        from importlib.metadata import version

        print(f"cmapppki {version('cmapp')}")
        parser.exit(0)
    if arguments.command is None:
        parser.error("expected a command: client, server, list, trust, check or renew")
    run: Callable[[argparse.Namespace], Answer] = arguments.run
    try:
        answer = run(arguments)
    except UsageError as error:
        parser.error(str(error))
    except PkiError as error:
        print(f"cmapppki: {error}", file=sys.stderr)
        failure: int = arguments.failure
        return failure
    return _print(answer, as_json=arguments.json)


def command_line() -> argparse.ArgumentParser:
    """Give the parser; the manual page and the completion are made of it too."""
    parser = argparse.ArgumentParser(
        prog="cmapppki",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.set_defaults(json=False, failure=FAILED)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    making.add_commands(commands)
    listing.add_commands(commands)
    trusting.add_commands(commands)
    checking.add_commands(commands)
    renewing.add_commands(commands)
    return parser


def _print(answer: Answer, *, as_json: bool) -> int:
    text = json.dumps(answer.data, indent=2) if as_json else "\n".join(answer.lines)
    # A subject may have characters that the terminal's encoding has not.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Whoever closed the pipe did not want to read it, and the interpreter must not try again at its end.
        sys.stdout = None
        print(f"cmapppki: {answer.done}, but not described: {error}", file=sys.stderr)
        return max(answer.status, FAILED)
    return answer.status

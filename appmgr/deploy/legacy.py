"""Services in a legacy package: arrays in its control script, the rest in its ASCII configuration file.

    SERVICE_NAME[0]="web"                         # control script
    SERVICE_CMD[0]="/usr/sbin/cmappmgr ..."
    SERVICE_RESTART[0]="-r 3"

    SERVICE_NAME                 web              # configuration file
    SERVICE_FAIL_FAST_ENABLED    NO
    SERVICE_HALT_TIMEOUT         300

The script is a shell's, so a command is read twice: once in the assignment, once by `/bin/sh -c` when it runs. An
array goes on where it ends, since the script counts from 0 up. What is added stands behind the last assignment of
this kind, or behind the examples in the comments of the template. A script that has neither was not made from the
template, and is left alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from appmgr.deploy.appmon import quoted
from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import Service, lines_of, parameters, text_of, with_lines

_ASSIGNMENT = re.compile(r"\s*SERVICE_(NAME|CMD|RESTART)\[\s*(\d{1,4})\s*\]=(.*)")
_EXAMPLE = re.compile(r"\s*#\s*SERVICE_(NAME|CMD|RESTART)\[\s*\d+\s*\]=")
_ASCII_FIELDS = ("service_name", "service_fail_fast_enabled", "service_halt_timeout")
_ASCII_EXAMPLE = re.compile(rf"\s*#\s*({'|'.join(_ASCII_FIELDS)})\b", re.IGNORECASE)
_PLAIN_IN_DOUBLE_QUOTES = re.compile(r"[^\"\\$`!']+")

_WIDTH = 29


def control_script(data: bytes) -> str | None:
    """Give the path of the control script that a legacy configuration file names; None in a modular one."""
    found = {parameter.name: parameter.word.strip('"') for parameter in parameters(data)}
    return None if "module_name" in found else found.get("run_script")


def services(data: bytes, script: bytes) -> list[Service]:
    """Give the services of a legacy package, in the order of their numbers."""
    arrays = _arrays(script)
    rest = _ascii_fields(data)
    found: list[Service] = []
    for number in sorted(arrays):
        name = _unquoted(arrays[number].get("NAME", ""))
        fields = rest.get(name, {})
        found.append(
            Service(
                name=name,
                command=_unquoted(arrays[number].get("CMD", "")),
                restart=_restart(_unquoted(arrays[number].get("RESTART", ""))),
                fail_fast=fields.get("service_fail_fast_enabled", "no").lower(),
                halt_timeout=fields.get("service_halt_timeout"),
            )
        )
    return found


def _arrays(script: bytes) -> dict[int, dict[str, str]]:
    arrays: dict[int, dict[str, str]] = {}
    for line in lines_of(script):
        match = _ASSIGNMENT.match(text_of(line))
        if match:
            arrays.setdefault(int(match[2]), {})[match[1]] = match[3]
    return arrays


def _ascii_fields(data: bytes) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for parameter in parameters(data):
        if parameter.name == "service_name":
            current = found.setdefault(parameter.word, {})
        elif parameter.name in _ASCII_FIELDS and parameter.word:
            current.setdefault(parameter.name, parameter.word)
    return found


def _unquoted(text: str) -> str:
    """Read what is assigned, as a shell does without expanding; what is no single word stays as it is."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return text.strip()
    return words[0] if len(words) == 1 else "" if not words else text.strip()


def _restart(options: str) -> str:
    words = options.split()
    if words[:1] == ["-R"]:
        return "unlimited"
    number = words[1] if words[:1] == ["-r"] and len(words) > 1 else options.strip().removeprefix("-r")
    return "none" if number in {"", "0"} else number


def with_services(data: bytes, script: bytes, added: Sequence[Service], script_path: str) -> tuple[bytes, bytes]:
    """Give configuration file and control script with these services. Raises `DeployError` for a foreign script."""
    return _with_ascii(data, added), _with_arrays(script, added, script_path)


def _with_ascii(data: bytes, added: Sequence[Service]) -> bytes:
    own = [parameter.line for parameter in parameters(data) if parameter.name in _ASCII_FIELDS]
    examples = [index for index, line in enumerate(lines_of(data)) if _ASCII_EXAMPLE.match(text_of(line))]
    lines: list[str] = []
    for service in added:
        fields = (service.name, service.fail_fast.upper(), service.halt_timeout or "")
        lines += ["", *(f"{name.upper():<{_WIDTH}}{value}" for name, value in zip(_ASCII_FIELDS, fields, strict=True))]
    return with_lines(data, max(own or examples, default=None), lines)


def _with_arrays(script: bytes, added: Sequence[Service], path: str) -> bytes:
    lines = lines_of(script)
    own = [index for index, line in enumerate(lines) if _ASSIGNMENT.match(text_of(line))]
    examples = [index for index, line in enumerate(lines) if _EXAMPLE.match(text_of(line))]
    if not own and not examples:
        raise DeployError(
            f"the control script {path!r} has no SERVICE_CMD[...]= anywhere: it is not made from the template, "
            "add the service by hand"
        )
    first = max(_arrays(script), default=-1) + 1
    new: list[str] = []
    for number, service in enumerate(added, first):
        new += ["", *assignments(number, service)]
    return with_lines(script, max(own or examples), new)


def assignments(number: int, service: Service) -> list[str]:
    """Give the three lines of one service in a control script."""
    restart = {"none": "", "unlimited": "-R"}.get(service.restart, f"-r {service.restart}")
    return [
        f'SERVICE_NAME[{number}]="{service.name}"',
        f"SERVICE_CMD[{number}]={_assigned(service.command)}",
        f'SERVICE_RESTART[{number}]="{restart}"',
    ]


def _assigned(command: str) -> str:
    return f'"{command}"' if _PLAIN_IN_DOUBLE_QUOTES.fullmatch(command) else quoted(command)

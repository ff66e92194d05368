"""Services in a modular package: five parameters each, all in the one configuration file.

A service begins with its `service_name`; the other four belong to the one before them, in any order. What is added
stands at the end of the file, where the order of parameters that stand further up cannot matter to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appmgr.deploy.packagefile import Parameter, Service, lines_of, parameters, text_of, with_lines

HEADING = "#Guest Application Monitor"
"""What the old script put before the services that it added."""

_WIDTH = 32
"""Of the column with the names, as in the templates."""

_FIELDS = ("service_cmd", "service_restart", "service_fail_fast_enabled", "service_halt_timeout")

_SERVICE_MODULES = ("sg/service", "sg/all", "sg/default")


def services(data: bytes) -> list[Service]:
    """Give the services of a modular package."""
    return [_service(group) for group in _groups(data)]


def _groups(data: bytes) -> list[dict[str, Parameter]]:
    groups: list[dict[str, Parameter]] = []
    for parameter in parameters(data):
        if parameter.name == "service_name":
            groups.append({parameter.name: parameter})
        elif parameter.name in _FIELDS and groups:
            groups[-1].setdefault(parameter.name, parameter)
    return groups


def _service(group: dict[str, Parameter]) -> Service:
    def word(name: str) -> str | None:
        return group[name].word if name in group and group[name].word else None

    return Service(
        name=word("service_name") or "",
        command=group["service_cmd"].value if "service_cmd" in group else "",
        restart=(word("service_restart") or "none").lower(),
        fail_fast=(word("service_fail_fast_enabled") or "no").lower(),
        halt_timeout=word("service_halt_timeout"),
    )


def with_services(data: bytes, added: Sequence[Service]) -> bytes:
    """Give the file with these services at its end."""
    lines: list[str] = []
    existing = lines_of(data)
    if existing and text_of(existing[-1]).strip():
        lines.append("")
    for service in added:
        lines += [HEADING, *entry(service), ""]
    return with_lines(data, None, lines[:-1])


def entry(service: Service) -> list[str]:
    """Give the lines of one service."""
    fields = {
        "service_name": service.name,
        "service_cmd": written(service.command),
        "service_restart": service.restart,
        "service_fail_fast_enabled": service.fail_fast,
        "service_halt_timeout": service.halt_timeout or "",
    }
    return [f"{name:<{_WIDTH}}{value}".rstrip() for name, value in fields.items()]


def written(command: str) -> str:
    """Give a command as a value: in double quotes, as the manuals have it.

    They do not say what a double quote or a backslash would mean between those, so a command with one of them stands
    without, as the old script wrote every command.
    """
    return command if re.search(r'["\\]', command) else f'"{command}"'


def lacks_service_module(data: bytes) -> bool:
    """Tell whether the file names its modules, and none that knows services."""
    modules = [parameter.word for parameter in parameters(data) if parameter.name == "module_name"]
    return bool(modules) and not set(modules) & set(_SERVICE_MODULES)

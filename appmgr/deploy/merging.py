"""What of the services that are wanted is to be added, is there already, or cannot be: pure policy.

A service string identifies the application in its guest, and a name the service in the cluster. So two services may
have neither in common. What is there word for word is left alone, which makes a second run of the same command
change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from appmgr.deploy.appmon import MAX_SERVICES, AppMonitor, Manager, watched_by
from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import Service
from appserver import identity


@final
@dataclass(frozen=True, slots=True)
class Merger:
    """The outcome: services to add, and the names of those that are there already."""

    added: tuple[Service, ...]
    present: tuple[str, ...]


def wanted_service(monitor: AppMonitor, manager: Manager) -> Service:
    """Give the service that a monitor means in a package."""
    return Service(
        monitor.name, manager.command(monitor), monitor.restart, "no", halt_timeout=str(monitor.halt_timeout_seconds)
    )


def merge(existing: Sequence[Service], wanted: Sequence[Service], elsewhere: Mapping[str, str]) -> Merger:
    """Decide on each of the wanted services.

    Args:
        existing: the services that the package has.
        wanted: what is to be in it.
        elsewhere: names of the services of other packages, each with its package.

    Raises:
        DeployError: a name or a service string is taken, or there would be too many services.
    """
    all_services = list(existing)
    added: list[Service] = []
    present: list[str] = []
    for service in wanted:
        if service in all_services:
            present.append(service.name)
            continue
        _refuse_taken(service, all_services, elsewhere)
        all_services.append(service)
        added.append(service)
    if added and len(all_services) > MAX_SERVICES:
        raise DeployError(f"the package would have {len(all_services)} services: {MAX_SERVICES} are allowed")
    return Merger(tuple(added), tuple(present))


def _refuse_taken(service: Service, others: Sequence[Service], elsewhere: Mapping[str, str]) -> None:
    if any(other.name == service.name for other in others):
        raise DeployError(
            f"the package has a service {service.name!r} already, with other values: choose another name, or edit it"
        )
    if service.name in elsewhere:
        raise DeployError(
            f"the package {elsewhere[service.name]!r} has a service {service.name!r}: names are unique in a cluster"
        )
    same = same_string(service.command, others)
    if same is not None:
        raise DeployError(
            f"the service {same!r} watches this very command in this guest: a service string must be unique, "
            "if only by an added blank"
        )


def same_string(command: str, others: Sequence[Service]) -> str | None:
    """Give the name of the service that has the guest run the same service string, None where there is none."""
    mine = application(command)
    return next((other.name for other in others if mine is not None and application(other.command) == mine), None)


def application(command: str) -> tuple[str, identity.Service] | None:
    """Give the guest and the application that a service command is about; None for one that calls no manager."""
    options = watched_by(command)
    return None if options is None else (options.node.casefold(), options.service)

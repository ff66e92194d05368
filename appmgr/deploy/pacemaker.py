"""The same monitors as the configuration of a Pacemaker cluster: resources of the agent `ocf:cmapp:cmappmgr`.

A monitor becomes a primitive behind the guest: in the guest's group, or tied to it by two constraints where the
guest is a resource outside a group. Serviceguard's numbers mean this:

- N restarts are a `migration-threshold` of N + 1, since Pacemaker counts failures: so many, and the guest moves.
  `unlimited` is INFINITY. Neither cluster resets its count by itself.
- The halt timeout is the timeout of the operation stop; the agent kills in the guest `STOP_RESERVE_SECONDS` before,
  so that the cluster does not fence a node because an application was slow.
- A guest that migrates live takes its applications along (`allow-migrate`): the manager lets go, and the other
  node's attaches.

Everything goes in by `cibadmin`, in one transaction. It is there wherever Pacemaker is, and it takes a service
string as it is; `crm` splits one with quotes in it (seen with crmsh 4.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final
from xml.etree import ElementTree as ET

from appmgr.deploy.appmon import MANAGER_PATH, AppMonitor, Manager, quoted
from appmgr.deploy.errors import DeployError

AGENT: Final = ("ocf", "cmapp", "cmappmgr")
"""Class, provider and type."""

STOP_RESERVE_SECONDS: Final = 40
"""Of the operation stop, beside the time from TERM to KILL: what the agent asks for, to reach the guest and to KILL."""

START_RESERVE_SECONDS: Final = 30
"""Beside the timeout of the first contact: a start that fails by itself says why, one that times out does not."""

MONITOR_INTERVAL_SECONDS: Final = 10
MONITOR_TIMEOUT_SECONDS: Final = 30

MIGRATE_SECONDS: Final = 30
"""For the manager on the old node to let go of the application, which goes on."""

_ID = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")


@final
@dataclass(frozen=True, slots=True)
class Primitive:
    """One resource of our agent: its id, the agent's parameters, timeouts of operations (seconds), the threshold."""

    id: str
    parameters: Mapping[str, str]
    start_seconds: int
    stop_seconds: int
    threshold: str


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster is configured with, as far as it matters: ids of resources, groups by member, our primitives."""

    ids: frozenset[str]
    groups: frozenset[str]
    group_of: Mapping[str, str]
    monitors: tuple[Primitive, ...]


def wanted_primitive(monitor: AppMonitor, manager: Manager) -> Primitive:
    """Give the resource that a monitor means. Raises `DeployError` for a name that is no id."""
    if not _ID.fullmatch(monitor.name):
        raise DeployError(
            f"{monitor.name!r} is no id in Pacemaker, where one begins with a letter: choose another name"
        )
    stop_seconds = max(1, monitor.halt_timeout_seconds - STOP_RESERVE_SECONDS)
    parameters = {
        "node": manager.node,
        "service": monitor.command,
        "timeout": str(monitor.timeout_seconds),
        "stop_timeout": str(stop_seconds),
    }
    if manager.config is not None:
        parameters["config"] = manager.config
    if manager.program != MANAGER_PATH:
        parameters["cmappmgr"] = manager.program
    counts = {"none": "1", "unlimited": "INFINITY"}
    return Primitive(
        monitor.name,
        parameters,
        monitor.timeout_seconds + START_RESERVE_SECONDS,
        stop_seconds + STOP_RESERVE_SECONDS,
        counts.get(monitor.restart) or str(int(monitor.restart) + 1),
    )


def read_cluster(text: str) -> Cluster:
    """Read what `cibadmin --query` says. Raises `DeployError` where it is no configuration."""
    try:
        resources = ET.fromstring(text).find("configuration/resources")  # noqa: S314  (the cluster's own word)
    except ET.ParseError as error:
        raise DeployError(f"what cibadmin says is no configuration: {error}") from error
    if resources is None:
        raise DeployError("what cibadmin says is no configuration: it has no resources")
    groups = list(resources.iter("group"))
    return Cluster(
        frozenset(identity for element in resources.iter() if (identity := element.get("id"))),
        frozenset(group.get("id", "") for group in groups),
        {member.get("id", ""): group.get("id", "") for group in groups for member in group.iter("primitive")},
        tuple(_primitive(element) for element in resources.iter("primitive") if _is_ours(element)),
    )


def _is_ours(element: ET.Element) -> bool:
    return (element.get("class"), element.get("provider"), element.get("type")) == AGENT


def _primitive(element: ET.Element) -> Primitive:
    seconds = {op.get("name", ""): _seconds(op.get("timeout", "")) for op in element.iterfind("operations/op")}
    meta = _pairs(element, "meta_attributes")
    return Primitive(
        element.get("id", ""),
        _pairs(element, "instance_attributes"),
        seconds.get("start", 0),
        seconds.get("stop", 0),
        meta.get("migration-threshold", "INFINITY"),
    )


def _pairs(element: ET.Element, kind: str) -> dict[str, str]:
    return {pair.get("name", ""): pair.get("value", "") for pair in element.iterfind(f"{kind}/nvpair")}


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})(s|sec)?", text)
    return int(match[1]) if match else 0


def merge(cluster: Cluster, wanted: Sequence[Primitive]) -> tuple[list[Primitive], list[str]]:
    """Give what is to be added, and the names of what is there already. Raises `DeployError` for what is taken."""
    monitors = list(cluster.monitors)
    added: list[Primitive] = []
    present: list[str] = []
    for primitive in wanted:
        if primitive in monitors:
            present.append(primitive.id)
            continue
        if primitive.id in cluster.ids or any(other.id == primitive.id for other in added):
            raise DeployError(f"the cluster has a resource {primitive.id!r} already, with other values")
        same = next((other.id for other in monitors if _application(other) == _application(primitive)), None)
        if same is not None:
            raise DeployError(
                f"the resource {same!r} watches this very command in this guest: a service string must be unique"
            )
        monitors.append(primitive)
        added.append(primitive)
    return added, present


def _application(primitive: Primitive) -> tuple[str, str, str]:
    given = primitive.parameters
    return given.get("node", "").casefold(), given.get("service", ""), given.get("instance", "")


def configuration(guest: str, cluster: Cluster | None, added: Sequence[Primitive]) -> str:
    """Give the XML that adds these primitives behind the guest.

    Without a `cluster` to look at, the guest is taken for a group. Raises `DeployError` where there is no such
    resource.
    """
    root = ET.Element("configuration")
    resources = ET.SubElement(root, "resources")
    group = guest if cluster is None or guest in cluster.groups else cluster.group_of.get(guest)
    if cluster is not None and guest not in cluster.ids:
        raise DeployError(f"the cluster has no resource or group {guest!r}: make the guest one first")
    if group is not None:
        resources = ET.SubElement(resources, "group", id=group)
    else:
        constraints = ET.SubElement(root, "constraints")
        for primitive in added:
            _tie(constraints, primitive.id, guest)
    for primitive in added:
        _append(resources, primitive)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _append(parent: ET.Element, primitive: Primitive) -> None:
    name = primitive.id
    kind, provider, agent = AGENT
    element = ET.SubElement(parent, "primitive", {"id": name, "class": kind, "provider": provider, "type": agent})
    attributes = ET.SubElement(element, "instance_attributes", id=f"{name}-instance_attributes")
    for key, value in primitive.parameters.items():
        ET.SubElement(attributes, "nvpair", id=f"{name}-instance_attributes-{key}", name=key, value=value)
    meta = ET.SubElement(element, "meta_attributes", id=f"{name}-meta_attributes")
    for key, value in (("migration-threshold", primitive.threshold), ("allow-migrate", "true")):
        ET.SubElement(meta, "nvpair", id=f"{name}-meta_attributes-{key}", name=key, value=value)
    operations = ET.SubElement(element, "operations")
    for action, interval, timeout in (
        ("start", 0, primitive.start_seconds),
        ("stop", 0, primitive.stop_seconds),
        ("monitor", MONITOR_INTERVAL_SECONDS, MONITOR_TIMEOUT_SECONDS),
        ("migrate_to", 0, MIGRATE_SECONDS),
        ("migrate_from", 0, primitive.start_seconds),
    ):
        ET.SubElement(
            operations,
            "op",
            id=f"{name}-{action}-{interval}s",
            name=action,
            interval=f"{interval}s",
            timeout=f"{timeout}s",
        )


def _tie(constraints: ET.Element, name: str, guest: str) -> None:
    ET.SubElement(
        constraints,
        "rsc_colocation",
        {"id": f"{name}-with-{guest}", "score": "INFINITY", "rsc": name, "with-rsc": guest},
    )
    ET.SubElement(
        constraints,
        "rsc_order",
        {"id": f"{name}-after-{guest}", "kind": "Mandatory", "first": guest, "then": name},
    )


APPLY_WORDS: Final = ("--modify", "--allow-create", "--scope", "configuration", "--xml-pipe")


def as_command(xml: str) -> str:
    """Give a command for a shell that applies this."""
    return f"cibadmin {' '.join(map(quoted, APPLY_WORDS))} <<'END'\n{xml}END\n"

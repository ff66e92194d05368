"""Monitors into a Pacemaker cluster: look, ask, try the contact, show, apply."""

from __future__ import annotations

from collections.abc import Sequence

from appmgr.deploy import pacemaker
from appmgr.deploy.appmon import AppMonitor, Manager
from appmgr.deploy.closing import Surroundings
from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.errors import DeployError
from appmgr.deploy.options import DeployOptions
from appmgr.deploy.programs import capture
from appmgr.deploy.questions import ask_monitors
from appmgr.deploy.serviceguard import Check, Done, begin, try_contact

NO_CLUSTER = pacemaker.Cluster(frozenset(), frozenset(), {}, ())


def deploy(options: DeployOptions, dialogue: Dialogue, host: Surroundings, check: Check, done: Done) -> int:
    """Carry out the options for Pacemaker, and give the exit status. Raises `DeployError` and `Abandoned`."""
    if not begin(dialogue, options):
        return 0
    cibadmin = host.find("cibadmin")
    if cibadmin is None and not options.only_show:
        raise DeployError("there is no cibadmin on this host: is Pacemaker installed? -n shows what would be applied")
    cluster = _look(cibadmin, only_show=options.only_show, dialogue=dialogue)
    manager = Manager(options.node, options.manager, options.config)

    def judged(monitors: Sequence[AppMonitor]) -> tuple[list[pacemaker.Primitive], list[str]]:
        wanted = [pacemaker.wanted_primitive(monitor, manager) for monitor in monitors]
        return pacemaker.merge(cluster or NO_CLUSTER, wanted)

    monitors = options.monitors
    if monitors is None:
        monitors = tuple(ask_monitors(dialogue, cluster.ids if cluster else (), judged))
    added, present = judged(monitors)
    for name in present:
        dialogue.say(f"The cluster has the resource {name} already, just so.")
    if not added:
        dialogue.say("Nothing to change.")
        return 0
    xml = pacemaker.configuration(options.package, cluster, added)
    if not try_contact(dialogue, options, check):
        return 1
    dialogue.show(pacemaker.as_command(xml))
    if options.only_show or cibadmin is None:
        dialogue.say("Only shown: nothing was changed.")
        return 0
    dialogue.say("Merging application monitor service with existing cluster configuration")
    capture([cibadmin, *pacemaker.APPLY_WORDS], xml)
    names = " ".join(primitive.id for primitive in added)
    done.changes.append(f"the cluster has new resources: {names}")
    dialogue.say(f"The cluster has new resources: {names}")
    for line in _left_to_do(options, added):
        dialogue.say(line)
    return 0


def _look(cibadmin: str | None, *, only_show: bool, dialogue: Dialogue) -> pacemaker.Cluster | None:
    """Read the cluster's configuration; None where one only shows and there is no cluster to be asked."""
    reason = "there is no cibadmin on this host"
    if cibadmin is not None:
        try:
            return pacemaker.read_cluster(capture([cibadmin, "--query"]))
        except DeployError as error:
            if not only_show:
                raise
            reason = str(error)
    dialogue.say(f"Not compared with a cluster, and the guest is taken for a group: {reason}")
    return None


def _left_to_do(options: DeployOptions, added: Sequence[pacemaker.Primitive]) -> list[str]:
    steps = [
        "See that every node has the agent, cmappmgr, its keys and its /etc/cmappmgr.conf.",
        "See that the timeouts cover the time that the guest takes to boot, or set boot_timeout.",
        "Watch the resources start: crm_mon",
        "End the application in the guest once, and see the failure counted: crm_mon --failcounts",
        f"Count from zero again: crm_resource --cleanup --resource {added[0].id}",
    ]
    return [
        f"Before relying on {options.package}:",
        *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
    ]

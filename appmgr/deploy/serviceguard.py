"""Monitors into a package of Serviceguard: read, ask, try the contact, show the difference, write, close."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

from appmgr.deploy.appmon import AppMonitor, Manager
from appmgr.deploy.closing import Surroundings, left_to_do, offer_all
from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.difference import difference
from appmgr.deploy.errors import ContactFailed
from appmgr.deploy.merging import Merger, merge, wanted_service
from appmgr.deploy.options import DeployOptions
from appmgr.deploy.package import Package, configuration_directory, names_elsewhere, read_package
from appmgr.deploy.questions import ask_monitors
from appmgr.deploy.writing import write_changes

Check = Callable[[str, str | None, Callable[[float], None]], None]
"""`contact.check_contact`, or what plays it."""


@final
@dataclass(slots=True)
class Done:
    """What has been changed so far; for whoever has to say so when the rest fails."""

    changes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Say it in half a sentence."""
        return "; ".join(self.changes) or "nothing was changed"


def begin(dialogue: Dialogue, options: DeployOptions) -> bool:
    """Say what this is, and ask whether to go on; False where not."""
    if options.quiet:
        return True
    dialogue.say("This is cmdeployvpkg of cmapp. It adds application monitors to the package of a guest.")
    dialogue.say("Every change is shown before it is made; review the file when it is done.")
    return dialogue.confirm("Do you wish to continue?")


def deploy(options: DeployOptions, dialogue: Dialogue, host: Surroundings, check: Check, done: Done) -> int:
    """Carry out the options for Serviceguard, and give the exit status. Raises `DeployError` and `Abandoned`."""
    if not begin(dialogue, options):
        return 0
    directory = options.directory or configuration_directory()
    path = options.file or os.path.join(directory, options.package, f"{options.package}.conf")
    package = read_package(options.package, os.path.abspath(path))
    monitors = options.monitors
    judged = partial(_merge, options, package, names_elsewhere(directory, options.package))
    if not options.quiet:
        _summarize(dialogue, package)
        if not dialogue.confirm("Modify the packaged Virtual Machine Summarized above?"):
            return 0
        dialogue.say("Checking the virtual machine and cluster configuration")
    if monitors is None:
        taken = {service.name for service in package.services()}
        monitors = tuple(ask_monitors(dialogue, taken, judged))
    merger = judged(monitors)
    for name in merger.present:
        dialogue.say(f"The package has the service {name} already, just so.")
    if not merger.added:
        dialogue.say("Nothing to change.")
        return 0
    if not try_contact(dialogue, options, check):
        return 1
    return _carry_out(options, dialogue, host, package, merger, done)


def _merge(
    options: DeployOptions, package: Package, elsewhere: dict[str, str], monitors: Sequence[AppMonitor]
) -> Merger:
    manager = Manager(options.node, options.manager, options.config)
    return merge(package.services(), [wanted_service(monitor, manager) for monitor in monitors], elsewhere)


def _summarize(dialogue: Dialogue, package: Package) -> None:
    dialogue.say()
    dialogue.say("[Package Details]")
    dialogue.say(f"{'Package':<20} {'Kind':<8} Configuration file")
    dialogue.say(f"{package.name:<20} {'modular' if package.script_path is None else 'legacy':<8} {package.path}")
    dialogue.say()
    dialogue.say("[Service Details]")
    services = package.services()
    for service in services:
        dialogue.say(f"{service.name}: {service.command} (restart {service.restart})")
    if not services:
        dialogue.say("none yet")
    dialogue.say()


def try_contact(dialogue: Dialogue, options: DeployOptions, check: Check) -> bool:
    """Try the communication with the guest; False where there is none and somebody does not want to go on so.

    Raises `ContactFailed` where nobody is there to ask. Where one only shows, it is a warning.
    """
    dialogue.say(f"Checking communications with the application monitor server on : {options.node}")
    try:
        check(options.node, options.config, lambda waited: dialogue.say(f"no answer yet, after {waited:.0f} s"))
    except ContactFailed as error:
        failed = ContactFailed(f"no contact with the application monitor server on {options.node}: {error}")
        if options.only_show:
            dialogue.say(f"Warning: {failed}")
            return True
        if options.quiet:
            raise failed from error
        dialogue.say(f"{failed}")
        return dialogue.confirm("Go on without it?")
    return True


def _carry_out(
    options: DeployOptions, dialogue: Dialogue, host: Surroundings, package: Package, merger: Merger, done: Done
) -> int:
    changes = package.with_services(merger.added)
    for change in changes:
        dialogue.show(difference(change))
    for warning in package.warnings():
        dialogue.say(f"Warning: {warning}")
    if options.only_show:
        dialogue.say("Only shown: nothing was changed.")
        return 0
    dialogue.say("Merging application monitor service with existing package configuration file")
    backups = write_changes(changes, time.time())
    for change, backup in zip(changes, backups, strict=True):
        done.changes.append(f"{change.path} was changed")
        dialogue.say(f"Changed {change.path}; the old one is {backup}")
    well = options.quiet or offer_all(dialogue, package, host)
    for line in left_to_do(package, os.path.dirname(package.path)):
        dialogue.say(line)
    return 0 if well else 1

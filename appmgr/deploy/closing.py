"""What comes behind the change: editor, the other members, the cluster's own check and its application, and what is
left to do.

Each offer is made where it can be carried out, in the order of the old script. One that fails is said and counted;
the next is made all the same, save that what cmcheckconf has refused is not offered to cmapplyconf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.errors import DeployError
from appmgr.deploy.package import Package
from appmgr.deploy.programs import editor, find_program, run_program


@final
@dataclass(frozen=True, slots=True)
class Surroundings:
    """The host as the closing questions see it: its name, its environment, and how a program is run."""

    host: str
    environment: Mapping[str, str]
    run: Callable[[Sequence[str]], int] = run_program

    def find(self, name: str) -> str | None:
        """Give the path of a program, None where there is none."""
        return find_program(name, self.environment)


def offer_all(dialogue: Dialogue, package: Package, host: Surroundings) -> bool:
    """Make the offers, and tell whether all that was wanted succeeded. Raises `Abandoned`."""
    well = True
    if dialogue.confirm("Review and/or modify the package configuration file (optional)?"):
        words = editor(host.environment)
        dialogue.say(f"Invoking editor : {words[0]} on file {package.path}")
        well &= _run(dialogue, host, [*words, package.path])
    well &= _offer_copies(dialogue, package, host)
    return well & _offer_applying(dialogue, package, host)


def _offer_copies(dialogue: Dialogue, package: Package, host: Surroundings) -> bool:
    others = [name for name in package.members() if name.split(".")[0] != host.host]
    copy = host.find("scp")
    if not others or copy is None:
        return True
    if not dialogue.confirm("Copy the package files to each cluster member?"):
        return True
    well = True
    for member in others:
        for path in package.files:
            well &= _run(dialogue, host, [copy, "-p", path, f"{member}:{path}"])
    return well


def _offer_applying(dialogue: Dialogue, package: Package, host: Surroundings) -> bool:
    check, apply = host.find("cmcheckconf"), host.find("cmapplyconf")
    if check is not None and dialogue.confirm("Use cmcheckconf check the package configuration file (optional)?"):
        checked = _run(dialogue, host, [check, "-P", package.path])
        if not checked:
            return False
    if apply is None:
        return True
    dialogue.say("Use the cmapplyconf command to apply the configuration")
    if dialogue.confirm("Apply the package configuration file to the cluster (optional)?"):
        return _run(dialogue, host, [apply, "-P", package.path])
    return True


def _run(dialogue: Dialogue, host: Surroundings, words: Sequence[str]) -> bool:
    try:
        status = host.run(words)
    except DeployError as error:
        dialogue.say(f"This failed: {error}.")
        return False
    if status:
        dialogue.say(f"This failed: {' '.join(words)} ended with status {status}.")
    return status == 0


def left_to_do(package: Package, directory: str) -> list[str]:
    """Give the lines that close the program: what is to be done before the package runs."""
    name = package.name
    steps = [
        f"Look through what the package has in {directory}/.",
        "See that every host that may run it has these files, cmappmgr, its keys and its /etc/cmappmgr.conf.",
        f"Check the configuration: cmcheckconf -P {package.path}",
        f"Apply it: cmapplyconf -P {package.path}",
        "See that the timeouts cover the time that the guest takes to boot, or that --boot-timeout does.",
        f"Start the package, if it does not run: cmrunpkg {name}",
        "End the application in the guest once, and see that it is started again and the guest moves as it should.",
    ]
    return ["Before running this package:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]

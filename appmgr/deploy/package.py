"""A package as it stands on disk: which files it has, of which kind they are, and what services are in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from appmgr.deploy import legacy, modular
from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import Change, Service, read_file, values

DEFAULT_DIRECTORY: Final = "/etc/cmcluster"
SETTINGS_PATH: Final = "/etc/cmcluster.conf"
"""Where Serviceguard says where things are: `SGCONF` is the directory of the cluster's configuration."""

MAX_PACKAGES: Final = 1000
"""Looked through for a service of the same name; a cluster has 300 packages at most."""


@final
@dataclass(frozen=True, slots=True)
class Package:
    """One package. A legacy one has a control script, a modular one has not."""

    name: str
    path: str
    data: bytes
    script_path: str | None = None
    script: bytes = b""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that belong on every member of the cluster."""
        return (self.path,) if self.script_path is None else (self.path, self.script_path)

    def services(self) -> list[Service]:
        """Give the services that the package has."""
        return modular.services(self.data) if self.script_path is None else legacy.services(self.data, self.script)

    def with_services(self, added: Sequence[Service]) -> tuple[Change, ...]:
        """Give the changes that add these services, none for no services. Raises `DeployError`."""
        if not added:
            return ()
        if self.script_path is None:
            return (Change(self.path, self.data, modular.with_services(self.data, added)),)
        data, script = legacy.with_services(self.data, self.script, added, self.script_path)
        return (Change(self.path, self.data, data), Change(self.script_path, self.script, script))

    def members(self) -> list[str]:
        """Give the hosts that may run the package, without those that `*` stands for."""
        return [name for name in dict.fromkeys(values(self.data, "node_name")) if name != "*"]

    def warnings(self) -> list[str]:
        """Give what an administrator should know before cmcheckconf finds it."""
        if self.script_path is None and modular.lacks_service_module(self.data):
            cure = f"cmmakepkg -i {self.path} -m sg/service adds it"
            return [f"{self.path} names no module sg/service, without which a package has no services: {cure}"]
        return []


def configuration_directory() -> str:
    """Give the directory of the cluster's configuration on this host."""
    try:
        data = read_file(SETTINGS_PATH, "settings file")
    except DeployError:
        return DEFAULT_DIRECTORY
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        key, _, value = line.partition("=")
        path = value.partition("#")[0].strip().strip("\"'")
        if key.strip() == "SGCONF" and os.path.isabs(path):
            return path
    return DEFAULT_DIRECTORY


def read_package(name: str, path: str) -> Package:
    """Read a package's files. Raises `DeployError` where they cannot be read or are not those of this package."""
    data = read_file(path, "package configuration file")
    named = values(data, "package_name")
    if not named:
        raise DeployError(f"{path!r} has no package_name: it is not a package configuration file")
    if named[0].strip('"') != name:
        raise DeployError(f"{path!r} is of the package {named[0]!r}, not {name!r}")
    script_path = legacy.control_script(data)
    if script_path is None:
        return Package(name, path, data)
    if not os.path.isabs(script_path):
        raise DeployError(f"{path}: RUN_SCRIPT {script_path!r} is not an absolute path")
    return Package(name, path, data, script_path, read_file(script_path, "control script"))


def names_elsewhere(directory: str, package: str) -> dict[str, str]:
    """Give the names of the services of all other packages, as far as they can be read, each with its package."""
    found: dict[str, str] = {}
    for other in _other_packages(directory, package):
        try:
            data = read_file(os.path.join(directory, other, f"{other}.conf"), "package configuration file")
        except DeployError:
            continue
        found.update(dict.fromkeys(values(data, "service_name"), other))
    return found


def _other_packages(directory: str, package: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    yield from [
        name for name in names if name != package and os.path.isfile(os.path.join(directory, name, f"{name}.conf"))
    ][:MAX_PACKAGES]

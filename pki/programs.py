"""What the key tool knows of the two programs: their files, the names in them, and the keys of their configuration.

The programs own their configuration (`appmgr.settings`, `appserver.settings`) and stand above this floor, so what the
tool needs of it is written down here a second time; a test keeps both the same.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import final

from pki.certificates import Purpose
from pki.stores import (
    CLIENT_KEY_ALIAS,
    CLIENT_KEY_PASSWORD,
    CLIENT_TRUST_ALIAS,
    SERVER_KEY_ALIAS,
    SERVER_KEY_PASSWORD,
    SERVER_TRUST_ALIAS,
)

HOST_DIRECTORY = "/etc/cmcluster/cmappmgr"
GUEST_DIRECTORY = r"C:\Program Files\Hewlett-Packard\cmappserver" if sys.platform == "win32" else "/opt/hp/cmappserver"

_STORE_KEYS = ("keyStore", "keyStorePassword", "trustStore", "trustStorePassword", "port", "expiredPins")


@final
@dataclass(frozen=True, slots=True)
class Program:
    """One of the two programs, as far as keys go.

    `config_keys` stand outside sections of its file, `section_keys` in them. `key_store` and
    `trust_store` are what it uses where its configuration names none; `private_name` and
    `public_name` are the files that the tool makes for its side, in `directory`.
    """

    name: str
    side: str
    purpose: Purpose
    peer_purpose: Purpose
    config_path: str
    config_keys: frozenset[str]
    section_keys: frozenset[str]
    directory: str
    key_store: str
    key_password: str
    key_alias: str
    trust_store: str
    trust_alias: str
    private_name: str
    public_name: str


MANAGER = Program(
    name="cmappmgr",
    side="client",
    purpose=Purpose.CLIENT,
    peer_purpose=Purpose.SERVER,
    config_path="/etc/cmappmgr.conf",
    config_keys=frozenset({*_STORE_KEYS, "address"}),
    section_keys=frozenset({*_STORE_KEYS, "address"}),
    directory=HOST_DIRECTORY,
    key_store="/etc/client.private",
    key_password=CLIENT_KEY_PASSWORD,
    key_alias=CLIENT_KEY_ALIAS,
    trust_store="/etc/server.public",
    trust_alias=CLIENT_TRUST_ALIAS,
    private_name="client.private",
    public_name="client.public",
)

SERVER = Program(
    name="cmappserver",
    side="server",
    purpose=Purpose.SERVER,
    peer_purpose=Purpose.CLIENT,
    config_path=os.path.join(GUEST_DIRECTORY, "cmappserver.conf"),
    config_keys=frozenset({
        *_STORE_KEYS,
        "listen",
        "maxProcesses",
        "stateDir",
        "logDir",
        "logMaxBytes",
        "allow",
    }),
    section_keys=frozenset({
        "allow",
        "attach",
        "directory",
        "environment",
        "group",
        "limit",
        "maxProcesses",
        "start",
        "stop",
        "user",
    }),
    directory=GUEST_DIRECTORY,
    key_store=os.path.join(GUEST_DIRECTORY, "server.private"),
    key_password=SERVER_KEY_PASSWORD,
    key_alias=SERVER_KEY_ALIAS,
    trust_store=os.path.join(GUEST_DIRECTORY, "client.public"),
    trust_alias=SERVER_TRUST_ALIAS,
    private_name="server.private",
    public_name="server.public",
)

PROGRAMS = {program.side: program for program in (MANAGER, SERVER)}


def for_file(name: str) -> str:
    """Give the form of a guest's name that stands in file names."""
    # Windows has no colons in file names, and the file travels.
    return name.replace(":", "-")

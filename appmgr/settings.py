"""What `cmappmgr` is configured with for one node: defaults, lines for every node, the node's section (contract,
section 3).
"""

from __future__ import annotations

import os
from typing import final

from appserver.ports import DEFAULT_PORT, MAX_PORT
from pki.errors import SettingsError
from pki.frozen import dataclass
from pki.material import EXPIRED_PINS, Keys, expired_pins
from pki.settings import Document, Values, normal_name, read_document

DEFAULT_CONFIG_PATH = "/etc/cmappmgr.conf"
"""The file that is read where none is named; it may be absent."""

STORE_KEYS = ("keyStore", "keyStorePassword", "trustStore", "trustStorePassword")
KNOWN_KEYS = (*STORE_KEYS, "address", "port", "expiredPins")

_DEFAULTS = {
    "keyStore": "/etc/client.private",
    "keyStorePassword": "clientpw",
    "trustStore": "/etc/server.public",
    "trustStorePassword": "public",
}


@final
@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the configuration says of one node; paths are absolute.

    `address` is what to connect to: the file's word or the node's name, without brackets. `config_path` is `None`
    where the default file does not exist. `warnings` are lines for the log about other nodes' sections.
    """

    node: str
    keys: Keys
    address: str
    port: int
    config_path: str | None
    warnings: tuple[str, ...]


def load_node_settings(path: str | None, node: str) -> NodeSettings:
    """Read the file at `path`, or the default one, which may be absent, for the node of that name.

    An empty value in the node's section means the default, not the value for every node. Names are compared without
    case, addresses by value. Raises `SettingsError` for whatever cannot be used, naming file, line and key.
    """
    document = read_document(path or DEFAULT_CONFIG_PATH, may_be_absent=path is None)
    common = Values(document.path, document.of_section(None), KNOWN_KEYS)
    own = Values(document.path, document.of_section(normal_name(node)), KNOWN_KEYS)
    _judge_common(common)
    found = path is not None or bool(document.entries) or os.path.exists(document.path)
    bare = node[1:-1] if node.startswith("[") and node.endswith("]") else node
    return NodeSettings(
        node=node,
        keys=_keys(common, own),
        address=_address(_scope(common, own, "address"), bare),
        port=_port(common, own),
        config_path=document.path if found else None,
        warnings=(*_missing(document, node), *_warnings(document, normal_name(node))),
    )


def _judge_common(common: Values) -> None:
    """Refuse bad values that hold for every node, also where this node has its own."""
    _keys(common, common)
    _port(common, common)


def _scope(common: Values, own: Values, key: str) -> Values:
    return own if key in own else common


def _keys(common: Values, own: Values) -> Keys:
    def path(key: str) -> str:
        return _scope(common, own, key).path(key, _DEFAULTS[key])

    def text(key: str) -> str:
        return _scope(common, own, key).text(key, _DEFAULTS[key])

    return Keys(
        key_store=path("keyStore"),
        key_store_password=text("keyStorePassword"),
        trust_store=path("trustStore"),
        trust_store_password=text("trustStorePassword"),
        expired_pins=expired_pins(_scope(common, own, "expiredPins").one_of("expiredPins", EXPIRED_PINS)),
    )


def _address(values: Values, node: str) -> str:
    address = values.text("address", node)
    entry = values.entry("address")
    if entry is not None and any(character.isspace() for character in address):
        raise values.complaint(entry, f"{address!r:.60} is not one address or host name")
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _port(common: Values, own: Values) -> int:
    return _scope(common, own, "port").integer("port", DEFAULT_PORT, 1, MAX_PORT)


def _missing(document: Document, node: str) -> tuple[str, ...]:
    if not document.sections() or normal_name(node) in document.sections():
        return ()
    return (f"{document.path} has no section {node + ':'!r}, what holds for every node is used",)


def _warnings(document: Document, own_section: str) -> tuple[str, ...]:
    """Judge the other nodes' sections as if they were ours: what would be an error there is a warning here."""
    found: list[str] = []
    for section in document.sections():
        if section == own_section:
            continue
        try:
            values = Values(document.path, document.of_section(section), KNOWN_KEYS)
            _keys(values, values)
            _address(values, section)
            _port(values, values)
        except SettingsError as error:
            found.append(str(error))
    return tuple(found)

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from pki.material import Keys


@final
@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the configuration says of one node. `address` is what to connect to; `config_path` None: no file, defaults."""

    node: str
    keys: Keys
    address: str
    port: int
    config_path: str | None
    warnings: tuple[str, ...]


def load_node_settings(path: str | None, node: str) -> NodeSettings:
    """Raises `SettingsError`. `path` None: the default file, which may be absent."""
    raise NotImplementedError

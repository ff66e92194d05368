from __future__ import annotations

from dataclasses import dataclass
from typing import final

from pki.material import Keys

DEFAULT_PORT = 5315
DEFAULT_MAX_PROCESSES = 30
DEFAULT_LOG_MAX_BYTES = 10 * 1024 * 1024


@final
@dataclass(frozen=True, slots=True)
class ServerOverrides:
    """What the command line says; `None` leaves the file's word or the default in force."""

    listen: tuple[str, ...] | None = None
    port: int | None = None
    state_dir: str | None = None
    log_dir: str | None = None


@final
@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All that the server is configured with; paths absolute. `listen` empty: all addresses. `config_path` None: defaults."""

    keys: Keys
    listen: tuple[str, ...]
    port: int
    max_processes: int
    state_dir: str
    log_dir: str
    log_max_bytes: int
    allow: tuple[str, ...]
    config_path: str | None


def load_server_settings(path: str | None, overrides: ServerOverrides = ServerOverrides()) -> ServerSettings:
    """Raises `SettingsError`. `path` None: the default file, which may be absent."""
    raise NotImplementedError

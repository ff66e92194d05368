"""What `cmappserver` is configured with: its file, the command line over it, and the defaults under it (contract,
section 3).
"""

from __future__ import annotations

import os
import re
import sys
from typing import final

from appserver.ports import DEFAULT_PORT, MAX_PORT
from appserver.rules import Policy
from appserver.rulesfile import read_policy
from pki.errors import SettingsError
from pki.frozen import dataclass
from pki.material import EXPIRED_PINS, Keys, expired_pins
from pki.names import short_address
from pki.settings import Values, read_document

DEFAULT_MAX_PROCESSES = 30
DEFAULT_LOG_MAX_BYTES = 10 * 1024 * 1024

MAX_PROCESSES_LIMIT = 1000
"""More applications than this in one guest is a mistake in the file; each costs a waiter, a lock and a few
descriptors."""

MIN_LOG_MAX_BYTES = 1024
MAX_LOG_MAX_BYTES = 1024**4
"""A log below a kibibyte could not hold the lines that a manager shows at the end; a bound of over a tebibyte is
none."""

KNOWN_KEYS = (
    "keyStore",
    "keyStorePassword",
    "trustStore",
    "trustStorePassword",
    "listen",
    "port",
    "maxProcesses",
    "stateDir",
    "logDir",
    "logMaxBytes",
    "expiredPins",
    "allow",
)

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


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
    """All that the server is configured with; every path is absolute.

    `listen` holds addresses or host names without brackets; empty means all addresses of both families. `port` 0
    takes a free one. `policy` says who may start what. `config_path` is `None` where the default file does not exist.
    """

    keys: Keys
    listen: tuple[str, ...]
    port: int
    max_processes: int
    state_dir: str
    log_dir: str
    log_max_bytes: int
    policy: Policy
    config_path: str | None


def default_directory() -> str:
    """Give the directory of the server's configuration and keys on this system."""
    return r"C:\Program Files\Hewlett-Packard\cmappserver" if sys.platform == "win32" else "/opt/hp/cmappserver"


def default_config_path() -> str:
    """Give the path of the configuration file that is read where none is named; it may be absent."""
    return os.path.join(default_directory(), "cmappserver.conf")


NO_OVERRIDES = ServerOverrides()


def load_server_settings(path: str | None, overrides: ServerOverrides = NO_OVERRIDES) -> ServerSettings:
    """Read the file at `path`, or the default one, which may be absent; the command line wins over it.

    Several addresses in `listen` are separated by commas or blanks. A relative path of the command line is relative
    to the working directory. Raises `SettingsError` for whatever cannot be used, naming file, line and key.
    """
    document = read_document(path or default_config_path(), may_be_absent=path is None)
    values = Values(document.path, document.of_section(None), KNOWN_KEYS, repeatable=("allow",))
    home = default_directory()
    found = path is not None or bool(document.entries) or os.path.exists(document.path)
    keys = Keys(
        key_store=values.path("keyStore", os.path.join(home, "server.private")),
        key_store_password=values.text("keyStorePassword", "serverpw"),
        trust_store=values.path("trustStore", os.path.join(home, "client.public")),
        trust_store_password=values.text("trustStorePassword", "public"),
        expired_pins=expired_pins(values.one_of("expiredPins", EXPIRED_PINS)),
    )
    return ServerSettings(
        keys=keys,
        listen=_listen(values, overrides),
        port=_port(values, overrides),
        max_processes=values.integer("maxProcesses", DEFAULT_MAX_PROCESSES, 1, MAX_PROCESSES_LIMIT),
        state_dir=_directory(values.path("stateDir", default_state_dir()), overrides.state_dir),
        log_dir=_directory(values.path("logDir", _log_dir()), overrides.log_dir),
        log_max_bytes=values.size("logMaxBytes", DEFAULT_LOG_MAX_BYTES, MIN_LOG_MAX_BYTES, MAX_LOG_MAX_BYTES),
        policy=read_policy(document, values, MAX_PROCESSES_LIMIT),
        config_path=document.path if found else None,
    )


def default_state_dir() -> str:
    """Give the directory of the records where neither the file nor the command line names one."""
    return os.path.join(default_directory(), "state") if sys.platform == "win32" else "/run/cmappserver"


def _log_dir() -> str:
    return os.path.join(default_directory(), "log") if sys.platform == "win32" else "/var/log/cmappserver"


def _directory(from_file: str, from_command_line: str | None) -> str:
    return os.path.abspath(from_command_line) if from_command_line else from_file


def _port(values: Values, overrides: ServerOverrides) -> int:
    from_file = values.integer("port", DEFAULT_PORT, 0, MAX_PORT)
    if overrides.port is None:
        return from_file
    if not 0 <= overrides.port <= MAX_PORT:
        raise SettingsError(f"--port: {overrides.port!r} is not a whole number from 0 to {MAX_PORT}")
    return overrides.port


def _listen(values: Values, overrides: ServerOverrides) -> tuple[str, ...]:
    entry = values.entry("listen")
    try:
        from_file = _addresses(entry.value.replace(",", " ").split() if entry else ())
    except ValueError as error:
        assert entry is not None
        raise values.complaint(entry, str(error)) from error
    if overrides.listen is None:
        return from_file
    try:
        return _addresses(overrides.listen)
    except ValueError as error:
        raise SettingsError(f"--listen: {error}") from error


def _addresses(words: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for word in words:
        bare = word[1:-1] if word.startswith("[") and word.endswith("]") else word
        if short_address(bare) is None and not _HOST_NAME.fullmatch(bare):
            raise ValueError(f"{word!r:.60} is neither an address nor a host name; the port has a key of its own")
        if bare not in found:
            found.append(bare)
    return tuple(found)

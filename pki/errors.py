"""What can go wrong with keys and configuration: one class for each thing the caller can do about it."""

from __future__ import annotations

from typing import final


class PkiError(Exception):
    """Root of what this floor raises. The text is one line, ready for a log: it names the file, the fault and the
    cure.
    """


@final
class SettingsError(PkiError):
    """A configuration file cannot be used as it stands. The administrator mends the file; trying again changes
    nothing.
    """


class KeysError(PkiError):
    """A key store or a trust store cannot be used, or not be made. The administrator mends the store or its place."""


@final
class PasswordError(KeysError):
    """A store does not open with this password. The caller may know another one."""


@final
class DnameError(PkiError, ValueError):
    """A distinguished name or a host name cannot go into a certificate. The caller asks for another one."""


@final
class PeerRefused(PkiError):
    """The peer holds a key, but not one that is trusted here. It is not the peer that was meant; another attempt
    may reach it.
    """

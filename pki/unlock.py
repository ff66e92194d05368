from __future__ import annotations

from pki.material import Keys, Material

UNLOCK_TIMEOUT_SECONDS = 30.0


class Unlocking:
    """Stores being opened; `result` waits for them. To be collected with `result` or given up with `abandon`, once."""

    def result(self, timeout_seconds: float = UNLOCK_TIMEOUT_SECONDS) -> Material:
        """Raises `KeysError`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Kill the child and forget it. Harmless after `result`."""
        raise NotImplementedError


def start_unlock(keys: Keys) -> Unlocking:
    """Start to open both stores; never raises for what is wrong with them: `result` does."""
    raise NotImplementedError

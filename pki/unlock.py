"""Open the stores of a program beside it, while the program does something else.

`start_unlock` takes the first of three ways that can open both stores, and returns at once; `result` collects:

- PEM without encryption: there is nothing to parse, since OpenSSL reads PEM itself.
- Usual PKCS#12, as `cmapppki` and keytool make it: a thread of this process calls libcrypto (`pkcs12`), which takes
  some 15 ms, most of them without the interpreter's lock.
- Everything else, and whatever is wrong, is left to a child with `cryptography` (`opener`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from pki import pem
from pki.errors import KeysError
from pki.files import read_store
from pki.material import Keys, Material, Pin

if TYPE_CHECKING:
    from pki.opener import Opener

UNLOCK_TIMEOUT_SECONDS = 30.0
"""A child needs a tenth of a second; a busy guest at boot may take several. Longer, and the disk or the machine is
ill."""


@final
class Unlocking:
    """Stores being opened. Whoever has one calls `result` or `abandon`, or uses it as a context manager."""

    def __init__(self, keys: Keys, *, ready: Material | KeysError | None = None, thread: _Thread | None = None) -> None:
        """Belongs to `start_unlock`. What is neither ready nor with a thread is the child's."""
        self._keys = keys
        self._ready = ready
        self._thread = thread
        self._child: Opener | None = None
        if ready is None and thread is None:
            self._start_child()

    def result(self, timeout_seconds: float = UNLOCK_TIMEOUT_SECONDS) -> Material:
        """Wait for the stores, blocking; a second call gives the same.

        Raises `KeysError` for what is wrong with them, or when they are not open within `timeout_seconds`, which
        thread and child have each. An exception out of a signal handler leaves no child behind.
        """
        if self._ready is None:
            try:
                self._ready = self._collect(timeout_seconds)
            except KeysError as error:
                self._ready = error
        if isinstance(self._ready, KeysError):
            raise self._ready
        return self._ready

    def abandon(self) -> None:
        """Kill the child where there is one; its result is lost, as that of a thread. Harmless after `result`."""
        if self._child is not None:
            self._child.abandon()
        if self._ready is None:
            self._ready = KeysError("the opening of the stores was given up")

    def __enter__(self) -> Unlocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _collect(self, timeout_seconds: float) -> Material:
        if self._thread is not None:
            material = self._thread.collect(timeout_seconds)
            if material is not None:
                return material
            self._start_child()
        assert self._child is not None
        return self._child.collect(timeout_seconds)

    def _start_child(self) -> None:
        from pki.opener import Opener

        self._child = Opener(self._keys)


@final
class _Thread:
    """Opens usual PKCS#12 stores beside whatever else this process does."""

    def __init__(self, keys: Keys, key_data: bytes, trust_data: bytes) -> None:
        """Start it. Raises `RuntimeError` where the system has no more threads."""
        self._keys = keys
        self._stores = key_data, trust_data
        self._material: Material | None = None
        # Nobody waits for it at the end of the process, whatever a store makes it compute.
        self._thread = threading.Thread(target=self._open, name="unlock", daemon=True)
        self._thread.start()

    def collect(self, timeout_seconds: float) -> Material | None:
        """Give the opened stores, or `None` for what is not usual. Raises `KeysError` when it takes too long."""
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            raise KeysError(f"the stores could not be opened within {timeout_seconds:g} seconds")
        return self._material

    def _open(self) -> None:
        try:
            from pki import pkcs12
        except ImportError:  # the child will break down over the same, and say so
            return
        keys, (key_data, trust_data) = self._keys, self._stores
        try:
            certificate, key_pem = pkcs12.open_key_store(key_data, keys.key_store_password)
            trusted = pkcs12.open_trust_store(trust_data, keys.trust_store_password)
        except pkcs12.NotUsualError:
            return
        self._material = _material(keys, (certificate,), key_pem, trusted)


def start_unlock(keys: Keys) -> Unlocking:
    """Start to open both stores and return at once; whatever is wrong with them is raised by `result`."""
    try:
        key_data, trust_data = read_store(keys.key_store, "key store"), read_store(keys.trust_store, "trust store")
        ready = _open_plain(keys, key_data, trust_data)
        if ready is not None or sys.platform != "linux" or pem.is_pem(key_data) or pem.is_pem(trust_data):
            return Unlocking(keys, ready=ready)
        try:
            return Unlocking(keys, thread=_Thread(keys, key_data, trust_data))
        except RuntimeError:
            return Unlocking(keys)
    except KeysError as error:
        return Unlocking(keys, ready=error)


def load_material(keys: Keys) -> Material:
    """Open both stores, blocking for at most twice `UNLOCK_TIMEOUT_SECONDS`. Raises `KeysError`.

    It may be called days after the start, when the program's files have been exchanged or removed under it.
    """
    try:
        return start_unlock(keys).result()
    except ImportError as error:
        raise KeysError(f"the stores cannot be opened, parts of this program are gone: {error}") from error


def _open_plain(keys: Keys, key_data: bytes, trust_data: bytes) -> Material | None:
    if not (pem.is_pem(key_data) and pem.is_pem(trust_data)):
        return None
    blocks = pem.private_keys(key_data)
    chain = pem.certificates(key_data, keys.key_store)
    trusted = pem.certificates(trust_data, keys.trust_store)
    plain = len(blocks) == 1 and not pem.is_encrypted(blocks[0]) and not pem.is_dsa(blocks[0], keys.key_store)
    if not plain or not chain or not trusted or pem.private_keys(trust_data):
        return None  # what is unusual is judged, and explained, in one place: by the child
    return _material(keys, chain, blocks[0], [(der, None) for der in trusted])


def _material(
    keys: Keys, chain: Sequence[bytes], key_pem: bytes, trusted: Sequence[tuple[bytes, str | None]]
) -> Material:
    pins: dict[bytes, Pin] = {}
    for number, (der, alias) in enumerate(trusted, start=1):
        pins.setdefault(der, Pin(der, alias or f"certificate {number}"))
    return Material(
        b"".join(map(pem.encode_certificate, chain)),
        key_pem,
        tuple(pins.values()),
        keys.expired_pins,
        keys.key_store,
        keys.trust_store,
    )

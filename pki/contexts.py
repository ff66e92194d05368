from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from pki.errors import KeysError as KeysError
from pki.errors import PeerRefused as PeerRefused
from pki.material import ExpiredPins as ExpiredPins
from pki.material import Keys as Keys
from pki.material import Material as Material
from pki.material import Pin as Pin


@final
@dataclass(frozen=True, slots=True)
class Peer:
    """An accepted peer: SHA-256 fingerprint (`AB:CD:…`), subject, the pin's alias (None: issued by an authority), warning."""

    fingerprint: str
    subject: str
    alias: str | None
    warning: str | None


def load_material(keys: Keys) -> Material:
    """Open both stores (blocks; `start_unlock(keys).result()`). Raises `KeysError`."""
    raise NotImplementedError


def server_context(material: Material) -> ssl.SSLContext:
    """Raises `KeysError`."""
    raise NotImplementedError


def client_context(material: Material) -> ssl.SSLContext:
    """Raises `KeysError`. Wrap with `server_hostname=None`: names are judged by `judge_peer`."""
    raise NotImplementedError


def judge_peer(
    material: Material, der: bytes, certificate: Mapping[str, object], *, name: str | None, now_unix: float
) -> Peer:
    """Judge a peer after the handshake (`getpeercert(True)`, `getpeercert()`); `material.expired_pins` is the policy.

    Raises `PeerRefused`.
    """
    raise NotImplementedError

"""Where the keys are (`Keys`) and what was found in them (`Material`): plain values, no I/O.

They stand apart from `contexts` so that reading a configuration file does not import `ssl`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, final

from pki.frozen import dataclass, field

ExpiredPins: TypeAlias = Literal["accept", "refuse"]
"""What becomes of a pinned certificate whose dates have passed (contract, section 4, "Trust is a pin")."""

EXPIRED_PINS: tuple[ExpiredPins, ...] = ("accept", "refuse")
"""The words of the configuration, the default first."""


def expired_pins(word: str) -> ExpiredPins:
    """Give the policy that a word of `EXPIRED_PINS` names."""
    return EXPIRED_PINS[EXPIRED_PINS.index(word)]


@final
@dataclass(frozen=True, slots=True)
class Keys:
    """The two stores of one program as its configuration names them. Passwords stay out of `repr`."""

    key_store: str
    key_store_password: str = field(repr=False)
    trust_store: str
    trust_store_password: str = field(repr=False)
    expired_pins: ExpiredPins = "accept"


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """One certificate of the trust store: its DER bytes, and the alias or `certificate N` it has there."""

    der: bytes = field(repr=False)
    alias: str


@final
@dataclass(frozen=True, slots=True)
class Material:
    """Opened stores: own certificate chain (PEM, leaf first), own key (PEM, not encrypted), and who is trusted.

    The paths of the stores are for messages only.
    """

    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    pins: tuple[Pin, ...]
    expired_pins: ExpiredPins = "accept"
    key_store: str = "key store"
    trust_store: str = "trust store"

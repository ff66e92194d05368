"""What is said about the dates of certificates, and when: at the start, and once a day while the reason lasts.

The wall clock decides whether a certificate is near its end, and it is looked at often (`CHECK_SECONDS`), not once with
a sleep of a year after it: clocks are set, guests are paused and restored. A day is over when *either* clock says so,
the monotonic one, which nobody sets, or the wall clock, which went on while the machine slept. A certificate that
enters another stage (near its end, expired) is news at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import final

from pki import pem
from pki.der import SECONDS_PER_DAY, Description, describe
from pki.errors import KeysError
from pki.frozen import dataclass
from pki.material import Material

WARNING_DAYS = 30
"""Before the end of a certificate, the running programs begin to say so."""

CHECK_SECONDS = 60.0
"""Between two looks at the clock. A look compares a few numbers; a clock that was set wrong or right is noticed within
a minute."""

REMINDER_SECONDS = 86400.0
"""Once a day."""

OWN_CURE = "make new keys with cmapppki renew and spread the new certificate before that"
PEER_CURE = "new keys are needed where it comes from (cmapppki renew); if it is out of use, cmapppki trust --remove"


@final
class Stage(Enum):
    """Where the clock stands between the dates of a certificate."""

    EARLY = "not valid yet"
    FINE = "valid"
    SOON = "near its end"
    EXPIRED = "expired"


@final
@dataclass(frozen=True, slots=True)
class Watched:
    """A certificate whose dates matter to a running program: whose it is in words, itself, and what to do in time."""

    whose: str
    certificate: Description
    cure: str


def stage(certificate: Description, now_unix: float) -> Stage:
    """Tell where `now_unix` (wall time) stands."""
    if now_unix > certificate.ends.unix:
        return Stage.EXPIRED
    if now_unix < certificate.begins.unix:
        return Stage.EARLY
    return Stage.SOON if now_unix > certificate.ends.unix - WARNING_DAYS * SECONDS_PER_DAY else Stage.FINE


def fault(certificate: Description, now_unix: float) -> str | None:
    """Say why a certificate is out of date: `expired on … (1 day ago)`; None where it is in date."""
    match stage(certificate, now_unix):
        case Stage.EXPIRED:
            return f"expired on {certificate.ends.text} ({_span(now_unix - certificate.ends.unix)} ago)"
        case Stage.EARLY:
            return f"is not valid before {certificate.begins.text} (is the clock right?)"
        case _:
            return None


def warning(watched: Watched, now_unix: float) -> str | None:
    """Say what the log has to say about a certificate now, in one line; None where all is well."""
    certificate = watched.certificate
    now = stage(certificate, now_unix)
    if now is Stage.FINE:
        return None
    if now is Stage.EARLY:
        return f"{watched.whose}, {certificate}, {fault(certificate, now_unix)}"
    left = f"expires on {certificate.ends.text} (in {_span(certificate.ends.unix - now_unix)})"
    return f"{watched.whose}, {certificate}, {fault(certificate, now_unix) or left}: {watched.cure}"


def watched_in(material: Material, peer: str) -> tuple[Watched, ...]:
    """Give the certificates of opened stores whose dates matter: our own chain, and each pin of a `peer`."""
    found: list[Watched] = []
    try:
        chain = pem.certificates(material.chain_pem, material.key_store)
    except KeysError:
        chain = ()  # OpenSSL has the say about what it is handed
    for number, der in enumerate(chain):
        whose = "our own certificate" if number == 0 else "an authority's certificate of our own chain"
        found += _watched(f"{whose} in the key store {material.key_store!r}", der, OWN_CURE)
    refused = "; expiredPins=refuse ends its use then" if material.expired_pins == "refuse" else ""
    for pin in material.pins:
        whose = f"the certificate of {peer} in the trust store {material.trust_store!r}"
        found += _watched(whose, pin.der, PEER_CURE + refused)
    return tuple(found)


def watched_peer(whose: str, der: bytes) -> tuple[Watched, ...]:
    """Give a peer's certificate that an authority issued: it is in no store of ours, and its dates are heeded."""
    return _watched(whose, der, "it is refused after that; have it renewed")


def out_of_date(material: Material, now_unix: float, margin_seconds: float) -> bool:
    """Tell whether a pin is out of date now, or comes within `margin_seconds` of either of its dates."""
    for pin in material.pins:
        try:
            certificate = describe(pin.der)
        except ValueError:
            continue
        if not certificate.begins.unix + margin_seconds < now_unix < certificate.ends.unix - margin_seconds:
            return True
    return False


@final
class Reminder:
    """Remembers what was said when, and gives what is to be said now."""

    def __init__(self) -> None:
        self._said: dict[tuple[bytes, Stage], tuple[float, float]] = {}

    def due(self, certificates: Iterable[Watched], now_unix: float, now_monotonic: float) -> list[str]:
        """Give the lines that are due. What is not among `certificates` any more is forgotten after a day."""
        self._said = {key: said for key, said in self._said.items() if not _a_day_ago(said, now_unix, now_monotonic)}
        lines: list[str] = []
        for each in certificates:
            key = each.certificate.der, stage(each.certificate, now_unix)
            text = warning(each, now_unix)
            if text is not None and key not in self._said:
                self._said[key] = now_unix, now_monotonic
                lines.append(text)
        return lines


def _watched(whose: str, der: bytes, cure: str) -> tuple[Watched, ...]:
    try:
        return (Watched(whose, describe(der), cure),)
    except ValueError:
        return ()


def _a_day_ago(said: tuple[float, float], now_unix: float, now_monotonic: float) -> bool:
    unix, monotonic = said
    return abs(now_unix - unix) >= REMINDER_SECONDS or now_monotonic - monotonic >= REMINDER_SECONDS


def _span(seconds: float) -> str:
    days = int(seconds // SECONDS_PER_DAY)
    if days == 0:
        return "less than a day"
    return "1 day" if days == 1 else f"{days} days"

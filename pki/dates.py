"""The dates of certificates: how long they hold, when to warn, and how `--at` is written. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from enum import IntEnum
from typing import final

from cryptography import x509

WARNING_DAYS = (90, 30, 7)
"""A quarter to plan, a month to do it, a week to hurry (issue of the key tool; the programs warn at 30 in their
logs)."""


@final
class Level(IntEnum):
    """How bad a finding is. The worst one is the exit status of `check` (contract, section 4)."""

    FINE = 0
    WARNING = 1
    UNUSABLE = 2


def days_left(certificate: x509.Certificate, at: datetime) -> int:
    """Give the whole days that a certificate still holds; negative where it has expired."""
    return (certificate.not_valid_after_utc - at) // timedelta(days=1)


def date_fault(certificate: x509.Certificate, at: datetime) -> str | None:
    """Say how the dates of a certificate do not cover a moment, and which moment; `None` where they do."""
    if at > certificate.not_valid_after_utc:
        return f"expired on {moment(certificate.not_valid_after_utc)} (judged at {moment(at)})"
    if at < certificate.not_valid_before_utc:
        begins = moment(certificate.not_valid_before_utc)
        return f"is not valid before {begins} (judged at {moment(at)}: is the clock right?)"
    return None


def expiry_words(certificate: x509.Certificate, at: datetime) -> tuple[Level, str]:
    """Say for people how long a certificate holds, and whether that is a warning."""
    if fault := date_fault(certificate, at):
        return Level.WARNING, fault
    left = days_left(certificate, at)
    words = f"holds until {day(certificate.not_valid_after_utc)}, {count(left, 'day')} left"
    crossed = [limit for limit in WARNING_DAYS if left < limit]
    if not crossed:
        return Level.FINE, words
    return Level.WARNING, f"{words}, fewer than {min(crossed)}"


def count(number: int, noun: str) -> str:
    """Give `1 day`, `2 days`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def day(when: datetime) -> str:
    """Write a date for people."""
    return f"{when:%Y-%m-%d}"


def moment(when: datetime) -> str:
    """Write a date and time for people, in UTC."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def parse_moment(text: str) -> datetime:
    """Read `2027-03-01` (its first second) or `2027-03-01T12:00[:00][+01:00]`, in UTC where no offset is given.

    Raises `ValueError`.
    """
    # Python 3.10 does not read the Z.
    when = datetime.fromisoformat(text.strip().removesuffix("Z"))
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)

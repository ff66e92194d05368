"""Read subject and dates out of a certificate's DER, without the cost of importing `cryptography`.

A daemon has to tell when a certificate ends, and who was refused. The `ssl` module describes only the certificate of a
peer that it has accepted; `cryptography` costs 65 ms and 10 MB. What is wanted lies at a fixed place of the structure
(RFC 5280, section 4.1), so a few steps of reading find it:

    Certificate  ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signature }
    tbsCertificate = SEQUENCE { [0] version OPTIONAL, serialNumber, signature, issuer, validity, subject, ... }

Nothing is trusted for having been read here: OpenSSL decides that. Hostile bytes end in `ValueError`, and are read in a
time that their length bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import final

from pki.frozen import dataclass, field

MAX_REMEMBERED = 64
"""Descriptions kept: the pins of a store and a few peers are looked at again at every handshake."""

MAX_SUBJECT_CHARACTERS = 200
"""Of a subject in a log line; a stranger chooses it."""

SECONDS_PER_DAY = 86400

_SEQUENCE, _SET, _OID, _UTC_TIME, _GENERALIZED_TIME, _BMP_STRING, _VERSION = 0x30, 0x31, 0x06, 0x17, 0x18, 0x1E, 0xA0

_ATTRIBUTES = {
    "550403": "CN",
    "550406": "C",
    "550407": "L",
    "550408": "ST",
    "55040a": "O",
    "55040b": "OU",
    "0992268993f22c640119": "DC",
}
"""The attributes of subjects that occur in practice, by their OID's bytes in hexadecimal."""


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: Unix seconds, and the text for people, `2026-11-22 15:07 UTC`."""

    unix: int
    text: str


@final
@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate says of itself.

    `der` is all of it; `subject` has the most specific part first and no control characters; `begins` and `ends` are
    the first and the last moment at which it is valid.
    """

    der: bytes = field(repr=False)
    subject: str
    begins: Moment
    ends: Moment

    @property
    def fingerprint(self) -> str:
        """SHA-256 as keytool prints it (`AB:CD:…`)."""
        return fingerprint(self.der)

    def __str__(self) -> str:
        return f"{self.subject} (SHA-256 {self.fingerprint})"


@lru_cache(MAX_REMEMBERED)
def describe(der: bytes) -> Description:
    """Describe the certificate whose DER bytes these are. Raises `ValueError` where they are none."""
    try:
        (_, certificate), *_ = _items(der)
        (_, signed), *_ = _items(certificate)
        fields = list(_items(signed))
        if fields[0][0] == _VERSION:
            del fields[0]
        (_, validity), (_, subject) = fields[3], fields[4]
        begins, ends = (_moment(tag, value) for tag, value in _items(validity))
        return Description(der, _subject(subject), begins, ends)
    except (IndexError, ValueError) as error:
        raise ValueError("not the DER bytes of a certificate") from error


def fingerprint(der: bytes) -> str:
    """Give the SHA-256 fingerprint of a certificate as keytool prints it."""
    import hashlib  # 1 ms, and most managers never name a certificate

    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[start : start + 2] for start in range(0, len(digest), 2))


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give tag and contents of each item in a row of them."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            width = size & 0x7F
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag, data[at : at + size]
        at += size


def _moment(tag: int, value: bytes) -> Moment:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280, section 4.1.2.5.1: two digits stand for 1950 to 2049.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("neither of the two kinds of time")
    if len(text) != 15 or not text.endswith("Z"):
        raise ValueError("not a time in UTC to the second")
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    hour, minute, second = int(text[8:10]), int(text[10:12]), int(text[12:14])
    unix = _days(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second
    return Moment(unix, f"{text[:4]}-{text[4:6]}-{text[6:8]} {text[8:10]}:{text[10:12]} UTC")


def _days(year: int, month: int, day: int) -> int:
    """Count the days from 1970-01-01, in the calendar of RFC 5280.

    The year begins with March here, so that the leap day is its last. The `calendar` module would import `datetime`,
    and `time.gmtime` ends with the year 3000 on Windows.
    """
    year -= month <= 2
    month = (month - 3) % 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469


def _subject(name: bytes) -> str:
    parts: list[str] = []
    for tag, group in _items(name):
        if tag != _SET:
            raise ValueError("not a name")
        for _, attribute in _items(group):
            (_, oid), (kind, value) = _items(attribute)
            text = value.decode("utf-16-be" if kind == _BMP_STRING else "utf-8", "replace")
            parts.append(f"{_ATTRIBUTES.get(oid.hex(), 'OID.' + oid.hex())}={text}")
    # Certificates have the most general part first, people and keytool the most specific one.
    whole = ", ".join(reversed(parts)) or "a certificate without a subject"
    return "".join(character if character.isprintable() else "?" for character in whole)[:MAX_SUBJECT_CHARACTERS]

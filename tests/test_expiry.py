"""What is read out of a certificate without `cryptography`, and what the running programs say about its dates."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pki import certificates
from pki.certificates import Purpose, issue
from pki.der import SECONDS_PER_DAY, Description, Moment, describe, fingerprint
from pki.expiry import REMINDER_SECONDS, WARNING_DAYS, Reminder, Watched, fault, out_of_date, warning, watched_in
from pki.material import Material, Pin

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=timezone.utc)
MADE = issue(Purpose.CLIENT, "host1", dname="CN=host1, OU=Ops, O=Ex\\, Inc, C=JP", validity_days=40, now=NOW)
DER = MADE.certificate.public_bytes(Encoding.DER)
KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_certificate_is_described_as_cryptography_describes_it() -> None:
    found = describe(DER)
    assert found.fingerprint == certificates.fingerprint(MADE.certificate)
    assert found.subject == "CN=host1, OU=Ops, O=Ex, Inc, C=JP"
    assert found.begins == Moment(int((NOW - timedelta(hours=1)).timestamp()), "2026-11-22 14:00 UTC")
    assert found.ends.unix == MADE.certificate.not_valid_after_utc.timestamp()
    assert str(found) == f"{found.subject} (SHA-256 {found.fingerprint})"


@given(st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)))  # noqa: DTZ001 - what the strategy wants
def test_every_date_that_a_certificate_can_have_is_read(when: datetime) -> None:
    when = when.replace(microsecond=0)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).serial_number(1)
    builder = builder.public_key(KEY.public_key()).not_valid_before(when).not_valid_after(when)
    found = describe(builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER))
    assert found.ends.unix == when.replace(tzinfo=timezone.utc).timestamp()
    assert found.ends.text == f"{when:%Y-%m-%d %H:%M} UTC".zfill(20)
    assert found.subject == "a certificate without a subject"


@given(st.binary(max_size=200), st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_hostile_bytes_are_described_or_refused_and_nothing_else(junk: bytes, at: int, change: int) -> None:
    damaged = DER[:at] + bytes([DER[at] ^ change]) + DER[at + 1 :]
    for data in (junk, DER[:at], damaged, DER[:at] + junk):
        try:
            found = describe(data)
        except ValueError as error:
            assert str(error) == "not the DER bytes of a certificate"  # noqa: PT017
        else:
            assert found.subject.isprintable()


def certificate(*, days: float = 40.0) -> Description:
    """One that ends so many days after the moment 0."""
    ends = round(days * SECONDS_PER_DAY)
    return Description(b"x", "CN=x", Moment(ends - 500 * SECONDS_PER_DAY, "then"), Moment(ends, "some day"))


def watched(days: float, der: bytes = b"x") -> Watched:
    made = certificate(days=days)
    return Watched("our own certificate", Description(der, made.subject, made.begins, made.ends), "make new keys")


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (WARNING_DAYS + 0.01, None),
        (WARNING_DAYS - 0.01, "expires on some day (in 29 days): make new keys"),
        (1.5, "expires on some day (in 1 day): make new keys"),
        (0.5, "expires on some day (in less than a day): make new keys"),
        (-0.5, "expired on some day (less than a day ago): make new keys"),
        (-1.5, "expired on some day (1 day ago): make new keys"),
        (-10.0, "expired on some day (10 days ago): make new keys"),
        (501.0, "is not valid before then (is the clock right?)"),
    ],
)
def test_what_is_said_of_a_certificate_counts_days_as_people_do(days: float, words: str | None) -> None:
    text = warning(watched(days), 0.0)
    assert text == (f"our own certificate, CN=x (SHA-256 {fingerprint(b'x')}), {words}" if words else None)


def test_only_what_is_out_of_date_is_a_fault() -> None:
    assert fault(certificate(days=1), 0.0) is None
    assert fault(certificate(days=-1), 1.0) == "expired on some day (1 day ago)"


def test_a_reminder_comes_at_once_and_then_once_a_day() -> None:
    reminder, soon = Reminder(), watched(20)
    said = [bool(reminder.due([soon], hour * 3600.0, hour * 3600.0)) for hour in range(60)]
    assert [hour for hour, spoke in enumerate(said) if spoke] == [0, 24, 48]


def test_a_day_that_the_machine_slept_through_counts() -> None:
    reminder, soon = Reminder(), watched(20)
    assert reminder.due([soon], 0.0, 0.0)
    assert reminder.due([soon], REMINDER_SECONDS, 60.0)


def test_a_clock_that_stands_still_or_is_set_back_does_not_silence_it() -> None:
    reminder, soon = Reminder(), watched(20)
    assert reminder.due([soon], 0.0, 0.0)
    assert not reminder.due([soon], -3600.0, 60.0)
    assert reminder.due([soon], -3600.0, REMINDER_SECONDS)


def test_a_clock_that_jumps_over_the_end_is_news_at_once() -> None:
    reminder, soon = Reminder(), watched(1 / 24)
    assert "expires on" in reminder.due([soon], 0.0, 0.0)[0]
    assert "expired on" in reminder.due([soon], 7200.0, 60.0)[0]


def test_each_certificate_has_its_own_reminder_and_a_new_one_is_named_at_once() -> None:
    reminder = Reminder()
    assert len(reminder.due([watched(20, b"a"), watched(50, b"b")], 0.0, 0.0)) == 1
    assert len(reminder.due([watched(20, b"a"), watched(20, b"c")], 60.0, 60.0)) == 1


def test_our_own_chain_and_every_pin_are_watched() -> None:
    other = issue(Purpose.SERVER, "g1", validity_days=10, now=NOW).certificate.public_bytes(Encoding.DER)
    pem = MADE.certificate.public_bytes(Encoding.PEM)
    pins = (Pin(other, "g1"), Pin(b"rubbish", "x"))
    material = Material(pem, b"", pins, "refuse", "/own.private", "/their.public")
    own, peer = watched_in(material, "the server")
    now = (NOW + timedelta(days=20)).timestamp()
    assert str(warning(own, now)).startswith("our own certificate in the key store '/own.private', CN=host1,")
    text = str(warning(peer, now))
    assert "the certificate of the server in the trust store '/their.public', CN=g1" in text
    assert "(10 days ago)" in text
    assert "cmapppki trust --remove; expiredPins=refuse" in text


def test_a_pin_at_the_edge_of_its_dates_counts_as_out_of_date() -> None:
    material = Material(b"", b"", (Pin(DER, "x"),))
    ends = describe(DER).ends.unix
    assert not out_of_date(material, ends - 61.0, 60.0)
    assert out_of_date(material, ends - 60.0, 60.0)
    assert not out_of_date(Material(b"", b"", (Pin(b"rubbish", "x"),)), ends, 60.0)

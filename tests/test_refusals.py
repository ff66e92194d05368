"""Every kind of peer that is refused gets a TLS alert, and the log says who it was, why, and what to do."""
# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from door import (
    EXPIRED_HOST,
    GUEST,
    HOST,
    NOW,
    OTHER_HOST,
    PATIENCE_SECONDS,
    Server,
    made,
    material,
    rest,
    serving,
    trust,
)
from fakes import Manager
from pair import Guest

from appmgr.dial import Contact, Dialer
from appmgr.link import ContactFailed, Link, LinkEvent
from appserver.listener import Trust
from appserver.messages import Refused
from appserver.refusals import NO_TLS_ALERT, REFUSAL_LOG_SECONDS
from pki.certificates import Issued, Purpose, fingerprint, parse_dname
from pki.contexts import client_context, server_context
from pki.expiry import CHECK_SECONDS, REMINDER_SECONDS
from pki.material import Material
from pki.refusals import explain_failure, explain_tls, first_certificate

DAY = timedelta(days=1)

KNOCKS_OF_EACH_KIND = 100
KNOCKING_AT_ONCE = 8
SOON = made(Purpose.CLIENT, "host4", days=20)
EARLY_HOST = made(Purpose.CLIENT, "host5", days_ago=-30)


def authority() -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = parse_dname("CN=authority")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - 50 * DAY).not_valid_after(NOW + 500 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Issued(key, builder.sign(key, hashes.SHA256()))


AUTHORITY = authority()


def issued(*names: str, days_ago: int = 1, days: int = 100) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    begins = NOW - days_ago * DAY
    builder = x509.CertificateBuilder().subject_name(parse_dname("CN=leaf")).public_key(key.public_key())
    builder = builder.issuer_name(AUTHORITY.certificate.subject).serial_number(2)
    builder = builder.not_valid_before(begins).not_valid_after(begins + days * DAY)
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    return Issued(key, builder.sign(AUTHORITY.key, hashes.SHA256()))


def context_of(own: Issued, *trusted: Issued) -> ssl.SSLContext:
    return client_context(material(own, *(trusted or (GUEST,))))


def bare(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def thief(victim: Issued) -> ssl.SSLContext:
    """Somebody who shows the certificate of another, and signs with a key of his own.

    OpenSSL compares the public halves only, and a stored EC key brings its public half along.
    """
    true_secret, false_secret = (
        each.key.private_numbers().private_value.to_bytes(32, "big") for each in (victim, OTHER_HOST)
    )
    stored = victim.key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert stored.count(true_secret) == 1
    text = ssl.DER_cert_to_PEM_cert(stored.replace(true_secret, false_secret)).replace("CERTIFICATE", "EC PRIVATE KEY")
    return client_context(replace(material(victim, GUEST), key_pem=text.encode()))


FOREIGN_TWIN = made(Purpose.CLIENT, "host1")
"""Has the subject of a pin, and a key of its own: it is not that pin."""


@pytest.mark.parametrize(
    ("trusted", "context", "alert", "logged", "who"),
    [
        (trust(HOST), bare(), "CERTIFICATE_REQUIRED", "it showed no certificate", None),
        (trust(HOST), context_of(OTHER_HOST), "UNKNOWN_CA", "is not in the trust store", OTHER_HOST),
        (trust(HOST), context_of(FOREIGN_TWIN), "UNKNOWN_CA", "is not in the trust store", FOREIGN_TWIN),
        (trust(HOST), context_of(GUEST), "UNKNOWN_CA", "is not in the trust store", GUEST),
        (
            trust(EXPIRED_HOST, expired_pins="refuse"),
            context_of(EXPIRED_HOST),
            "CERTIFICATE_EXPIRED",
            "(10 days ago), and expiredPins=refuse is set: it needs new keys (cmapppki renew on the host)",
            EXPIRED_HOST,
        ),
        (
            trust(EARLY_HOST, expired_pins="refuse"),
            context_of(EARLY_HOST),
            "BAD_CERTIFICATE",
            "UTC (is the clock right?), and expiredPins=refuse is set",
            EARLY_HOST,
        ),
        (
            trust(AUTHORITY),
            context_of(old := issued("host1", days_ago=3, days=1)),
            "CERTIFICATE_EXPIRED",
            "(2 days ago), and it is not in the trust store",
            old,
        ),
        (
            trust(AUTHORITY),
            context_of(new := issued("host1", days_ago=-3)),
            "BAD_CERTIFICATE",
            "is not valid before",
            new,
        ),
        (trust(GUEST), context_of(GUEST), "UNSUPPORTED_CERTIFICATE", "make keys with cmapppki client", GUEST),
        (trust(HOST), thief(HOST), "DECRYPT_ERROR", "does not hold the private key of the certificate", HOST),
        (trust(HOST), bare(ssl.TLSVersion.TLSv1_2), "PROTOCOL_VERSION", "it does not speak TLS 1.3", None),
    ],
    ids=[
        "no certificate",
        "a foreign one",
        "a foreign one with a pin's name",
        "a guest's own",
        "an expired pin",
        "a pin not valid yet",
        "an expired issued one",
        "an issued one not valid yet",
        "one for the other side",
        "a wrong key",
        "TLS 1.2",
    ],
)
async def test_refused_peer_gets_an_alert_and_the_log_says_who_and_why(
    trusted: Trust, context: ssl.SSLContext, alert: str, logged: str, who: Issued | None
) -> None:
    async with serving(Server(trusted)) as server:
        stream = trio.SSLStream(await server.connect(), context)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert "ALERT_" + alert in str(caught.value.__cause__.reason)
        line = await server.log.until("refused a connection from 127.0.0.1: ")
        assert logged in line
        if who is not None:
            assert fingerprint(who.certificate) in line


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 64, b"CONNECT x:1 HTTP/1.0\r\n\r\n"]
)
async def test_plain_text_gets_an_alert_too(said: bytes) -> None:
    async with serving(Server()) as server:
        stream = await server.connect()
        await stream.send_all(said)
        assert await rest(stream) == NO_TLS_ALERT
        await server.log.until("TLS 1.3")


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (issued(), "was issued by a trusted authority but carries no name as SAN"),
        (issued("host1", days_ago=3, days=1), "(2 days ago); an authority issued it, so it must be in date"),
    ],
    ids=["no name", "expired, beside an accepted expired pin"],
)
async def test_what_only_our_own_judgement_refuses_is_told_in_place_of_the_greeting(own: Issued, reason: str) -> None:
    async with serving(Server(trust(AUTHORITY, EXPIRED_HOST))) as server:
        manager = Manager(trio.SSLStream(await server.connect(), context_of(own)))
        answer = await manager.hear()
        assert isinstance(answer, Refused)
        assert (answer.re, answer.code) == (None, "certificate")
        assert reason in answer.text
        await manager.hear_closed()
        line = await server.log.until("refused a connection from 127.0.0.1")
        assert reason in line
        assert fingerprint(own.certificate) in line


async def test_expired_pin_is_accepted_and_named_once_a_day() -> None:
    async with serving(Server(trust(EXPIRED_HOST))) as server:
        for _ in range(3):
            await server.greeted(EXPIRED_HOST)
        assert server.log.count("(10 days ago)") == 1
        assert fingerprint(EXPIRED_HOST.certificate) in server.log.text


async def test_certificate_that_an_authority_issued_is_watched_while_its_session_lasts() -> None:
    own = issued("host1", days=20)
    async with serving(Server(trust(AUTHORITY))) as server:
        await server.greeted(own)
        assert "(in 18 days): it is refused after that" in await server.log.until(fingerprint(own.certificate))


async def test_same_refusal_again_is_counted_and_other_kinds_have_lines_of_their_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = Server(trust(HOST))
    for _ in range(5):
        server.listener._refusals.log("192.0.2.1", "verify 18", "its certificate is not in the trust store")
        server.listener._refusals.log("192.0.2.2", "verify 18", "its certificate is not in the trust store")
        server.listener._refusals.log("192.0.2.1", "silent", "no handshake within 10 s")
    assert len(server.log.lines) == 3
    with trio.move_on_after(REFUSAL_LOG_SECONDS + CHECK_SECONDS):
        await server.listener.watch_dates()
    await trio.aclose_forcefully(server.socket)
    held_back = [text for _, text in server.log.lines[3:]]
    assert held_back[0] == "refused connections from 192.0.2.1 (verify 18): 4 more since the last line about it"
    assert len(held_back) == 3


async def test_server_says_at_its_start_whose_keys_end_soon(autojump_clock: trio.testing.MockClock) -> None:
    server = Server(trust(HOST, SOON))
    with trio.move_on_after(10 * CHECK_SECONDS):
        await server.listener.watch_dates()
    await trio.aclose_forcefully(server.socket)
    assert [level for level, _ in server.log.lines] == ["warning"]
    assert "the certificate of a manager in the trust store 'trust store', CN=host4 (SHA-256" in server.log.text
    assert "expires on" in server.log.text
    assert "(in 19 days)" in server.log.text


async def test_server_reminds_once_a_day_and_notices_within_a_minute_that_the_clock_was_set(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(trust(HOST))
    wall = [NOW.timestamp()]
    monkeypatch.setattr("time.time", lambda: wall[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.listener.watch_dates)
        await trio.sleep(10 * REMINDER_SECONDS)
        assert not server.log.lines
        wall[0] += 390 * REMINDER_SECONDS
        await trio.sleep(1.5 * CHECK_SECONDS)
        assert server.log.count("in 9 days") == 2  # its own and the manager's
        await trio.sleep(2 * REMINDER_SECONDS)
        assert server.log.count("in 9 days") == 2 * 3
        wall[0] += 20 * REMINDER_SECONDS
        await trio.sleep(1.5 * CHECK_SECONDS)
        assert server.log.count("(10 days ago)") == 2
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(server.socket)


async def test_reload_names_new_keys_that_end_soon_at_once() -> None:
    server = Server(trust(HOST))
    server.listener.reload(trust(HOST, SOON), 30)
    await trio.aclose_forcefully(server.socket)
    assert server.log.count("CN=host4") == 1


# The manager's side.


def dialer(server: Server, own: Material) -> Dialer:
    return Dialer("g1", "127.0.0.1", server.port, own, reopen=lambda: own, handshake_seconds=10.0, silence_seconds=30.0)


async def failed_contact(server: Server, own: Material) -> str:
    """Give the reason of the first failed contact, wherever in the conversation it comes."""
    to_test, events = trio.open_memory_channel[LinkEvent](100)
    link = Link(dialer(server, own).dial, lambda _: pytest.fail("greeted"), to_test.send_nowait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        event = await events.receive()
        nursery.cancel_scope.cancel()
    assert isinstance(event, ContactFailed)
    return event.reason


async def test_manager_says_which_guest_it_met_instead() -> None:
    async with serving(Server()) as server:
        reason = await failed_contact(server, material(HOST, made(Purpose.SERVER, "g2")))
        assert reason.startswith("the server's certificate CN=g1 (SHA-256 ")
        assert fingerprint(GUEST.certificate) in reason
        assert reason.endswith(
            "is not in the trust store 'trust store': if it is the right one, "
            "add it there (cmapppki trust) on this host"
        )
        line = await server.log.until("refused by a peer at 127.0.0.1")
        assert "this guest's certificate is not in its trust store" in line


async def test_manager_refuses_an_expired_guest_where_that_is_wanted() -> None:
    old = made(Purpose.SERVER, "g1", days_ago=20, days=19)
    mine = material(old, HOST)
    async with serving(Server(Trust(server_context(mine), mine))) as server:
        reason = await failed_contact(server, material(HOST, old, expired_pins="refuse"))
        assert "(1 day ago), and expiredPins=refuse is set: it needs new keys (cmapppki renew on the guest)" in reason


async def test_manager_refuses_an_issued_guest_of_another_name() -> None:
    mine = material(issued("g2"), HOST)
    async with serving(Server(Trust(server_context(mine), mine))) as server:
        reason = await failed_contact(server, material(HOST, AUTHORITY))
        assert "not for 'g1': it carries g2 as SAN" in reason


async def test_manager_that_is_refused_says_so_and_tries_again() -> None:
    for trusted, own in ((trust(HOST), OTHER_HOST), (trust(AUTHORITY, EXPIRED_HOST), issued())):
        async with serving(Server(trusted)) as server:
            reason = await failed_contact(server, material(own, GUEST))
            assert reason.startswith("the guest does not accept our key: ")


async def test_manager_is_reminded_of_its_own_key_and_of_the_servers() -> None:
    for guest_key in (made(Purpose.SERVER, "g1", days=5), issued("g1", days=5)):
        mine = material(guest_key, SOON)
        async with serving(Server(Trust(server_context(mine), mine))) as server:
            pins = (guest_key,) if guest_key.certificate.issuer != AUTHORITY.certificate.subject else (AUTHORITY,)
            manager = dialer(server, material(SOON, *pins))
            contact: Contact = await manager.dial()
            own, other = manager.reminders()
            assert own.startswith("our own certificate in the key store 'key store', CN=host4")
            assert "certificate of the server" in other
            assert manager.reminders() == []
            await trio.aclose_forcefully(contact.stream)


async def test_refusal_by_a_server_of_another_kind_keeps_its_code() -> None:
    # Only `certificate` may change by itself; everything else in place of the greeting is final.
    near, far = trio.testing.memory_stream_pair()
    to_test, events = trio.open_memory_channel[LinkEvent](100)

    async def dial() -> Contact:
        await trio.lowlevel.checkpoint()
        return Contact(near)

    link = Link(dial, lambda _: pytest.fail("greeted"), to_test.send_nowait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await far.send_all(b'{"type":"refused","re":null,"code":"sessions","text":"full"}\n')
        event = await events.receive()
        nursery.cancel_scope.cancel()
    assert getattr(event, "message", None) == Refused(None, "sessions", "full")


# Words, and what they are made of.


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "SSLV3_ALERT_CERTIFICATE_EXPIRED",
            "this host's certificate has expired, or its clock is wrong (TLS alert: certificate expired)",
        ),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "we showed none (TLS alert: certificate required)"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "the server broke the handshake off (TLS alert: handshake failure)"),
        ("TLSV1_ALERT_INTERNAL_ERROR", "too many are half open there, or it is in trouble (TLS alert: internal error)"),
        ("NO_SHARED_CIPHER", "it knows no cipher suite of ours"),
        ("SOMETHING_NEW", "the TLS handshake failed: something new"),
    ],
)
def test_reasons_of_openssl_become_words(reason: str, words: str) -> None:
    assert explain_tls(tls_error(reason), "server").endswith(words)


@pytest.mark.parametrize("shown", [None, b"rubbish", HOST.certificate.public_bytes(Encoding.DER)])
@pytest.mark.parametrize("code", [9, 10, 18, 26, 66])
def test_every_verdict_of_openssl_has_words_with_and_without_a_certificate(shown: bytes | None, code: int) -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = code, "key too weak"
    text = explain_failure(error, shown, material(GUEST, HOST), "manager", NOW.timestamp())
    assert text.startswith("the manager's certificate ")
    assert ("CN=host1" in text) is (shown is not None and shown != b"rubbish")


def message_of(*certificates: bytes) -> bytes:
    entries = b"".join(len(each).to_bytes(3, "big") + each + b"\0\0" for each in certificates)
    body = b"\0" + len(entries).to_bytes(3, "big") + entries
    return struct.pack(">I", 11 << 24 | len(body)) + body


def test_first_certificate_is_found_in_its_message() -> None:
    assert first_certificate(message_of(b"leaf", b"authority")) == b"leaf"
    assert first_certificate(message_of()) is None
    whole = message_of(b"leaf")
    assert all(first_certificate(whole[:size]) is None for size in range(len(whole) - 2))
    assert first_certificate(message_of(b"x" * 20000)) is None


def knock(port: int, context: ssl.SSLContext | None) -> str:
    """Knock as a refused peer; give the alert that came back, or what came in its place."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as plain:
            if context is None:
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return "PROTOCOL_VERSION" if plain.recv(100) == NO_TLS_ALERT else "nothing"
            with context.wrap_socket(plain) as secured:
                return f"said {secured.recv(100)!r}"
    except ssl.SSLError as error:
        return (error.reason or str(error)).rpartition("_ALERT_")[2]


@pytest.mark.long
def test_refused_peers_of_every_kind_are_told_and_counted_under_load(guest: Guest) -> None:
    kinds = {
        "CERTIFICATE_REQUIRED": bare(),
        "UNKNOWN_CA": context_of(OTHER_HOST),
        "PROTOCOL_VERSION": bare(ssl.TLSVersion.TLSv1_2),
    }
    knocks = [*kinds.items(), ("PROTOCOL_VERSION", None)] * KNOCKS_OF_EACH_KIND
    for context in kinds.values():
        context.verify_mode = ssl.CERT_NONE  # the guest's key is not what this is about
    watcher = guest.manager("-service", "/bin/sh", "-c", "sleep 1000")
    watcher.wait_started()
    with ThreadPoolExecutor(KNOCKING_AT_ONCE) as pool:
        knocking = pool.map(lambda each: knock(guest.port, each[1]), knocks)
        statuses = [guest.run("-service", "/bin/sh", "-c", f"exit {code}")[0] for code in range(5)]
        answers = list(knocking)
    assert Counter(answers) == Counter(expected for expected, _ in knocks)
    assert statuses == list(range(5))
    assert "contact" not in watcher.log
    assert guest.stop_server() == 0
    lines = len(re.findall(r"refused a connection from", guest.server_log))
    held_back = re.findall(r"refused connections from .*: (\d+) more", guest.server_log)
    repeated = re.findall(r"\((\d+) more like it", guest.server_log)
    assert lines + sum(map(int, held_back)) + sum(map(int, repeated)) == len(knocks)

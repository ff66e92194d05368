"""One attempt to connect: names, several addresses, and the reason that each failure gives the log."""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import errno
import socket
import ssl
from datetime import datetime, timezone
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appmgr.addresses import RESOLVE_AGAIN_SECONDS, RESOLVE_SECONDS
from appmgr.dial import CONNECT_SECONDS, STAGGER_SECONDS, Contact, ContactError, Dialer, explain
from pki.certificates import Purpose, issue
from pki.contexts import PeerRefused
from pki.errors import KeysError
from pki.frozen import replace
from pki.material import Material, Pin


def look_ups_give(monkeypatch: pytest.MonkeyPatch, *ports: int, error: OSError | None = None) -> None:
    """Have each look-up give addresses with these ports, or this error; without either it never ends."""

    async def look_up(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        if not ports:
            await trio.sleep_forever()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)


@pytest.fixture
def dialer() -> Dialer:
    issued = issue(Purpose.CLIENT, "node1", now=datetime.now(timezone.utc))
    chain = issued.certificate.public_bytes(Encoding.PEM)
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pin = Pin(issued.certificate.public_bytes(Encoding.DER), "own")
    material = Material(chain, key, (pin,))
    return Dialer(
        "g1",
        "guest.example",
        5315,
        material,
        reopen=lambda: material,
        handshake_seconds=2.0,
        silence_seconds=30.0,
    )


async def test_a_name_that_is_not_known_is_a_failed_contact(dialer: Dialer, monkeypatch: pytest.MonkeyPatch) -> None:
    look_ups_give(monkeypatch, error=socket.gaierror(-2, "Name or service not known"))
    with pytest.raises(ContactError, match=r"^Name or service not known \(errno:-2\)$"):
        await dialer.dial()


async def test_a_family_that_this_host_does_not_speak_is_a_failed_contact(
    dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups_give(monkeypatch, 5315)

    def socket_of(*_: object) -> trio.socket.SocketType:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(trio.socket, "socket", socket_of)
    with pytest.raises(ContactError, match="Address family not supported"):
        await dialer.dial()


@pytest.mark.parametrize("error", [KeysError("half copied"), SyntaxError("half written"), ImportError("gone")])
async def test_keys_that_cannot_be_read_again_leave_those_in_force(
    dialer: Dialer, tmp_path: Path, error: Exception
) -> None:
    def reopen() -> NoReturn:
        asked.append(error)
        raise error

    asked: list[Exception] = []
    store = tmp_path / "trust"
    store.write_bytes(b"new")
    before = dialer._material = replace(dialer._material, trust_store=str(store))
    dialer._reopen = reopen
    await dialer._reread_trust()
    assert asked == [error]
    assert dialer._material is before


async def test_a_look_up_that_hangs_is_left(
    autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups_give(monkeypatch)
    with pytest.raises(ContactError, match="look-up of 'guest.example' took longer than 10 s"):
        await dialer.dial()
    assert trio.current_time() == pytest.approx(RESOLVE_SECONDS)


async def test_every_address_is_tried_and_a_silent_server_is_left_after_its_time(
    dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address refuses; the second accepts in its kernel and says nothing, as a frozen guest does."""
    with socket.socket() as refusing, socket.socket() as frozen:
        refusing.bind(("127.0.0.1", 0))
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        look_ups_give(monkeypatch, refusing.getsockname()[1], frozen.getsockname()[1])
        with trio.fail_after(60), pytest.raises(ContactError, match="TLS handshake took longer than 2 s"):
            await dialer.dial()


async def test_an_address_that_does_not_answer_times_out(
    autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect_for_ever(*_: object) -> None:
        await trio.sleep_forever()

    look_ups_give(monkeypatch, 1, 2)
    with trio.socket.socket() as any_socket:
        monkeypatch.setattr(type(any_socket), "connect", connect_for_ever)
    with pytest.raises(ContactError, match=rf"\(errno:{errno.ETIMEDOUT}\)$"):
        await dialer.dial()
    assert trio.current_time() == pytest.approx(STAGGER_SECONDS + 2.0)  # a handshake's time, which is less here


async def test_known_addresses_are_tried_where_the_name_server_is_silent(
    autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        look_ups_give(monkeypatch, refusing.getsockname()[1])
        with pytest.raises(ContactError, match="refused"):
            await dialer.dial()
        look_ups_give(monkeypatch)
        began = trio.current_time()
        with pytest.raises(ContactError, match="refused"):
            await dialer.dial()
        assert trio.current_time() == pytest.approx(began + RESOLVE_AGAIN_SECONDS)
        look_ups_give(monkeypatch, error=socket.gaierror(-3, "Temporary failure in name resolution"))
        with pytest.raises(ContactError, match="refused"):
            await dialer.dial()


@pytest.mark.parametrize("dead", [1, 2], ids=["the first is dead", "the second is dead"])
async def test_whichever_address_proves_its_key_wins(
    dead: int, autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = trio.testing.memory_stream_pair()

    async def reach(_: int, address: tuple[str, int]) -> Contact:
        if address[1] == dead:
            await trio.sleep(CONNECT_SECONDS)
            raise ContactError("it is dead")
        await trio.sleep(0.1)
        return Contact(ours)

    look_ups_give(monkeypatch, 1, 2)
    monkeypatch.setattr(dialer, "_reach", reach)
    assert (await dialer.dial()).stream is ours
    assert trio.current_time() == pytest.approx(0.1 + (STAGGER_SECONDS if dead == 1 else 0))


async def test_a_wrong_key_at_one_address_is_the_reason_where_all_fail(
    autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reach(_: int, address: tuple[str, int]) -> Contact:
        await trio.sleep(0.1 * address[1])
        raise PeerRefused("not its key") if address[1] == 1 else ContactError("it is dead")

    look_ups_give(monkeypatch, 1, 2)
    monkeypatch.setattr(dialer, "_reach", reach)
    with pytest.raises(ContactError, match="not its key"):
        await dialer.dial()


async def test_two_winners_of_one_moment_leave_one_open(
    autojump_clock: trio.testing.MockClock, dialer: Dialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [trio.testing.memory_stream_pair()[0] for _ in range(2)]

    async def reach(_: int, address: tuple[str, int]) -> Contact:
        with trio.CancelScope(shield=True):  # as if the key had been proved already when the other won
            await trio.sleep(1.0 - STAGGER_SECONDS * (address[1] - 1))
        return Contact(streams[address[1] - 1])

    look_ups_give(monkeypatch, 1, 2)
    monkeypatch.setattr(dialer, "_reach", reach)
    winner = (await dialer.dial()).stream
    (loser,) = [stream for stream in streams if stream is not winner]
    await winner.send_all(b"open")
    with pytest.raises(trio.ClosedResourceError):
        await loser.send_all(b"closed")


def broken_by(cause: BaseException) -> trio.BrokenResourceError:
    error = trio.BrokenResourceError()
    error.__cause__ = cause
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused (errno:"),
        (broken_by(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")), "reset by peer (errno:"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known (errno:-2)"),
        (OSError(errno.EHOSTUNREACH, "a sentence of trio's own"), f"(errno:{errno.EHOSTUNREACH})"),
        (broken_by(tls_error("TLSV1_ALERT_UNKNOWN_CA")), "the guest does not accept our key"),
        (
            broken_by(tls_error("SSLV3_ALERT_CERTIFICATE_UNKNOWN")),
            "this host's certificate is not in its trust store (TLS alert: certificate unknown)",
        ),
        (broken_by(tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "does not accept our key"),
        (broken_by(tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE")), "(TLS alert: handshake failure)"),
        (broken_by(tls_error("WRONG_VERSION_NUMBER")), "does not speak TLS 1.3"),
        (broken_by(ssl.SSLEOFError(8, "EOF")), "without a word"),
        (trio.BrokenResourceError(), "the connection broke"),
        (UnicodeError("label too long"), "UnicodeError: label too long"),
    ],
)
def test_each_error_becomes_a_reason_for_the_log(error: BaseException, words: str) -> None:
    assert words in explain(error)

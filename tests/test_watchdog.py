"""When the watchdog is pinged, and when it is left to bite."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import trio

from appserver.watchdog import PINGS_PER_PERIOD, Look, serve_watchdog, waiting_at, watchdog_seconds


class FakeDoor:
    def __init__(self) -> None:
        self.turns: dict[trio.SocketListener, int] = {}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_pings_are_for_whom_systemd_expects_them_of(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environment, 7) == seconds


async def test_who_waits_twice_without_a_turn_in_between_is_not_served() -> None:
    (sock,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    door, waiting = FakeDoor(), 0
    look = Look(door, [sock], lambda _: waiting)
    door.turns[sock] = 1
    assert look.is_served()
    waiting = 5
    assert look.is_served()  # they may have come just now
    door.turns[sock] = 2
    assert look.is_served()
    assert not look.is_served()
    door.turns[sock] = 3
    assert look.is_served()
    waiting = 0
    assert look.is_served()
    assert look.is_served()
    await sock.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who waits")
async def test_kernel_tells_who_waits_at_the_door() -> None:
    (sock,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    assert waiting_at(sock) == 0
    with socket.create_connection(sock.socket.getsockname()), socket.create_connection(sock.socket.getsockname()):
        assert waiting_at(sock) == 2
        await (await sock.accept()).aclose()
        assert waiting_at(sock) == 1
    await sock.aclose()
    assert waiting_at(sock) == 0


@pytest.mark.usefixtures("autojump_clock")
@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux")
async def test_pings_end_where_nobody_lets_in_who_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", str(PINGS_PER_PERIOD * 1_000_000))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        (sock,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        def pings() -> int:
            count = 0
            try:
                while systemd.recv(100) == b"WATCHDOG=1":
                    count += 1
            except BlockingIOError:
                pass
            return count

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_watchdog, FakeDoor(), [sock])
            await trio.sleep(2.5)
            assert pings() == 3
            with socket.create_connection(sock.socket.getsockname()):
                await trio.sleep(5)
                assert pings() == 1  # at the first look they may have come just now
            nursery.cancel_scope.cancel()
        await sock.aclose()


async def test_nobody_is_pinged_without_a_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with trio.fail_after(1):
        await serve_watchdog(FakeDoor(), [])

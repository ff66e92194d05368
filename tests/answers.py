"""When the server answered last, as seen on the host's interface: an observer that trusts neither program's word.

What counts is a segment of TCP from the server's port with bytes that were not seen before; so a retransmission is no
answer. The kernel tells the time of its arrival, which no load on this process delays.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

from network import Machine
from pair import wait_until

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
SO_TIMESTAMPNS = 35
FRAME_BYTES = 65536
LOOK_SECONDS = 0.2


class Answers:
    """Listens on `host` for data from `port` until it is closed."""

    def __init__(self, host: Machine, port: int) -> None:
        self._port = port
        self._seen: dict[int, int] = {}
        self._heard: list[tuple[float, int]] = []
        self._ports: dict[int, set[int]] = {}
        """What each process was seen to have: an ended one has none any more, and it is asked for all the same."""
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.settimeout(LOOK_SECONDS)
        self._socket.bind(("eth0", 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def last(self, pid: int, *, before: float) -> float:
        """Give the monotonic time of the last answer to a process before that time."""
        return max(moment for moment in self._to(pid) if moment < before)

    def wait_next(self, pid: int) -> float:
        """Wait for one more answer to a process than there are; give its time.

        A process that is not connected is waited for.
        """
        count = len(self._to(pid))
        wait_until(lambda: len(self._to(pid)) > count, "an answer of the server")
        return self._to(pid)[-1]

    def follow(self, pid: int) -> None:
        """Learn which ports a process has while it lives; what comes to them is known afterwards."""
        self._ports.setdefault(pid, set()).update(local_ports(pid))

    def _to(self, pid: int) -> list[float]:
        self.follow(pid)
        return [moment for moment, port in list(self._heard) if port in self._ports[pid]]

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                frame, ancillary, _, _ = self._socket.recvmsg(FRAME_BYTES, 64)
            except TimeoutError:
                continue
            except OSError:  # the interface was switched off, which is told once
                time.sleep(0.01)
                continue
            target = self._answered(frame)
            if target is not None:
                self._heard.append((_monotonic(ancillary), target))

    def _answered(self, frame: bytes) -> int | None:
        """Give the port that a frame answers; None where it is no answer."""
        segment = _tcp_segment(frame)
        if segment is None:
            return None
        source, target, sequence = struct.unpack_from("!HHI", segment)
        payload_bytes = len(segment) - (segment[12] >> 4) * 4
        if source != self._port or payload_bytes <= 0:
            return None
        end = sequence + payload_bytes
        seen = self._seen.get(target)
        # Sequence numbers go round at 2^32: what is less than half a round ahead is new.
        if seen is not None and not 0 < (end - seen) % 2**32 < 2**31:
            return None
        self._seen[target] = end
        return int(target)


def local_ports(pid: int) -> set[int]:
    """Give the local ports of the TCP connections that a process has, on whichever machine it is."""
    inodes = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(entry.readlink().name.removeprefix("socket:[").rstrip("]"))
    ports = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            ports |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}
    return ports


def _tcp_segment(frame: bytes) -> bytes | None:
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETH_P_IP and frame[23] == socket.IPPROTO_TCP:
        header_bytes = (frame[14] & 15) * 4
        return frame[14 + header_bytes : 14 + int.from_bytes(frame[16:18], "big")]
    if kind == ETH_P_IPV6 and frame[20] == socket.IPPROTO_TCP:
        return frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
    return None


def _monotonic(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Turn the kernel's wall time of the arrival into monotonic time."""
    now, wall = time.monotonic(), time.time()
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            whole, nanoseconds = (int(value) for value in struct.unpack("qq", data[:16]))
            return now - (wall - (whole + nanoseconds / 1e9))
    return now

"""A long cable in user space, for kernels without `netem`: frames arrive late, some never, and large ones never.

Both ends are tap interfaces. Such an interface offers no offloading, so the kernel hands over whole frames of the size
that goes over a cable, with their checksums. One thread carries them.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import threading
import time

TUN_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
MAX_FRAME_BYTES = 65536


def open_tap(name: str) -> int:
    """Make a tap interface where the calling thread is. It lives as long as the descriptor that this gives."""
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    except BaseException:
        os.close(fd)
        raise
    return fd


class Wire:
    """Carries frames between two taps, whose descriptors it owns from now on.

    Every frame takes `delay_seconds`; the share `loss` of them is lost, and so are those longer than `max_bytes`.
    """

    def __init__(
        self, ends: tuple[int, int], *, delay_seconds: float = 0.0, loss: float = 0.0, max_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self._ends = ends
        self._delay_seconds = delay_seconds
        self._loss = loss
        self.max_bytes = max_bytes
        self._random = random.Random(1)
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._over, self._end = os.pipe()
        self.carried = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self._end)
        self._thread.join()
        for fd in (self._over, *self._ends):
            os.close(fd)

    def _carry(self) -> None:
        first, second = self._ends
        with selectors.DefaultSelector() as selector:
            selector.register(first, selectors.EVENT_READ, second)
            selector.register(second, selectors.EVENT_READ, first)
            selector.register(self._over, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self._wait_seconds()):
                    if key.fd == self._over:
                        return
                    self._take(key.fd, key.data)
                self._deliver()

    def _wait_seconds(self) -> float | None:
        return max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None

    def _take(self, source: int, target: int) -> None:
        with contextlib.suppress(OSError):  # nothing there after all, or the interface is down
            frame = os.read(source, MAX_FRAME_BYTES)
            if self._random.random() < self._loss or len(frame) > self.max_bytes:
                self.lost += 1
            else:
                due = time.monotonic() + self._delay_seconds
                heapq.heappush(self._under_way, (due, next(self._order), target, frame))

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(self._under_way)
            with contextlib.suppress(OSError):
                os.write(target, frame)
                self.carried += 1

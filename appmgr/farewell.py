"""The last words of a process: out to the network at once, where the loop would take three turns.

A manager that has an outcome confirms it and ends, and the cluster waits for that end. `SSLStream.send_all` comes back
only after the loop has turned for each of its layers, half a millisecond with nothing left to be done. So the last
words are encrypted and handed to the kernel in one go, if it takes them at once, and nobody else is sending.
"""

from __future__ import annotations

import contextlib
import os
import select
import ssl
import sys

import trio


def send_at_once(stream: trio.abc.Stream, data: bytes) -> bool:
    """Send `data` over a TLS connection, without waiting, as the last thing that is said over it.

    False where it has to be sent in the ordinary way: nothing of it was sent then. A connection that breaks just now
    is not told apart from one that breaks a moment later: whoever needs an answer does not speak his last words.
    """
    if sys.platform == "win32" or not isinstance(stream, trio.SSLStream):
        return False
    transport = stream.transport_stream
    # trio offers no other way to what OpenSSL has ready, nor to whether somebody is in the middle of sending that.
    tls: ssl.SSLObject | None = getattr(stream, "_ssl_object", None)
    encrypted: ssl.MemoryBIO | None = getattr(stream, "_outgoing", None)
    sending: trio.Lock | None = getattr(stream, "_inner_send_lock", None)
    if tls is None or encrypted is None or sending is None or sending.locked():
        return False
    if not isinstance(transport, trio.SocketStream):
        return False
    descriptor = transport.socket.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0) != [(descriptor, select.POLLOUT)]:
        return False
    # Writable means that a third of the buffer is free, so a few hundred bytes go in as a whole.
    with contextlib.suppress(OSError, ssl.SSLError):
        tls.write(data)
        os.write(descriptor, encrypted.read())
    return True

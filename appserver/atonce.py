"""What is small goes to the network at once, where the loop would take three turns; or it goes in the ordinary way.

`SSLStream.send_all` comes back only after the loop has turned for each of its layers, and whoever must not wait for it
needs a queue and a task besides. That is half a millisecond of an outcome's way to the cluster, and a quarter of what a
poll costs. So a small message is encrypted and handed to the kernel in one go, if it takes that without waiting, and
nobody else is sending.

It is all or nothing as far as can be known beforehand: a socket that is writable has a third of its buffer free, which
holds many times as much. Where the kernel takes only a part all the same, for want of memory, the connection is of no
use any more, as after any other write that failed: a record must not begin in the middle of another.

To close a connection without the goodbye of TLS takes four turns in trio, and none here.
"""

from __future__ import annotations

import os
import select
import ssl
import sys

import trio

MAX_AT_ONCE_BYTES = 4096
"""A third of the smallest buffer that a connection has is several times that, with what TLS adds."""


def send_at_once(stream: trio.abc.Stream, data: bytes) -> bool:
    """Send `data` over a TLS connection without waiting. Its handshake is done, and no other task is in `send_all`.

    False where it has to be sent in the ordinary way: nothing of it was sent then. Raises trio.BrokenResourceError
    where the connection is broken, or has just become so: nothing more may be sent over it.
    """
    if sys.platform == "win32" or not isinstance(stream, trio.SSLStream) or len(data) > MAX_AT_ONCE_BYTES:
        return False
    transport = stream.transport_stream
    # trio offers no other way to what OpenSSL has ready, nor to whether somebody is in the middle of sending that, or
    # it holds something back that has to come first (a server's words at the end of the handshake).
    tls: ssl.SSLObject | None = getattr(stream, "_ssl_object", None)
    encrypted: ssl.MemoryBIO | None = getattr(stream, "_outgoing", None)
    sending: trio.Lock | None = getattr(stream, "_inner_send_lock", None)
    held_back: bytes | None = getattr(stream, "_delayed_outgoing", b"")
    if tls is None or encrypted is None or sending is None or sending.locked() or held_back is not None:
        return False
    if not isinstance(transport, trio.SocketStream) or (descriptor := transport.socket.fileno()) < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0) != [(descriptor, select.POLLOUT)]:
        return False
    try:
        tls.write(data)
        record = encrypted.read()
        if os.write(descriptor, record) != len(record):
            raise trio.BrokenResourceError("only a part of it could be sent")
    except OSError as error:  # those of OpenSSL are of that kind, too
        raise trio.BrokenResourceError from error
    return True


def close_at_once(stream: trio.abc.Stream) -> bool:
    """Close a TLS connection without a goodbye; one that is closed is fine. Nobody may be using it any more.

    False where that has to be done in the ordinary way: nothing has happened then.
    """
    if not isinstance(stream, trio.SSLStream) or not isinstance(stream.transport_stream, trio.SocketStream):
        return False
    stream.transport_stream.socket.close()
    return True

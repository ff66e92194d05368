"""The server's side of a TLS connection, for what this server does with it.

trio's `SSLStream` takes whatever TLS can be: either side, tickets, renegotiation, any number of tasks. That is two
hundred calls for each poll of each manager, of a message in and one out. Here the handshake is TLS 1.3's and without
tickets (`pki.contexts`), one task reads and one writes, and the end is told without waiting for the peer to say the
same (RFC 8446, section 6.1).

OpenSSL works on two buffers in memory and never sees the socket. Whatever it puts into the outgoing one must reach the
kernel in that order, so only the task that holds `_sending` takes from there; reading puts something there too, where
the peer changes its keys.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import sys
from typing import final

import trio

MAX_RECORD_BYTES = 16384
"""What a record holds in the clear at most (RFC 8446, section 5.1), and what is taken from the kernel at one go."""


@final
class TlsStream(trio.abc.Stream):
    """A stream over `transport`, whose first bytes have been read already. Shake hands before anything else."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, first: bytes) -> None:
        self._transport = transport
        self._socket: trio.socket.SocketType | None = None
        """Where it can be read and written as a file, which spares the half of what is left; not so on Windows."""
        if sys.platform != "win32" and isinstance(transport, trio.SocketStream):
            self._socket = transport.socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(first)
        self.connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        """What OpenSSL knows of the peer."""
        self._sending = trio.Lock()
        self._is_shaken = self._is_broken = self._is_closed = False

    async def do_handshake(self) -> None:
        """Shake hands. Raises trio.BrokenResourceError, by the error of OpenSSL or of the system; `alert` gives what
        is to be told then. Cancelled, the stream is of no use any more.
        """
        self._is_broken = True  # until it is done
        while True:
            try:
                self.connection.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fetch()
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("the handshake failed") from error
            else:
                break
        await self._flush()
        self._is_broken = False
        self._is_shaken = True

    def alert(self) -> bytes:
        """Take what OpenSSL has ready for the peer of a handshake that failed."""
        return self._outgoing.read()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes, of one record at most; none where the peer has taken its leave.

        Raises trio.BrokenResourceError, also where the peer hung up without a word, and trio.ClosedResourceError.
        """
        self._check()
        size = MAX_RECORD_BYTES if max_bytes is None else min(max_bytes, MAX_RECORD_BYTES)
        has_waited = False
        while True:
            try:
                data = self.connection.read(size)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fetch()
                has_waited = True
            except ssl.SSLError as error:
                self._is_broken = True
                raise trio.BrokenResourceError("TLS is broken") from error
            else:
                break
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()  # the others have a turn, and what was read is not lost
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send some bytes, without a turn for others where the kernel takes all of them at once.

        Raises trio.BrokenResourceError and trio.ClosedResourceError. Cancelled, the stream is of no use any more.
        """
        self._check()
        try:
            self.connection.write(data)
        except ssl.SSLError as error:
            self._is_broken = True
            raise trio.BrokenResourceError("TLS is broken") from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes something."""
        self._check()
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Take leave, and close; cancelled, or where the stream is broken, it is closed without a word."""
        try:
            if self._is_shaken and not (self._is_broken or self._is_closed or self._sending.locked()):
                with contextlib.suppress(trio.BrokenResourceError, ssl.SSLError):
                    with contextlib.suppress(ssl.SSLWantReadError):  # the peer has not said the same
                        self.connection.unwrap()
                    await self._flush()
        finally:
            self._is_closed = True
            await self._transport.aclose()  # closes also when cancelled

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_broken:
            raise trio.BrokenResourceError("this stream is broken")

    async def _flush(self) -> None:
        """Hand to the kernel what OpenSSL has ready."""
        if not self._outgoing.pending:
            return
        try:
            self._sending.acquire_nowait()  # to enter the lock would be a turn of the loop
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            if data := self._outgoing.read():
                sent = self._send_now(data)
                if sent < len(data):
                    await self._transport.send_all(data[sent:])
        except BaseException:
            self._is_broken = True  # nobody knows how much was sent
            raise
        finally:
            self._sending.release()

    def _send_now(self, data: bytes) -> int:
        """Give the kernel what it takes without a wait; tell how much that was."""
        if self._socket is None:
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._error_of(error) from error

    async def _fetch(self) -> None:
        """Wait for more from the peer."""
        if self._socket is None:
            data = bytes(await self._transport.receive_some(MAX_RECORD_BYTES))
        else:
            data = await self._read(self._socket)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _read(self, sock: trio.socket.SocketType) -> bytes:
        while True:
            # First the wait: a manager says one thing, and then nothing for seconds.
            await trio.lowlevel.wait_readable(sock)
            try:
                return os.read(sock.fileno(), MAX_RECORD_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._error_of(error) from error

    def _error_of(self, error: OSError) -> Exception:
        if self._is_closed or error.errno == errno.EBADF:
            return trio.ClosedResourceError("this stream was closed")
        self._is_broken = True
        return trio.BrokenResourceError(f"the connection broke: {error.strerror}")

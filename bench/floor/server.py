"""The floor's server: for each connection a fork, which runs what it is told and sends the exit status."""

import os
import signal
import socket
import sys

MOST_WAITING = 1024


def serve(connection: socket.socket) -> None:
    """Run the command that one client sends up to its end of file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data = b""
    while more := connection.recv(65536):
        data += more
    words = data.split(b"\0")
    null = os.open(os.devnull, os.O_RDWR)
    streams = [(os.POSIX_SPAWN_DUP2, null, stream) for stream in (0, 1, 2)]
    pid = os.posix_spawn(words[0], words, {}, file_actions=streams, setsid=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.send(bytes([status if status >= 0 else 128 - status]))


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(MOST_WAITING)
print(f"listening on port {listener.getsockname()[1]}", file=sys.stderr, flush=True)
while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        listener.close()
        serve(connection)
        os._exit(0)
    connection.close()

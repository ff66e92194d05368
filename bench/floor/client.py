"""The floor's client: `client.py PORT COMMAND...` ends with the exit status that the server sends."""

import _socket
import os
import sys

connection = _socket.socket()
connection.connect(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"\0".join(os.fsencode(word) for word in sys.argv[2:]))
connection.shutdown(_socket.SHUT_WR)
os._exit(connection.recv(1)[0])

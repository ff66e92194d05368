"""The short-lived child that opens stores with `cryptography`, and judges and explains whatever is wrong with them.

Parsing with `cryptography` costs 65 ms and 10 MB in the process that does it; a child keeps both out of the daemons.
It reads one request on its standard input (the passwords are never arguments, which `ps` shows), writes one answer on
its standard output, and ends. The decrypted key exists in the child's memory, in the pipe and in ours, never in a file.

The child's standard input is also its leash: it stays open as long as the answer is wanted, and when it closes the
child ends, wherever it stands. So a program may end, or be killed, while a store on a file system that hangs is being
read, and leaves nobody behind.

The child is an isolated interpreter (`-I`): neither environment nor working directory have a say in what it imports.
Our own packages are put at the *end* of its path by an argument, which also serves a source tree that is not
installed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from typing import final

from pki.errors import KeysError
from pki.material import Keys, Material, Pin, expired_pins

_BOOTSTRAP = "import sys; sys.path.append(sys.argv[1]); from pki.opener import main; sys.exit(main())"

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_CREATION_FLAGS = 0
if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NO_WINDOW  # a service must not flash a console

EXIT_UNWANTED = 3
"""Exit status of a child whose answer nobody waits for any more."""

MAX_SHOWN_CHARACTERS = 300
"""Of a child that broke down, its last words up to this length go into the error."""


@final
class Opener:
    """A child at work. Whoever has one calls `collect` or `abandon`."""

    def __init__(self, keys: Keys) -> None:
        """Start it. Raises `KeysError` where the interpreter cannot be started."""
        self._keys = keys
        self._process: subprocess.Popen[bytes] | None = _start(keys)
        self._leash = self._process.stdin
        self._process.stdin = None  # or `communicate` would close it

    def collect(self, timeout_seconds: float) -> Material:
        """Wait for the stores, blocking.

        Raises `KeysError` for what is wrong with them, or when they are not open within `timeout_seconds`. An
        exception out of a signal handler leaves no child behind.
        """
        process = self._process
        assert process is not None
        try:
            output, complaint = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise KeysError(f"the stores could not be opened within {timeout_seconds:g} seconds") from error
        finally:
            # After a timeout, and after an exception out of a signal handler, the child is still there.
            self._process = None
            if process.poll() is None:
                process.kill()
                process.communicate()
            self._let_go()
        return _read_answer(self._keys, output, complaint, process.returncode)

    def abandon(self) -> None:
        """Kill the child where there still is one; its result is lost. Harmless after `collect`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._let_go()

    def _let_go(self) -> None:
        if self._leash is not None:
            with contextlib.suppress(BrokenPipeError):  # it broke down before it had read all of the request
                self._leash.close()


def _start(keys: Keys) -> subprocess.Popen[bytes]:
    request = {
        "key_store": keys.key_store,
        "key_store_password": keys.key_store_password,
        "trust_store": keys.trust_store,
        "trust_store_password": keys.trust_store_password,
        "expired_pins": keys.expired_pins,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _BOOTSTRAP, _PACKAGE_ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=_CREATION_FLAGS,
        )
    except OSError as error:
        raise KeysError(f"cannot start {sys.executable!r} to open the stores: {error}") from error
    # The child reads all of it before it writes anything, so this cannot block for good; what broke it, `result` tells.
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    return process


def _read_answer(keys: Keys, output: bytes, complaint: bytes, status: int) -> Material:
    try:
        answer = json.loads(output)
        if "error" in answer:
            raise KeysError(answer["error"])
        return Material(
            answer["chain"].encode(),
            answer["key"].encode(),
            tuple(Pin(base64.b64decode(der), alias) for der, alias in answer["pins"]),
            keys.expired_pins,
            keys.key_store,
            keys.trust_store,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2][-MAX_SHOWN_CHARACTERS:]
        raise KeysError(
            f"the child that opens the stores broke down with status {status}: {last or 'no word'}"
        ) from error


def main() -> int:
    """Be the child: a request, one line on standard input, and an answer on standard output, both JSON."""
    import threading

    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_when_unwanted, daemon=True).start()
    from pki.stores import open_stores

    request["expired_pins"] = expired_pins(request["expired_pins"])
    try:
        material = open_stores(Keys(**request))
    except KeysError as error:
        answer: dict[str, object] = {"error": str(error)}
    else:
        answer = {
            "chain": material.chain_pem.decode(),
            "key": material.key_pem.decode(),
            "pins": [(base64.b64encode(pin.der).decode(), pin.alias) for pin in material.pins],
        }
    sys.stdout.write(json.dumps(answer))
    return 0


def _end_when_unwanted() -> None:
    # Not by way of `sys.stdin`: its lock would be held at the interpreter's end.
    os.read(0, 1)
    os._exit(EXIT_UNWANTED)


if __name__ == "__main__":
    sys.exit(main())

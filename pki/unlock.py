"""Open the stores of a program in a short-lived child, while the program does something else.

Parsing PKCS#12 with `cryptography` costs 65 ms and 10 MB in the process that does it. A child keeps both out of the
daemons: it reads one request on its standard input (the passwords are never arguments, which `ps` shows), writes one
answer on its standard output, and ends. The decrypted key exists in the child's memory, in the pipe and in ours,
never in a file. `start_unlock` only starts the child, so that a manager can import the rest of itself in the
meantime; `result` collects.

The child's standard input is also its leash: it stays open as long as the answer is wanted, and when it closes the
child ends, wherever it stands. So a program may end, or be killed, while a store on a file system that hangs is being
read, and leaves nobody behind.

Where both stores are PEM without encryption there is nothing to parse: OpenSSL reads PEM itself, no child is needed,
and `result` only hands over what `start_unlock` read.

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

from pki import pem
from pki.errors import KeysError
from pki.files import read_store
from pki.material import Keys, Material, Pin, expired_pins

UNLOCK_TIMEOUT_SECONDS = 30.0
"""A child needs a tenth of a second; a busy guest at boot may take several. Longer, and the disk or the machine is
ill."""

_BOOTSTRAP = "import sys; sys.path.append(sys.argv[1]); from pki.unlock import main; sys.exit(main())"

_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_CREATION_FLAGS = 0
if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NO_WINDOW  # a service must not flash a console

EXIT_UNWANTED = 3
"""Exit status of a child whose answer nobody waits for any more."""

MAX_SHOWN_CHARACTERS = 300
"""Of a child that broke down, its last words up to this length go into the error."""


@final
class Unlocking:
    """Stores being opened. Whoever has one calls `result` or `abandon`, or uses it as a context manager."""

    def __init__(self, keys: Keys, process: subprocess.Popen[bytes] | None, ready: Material | KeysError | None) -> None:
        """Belongs to `start_unlock`."""
        self._keys = keys
        self._process = process
        self._ready = ready
        self._leash = process.stdin if process is not None else None
        if process is not None:
            process.stdin = None  # or `communicate` would close it

    def result(self, timeout_seconds: float = UNLOCK_TIMEOUT_SECONDS) -> Material:
        """Wait for the stores, blocking; a second call gives the same.

        Raises `KeysError` for what is wrong with them, or when they are not open within `timeout_seconds`. An
        exception out of a signal handler leaves no child behind.
        """
        if self._ready is None:
            try:
                self._ready = self._collect(timeout_seconds)
            except KeysError as error:
                self._ready = error
        if isinstance(self._ready, KeysError):
            raise self._ready
        return self._ready

    def abandon(self) -> None:
        """Kill the child where there still is one; its result is lost. Harmless after `result`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
            self._let_go()
        if self._ready is None:
            self._ready = KeysError("the opening of the stores was given up")

    def __enter__(self) -> Unlocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _collect(self, timeout_seconds: float) -> Material:
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

    def _let_go(self) -> None:
        if self._leash is not None:
            with contextlib.suppress(BrokenPipeError):  # it broke down before it had read all of the request
                self._leash.close()


def start_unlock(keys: Keys) -> Unlocking:
    """Start to open both stores and return at once; whatever is wrong with them is raised by `result`."""
    try:
        ready = _open_plain(keys)
        return Unlocking(keys, None if ready else _start_child(keys), ready)
    except KeysError as error:
        return Unlocking(keys, None, error)


def load_material(keys: Keys) -> Material:
    """Open both stores, blocking for at most `UNLOCK_TIMEOUT_SECONDS`. Raises `KeysError`."""
    return start_unlock(keys).result()


def _open_plain(keys: Keys) -> Material | None:
    key_data, trust_data = read_store(keys.key_store, "key store"), read_store(keys.trust_store, "trust store")
    if not (pem.is_pem(key_data) and pem.is_pem(trust_data)):
        return None
    blocks = pem.private_keys(key_data)
    chain = pem.certificates(key_data, keys.key_store)
    pins = tuple(dict.fromkeys(pem.certificates(trust_data, keys.trust_store)))
    plain = len(blocks) == 1 and not pem.is_encrypted(blocks[0]) and not pem.is_dsa(blocks[0], keys.key_store)
    if not plain or not chain or not pins or pem.private_keys(trust_data):
        return None  # what is unusual is judged, and explained, in one place: by the child
    return Material(
        b"".join(map(pem.encode_certificate, chain)),
        blocks[0],
        tuple(Pin(der, f"certificate {number}") for number, der in enumerate(pins, start=1)),
        keys.expired_pins,
        keys.key_store,
        keys.trust_store,
    )


def _start_child(keys: Keys) -> subprocess.Popen[bytes]:
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

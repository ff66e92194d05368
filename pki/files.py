"""Key files on the disk: bounded reading, and writing that is private from the first byte and never half done."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

from pki.errors import KeysError

MAX_STORE_BYTES = 1024 * 1024
"""A store with hundreds of certificates is smaller; a wrong path (a disk image, a device) must not fill the memory."""

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o755
"""Others may read what is public in it; the private files in it have a mode of their own."""

NEW_SUFFIX, OLD_SUFFIX = ".new", ".old"
"""A key store that waits to take the place of the one without suffix, and the backup of one that was replaced."""


def read_store(path: str, what: str) -> bytes:
    """Read a whole store; `what` is its role in the message, such as `key store`. Raises `KeysError`."""
    try:
        # A named pipe would block the open for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise KeysError(f"the {what} {path!r} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(MAX_STORE_BYTES + 1)
    except FileNotFoundError as error:
        raise KeysError(f"the {what} {path!r} does not exist: make it with cmapppki, or correct the path") from error
    except OSError as error:
        raise KeysError(f"cannot read the {what} {path!r}: {error.strerror} (errno:{error.errno})") from error
    except ValueError as error:
        raise KeysError(f"the path of the {what}, {path!r}, cannot be one: {error}") from error
    if len(data) > MAX_STORE_BYTES:
        raise KeysError(f"the {what} {path!r} is larger than {MAX_STORE_BYTES} bytes: is it the right file?")
    if not data:
        raise KeysError(f"the {what} {path!r} is an empty file: copy or make it again")
    return data


def prepare_directory(path: str) -> None:
    """Make the directory for keys where it is missing, and see that strangers cannot replace what is in it.

    Raises `KeysError`.
    """
    try:
        os.makedirs(path, mode=DIRECTORY_MODE, exist_ok=True)
        mode = os.stat(path).st_mode
    except OSError as error:
        raise KeysError(f"cannot make the directory {path!r}: {error.strerror} (errno:{error.errno})") from error
    if sys.platform != "win32" and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise KeysError(f"the directory {path!r} is writable for everybody, who could replace keys in it: chmod o-w it")


def write_file(path: str, data: bytes, *, mode: int, force: bool, owner_of: str | None = None) -> None:
    """Write a file whole or not at all, with its mode from the first byte; only `force` replaces an existing one.

    It gets the owner of the file `owner_of`, as far as we may give it away: a server that does not run as root must be
    able to read what takes the place of its file. Raises `KeysError`; then nothing of the new file is left.
    """
    directory, name = os.path.split(path)
    draft = os.path.join(directory, f".{name}.{os.urandom(8).hex()}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    except OSError as error:
        raise KeysError(f"cannot write {path!r}: {error.strerror} (errno:{error.errno})") from error
    try:
        with open(descriptor, "wb") as file:
            if owner_of is not None:
                _give_away(descriptor, owner_of)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if force:
            os.replace(draft, path)
        else:
            _rename_to_new(draft, path)
    except FileExistsError as error:
        raise KeysError(f"{path!r} exists already: --force would replace it") from error
    except OSError as error:
        raise KeysError(f"cannot write {path!r}: {error.strerror} (errno:{error.errno})") from error
    finally:
        if os.path.lexists(draft):
            os.unlink(draft)


def _give_away(descriptor: int, owner_of: str) -> None:
    if sys.platform == "win32":
        return  # files inherit from their directory there
    owner = os.stat(owner_of)
    with suppress(PermissionError):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def replace_file(path: str, replacement: str, backup: str) -> None:
    """Put the file `replacement` in the place of `path`, which is kept as `backup`; an older backup goes.

    At every moment there is a whole file under `path`. Raises `KeysError`.
    """
    draft = f"{backup}.{os.urandom(8).hex()}.new"
    try:
        try:
            os.link(path, draft)
            os.replace(draft, backup)
        finally:
            if os.path.lexists(draft):
                os.unlink(draft)
        os.replace(replacement, path)
    except OSError as error:
        raise KeysError(f"cannot replace {path!r}: {error.strerror} (errno:{error.errno})") from error


def _rename_to_new(draft: str, path: str) -> None:
    if sys.platform == "win32":
        os.rename(draft, path)  # refuses an existing target there, as link does here
    else:
        os.link(draft, path)

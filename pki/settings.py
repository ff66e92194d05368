r"""The `key=value` files of both programs (contract, section 3): reading, splitting into entries, typed values.

A line is one of four things, decided without knowing any key:

- nothing but blanks, or `#` first: ignored;
- `NAME:` opens a section, until the next header; in the manager's file NAME is a node;
- `NAME:key=value` sets one key of a section and leaves the open one as it is;
- `key=value` belongs to the open section, or to the whole file before the first header.

Only a colon *before* the first equals sign makes a node line, so `trustStore=C:\keys` is a plain value. A name with
colons of its own (IPv6) stands in brackets. What the keys are for is the business of the programs: they ask `Values`
for them.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterable
from typing import final

from pki.errors import SettingsError
from pki.frozen import dataclass, field
from pki.names import short_address

MAX_FILE_BYTES = 1024 * 1024
"""No file of this kind is larger; a wrong path (a disk image, a device) must not fill the memory."""

_SIZE = r"(\d{1,15}) ?(|KiB|MiB|GiB)"
_UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One `key=value` of a file. `section` is the normal form of the node's name, `None` for every node."""

    section: str | None
    key: str
    value: str = field(repr=False)
    line: int


@final
@dataclass(frozen=True, slots=True)
class Document:
    """A whole file, split but not yet understood.

    `path` is absolute; `opened` holds the normal names of all sections, empty ones too, in the order in which they
    appear first, each with the number of that line.
    """

    path: str
    entries: tuple[Entry, ...]
    opened: tuple[tuple[str, int], ...] = ()

    def of_section(self, section: str | None) -> tuple[Entry, ...]:
        """Give the entries of one node by its normal name, or with `None` those of every node."""
        return tuple(entry for entry in self.entries if entry.section == section)

    def sections(self) -> tuple[str, ...]:
        """Give the normal names of all nodes that the file speaks of, in its order."""
        return tuple(dict.fromkeys(entry.section for entry in self.entries if entry.section is not None))


def normal_name(name: str) -> str:
    """Give the form in which node names are compared: lower case, no brackets, the short form of an address."""
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    return short_address(bare) or bare.casefold()


def read_document(path: str, *, may_be_absent: bool = False) -> Document:
    """Read and split a file; with `may_be_absent`, a file that does not exist is an empty one.

    Raises `SettingsError` where it cannot be read, is not UTF-8 (a byte order mark is fine) or does not split.
    """
    absolute = os.path.abspath(path)
    try:
        data = _read_bytes(absolute)
    except FileNotFoundError as error:
        if may_be_absent:
            return Document(absolute, ())
        raise SettingsError(f"the configuration file {path!r} does not exist") from error
    except OSError as error:
        raise SettingsError(
            f"cannot read the configuration file {path!r}: {error.strerror} (errno:{error.errno})"
        ) from error
    return parse_document(_decode(data, absolute), absolute)


def _read_bytes(path: str) -> bytes:
    # A named pipe would block the open for ever; a directory gives a different error on each platform.
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise SettingsError(f"the configuration file {path!r} is a directory: name the file in it")
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise SettingsError(f"the configuration file {path!r} is not a regular file")
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(
            f"the configuration file {path!r} is larger than {MAX_FILE_BYTES} bytes: is it the right one?"
        )
    return data


def _decode(data: bytes, path: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SettingsError(f"{path}:1: the file is UTF-16: save it as UTF-8")
    # A comment may be in any encoding: the old files are older than UTF-8 on their hosts.
    lines = [b"#" if line.lstrip().startswith(b"#") else line for line in data.split(b"\n")]
    try:
        return b"\n".join(lines).removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        for number, line in enumerate(lines, 1):
            _require_utf8(line, f"{path}:{number}")
        raise


def _require_utf8(line: bytes, where: str) -> None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        key = line.partition(b"=")[0].strip().decode("ascii", "replace")
        raise SettingsError(f"{where}: {key!r:.60} has bytes that are not UTF-8: save the file as UTF-8") from error


def parse_document(text: str, path: str) -> Document:
    """Split the text of a file. Pure.

    Raises `SettingsError` for a line that is none of the four kinds and for a second header of one node.
    """
    entries: list[Entry] = []
    headers: dict[str, int] = {}
    opened: dict[str, int] = {}
    section: str | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        left, equals, value = (part.strip() for part in line.partition("="))
        where = f"{path}:{number}"
        if "\0" in line:
            raise SettingsError(f"{where}: the line holds a NUL byte")
        if ":" not in left:
            if not equals or not left:
                raise SettingsError(f"{where}: {_shown(line)} is not key=value nor NAME:")
            entries.append(Entry(section, left, value, number))
            continue
        name, key = _split_node(left, where)
        if equals:
            if not key:
                raise SettingsError(f"{where}: there is no key between {name + ':'!r} and the equals sign")
            entries.append(Entry(normal_name(name), key, value, number))
            opened.setdefault(normal_name(name), number)
            continue
        section = _open_section(name, key, where, headers, number)
        opened.setdefault(section, number)
    return Document(path, tuple(entries), tuple(opened.items()))


def _shown(text: str) -> str:
    # What stands behind an equals sign may be a password.
    return repr(text.partition("=")[0][:60])


def _split_node(left: str, where: str) -> tuple[str, str]:
    if left.startswith("["):
        name, closed, rest = left.partition("]")
        if not closed or not rest.lstrip().startswith(":") or len(name) == 1:
            raise SettingsError(f"{where}: {_shown(left)} is not a node's name: expected [ADDRESS]:")
        return name[1:].strip(), rest.lstrip()[1:].strip()
    name, _, rest = left.partition(":")
    if ":" in rest:
        raise SettingsError(f"{where}: {_shown(left)} has several colons: write an IPv6 address as [ADDRESS]:")
    if not name.strip():
        raise SettingsError(f"{where}: there is no node's name before the colon")
    return name.strip(), rest.strip()


def _open_section(name: str, rest: str, where: str, headers: dict[str, int], number: int) -> str:
    if rest:
        raise SettingsError(f"{where}: {rest!r:.60} after {name + ':'!r} is not key=value")
    section = normal_name(name)
    if section in headers:
        raise SettingsError(f"{where}: a second header of {name!r}: the first is in line {headers[section]}")
    headers[section] = number
    return section


@final
class Values:
    """The entries of one scope by key, with typed access; every complaint names file, line and key.

    An empty value means the default, as if the key stood on no line of this scope or a wider one.
    """

    def __init__(
        self, path: str, entries: Iterable[Entry], known: Iterable[str], repeatable: Iterable[str] = ()
    ) -> None:
        """Take the entries of a scope. Raises `SettingsError` for a key not in `known` or repeated without leave."""
        self._path = path
        self._entries: dict[str, list[Entry]] = {}
        known = tuple(known)
        for entry in entries:
            if entry.key not in known:
                raise self.complaint(entry, f"unknown key: {_nearest(entry.key, known)}")
            found = self._entries.setdefault(entry.key, [])
            if found and entry.key not in repeatable:
                raise self.complaint(entry, f"repeated key: it stands in line {found[0].line} already")
            found.append(entry)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def complaint(self, entry: Entry, fault: str) -> SettingsError:
        """Make the error for an entry: `FILE:LINE: KEY: fault`."""
        return SettingsError(f"{self._path}:{entry.line}: {entry.key}: {fault}")

    def entry(self, key: str) -> Entry | None:
        """Give the entry of a key that has a value, else `None`."""
        found = self._entries.get(key)
        return found[0] if found and found[0].value else None

    def all_entries(self, key: str) -> tuple[Entry, ...]:
        """Give every entry of a repeatable key that has a value."""
        return tuple(entry for entry in self._entries.get(key, ()) if entry.value)

    def text(self, key: str, default: str) -> str:
        """Give the value as it stands."""
        found = self.entry(key)
        return found.value if found else default

    def path(self, key: str, default: str) -> str:
        """Give an absolute path; a relative one is relative to the directory of the file that names it."""
        found = self.entry(key)
        return os.path.normpath(os.path.join(os.path.dirname(self._path), found.value)) if found else default

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Give a whole number from `low` to `high`, both included."""
        found = self.entry(key)
        if not found:
            return default
        # int() alone takes "1_000", "+5" and digits of every script.
        if not (found.value.isascii() and found.value.isdigit()) or not low <= int(found.value[:18]) <= high:
            raise self.complaint(found, f"{found.value!r:.60} is not a whole number from {low} to {high}")
        return int(found.value)

    def size(self, key: str, default: int, low: int, high: int) -> int:
        """Give a number of bytes, written plain or with KiB, MiB or GiB."""
        found = self.entry(key)
        if not found:
            return default
        size = parse_size(found.value)
        if size is None or not low <= size <= high:
            raise self.complaint(
                found, f"{found.value!r:.60} is not a size from {low} to {high} bytes: write 10485760 or 10 MiB"
            )
        return size

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        """Give one of the words in `choices`, the first of which is the default."""
        found = self.entry(key)
        if found and found.value not in choices:
            raise self.complaint(found, f"{found.value!r:.60} is not one of {', '.join(choices)}")
        return found.value if found else choices[0]


def parse_size(text: str) -> int | None:
    """Read a number, written plain or with KiB, MiB or GiB; None for anything else."""
    match = re.fullmatch(_SIZE, text) if text.isascii() else None
    return int(match[1]) * _UNITS[match[2]] if match else None


def _nearest(key: str, known: tuple[str, ...]) -> str:
    for name in known:
        if name.casefold() == key.casefold():
            return f"write {name}"
    return f"expected one of {', '.join(known)}"

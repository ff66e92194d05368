"""The `key=value` syntax: what splits into what, and what is refused with file, line and key."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.errors import SettingsError
from pki.settings import MAX_FILE_BYTES, Values, normal_name, parse_document, read_document

Row = tuple[str | None, str, str]


def rows(text: str) -> list[Row]:
    document = parse_document(text, "/f.conf")
    return [(entry.section, entry.key, entry.value) for entry in document.entries]


def values(text: str, *known: str, repeatable: tuple[str, ...] = ()) -> Values:
    return Values("/etc/f.conf", parse_document(text, "/etc/f.conf").entries, known, repeatable)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# a=b\n   # c=d\n\n", []),
        ("a=b", [(None, "a", "b")]),
        ("  a  =  b c  \n", [(None, "a", "b c")]),
        ("a=", [(None, "a", "")]),
        ("a=b=c", [(None, "a", "b=c")]),
        ("a=b # not a comment", [(None, "a", "b # not a comment")]),
        ("a=C:\\keys\\x", [(None, "a", "C:\\keys\\x")]),
        ("a=1\r\nb=2\r\n", [(None, "a", "1"), (None, "b", "2")]),
        ("a=1\nn1:\nb=2\nn2:\nb=3", [(None, "a", "1"), ("n1", "b", "2"), ("n2", "b", "3")]),
        ("n1 :\n b = 2", [("n1", "b", "2")]),
        ("n1:b=2\na=1", [("n1", "b", "2"), (None, "a", "1")]),
        ("n1:\nn2:b=2\nc=3", [("n2", "b", "2"), ("n1", "c", "3")]),
        ("n1 : b = x:y", [("n1", "b", "x:y")]),
        ("[::1]:\na=1\n[FE80::0:1]:b=2", [("::1", "a", "1"), ("fe80::1", "b", "2")]),
        ("Node.Example:\na=1", [("node.example", "a", "1")]),
        ("a=x\u2028y\x0bz", [(None, "a", "x\u2028y\x0bz")]),
    ],
)
def test_text_splits_into_entries(text: str, expected: list[Row]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a=1\nwhat", 2, "'what' is not key=value nor NAME:"),
        ("=1", 1, "is not key=value"),
        (":", 1, "no node's name before the colon"),
        (":a=1", 1, "no node's name before the colon"),
        ("n:=1", 1, "there is no key between 'n:'"),
        ("n: a", 1, "'a' after 'n:' is not key=value"),
        ("n:\nb=1\nN:\n", 3, "a second header of 'N': the first is in line 1"),
        ("[::1]:\n[0:0::1]:\n", 2, "a second header of"),
        ("::1:\n", 1, "write an IPv6 address as [ADDRESS]:"),
        ("fe80::1:a=1\n", 1, "write an IPv6 address as [ADDRESS]:"),
        ("[::1:a=1\n", 1, "expected [ADDRESS]:"),
        ("[]:a=1\n", 1, "expected [ADDRESS]:"),
        ("[::1]a=1:\n", 1, "expected [ADDRESS]:"),
        ("a=1\0", 1, "NUL"),
    ],
)
def test_a_line_of_no_known_kind_is_refused_with_its_number(text: str, line: int, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        rows(text)
    assert str(caught.value).startswith(f"/f.conf:{line}: ")
    assert words in str(caught.value)


def test_a_document_knows_its_sections_in_their_order_the_empty_ones_too() -> None:
    document = parse_document("a=1\nn:b=2\n\nM:\nn:\n", "/f.conf")
    assert document.opened == (("n", 2), ("m", 4))


def test_a_complaint_about_a_line_never_shows_what_may_be_a_password() -> None:
    with pytest.raises(SettingsError) as caught:
        rows("a:b:keyStorePassword=hunter2")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_either_splits_or_is_refused(text: str) -> None:
    with contextlib.suppress(SettingsError):
        for entry in parse_document(text, "/f.conf").entries:
            assert entry.key
            assert entry.value == entry.value.strip()


def test_names_are_compared_without_case_and_addresses_by_value() -> None:
    assert normal_name("MMPF121") == normal_name("mmpf121")
    assert normal_name("[0:0:0:0:0:0:0:1]") == normal_name("::1")
    assert normal_name("10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b=1", "b: unknown key: expected one of a, port"),
        ("A=1", "A: unknown key: write a"),
        ("a=1\na=1", "a: repeated key: it stands in line 1 already"),
        ("a=\na=1", "a: repeated key"),
    ],
)
def test_an_unknown_or_repeated_key_is_refused(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        values(text, "a", "port")
    assert words in str(caught.value)
    assert str(caught.value).startswith("/etc/f.conf:")


def test_a_repeatable_key_keeps_all_values_but_the_empty_ones() -> None:
    found = values("a=1\na=\na=2", "a", repeatable=("a",)).all_entries("a")
    assert [entry.value for entry in found] == ["1", "2"]


def test_an_empty_value_means_the_default() -> None:
    found = values("a=\nb=", "a", "b")
    assert found.text("a", "default") == "default"
    assert found.path("b", "/x") == "/x"
    assert found.integer("a", 7, 1, 9) == 7
    assert "a" in found
    assert "c" not in found


def test_a_relative_path_is_relative_to_the_file() -> None:
    found = values("a=keys/x\nb=../y\nc=/z", "a", "b", "c")
    assert [found.path(key, "") for key in "abc"] == ["/etc/keys/x", "/y", "/z"]


@pytest.mark.parametrize(
    "value", ["0", "10", "-1", "+5", "5.0", "five", "1_0", "\u0665", "99999999999999999999999", "0x5"]
)
def test_what_is_not_a_whole_number_in_its_bounds_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^/etc/f\.conf:1: a: .* is not a whole number from 1 to 9$"):
        values(f"a={value}", "a").integer("a", 5, 1, 9)


@pytest.mark.parametrize(
    ("value", "expected"), [("1024", 1024), ("4KiB", 4096), ("2 MiB", 2 * 1024**2), ("1GiB", 1024**3), ("", 5000)]
)
def test_a_size_is_plain_or_has_a_binary_unit(value: str, expected: int) -> None:
    assert values(f"a={value}", "a").size("a", 5000, 1000, 1024**4) == expected


@pytest.mark.parametrize("value", ["1", "10M", "10MB", "10 mib", "-1", "1.5MiB", "9999GiB", "\u0661024"])
def test_what_is_not_a_size_in_its_bounds_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="a: .* is not a size from 1000 to"):
        values(f"a={value}", "a").size("a", 5000, 1000, 1024**4)


def test_a_word_is_one_of_the_choices_or_refused() -> None:
    choices = ("accept", "refuse")
    assert values("a=refuse", "a").one_of("a", choices) == "refuse"
    assert values("a=", "a").one_of("a", choices) == "accept"
    with pytest.raises(SettingsError, match="'Accept' is not one of accept, refuse"):
        values("a=Accept", "a").one_of("a", choices)


def test_passwords_do_not_show_in_the_repr_of_an_entry() -> None:
    assert "hunter2" not in repr(parse_document("keyStorePassword=hunter2", "/f"))


def test_a_file_with_a_byte_order_mark_and_crlf_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.conf"
    path.write_bytes(b"\xef\xbb\xbfa=\xc3\xa9\r\n")
    document = read_document(str(path))
    assert [(entry.key, entry.value) for entry in document.entries] == [("a", "é")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a=1\nlogDir=\xff\n", ":2: 'logDir' has bytes that are not UTF-8"),
        ("a=1".encode("utf-16"), ":1: the file is UTF-16"),
        (b"#" * (MAX_FILE_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "f.conf"
    path.write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        read_document(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_named_file_must_exist_and_a_default_one_may_be_absent(tmp_path: Path) -> None:
    path = str(tmp_path / "f.conf")
    with pytest.raises(SettingsError, match="does not exist"):
        read_document(path)
    assert read_document(path, may_be_absent=True).entries == ()


def test_a_directory_and_a_named_pipe_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a directory"):
        read_document(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="is not a regular file"):
        read_document(str(tmp_path / "pipe"), may_be_absent=True)


def test_a_path_through_a_file_is_an_error_even_for_a_default(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot read .*Not a directory \(errno:20\)"):
        read_document(str(tmp_path / "file" / "f.conf"), may_be_absent=True)

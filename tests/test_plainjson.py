"""JSON read by the shortest way: what the standard library reads, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appserver.plainjson import read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.text(" \t\r\n", max_size=3), st.text(" \t\r\n", max_size=3))
def test_what_the_library_writes_is_read(value: object, before: str, after: str) -> None:
    assert read_json(f"{before}{json.dumps(value)}{after}".encode()) == value


@given(st.text('{}[]",:01ea \n', max_size=12))
def test_it_takes_what_the_library_takes_and_no_more(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            read_json(text.encode())
    else:
        assert read_json(text.encode()) == wanted


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"{} {}",
        b"1 2",
        b"\xff",
        b'{"a":NaN}',
        b"-Infinity",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"\x0c{}",
    ],
    ids=repr,
)
def test_what_is_no_json_in_utf_8_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_json(data)


def test_what_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(RecursionError):
        read_json(b"[" * 100_000)

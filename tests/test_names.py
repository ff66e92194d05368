"""Addresses among names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pki.names import short_address


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("FE80::1%eth0", "fe80::1%eth0"),
        ("abcd::", "abcd::"),
        ("10.0.0.1.", None),
        ("10.0.0.256", None),
        ("1", None),
        ("3com.example", None),
        ("g1", None),
        ("a:b", None),
        ("", None),
        ("10.0.0.01", None),
        ("10.0.0.1%eth0", None),
        ("10.1", None),
        ("10.0.0.1 ", None),
        ("fe80::1%", None),
        ("fe80::1%a%b", None),
        ("::1/64", None),
        ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ("::127.0.0.1", "::127.0.0.1"),
        ("::1\0", None),
        ("::\udc80", None),
        ("\u0661::1", None),
        ("\u0661.0.0.1", None),
    ],
)
def test_an_address_has_one_short_form_and_a_name_has_none(text: str, short: str | None) -> None:
    assert short_address(text) == short


def test_no_large_module_is_imported_for_it() -> None:
    source = (
        "import sys; from pki.names import short_address; assert short_address('0::1') == '::1'\n"
        "assert not {'ipaddress', 'selectors', 'socket'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-S", "-c", source], check=True, cwd=Path(__file__).parent.parent)

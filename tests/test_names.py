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
    ],
)
def test_an_address_has_one_short_form_and_a_name_has_none(text: str, short: str | None) -> None:
    assert short_address(text) == short


def test_nothing_is_imported_to_see_that_a_name_is_no_address() -> None:
    source = (
        "import sys; from pki.names import short_address; short_address('guest'); assert 'ipaddress' not in sys.modules"
    )
    subprocess.run([sys.executable, "-S", "-c", source], check=True, cwd=Path(__file__).parent.parent)

"""Network addresses among names: one that is written in several ways has one form in which it is compared.

The C library reads and writes them; the standard library's `ipaddress` takes a quarter of a megabyte.
"""

from __future__ import annotations

import _socket  # what `socket` has these functions from; that one, imported before trio, would load `selectors`


def short_address(text: str) -> str | None:
    """Give the short form of an IPv4 or IPv6 address, or `None` for what is none."""
    address, percent, zone = text.partition("%")
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    if percent and (family == _socket.AF_INET or not zone or "%" in zone):
        return None
    try:
        return _socket.inet_ntop(family, _socket.inet_pton(family, address)) + percent + zone
    except (OSError, ValueError):  # the latter for what no C library is asked: a zero byte, half a character
        return None

"""Network addresses among names: one that is written in several ways has one form in which it is compared."""

from __future__ import annotations


def short_address(text: str) -> str | None:
    """Give the short form of an IPv4 or IPv6 address, or `None` for what is none."""
    # Every address begins with a digit or has a colon; only then is the module worth its import.
    if not (text[:1].isdigit() or ":" in text):
        return None
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None

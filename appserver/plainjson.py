"""JSON in UTF-8, read by the shortest way: an end is told through two of these, with somebody waiting for each.

`json.loads` guesses at encodings, and looks for white space by regular expressions; for what is read once in a while,
in a process that was asleep, each function more costs microseconds.
"""

from __future__ import annotations

import json
from typing import NoReturn

_WHITE_SPACE = " \t\r\n"


def read_json(data: bytes) -> object:
    """Read one JSON value, white space around it allowed. Raises `ValueError` where it is none, also for the numbers
    that JSON does not have, and `RecursionError` where it is nested too deep.
    """
    text = data.decode("utf-8").strip(_WHITE_SPACE)
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError(f"extra data after character {end}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Made once: the functions of `json` would make one for each value."""

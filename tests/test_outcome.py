"""Outcomes: three types, one translation to an exit status, and never a success made up."""

from __future__ import annotations

import json
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appserver.outcome import (
    MAX_EXIT_CODE,
    MAX_SIGNAL,
    MAX_TEXT_CHARACTERS,
    Account,
    Exited,
    Lost,
    Outcome,
    OutcomeError,
    Signaled,
    describe,
    exit_status,
    from_json,
    signal_name,
    to_json,
)

numbers = st.none() | st.floats(0, 1e12)
counts = st.none() | st.integers(0, 2**62)
texts = st.text(st.characters(codec="utf-8"), max_size=MAX_TEXT_CHARACTERS)
accounts = st.builds(
    Account,
    ended_at=numbers,
    ran_seconds=numbers,
    user_seconds=numbers,
    system_seconds=numbers,
    max_rss_bytes=counts,
    killed_for_memory=st.booleans(),
    stopped_by=st.none() | texts,
    survivors=counts,
)
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Exited, st.integers(0, MAX_EXIT_CODE), accounts),
    st.builds(Signaled, st.integers(1, MAX_SIGNAL), accounts),
    st.builds(Lost, texts, accounts),
)


def test_every_code_of_a_posix_system_is_the_exit_status() -> None:
    assert [exit_status(Exited(code), failure_status=77) for code in range(256)] == list(range(256))


def test_every_signal_is_128_and_its_number() -> None:
    found = [exit_status(Signaled(number), failure_status=77) for number in range(1, MAX_SIGNAL + 1)]
    assert found == list(range(129, 256))


@pytest.mark.parametrize(
    ("code", "status"), [(256, 255), (257, 1), (0xC0000005, 5), (0xFFFFFFFF, 255), (0x10000, 255), (0xC0000100, 255)]
)
def test_a_windows_code_gives_its_low_byte_and_never_0(code: int, status: int) -> None:
    assert exit_status(Exited(code), failure_status=77) == status


@settings(deadline=None)
@given(outcomes, st.integers(1, 255))
def test_only_an_exit_with_0_is_reported_as_0(outcome: Outcome, failure_status: int) -> None:
    status = exit_status(outcome, failure_status=failure_status)
    assert 0 <= status <= 255
    assert (status == 0) == (isinstance(outcome, Exited) and outcome.code == 0)
    if isinstance(outcome, Lost):
        assert status == failure_status


@settings(deadline=None)
@given(outcomes)
def test_an_outcome_comes_back_from_json_as_it_went(outcome: Outcome) -> None:
    assert from_json(json.loads(json.dumps(to_json(outcome)))) == outcome


@settings(deadline=None)
@given(outcomes)
def test_unknown_fields_are_ignored(outcome: Outcome) -> None:
    assert from_json(to_json(outcome) | {"mood": "fine"}) == outcome


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        "exited",
        [],
        {},
        {"kind": "exited"},
        {"kind": "exited", "code": None},
        {"kind": "exited", "code": "0"},
        {"kind": "exited", "code": False},
        {"kind": "exited", "code": 0.0},
        {"kind": "exited", "code": -1},
        {"kind": "exited", "code": MAX_EXIT_CODE + 1},
        {"kind": "exited", "signal": 9},
        {"kind": "signaled", "code": 0},
        {"kind": "signaled", "signal": 0},
        {"kind": "signaled", "signal": 128},
        {"kind": "signaled", "signal": True},
        {"kind": "lost"},
        {"kind": "lost", "reason": None},
        {"kind": "finished", "code": 0},
        {"kind": "exited", "code": 0, "ran_seconds": "long"},
        {"kind": "exited", "code": 0, "ended_at": True},
        {"kind": "exited", "code": 0, "survivors": -1},
        {"kind": "exited", "code": 0, "survivors": 1.5},
        {"kind": "exited", "code": 0, "stopped_by": 3},
    ],
)
def test_what_is_not_an_outcome_is_refused(value: object) -> None:
    with pytest.raises(OutcomeError):
        from_json(value)


@pytest.mark.parametrize("code", [-1, MAX_EXIT_CODE + 1])
def test_an_exit_code_out_of_range_is_no_outcome(code: int) -> None:
    with pytest.raises(OutcomeError, match=str(code)):
        Exited(code)


@pytest.mark.parametrize("number", [0, -9, 128])
def test_a_signal_out_of_range_is_no_outcome(number: int) -> None:
    with pytest.raises(OutcomeError, match=str(number)):
        Signaled(number)


def test_a_reason_that_is_too_long_is_cut() -> None:
    assert Lost("x" * 1000).reason == "x" * MAX_TEXT_CHARACTERS


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Exited(3), "exited with code 3"),
        (Signaled(9), "ended by signal 9 (SIGKILL)"),
        (Signaled(100), "ended by signal 100 (signal 100)"),
        (Lost("nobody saw"), "outcome lost: nobody saw"),
    ],
)
def test_an_outcome_is_described_in_words(outcome: Outcome, words: str) -> None:
    assert describe(outcome) == words


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals")
def test_a_real_time_signal_is_named_by_its_distance() -> None:
    assert signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"

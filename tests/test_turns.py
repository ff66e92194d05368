"""The pure policies before authentication: who gives way to whom, whose turn it is, how much is logged and let in."""

from __future__ import annotations

from collections import Counter

import pytest

from appserver.ratelimit import MAX_REMEMBERED, OTHERS, Pace, RateLimit
from appserver.strangers import (
    MAX_HALF_OPEN,
    MAX_HALF_OPEN_PER_ADDRESS,
    MAX_SHAKING,
    MAX_SHAKING_PER_ADDRESS,
    PATIENCE_SECONDS,
    Stage,
    Strangers,
    network_of,
)


def turns(table: Strangers[str], now: float) -> list[tuple[str, str | None]]:
    return list(table.next_turns(now))


def shaking(table: Strangers[str], address: str, count: int, now: float) -> list[str]:
    """Bring so many strangers of one address to their handshakes."""
    names = [f"{address} {number}" for number in range(count)]
    for name in names:
        assert table.enter(name, address, now) is None
        table.speak(name)
    assert turns(table, now) == [(name, None) for name in names]
    return names


def test_oldest_silent_stranger_gives_way_first_of_the_same_address() -> None:
    table: Strangers[str] = Strangers(4, 2)
    assert [table.enter(token, "a", 0.0) for token in ("a1", "a2")] == [None, None]
    assert table.enter("a3", "a", 0.0) == "a1"
    assert [table.enter(token, "b", 0.0) for token in ("b1", "b2")] == [None, None]
    assert len(table) == 4
    assert table.enter("c1", "c", 0.0) == "a2"  # the bound of all
    assert len(table) == 4


def test_stranger_that_is_through_makes_room() -> None:
    table: Strangers[str] = Strangers(4, 1)
    assert table.enter("a1", "a", 0.0) is None
    table.leave("a1")
    assert table.enter("a2", "a", 0.0) is None
    assert table.enter("a3", "a", 0.0) == "a2"
    table.leave("a2")  # it had to leave before
    table.speak("a2")
    assert len(table) == 1


def test_whoever_has_spoken_stays_while_any_number_of_silent_ones_come() -> None:
    table: Strangers[str] = Strangers()
    table.enter("manager", "a", 0.0)
    table.speak("manager")
    for number in range(1000):
        assert table.enter(f"silent {number}", "a", 0.001 * number) != "manager"
    assert len(table) == MAX_HALF_OPEN_PER_ADDRESS
    assert turns(table, 1.0) == [("manager", None)]


def test_turn_comes_at_once_while_there_is_room() -> None:
    table: Strangers[str] = Strangers()
    table.enter("a1", "a", 0.0)
    assert turns(table, 0.0) == []
    assert table.stage("a1") is Stage.SILENT
    table.speak("a1")
    assert turns(table, 0.0) == [("a1", None)]
    assert table.stage("a1") is Stage.SHAKING
    assert turns(table, 0.0) == []


def test_handshake_gives_way_to_nobody_before_its_time_is_over() -> None:
    table: Strangers[str] = Strangers()
    first = shaking(table, "a", MAX_SHAKING_PER_ADDRESS, 0.0)
    for number in range(100):  # a flood of whole first records: those who wait crowd each other out
        leaving = table.enter(f"flood {number}", "a", 0.1)
        assert leaving not in first
        table.speak(f"flood {number}")
        assert turns(table, 0.1) == []
    waiting = MAX_HALF_OPEN_PER_ADDRESS - MAX_SHAKING_PER_ADDRESS
    assert table.next_change() == PATIENCE_SECONDS
    expected = [(f"flood {100 - waiting + at}", first[at]) for at in range(waiting)]
    assert turns(table, PATIENCE_SECONDS) == expected


def test_silent_newcomer_gets_the_place_of_a_handshake_whose_time_is_over() -> None:
    table: Strangers[str] = Strangers(4, 4)
    first = shaking(table, "a", 3, 0.0)
    table.enter("ready", "a", 0.0)
    table.speak("ready")
    assert table.enter("new", "a", PATIENCE_SECONDS / 2) == "ready"
    assert table.enter("newer", "a", PATIENCE_SECONDS) == "new"
    table.speak("newer")
    assert table.enter("newest", "a", PATIENCE_SECONDS) == first[0]


def test_flood_from_one_address_costs_another_one_no_time() -> None:
    table: Strangers[str] = Strangers()
    for address in "abcd":
        shaking(table, address, MAX_SHAKING_PER_ADDRESS, 0.0)
    table.enter("early", "a", 0.0)
    table.speak("early")
    table.enter("manager", "e", 0.0)
    table.speak("manager")
    assert turns(table, 0.0) == []  # all are full
    table.leave("b 0")
    assert turns(table, 0.0) == [("manager", None)]
    table.leave("a 0")
    assert turns(table, 0.0) == [("early", None)]


def test_place_among_all_comes_from_the_address_that_has_the_most() -> None:
    table: Strangers[str] = Strangers()
    for at, address in enumerate("abcde"):
        shaking(table, address, MAX_SHAKING // 4 if address in "abc" else MAX_SHAKING // 8, 0.001 * at)
    table.enter("manager", "f", 0.1)
    table.speak("manager")
    assert turns(table, 0.1) == []
    assert turns(table, 1.0) == [("manager", "a 0")]


def test_no_more_than_the_bounds_are_ever_here() -> None:
    table: Strangers[int] = Strangers()
    here: dict[int, str] = {}
    for number in range(2000):
        address = f"192.0.2.{number % 7}"
        here[number] = address
        here.pop(table.enter(number, address, 0.01 * number) or -1, None)
        table.speak(number - number % 3)
        for token, leaving in table.next_turns(0.01 * number):
            assert token in here
            here.pop(-1 if leaving is None else leaving, None)
        assert len(table) == len(here) <= MAX_HALF_OPEN
        assert max(Counter(here.values()).values()) <= MAX_HALF_OPEN_PER_ADDRESS
        stages = Counter(table.stage(token) for token in here)
        assert stages[Stage.SHAKING] <= MAX_SHAKING


@pytest.mark.parametrize("most", [1, 2, 5])
def test_small_table_lets_somebody_shake_hands_too(most: int) -> None:
    table: Strangers[str] = Strangers(most, most)
    for number in range(10):
        table.enter(str(number), "a", 0.0)
    table.speak("9")
    assert turns(table, 0.0) == [("9", None)]


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("unknown") == "unknown"


def test_rate_limit_lets_one_pass_in_each_interval_and_counts_the_others() -> None:
    limit = RateLimit(60.0, 100)
    assert limit.passes("a", 0.0) == 0
    assert [limit.passes("a", now) for now in (1.0, 59.9)] == [None, None]
    assert limit.passes("b", 1.0) == 0
    assert limit.passes("a", 60.0) == 2
    assert limit.passes("a", 61.0) is None
    assert limit.passes("a", 1000.0) == 1


def test_rate_limit_remembers_a_bounded_number_of_keys() -> None:
    limit = RateLimit(60.0, 2 * MAX_REMEMBERED)
    for number in range(MAX_REMEMBERED):
        assert limit.passes(str(number), 0.0) == 0
    assert limit.passes("0", 1.0) is None  # heard of again: not the one to be forgotten
    assert limit.passes("new", 1.0) == 0
    assert limit.passes("0", 1.0) is None
    assert limit.passes("1", 1.0) == 0  # forgotten: it costs a line


def test_keys_without_number_write_a_bounded_number_of_lines_and_every_event_is_told_once() -> None:
    limit = RateLimit(60.0, 10)
    passed = told = 0
    for number in range(5 * MAX_REMEMBERED):
        held = limit.passes(f"address {number}", 0.01 * number)
        if held is not None:
            passed, told = passed + 1, told + held
    assert passed == 10
    lines = limit.overdue(1000.0)
    assert len(lines) == 10 + 1
    assert lines[-1][0] == OTHERS
    assert passed + told + sum(held for _, held in lines) == 5 * MAX_REMEMBERED
    assert limit.overdue(2000.0) == []


def test_numbers_that_are_told_use_up_lines_too() -> None:
    limit = RateLimit(60.0, 2)
    for key in "aabbb":
        limit.passes(key, 0.0)
    assert limit.overdue(60.0) == [("b", 2), ("a", 1)]
    assert limit.passes("c", 61.0) is None
    assert limit.passes("c", 121.0) == 1


def test_pace_lets_a_burst_pass_and_spreads_out_what_follows() -> None:
    pace = Pace(10.0, burst=3)
    assert [pace.delay_seconds(100.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert pace.delay_seconds(100.2) == pytest.approx(0.1)
    assert [pace.delay_seconds(200.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])

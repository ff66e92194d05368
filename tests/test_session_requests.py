"""Which request a session's news answer, which acknowledgements it heeds, and how fast it lets a manager ask."""
# ruff: noqa: ARG001  (the clock is asked for, not used)

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from test_session import ENDED, OTHER, OWN, RUN, Pair, conversation

from appserver.effects import Phase, TellEnded, TellRefused, TellRunning, TellStopping, Terms
from appserver.effects import Run as TableRun
from appserver.messages import Ack, Attach, Ended, Error, Poll, Refused, Running, Status, Stop, Stopping, Watch
from appserver.outcome import Exited
from appserver.pending import MAX_UNACKNOWLEDGED
from appserver.protocol import Event
from appserver.ratelimit import Pace
from appserver.session import (
    MAX_QUEUED_MESSAGES,
    MESSAGES_AT_ONCE,
    MESSAGES_PER_SECOND,
    WISH_MESSAGES,
    Session,
)

THIRD = "c" * 32
MESSAGES_BEFORE_AN_ANSWER = 10
"""How many messages of somebody who sends as fast as he can may be heeded between another's poll and its answer: one in
each turn of the scheduler, of which reading, answering and writing take a few."""


def other_run(pair: Pair, run_id: str = OTHER, phase: Phase = Phase.RUNNING) -> TableRun:
    run = TableRun(run_id, RUN.service, phase, 4712, 1, 1e9, None, None)
    pair.supervisor.runs[run_id] = run
    return run


def acknowledged(pair: Pair) -> list[object]:
    return [asked[1] for asked in pair.supervisor.asked if asked[0] == "ack"]


def arrive(pair: Pair, data: bytes) -> None:
    """Have bytes arrive at the server without letting it run."""
    assert isinstance(pair.theirs, trio.StapledStream)
    pair.theirs.receive_stream.put_data(data)


async def ask_and_stop(pair: Pair) -> None:
    """Ask for one run, which waits, and have another one stopped."""
    await pair.greet()
    await pair.manager.say(RUN, Stop(2, OTHER, 5.0))
    await trio.testing.wait_all_tasks_blocked()


async def test_start_of_a_run_that_is_to_be_stopped_is_no_answer_to_the_run_that_was_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        stopped = other_run(pair, phase=Phase.STARTING)
        await ask_and_stop(pair)
        pair.session.tell(TellRunning(pair.session, stopped, attached=True))
        await pair.tell_running()
        answer = await pair.manager.hear()
        assert isinstance(answer, Running)
        assert (answer.re, answer.run) == (1, OWN)


@pytest.mark.parametrize("accepted", [False, True])
async def test_end_of_a_run_that_was_to_be_stopped_is_no_answer_to_the_run_that_was_asked_for(
    autojump_clock: trio.testing.MockClock, *, accepted: bool
) -> None:
    async with conversation() as pair:
        other_run(pair)
        await ask_and_stop(pair)
        if accepted:
            pair.session.tell(TellStopping(pair.session, OTHER))
            assert await pair.manager.hear() == Stopping(2, OTHER)
        pair.session.tell(TellEnded(pair.session, OTHER, ENDED))
        assert await pair.manager.hear() == Ended(None if accepted else 2, OTHER, ENDED, None)
        await pair.tell_running()
        assert isinstance(await pair.manager.hear(), Running)


async def test_end_of_the_watched_run_is_no_answer_to_the_stop_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        other_run(pair)
        await pair.begin()
        await pair.manager.say(Stop(2, OTHER, 5.0))
        await trio.testing.wait_all_tasks_blocked()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        pair.session.tell(TellStopping(pair.session, OTHER))
        assert await pair.manager.hear() == Ended(None, OWN, ENDED, None)
        assert await pair.manager.hear() == Stopping(2, OTHER)


async def test_start_that_fails_is_the_answer_to_its_stop_and_not_to_the_run_that_was_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        other_run(pair, phase=Phase.STARTING)
        await ask_and_stop(pair)
        del pair.supervisor.runs[OTHER]
        pair.session.tell(TellRefused(pair.session, "start-failed", "why", OTHER))
        assert await pair.manager.hear() == Refused(2, "start-failed", "why")
        await pair.tell_running()
        assert isinstance(await pair.manager.hear(), Running)


async def test_start_that_fails_answers_whoever_had_joined_it(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(RUN)  # led to another's run, which is forgotten by now
        await trio.testing.wait_all_tasks_blocked()
        pair.session.tell(TellRefused(pair.session, "start-failed", "why", OTHER))
        assert await pair.manager.hear() == Refused(1, "start-failed", "why")


async def test_poll_of_a_run_that_was_told_and_forgotten_does_not_say_that_it_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        await pair.begin()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        assert isinstance(await pair.manager.hear(), Ended)
        del pair.supervisor.runs[OWN]
        await pair.manager.say(Poll(2))
        answer = await pair.manager.hear()
        assert isinstance(answer, Error)
        assert answer.re == 2


async def test_outcome_that_a_session_was_not_told_cannot_be_acknowledged_by_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with conversation() as pair:
        other_run(pair, phase=Phase.ENDED).outcome = ENDED
        await pair.begin()
        await pair.manager.say(Ack(OTHER), Ack(OWN), Poll(2))
        assert isinstance(await pair.manager.hear(), Status)
        assert not acknowledged(pair)
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        await pair.manager.say(Ack(OTHER), Ack(OWN), Ack(OWN))
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged(pair) == [OWN]


async def test_previous_outcome_that_was_shown_can_be_acknowledged(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        other_run(pair, phase=Phase.ENDED)
        await pair.greet()
        await pair.manager.say(RUN)
        await pair.tell_running(previous=(OTHER, Exited(9)))
        await pair.manager.say(Ack(OTHER))
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged(pair) == [OTHER]


async def test_outcome_can_be_acknowledged_by_the_id_that_led_to_it(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        pair.session.tell(TellEnded(pair.session, OWN, ENDED))
        pair.supervisor.runs[THIRD] = pair.supervisor.runs[OWN]
        await pair.manager.say(Ack(THIRD))
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged(pair) == [OWN]


async def test_outcomes_that_wait_for_an_acknowledgement_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.begin()
        for number in range(MAX_UNACKNOWLEDGED + 1):
            run_id = f"{number:032x}"
            other_run(pair, run_id, Phase.ENDED)
            pair.session.tell(TellEnded(pair.session, run_id, ENDED))
            await pair.manager.hear()
        await pair.manager.say(Ack(f"{0:032x}"), Ack(f"{MAX_UNACKNOWLEDGED:032x}"))
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged(pair) == [f"{MAX_UNACKNOWLEDGED:032x}"]


# How fast one may ask.


def test_pace_takes_several_places_at_one_go() -> None:
    pace = Pace(2.0, burst=3)
    assert [pace.delay_seconds(5.0, 2) for _ in range(4)] == [0.0, 0.0, 1.0, 2.0]


async def test_flood_of_polls_is_answered_at_the_rate_that_a_session_has(mock_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        answers = []

        async def listen() -> None:
            while True:
                answers.append(await pair.manager.hear())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await pair.manager.say(*(Poll(seq) for seq in range(1, 1001)))
            await trio.testing.wait_all_tasks_blocked()
            assert len(answers) == MESSAGES_AT_ONCE - 1  # the hello was one, too
            for second in range(1, 4):
                mock_clock.jump(1.0)
                for _ in range(int(MESSAGES_PER_SECOND)):
                    await trio.testing.wait_all_tasks_blocked()
                assert len(answers) <= MESSAGES_AT_ONCE + second * MESSAGES_PER_SECOND
            nursery.cancel_scope.cancel()


def test_burst_cannot_fill_the_queue_of_somebody_who_reads() -> None:
    assert MESSAGES_AT_ONCE < MAX_QUEUED_MESSAGES


async def test_flood_of_wishes_is_heeded_more_slowly(mock_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(*(replace(RUN, seq=seq, run=f"{seq:032x}") for seq in range(1, 301)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(pair.supervisor.asked) == MESSAGES_AT_ONCE // WISH_MESSAGES
        await pair.manager.say(*(Stop(seq, OWN, 0.0) for seq in range(301, 401)))
        await pair.manager.say(*(Watch(seq, OWN, "leave", 0.0, 0) for seq in range(401, 501)))
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(pair.supervisor.asked) == MESSAGES_AT_ONCE // WISH_MESSAGES + 1


async def test_poll_is_answered_soon_though_another_session_asks_many_things_at_one_go(
    monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    heeded: list[Session] = []
    heed = Session._heed

    async def count_and_heed(session: Session, message: Event) -> bool:
        heeded.append(session)
        return await heed(session, message)

    async with conversation() as other, conversation() as pair:
        await other.begin()
        await pair.greet()
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(Session, "_heed", count_and_heed)
        flood = b"".join(pair.manager.connection.send(Poll(seq)) for seq in range(1, int(MESSAGES_AT_ONCE)))
        arrive(pair, flood)
        arrive(other, other.manager.connection.send(Poll(2)))
        assert isinstance(await other.manager.hear(), Status)
        assert heeded.count(pair.session) <= MESSAGES_BEFORE_AN_ANSWER
        assert other.session in heeded


async def test_who_asks_to_attach_is_answered_by_what_runs(autojump_clock: trio.testing.MockClock) -> None:
    async with conversation() as pair:
        await pair.greet()
        await pair.manager.say(Attach(1, OWN, RUN.service, "leave", 30.0, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.supervisor.asked[-1] == ("attach", OWN, RUN.service, Terms("leave", 30.0))
        pair.session.tell(TellRefused(pair.session, "not-running", "no", OWN))
        assert await pair.manager.hear() == Refused(1, "not-running", "no")

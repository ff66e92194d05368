"""The wire protocol: two ends joined back to back, every chunking, and a table of what is refused. No trio here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appserver.codec import decode, encode
from appserver.identity import Service
from appserver.messages import (
    MAX_MESSAGE_BYTES,
    MAX_TAIL_BYTES,
    MAX_WHOLE,
    Ack,
    Attach,
    Bye,
    Ended,
    Error,
    Goodbye,
    Greeting,
    Hello,
    ManagerMessage,
    Message,
    MessageError,
    Poll,
    Previous,
    Refused,
    Run,
    Running,
    ServerMessage,
    Status,
    Stop,
    Stopping,
    Unknown,
    Watch,
)
from appserver.outcome import Account, Exited, Lost, Signaled
from appserver.protocol import (
    CLOSED,
    NEED_DATA,
    Connection,
    EndState,
    Event,
    LocalProtocolError,
    ProtocolError,
    choose_version,
)
from appserver.version import software

RUN = "0123456789abcdef" * 2
OTHER = "f" * 32
GREETING = Greeting((1,), "cmappserver 0.1.0", "mmpf121")
HELLO = Hello(1, "cmappmgr 0.1.0", "node1", 4711, 5.0)
OUTCOME = Exited(3, Account(ended_at=1.5, ran_seconds=2.0, survivors=1))

MANAGER_SAYS: list[ManagerMessage] = [
    Run(1, RUN, Service("line", ("/apps/ping_mon  -v ",), "two"), "leave", 30.0, 20),
    Run(2, RUN, Service("vector", ("/bin/sh", "-c", "exit 3 # ü", "")), "stop", 1.5, 0),
    Watch(3, RUN, "leave", 30.0, 5),
    Attach(3, RUN, Service("line", ("/apps/ping_mon  -v ",), "two"), "stop", 30.0, 5),
    Poll(MAX_WHOLE),
    Stop(4, RUN, 30.5),
    Ack(RUN),
]
SERVER_SAYS: list[ServerMessage] = [
    Running(1, RUN, "running", False, 77, 1e9, 0.5, "/var/log/cmappserver/x.log", Previous(OTHER, Signaled(9))),
    Running(1, RUN, "starting", True, None, None, None, None, None),
    Status(2, RUN, "stopping", 77, 1.0, 0.25, 4096),
    Status(2, RUN, "running", None, None, None, None),
    Stopping(4, RUN),
    Ended(None, RUN, OUTCOME, ("last line", "\x1b[31mred")),
    Ended(5, RUN, Lost("the waiter died")),
    Refused(1, "limit", "30 processes run already, which is the limit"),
    Error(None, "what?"),
]
FAREWELLS: list[Message] = [Bye(), Goodbye("shutting down")]


class Pair:
    """Two ends, joined: what one sends the other receives."""

    def __init__(self) -> None:
        self.manager = Connection("manager")
        self.server = Connection("server")

    def say(self, message: Message, *, by_server: bool) -> Event:
        speaker, hearer = (self.server, self.manager) if by_server else (self.manager, self.server)
        hearer.receive_data(speaker.send(message))
        heard = hearer.next_event()
        assert hearer.next_event() is NEED_DATA
        assert speaker.our_state is hearer.their_state
        assert speaker.their_state is hearer.our_state
        return heard

    def states(self) -> tuple[EndState, EndState]:
        assert self.manager.our_state is self.server.their_state
        assert self.server.our_state is self.manager.their_state
        return self.manager.our_state, self.server.our_state


def opened() -> Pair:
    pair = Pair()
    assert pair.say(GREETING, by_server=True) == GREETING
    assert pair.say(HELLO, by_server=False) == HELLO
    assert pair.states() == (EndState.OPEN, EndState.OPEN)
    return pair


def test_introductions_lead_both_ends_through_the_same_states() -> None:
    pair = Pair()
    assert pair.states() == (EndState.START, EndState.START)
    pair.say(GREETING, by_server=True)
    assert pair.states() == (EndState.GREETED, EndState.GREETED)
    pair.say(HELLO, by_server=False)
    assert pair.states() == (EndState.OPEN, EndState.OPEN)


@pytest.mark.parametrize("message", MANAGER_SAYS)
def test_what_a_manager_says_arrives_as_it_was(message: ManagerMessage) -> None:
    pair = opened()
    assert pair.say(message, by_server=False) == message
    assert pair.states() == (EndState.OPEN, EndState.OPEN)


@pytest.mark.parametrize("message", SERVER_SAYS)
def test_what_a_server_says_arrives_as_it_was(message: ServerMessage) -> None:
    pair = opened()
    assert pair.say(message, by_server=True) == message
    assert pair.states() == (EndState.OPEN, EndState.OPEN)


def test_after_goodbye_the_manager_may_still_speak_and_the_server_may_not() -> None:
    pair = opened()
    pair.say(Goodbye("shutting down"), by_server=True)
    assert pair.states() == (EndState.OPEN, EndState.DONE)
    assert pair.say(Poll(9), by_server=False) == Poll(9)
    with pytest.raises(LocalProtocolError, match="'status' in state DONE"):
        pair.server.send(Status(9, RUN, "running", None, None, None, None))


def test_after_bye_the_server_may_still_speak_and_the_manager_may_not() -> None:
    pair = opened()
    pair.say(Bye(), by_server=False)
    assert pair.states() == (EndState.DONE, EndState.OPEN)
    assert pair.say(Ended(None, RUN, OUTCOME), by_server=True) == Ended(None, RUN, OUTCOME)
    with pytest.raises(LocalProtocolError, match="'poll' in state DONE"):
        pair.manager.send(Poll(1))


def test_a_refusal_in_place_of_the_greeting_ends_the_conversation() -> None:
    pair = Pair()
    assert pair.say(Refused(None, "sessions", "too many"), by_server=True) == Refused(None, "sessions", "too many")
    assert pair.states() == (EndState.START, EndState.DONE)
    with pytest.raises(LocalProtocolError):
        pair.manager.send(HELLO)


@pytest.mark.parametrize("message", [*MANAGER_SAYS, Bye(), GREETING, *SERVER_SAYS])
def test_before_hello_a_manager_may_say_nothing_else(message: Message) -> None:
    pair = Pair()
    pair.say(GREETING, by_server=True)
    with pytest.raises(LocalProtocolError, match=r"in state GREETED"):
        pair.manager.send(message)
    assert pair.manager.our_state is EndState.ERROR
    with pytest.raises(LocalProtocolError, match="before"):
        pair.manager.send(HELLO)
    pair.server.receive_data(encode(message))
    with pytest.raises(ProtocolError, match="out of order"):
        pair.server.next_event()
    assert pair.server.their_state is EndState.ERROR


def test_a_server_may_send_a_last_error_after_the_peer_erred() -> None:
    pair = opened()
    pair.server.receive_data(b"garbage\n")
    with pytest.raises(ProtocolError):
        pair.server.next_event()
    assert pair.server.our_state is EndState.OPEN
    pair.manager.receive_data(pair.server.send(Error(None, "garbage")))
    assert pair.manager.next_event() == Error(None, "garbage")


def test_an_error_is_for_good() -> None:
    pair = opened()
    pair.server.receive_data(b"{}\n" + encode(Poll(1)))
    for _ in range(3):
        with pytest.raises(ProtocolError):
            pair.server.next_event()


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def run_line(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "type": "run",
        "seq": 1,
        "run": RUN,
        "service": {"form": "line", "line": "/bin/true"},
        "survivors": "leave",
        "stop_timeout_seconds": 30,
        "tail_lines": 20,
    }
    return line(**(fields | changes))


ILLEGAL = {
    "not json": b"hello\n",
    "empty line": b"\n",
    "half an object": b'{"type":"poll"\n',
    "two values": b'{"type":"bye"}{}\n',
    "not utf-8": b'{"type":"\xff"}\n',
    "utf-16": '{"type":"bye"}\n'.encode("utf-16"),
    "an array": b"[]\n",
    "a number": b"1\n",
    "null": b"null\n",
    "nested a thousand deep": b"[" * 1000 + b"]" * 1000 + b"\n",
    "nested to the brim": b'{"a":' * 10000 + b"1" + b"}" * 10000 + b"\n",
    "deep inside a field": b'{"type":"poll","seq":' + b"[" * 30000 + b"]" * 30000 + b"}\n",
    "a number of 5000 digits": b'{"type":"poll","seq":' + b"1" * 5000 + b"}\n",
    "no type": b'{"seq":1}\n',
    "type is a number": b'{"type":1}\n',
    "type is a list": b'{"type":["poll"]}\n',
    "seq missing": b'{"type":"poll"}\n',
    "seq zero": line(type="poll", seq=0),
    "seq negative": line(type="poll", seq=-1),
    "seq too large": line(type="poll", seq=2**53),
    "seq fraction": line(type="poll", seq=1.5),
    "seq true": line(type="poll", seq=True),
    "seq text": line(type="poll", seq="1"),
    "infinite": b'{"type":"stop","seq":1,"run":"%b","timeout_seconds":Infinity}\n' % RUN.encode(),
    "not a number": b'{"type":"stop","seq":1,"run":"%b","timeout_seconds":NaN}\n' % RUN.encode(),
    "too large a float": b'{"type":"stop","seq":1,"run":"%b","timeout_seconds":1e999}\n' % RUN.encode(),
    "negative seconds": line(type="stop", seq=1, run=RUN, timeout_seconds=-1),
    "run id short": line(type="ack", run=RUN[:-1]),
    "run id uppercase": line(type="ack", run=RUN.upper()),
    "run id a path": line(type="ack", run="../" + RUN[3:]),
    "run id missing": line(type="ack"),
    "service missing": run_line(service=None),
    "service a text": run_line(service="/bin/true"),
    "service of no form": run_line(service={"line": "/bin/true"}),
    "service of odd form": run_line(service={"form": "shell", "line": "x"}),
    "service blank": run_line(service={"form": "line", "line": "  "}),
    "service with NUL": run_line(service={"form": "line", "line": "/bin/true\0"}),
    "service no unicode": run_line(service={"form": "line", "line": "/bin/\udc80"}),
    "vector empty": run_line(service={"form": "vector", "argv": []}),
    "vector a text": run_line(service={"form": "vector", "argv": "/bin/true"}),
    "vector of numbers": run_line(service={"form": "vector", "argv": ["/bin/true", 1]}),
    "instance a number": run_line(instance=1),
    "instance with NUL": run_line(instance="a\0"),
    "survivors odd": run_line(survivors="keep"),
    "tail negative": run_line(tail_lines=-1),
    "tail huge": run_line(tail_lines=10**6),
    "a greeting by the manager": encode(GREETING),
    "a second hello": encode(HELLO),
    "too long": b'{"type":"bye","x":"' + b"a" * MAX_MESSAGE_BYTES + b'"}\n',
    "too long and no end": b"a" * MAX_MESSAGE_BYTES,
}


@pytest.mark.parametrize("data", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_a_server_refuses_what_breaks_the_rules(data: bytes) -> None:
    pair = opened()
    pair.server.receive_data(data)
    with pytest.raises(ProtocolError, match="the manager"):
        pair.server.next_event()
    assert (pair.server.their_state, pair.server.our_state) == (EndState.ERROR, EndState.OPEN)


ILLEGAL_FROM_SERVER = {
    "outcome missing": line(type="ended", run=RUN),
    "outcome odd": line(type="ended", run=RUN, outcome={"kind": "fine"}),
    "outcome without code": line(type="ended", run=RUN, outcome={"kind": "exited"}),
    "outcome with a huge number": line(
        type="ended", run=RUN, outcome={"kind": "exited", "code": 0, "ran_seconds": 10**400}
    ),
    "tail a text": line(type="ended", run=RUN, outcome={"kind": "exited", "code": 0}, tail="x"),
    "state odd": line(type="status", re=1, run=RUN, state="gone"),
    "attached missing": line(type="running", re=1, run=RUN, state="running"),
    "pid zero": line(type="status", re=1, run=RUN, state="running", pid=0),
    "previous odd": line(type="running", re=1, run=RUN, state="running", attached=True, previous=[RUN]),
    "refusal without text": line(type="refused", re=1, code="limit"),
    "a second greeting": encode(GREETING),
    "a poll by the server": encode(Poll(1)),
}


@pytest.mark.parametrize("data", ILLEGAL_FROM_SERVER.values(), ids=ILLEGAL_FROM_SERVER.keys())
def test_a_manager_refuses_what_breaks_the_rules(data: bytes) -> None:
    pair = opened()
    pair.manager.receive_data(data)
    with pytest.raises(ProtocolError, match="the server"):
        pair.manager.next_event()


@pytest.mark.parametrize("versions", [None, 1, [0], ["1"], [[1]], list(range(1, 200))])
def test_a_greeting_with_odd_versions_is_refused(versions: object) -> None:
    manager = Connection("manager")
    manager.receive_data(line(type="greeting", versions=versions, software="x", host="y"))
    with pytest.raises(ProtocolError, match="versions"):
        manager.next_event()


def test_unknown_fields_are_ignored_and_absent_ones_are_null() -> None:
    pair = opened()
    pair.manager.receive_data(line(type="status", re=1, run=RUN, state="running", mood={"good": True}))
    assert pair.manager.next_event() == Status(1, RUN, "running", None, None, None, None)


def test_an_unknown_type_is_told_with_its_number_and_the_session_goes_on() -> None:
    pair = opened()
    pair.server.receive_data(line(type="dance", seq=8) + line(type="sing", seq="no") + encode(Poll(9)))
    assert pair.server.next_event() == Unknown("dance", 8)
    assert pair.server.next_event() == Unknown("sing", None)
    assert pair.server.next_event() == Poll(9)


def test_an_unknown_type_before_hello_is_out_of_order() -> None:
    pair = Pair()
    pair.say(GREETING, by_server=True)
    pair.server.receive_data(line(type="dance", seq=8))
    with pytest.raises(ProtocolError, match="'dance'"):
        pair.server.next_event()


def test_the_end_of_the_stream_is_told_again_and_again() -> None:
    pair = opened()
    pair.server.receive_data(encode(Bye()))
    pair.server.receive_data(b"")
    assert pair.server.next_event() == Bye()
    assert pair.server.next_event() is CLOSED
    assert pair.server.next_event() is CLOSED


def test_half_a_message_at_the_end_of_the_stream_is_the_peers_error() -> None:
    pair = opened()
    pair.server.receive_data(encode(Poll(1)) + encode(Poll(2))[:-1])
    pair.server.receive_data(b"")
    assert pair.server.next_event() == Poll(1)
    with pytest.raises(ProtocolError, match="only the first"):
        pair.server.next_event()


def padded(length: int) -> bytes:
    start, end = b'{"type":"poll","seq":1,"x":"', b'"}\n'
    return start + b"a" * (length - len(start) - len(end)) + end


def test_the_bound_is_on_the_message_and_not_on_the_sum() -> None:
    pair = opened()
    pair.server.receive_data(padded(MAX_MESSAGE_BYTES) * 3)
    assert [pair.server.next_event() for _ in range(4)] == [Poll(1), Poll(1), Poll(1), NEED_DATA]
    pair.server.receive_data(padded(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ProtocolError, match="more than 65536"):
        pair.server.next_event()


def test_a_message_without_end_is_refused_as_soon_as_it_is_too_long() -> None:
    pair = opened()
    pair.server.receive_data(b" " * (MAX_MESSAGE_BYTES - 1))
    assert pair.server.next_event() is NEED_DATA
    pair.server.receive_data(b" ")
    with pytest.raises(ProtocolError, match="more than"):
        pair.server.next_event()


@given(st.data())
def test_chunks_do_not_matter(data: st.DataObject) -> None:
    said: list[Message] = data.draw(st.lists(st.sampled_from(MANAGER_SAYS), max_size=8))
    whole = encode(HELLO) + b"".join(encode(message) for message in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    server = Connection("server")
    server.send(GREETING)
    heard: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        if start < end:
            server.receive_data(whole[start:end])
        while (event := server.next_event()) is not NEED_DATA:
            heard.append(event)
    assert heard == [HELLO, *said]


def test_one_byte_at_a_time_is_read_in_linear_time() -> None:
    server = opened().server
    found = None
    for byte in padded(MAX_MESSAGE_BYTES):
        server.receive_data(bytes([byte]))
        found = server.next_event()
    assert found == Poll(1)


@given(st.binary(max_size=300))
def test_whatever_arrives_gives_events_or_a_protocol_error(data: bytes) -> None:
    server = opened().server
    server.receive_data(data)
    server.receive_data(b"")
    try:
        while server.next_event() is not CLOSED:
            pass
    except ProtocolError:
        assert server.their_state is EndState.ERROR


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*MANAGER_SAYS, *SERVER_SAYS, GREETING, HELLO]), st.data())
def test_any_value_in_any_field_is_taken_or_refused_but_never_a_surprise(message: Message, data: st.DataObject) -> None:
    fields = json.loads(encode(message))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_values)
    try:
        found = decode(json.dumps(fields).encode())
    except MessageError:
        return
    if not isinstance(found, Unknown):
        assert decode(encode(found)) == found


@pytest.mark.parametrize(
    "message",
    [
        Run(1, "no id", Service("line", ("x",)), "leave", 30.0, 0),
        Run(1, RUN, Service("line", ("x" * MAX_MESSAGE_BYTES,)), "leave", 30.0, 0),
        Run(1, RUN, Service("vector", ("/bin/echo", *["ü"] * MAX_MESSAGE_BYTES)), "leave", 30.0, 0),
        Stop(1, RUN, float("nan")),
        Stop(1, RUN, float("inf")),
        Poll(0),
    ],
)
def test_a_value_that_no_message_can_hold_is_found_before_it_is_sent(message: ManagerMessage) -> None:
    pair = opened()
    with pytest.raises(MessageError):
        pair.manager.send(message)
    assert pair.say(Poll(1), by_server=False) == Poll(1)


def test_text_with_odd_bytes_is_escaped_on_its_way() -> None:
    pair = opened()
    heard = pair.say(Refused(1, "rule", "no such file: /x\udcff"), by_server=True)
    assert heard == Refused(1, "rule", "no such file: /x\\udcff")
    heard = pair.say(Ended(None, RUN, Lost("\udc80"), ("a\udc80b",)), by_server=True)
    assert heard == Ended(None, RUN, Lost("\\udc80"), ("a\\udc80b",))


@pytest.mark.parametrize("character", ["\0", '"', "ü", "\x1b", "\U0001f600"])
def test_the_largest_tail_fits_whatever_it_holds(character: str) -> None:
    count = MAX_TAIL_BYTES // len(character.encode())
    ended = Ended(None, RUN, Lost("x" * 5000), (character * count,))
    assert decode(encode(ended)) == ended


def test_the_highest_common_version_is_chosen() -> None:
    assert choose_version((1, 2, 3)) == 1
    assert choose_version((2, 3)) is None
    assert choose_version(()) is None


def test_the_transcript_in_the_documentation_is_a_legal_conversation() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
    said = re.findall(r"^    ([SM]) (\{.*\})$", page.partition("<!-- transcript -->")[2], re.MULTILINE)
    ends = {"S": Connection("manager"), "M": Connection("server")}
    heard: list[Event] = []
    for speaker, text in said:
        hearer, other = ends[speaker], ends["M" if speaker == "S" else "S"]
        hearer.receive_data(text.encode() + b"\n")
        event = hearer.next_event()
        heard.append(event)
        if not isinstance(event, Unknown):
            assert isinstance(event, Message)
            other.send(event)
    assert len(heard) == 14
    assert heard[7] == Unknown("dance", 3)
    assert heard[-1] == Bye()
    programs = re.findall(r'"software":"([^"]+)"', page)
    assert programs == [software("cmappserver"), software("cmappmgr")], "name this release in the transcript"

"""What a message's fields may hold, to the last value, and what is said of one that they may not."""

from __future__ import annotations

import json

import pytest

from appserver.codec import decode, encode
from appserver.identity import Service
from appserver.messages import (
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    MAX_TAIL_LINES,
    MAX_TEXT_CHARACTERS,
    MAX_VERSIONS,
    MAX_WHOLE,
    Ended,
    Error,
    Greeting,
    Hello,
    MessageError,
    Poll,
    Previous,
    Refused,
    Run,
    Running,
    Status,
    Stop,
    Unknown,
)
from appserver.outcome import Account, Exited, Lost

RUN = "0123456789abcdef" * 2
LINE = {"form": "line", "line": "/bin/true"}
VECTOR = {"form": "vector", "argv": ["/bin/true"]}
EXITED = {"kind": "exited", "code": 0}

WHOLE: dict[str, dict[str, object]] = {
    "greeting": {"versions": [1], "software": "s", "host": "h"},
    "hello": {"version": 1, "software": "s", "host": "h", "pid": 1, "poll_seconds": 5},
    "run": {"seq": 1, "run": RUN, "service": LINE, "survivors": "leave", "stop_timeout_seconds": 1, "tail_lines": 0},
    "watch": {"seq": 1, "run": RUN, "survivors": "leave", "stop_timeout_seconds": 1, "tail_lines": 0},
    "poll": {"seq": 1},
    "stop": {"seq": 1, "run": RUN, "timeout_seconds": 1},
    "ack": {"run": RUN},
    "running": {"re": 1, "run": RUN, "state": "running", "attached": True},
    "status": {"re": 1, "run": RUN, "state": "running"},
    "stopping": {"re": 1, "run": RUN},
    "ended": {"run": RUN, "outcome": EXITED},
    "refused": {"code": "c", "text": "t"},
    "error": {"text": "t"},
    "goodbye": {"reason": "r"},
}
"""One of each type with nothing but what it must have."""

A_WHOLE = f"a whole number from 1 to {MAX_WHOLE}"
A_SECONDS = f"seconds from 0 to {MAX_SECONDS:.0f}"
A_NAME = f"a text of at most {MAX_NAME_CHARACTERS} characters"
A_TEXT = f"a text of at most {MAX_TEXT_CHARACTERS} characters"
SOME_LINES = f"a list of at most {MAX_TAIL_LINES} texts"
SOME_VERSIONS = f"a list of at most {MAX_VERSIONS} whole numbers"


def read(type_name: str, **changes: object) -> object:
    return decode(json.dumps({"type": type_name, **WHOLE[type_name], **changes}).encode())


@pytest.mark.parametrize("type_name", WHOLE)
def test_a_message_needs_no_more_than_what_it_must_have(type_name: str) -> None:
    assert read(type_name)


MUST_HAVE = [
    (type_name, field)
    for type_name, fields in WHOLE.items()
    for field in fields
    if (type_name, field) != ("ended", "outcome")
]


@pytest.mark.parametrize(("type_name", "field"), MUST_HAVE)
def test_a_field_that_is_missing_is_named(type_name: str, field: str) -> None:
    with pytest.raises(MessageError, match=rf"^{type_name}: {field} must be .*, not None$"):
        read(type_name, **{field: None})


WRONG = [
    ("poll", {"seq": 0}, f"poll: seq must be {A_WHOLE}, not 0"),
    ("poll", {"seq": True}, f"poll: seq must be {A_WHOLE}, not True"),
    ("poll", {"seq": MAX_WHOLE + 1}, f"poll: seq must be {A_WHOLE}, not {MAX_WHOLE + 1}"),
    ("hello", {"version": 0}, f"hello: version must be {A_WHOLE}, not 0"),
    ("hello", {"pid": 0}, f"hello: pid must be {A_WHOLE}, not 0"),
    ("hello", {"poll_seconds": -1}, f"hello: poll_seconds must be {A_SECONDS}, not -1"),
    ("hello", {"poll_seconds": "5"}, "hello: poll_seconds must be a finite number, not '5'"),
    ("hello", {"poll_seconds": True}, "hello: poll_seconds must be a finite number, not True"),
    ("stop", {"timeout_seconds": MAX_SECONDS + 1}, f"stop: timeout_seconds must be {A_SECONDS}, not {MAX_SECONDS + 1}"),
    ("stop", {"timeout_seconds": 2 * MAX_WHOLE}, f"stop: timeout_seconds must be a finite number, not {2 * MAX_WHOLE}"),
    ("stop", {"run": "x"}, "stop: run must be 32 lowercase hexadecimal digits, not 'x'"),
    ("stop", {"run": 7}, f"stop: run must be {A_TEXT}, not 7"),
    ("run", {"survivors": "keep"}, "run: survivors must be leave or stop, not 'keep'"),
    (
        "run",
        {"tail_lines": MAX_TAIL_LINES + 1},
        f"run: tail_lines must be a whole number from 0 to {MAX_TAIL_LINES}, not {MAX_TAIL_LINES + 1}",
    ),
    ("run", {"service": "x"}, "run: service must be an object, not 'x'"),
    ("run", {"service": {**LINE, "form": "shell"}}, "run.service: form must be line or vector, not 'shell'"),
    (
        "run",
        {"service": {**LINE, "line": 1}},
        f"run.service: line must be a text of at most {MAX_MESSAGE_BYTES} characters, not 1",
    ),
    ("run", {"service": {**VECTOR, "argv": "x"}}, "run.service: argv must be a list of texts, not 'x'"),
    (
        "run",
        {"service": {**VECTOR, "argv": ["x", 1]}},
        f"run.service: argv must be a text of at most {MAX_MESSAGE_BYTES} characters, not 1",
    ),
    ("run", {"instance": 1}, f"run: instance must be {A_NAME}, not 1"),
    ("status", {"state": "gone"}, "status: state must be starting, running or stopping, not 'gone'"),
    ("status", {"pid": 0}, f"status: pid must be {A_WHOLE}, not 0"),
    ("status", {"rss_bytes": -1}, f"status: rss_bytes must be a whole number from 0 to {MAX_WHOLE}, not -1"),
    ("status", {"cpu_seconds": "1"}, "status: cpu_seconds must be a finite number, not '1'"),
    ("status", {"ran_seconds": "1"}, "status: ran_seconds must be a finite number, not '1'"),
    ("running", {"attached": 1}, "running: attached must be true or false, not 1"),
    ("running", {"pid": 0}, f"running: pid must be {A_WHOLE}, not 0"),
    ("running", {"started_at": "x"}, "running: started_at must be a finite number, not 'x'"),
    ("running", {"ran_seconds": "x"}, "running: ran_seconds must be a finite number, not 'x'"),
    ("running", {"log": 1}, f"running: log must be {A_TEXT}, not 1"),
    ("running", {"previous": [1]}, "running: previous must be an object, not [1]"),
    (
        "running",
        {"previous": {"run": "x", "outcome": EXITED}},
        "running.previous: run must be 32 lowercase hexadecimal digits, not 'x'",
    ),
    ("ended", {"tail": "x"}, f"ended: tail must be {SOME_LINES}, not 'x'"),
    ("ended", {"tail": [1]}, f"ended: tail must be {A_TEXT}, not 1"),
    ("ended", {"tail": [""] * (MAX_TAIL_LINES + 1)}, None),
    ("ended", {"re": 0}, f"ended: re must be {A_WHOLE}, not 0"),
    ("greeting", {"versions": 1}, f"greeting: versions must be {SOME_VERSIONS}, not 1"),
    ("greeting", {"versions": [0]}, f"greeting: versions must be {A_WHOLE}, not 0"),
    ("greeting", {"versions": [1] * (MAX_VERSIONS + 1)}, None),
    ("greeting", {"software": "x" * (MAX_NAME_CHARACTERS + 1)}, None),
    ("refused", {"re": 0}, f"refused: re must be {A_WHOLE}, not 0"),
    ("refused", {"code": 1}, f"refused: code must be {A_NAME}, not 1"),
    ("refused", {"text": 1}, f"refused: text must be {A_TEXT}, not 1"),
    ("error", {"re": 0}, f"error: re must be {A_WHOLE}, not 0"),
    ("error", {"text": "x" * (MAX_TEXT_CHARACTERS + 1)}, None),
    ("goodbye", {"reason": 1}, f"goodbye: reason must be {A_TEXT}, not 1"),
]


@pytest.mark.parametrize(("type_name", "changes", "text"), WRONG)
def test_a_field_that_may_not_be_so_is_named_with_what_it_must_be(
    type_name: str, changes: dict[str, object], text: str | None
) -> None:
    with pytest.raises(MessageError) as caught:
        read(type_name, **changes)
    if text is not None:
        assert str(caught.value) == text
    assert len(str(caught.value)) < 250  # however long the value is


@pytest.mark.parametrize(
    ("type_name", "changes"),
    [
        ("poll", {"seq": MAX_WHOLE}),
        ("hello", {"poll_seconds": 0}),
        ("hello", {"software": "x" * MAX_NAME_CHARACTERS, "host": "x" * MAX_NAME_CHARACTERS}),
        ("stop", {"timeout_seconds": MAX_SECONDS}),
        ("run", {"tail_lines": MAX_TAIL_LINES, "survivors": "stop", "instance": "x" * MAX_NAME_CHARACTERS}),
        ("status", {"rss_bytes": 0, "cpu_seconds": -MAX_WHOLE, "ran_seconds": MAX_WHOLE, "pid": 1}),
        ("status", {"state": "starting"}),
        ("status", {"state": "stopping"}),
        ("ended", {"tail": [""] * MAX_TAIL_LINES}),
        ("ended", {"outcome": {**EXITED, "ended_at": MAX_WHOLE, "ran_seconds": MAX_WHOLE}}),
        ("greeting", {"versions": [1] * MAX_VERSIONS}),
        ("greeting", {"versions": []}),
        ("error", {"text": "x" * MAX_TEXT_CHARACTERS}),
    ],
)
def test_the_last_value_that_is_allowed_is_allowed(type_name: str, changes: dict[str, object]) -> None:
    assert read(type_name, **changes)


@pytest.mark.parametrize("name", ["ended_at", "ran_seconds", "user_seconds", "system_seconds"])
def test_an_outcome_holds_finite_numbers_only(name: str) -> None:
    with pytest.raises(MessageError, match="^ended: outcome must be an outcome with finite numbers, not {'kind"):
        read("ended", outcome={**EXITED, name: MAX_WHOLE + 2})


def test_what_no_outcome_or_service_can_be_is_said_in_their_words() -> None:
    with pytest.raises(MessageError, match=r"^ended: .*outcome"):
        read("ended", outcome=None)
    with pytest.raises(MessageError, match=r"^running\.previous: .*outcome"):
        read("running", previous={"run": RUN, "outcome": 1})
    with pytest.raises(MessageError, match=r"^run: .*service"):
        read("run", service={"form": "line", "line": " "})


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"[]", "^a message must be an object, not list$"),
        (b'{"seq":1}', "^a message must have a type, which is a text$"),
        (b"{", "^a message that is not JSON in UTF-8: expecting property name"),
        (b'{"type":"\xff"}', "^a message that is not JSON in UTF-8: .*invalid start byte$"),
        (b'{"type":"poll","seq":NaN}', "^a message that is not JSON in UTF-8: nan is not a json number$"),
        (b'{"a":' * 20000, "^a message that is nested too deep$"),
    ],
)
def test_what_is_no_message_is_told_in_words(line: bytes, text: str) -> None:
    with pytest.raises(MessageError, match=text):
        decode(line)


def test_a_type_that_is_not_known_is_told_and_cut() -> None:
    assert decode(b'{"type":"dance","seq":1}') == Unknown("dance", 1)
    assert decode(b'{"type":"dance","seq":0}') == Unknown("dance", None)
    assert decode(b'{"type":"dance"}') == Unknown("dance", None)
    long = json.dumps({"type": "x" * (MAX_NAME_CHARACTERS + 1)}).encode()
    assert decode(long) == Unknown("x" * MAX_NAME_CHARACTERS, None)
    assert decode(b'{"type":"\\udc80","seq":2}') == Unknown("\\udc80", 2)


def test_lines_are_as_short_as_json_can_be_and_hold_text_as_it_is() -> None:
    assert encode(Poll(7)) == b'{"type":"poll","seq":7}\n'
    assert encode(Error(None, "Grüße")) == '{"type":"error","re":null,"text":"Grüße"}\n'.encode()
    assert encode(Stop(1, RUN, 2.5)) == b'{"type":"stop","seq":1,"run":"%b","timeout_seconds":2.5}\n' % RUN.encode()
    assert json.loads(encode(Hello(1, "s", "h", 2, 3.0))) == {
        "type": "hello",
        **WHOLE["hello"],
        "pid": 2,
        "poll_seconds": 3,
    }


def test_a_service_is_written_by_its_form_and_its_instance_beside_it() -> None:
    line = json.loads(encode(Run(1, RUN, Service("line", ("/bin/true -x",), "two"), "stop", 1.0, 5)))
    assert (line["service"], line["instance"]) == ({"form": "line", "line": "/bin/true -x"}, "two")
    vector = json.loads(encode(Run(1, RUN, Service("vector", ("/bin/sh", "-c", "a b")), "stop", 1.0, 5)))
    assert (vector["service"], vector["instance"]) == ({"form": "vector", "argv": ["/bin/sh", "-c", "a b"]}, None)


def test_what_a_peer_must_have_is_written_down_with_every_part() -> None:
    outcome = Exited(3, Account(ended_at=1.0, stopped_by="x\udcff"))
    running = json.loads(encode(Running(1, RUN, "running", True, 7, 1.0, 2.0, "/l", Previous(RUN, outcome))))
    assert running["previous"]["run"] == RUN
    assert running["previous"]["outcome"]["stopped_by"] == "x\\udcff"
    ended = json.loads(encode(Ended(None, RUN, Lost("why"), ("a", "b"))))
    assert (ended["re"], ended["tail"], ended["outcome"]["kind"]) == (None, ["a", "b"], "lost")


def test_every_optional_field_arrives() -> None:
    running = Running(1, RUN, "running", True, 7, 1.0, 2.0, "/l", Previous(RUN, Exited(3)))
    assert decode(encode(running)) == running
    ended = Ended(5, RUN, Exited(3), ("a",), Previous(RUN, Exited(4)))
    assert decode(encode(ended)) == ended
    status = Status(1, RUN, "starting", 7, 1.0, 2.0, 3)
    assert decode(encode(status)) == status
    assert decode(encode(Refused(5, "limit", "why"))) == Refused(5, "limit", "why")
    assert decode(encode(Greeting((1, 2), "s", "h"))) == Greeting((1, 2), "s", "h")


def test_a_line_of_exactly_the_bound_is_made_and_one_byte_more_is_not() -> None:
    length = MAX_MESSAGE_BYTES - len(encode(Run(1, RUN, Service("line", ("/",)), "leave", 30.0, 0))) + 1
    fits = Run(1, RUN, Service("line", ("/" * length,)), "leave", 30.0, 0)
    assert len(encode(fits)) == MAX_MESSAGE_BYTES
    assert decode(encode(fits)) == fits
    with pytest.raises(MessageError, match=f"^a run of {MAX_MESSAGE_BYTES + 1} bytes: a message holds at most"):
        encode(Run(1, RUN, Service("line", ("/" * (length + 1),)), "leave", 30.0, 0))

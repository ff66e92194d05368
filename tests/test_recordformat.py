"""How a record looks on disk, byte by byte: what another release wrote is read, and what is wrong is named."""

from __future__ import annotations

import binascii
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from appserver.attributes import PLAIN, Attributes, Limit
from appserver.identity import Service
from appserver.outcome import Account, Exited, Lost, Signaled
from appserver.recordformat import (
    FORMAT,
    MAX_NAME_BYTES,
    MAX_REASON_BYTES,
    SLOT_BYTES,
    DamagedRecordError,
    ForeignRecordError,
    RecordError,
    Request,
    State,
    StopOrder,
    UnreadableRecordError,
    newest,
    request_from_json,
    request_to_json,
    seal,
    slot,
    state_from_json,
    state_to_json,
    unseal,
)
from appserver.records import Records, StateFile

RUN = "0123456789abcdef" * 2
REQUEST = Request(
    run_id=RUN,
    service=Service("vector", ("/bin/a", "b"), "x"),
    executable="/bin/a",
    argv=("a", "b"),
    log_path="/log",
    log_max_bytes=10,
    boot="boot",
    requested_at=1.5,
    serial=7,
    program="/usr/bin/a",
    owner="AB",
    asked_by="somebody",
    user="app",
    attributes=Attributes(directory="/srv", limits=(Limit("nofile", 1, 2),)),
)
REQUEST_ON_DISK: dict[str, object] = {
    "format": 1,
    "run": RUN,
    "form": "vector",
    "words": ["/bin/a", "b"],
    "instance": "x",
    "executable": "/bin/a",
    "argv": ["a", "b"],
    "log": "/log",
    "log_max_bytes": 10,
    "boot": "boot",
    "requested_at": 1.5,
    "serial": 7,
    "program": "/usr/bin/a",
    "owner": "AB",
    "asked_by": "somebody",
    "user": "app",
    "attributes": {"account": None, "directory": "/srv", "environment": [], "limits": [["nofile", 1, 2]]},
}
ADDED_LATER = ("serial", "program", "owner", "asked_by", "user", "attributes")
"""Fields of a request that the first release did not write."""

STATE = State(
    phase="ended",
    pid=7,
    start_ticks=8,
    started_at=1.5,
    started_monotonic=2.5,
    oom_kills=3,
    survivors="stop",
    stop_timeout_seconds=4.5,
    stop=StopOrder("somebody", 9.5),
    outcome=Exited(3, Account(survivors=1)),
    failure=("start-failed", "why"),
    gone=True,
    boot="boot",
    service_digest="digest",
)
STATE_ON_DISK: dict[str, object] = {
    "phase": "ended",
    "pid": 7,
    "start_ticks": 8,
    "started_at": 1.5,
    "started_monotonic": 2.5,
    "oom_kills": 3,
    "survivors": "stop",
    "stop_timeout_seconds": 4.5,
    "gone": True,
    "boot": "boot",
    "service_digest": "digest",
    "stop": {"by": "somebody", "kill_at": 9.5},
    "failure": ["start-failed", "why"],
}
OPTIONAL = ("boot", "service_digest", "stop", "failure", "outcome")


def plain(value: dict[str, object]) -> dict[str, object]:
    """As it comes back from a file."""
    return unseal(seal({"format": FORMAT, **value}))


def test_a_request_has_these_fields_on_disk() -> None:
    assert plain(request_to_json(REQUEST)) == REQUEST_ON_DISK
    assert request_from_json(REQUEST_ON_DISK) == REQUEST


def test_a_request_of_the_first_release_is_read() -> None:
    first = {name: value for name, value in REQUEST_ON_DISK.items() if name not in ADDED_LATER}
    assert request_from_json(first) == replace(
        REQUEST, serial=0, program=None, owner="", asked_by="", user=None, attributes=PLAIN
    )


def test_odd_values_in_what_was_added_later_are_taken_for_none() -> None:
    odd = request_from_json({**REQUEST_ON_DISK, "serial": "7", "owner": None, "asked_by": None, "program": None})
    assert (odd.serial, odd.owner, odd.asked_by, odd.program, odd.user) == (0, "", "", None, "app")


@pytest.mark.parametrize("field", [name for name in REQUEST_ON_DISK if name not in {*ADDED_LATER, "format"}])
def test_a_request_without_a_field_is_damaged(field: str) -> None:
    short = {name: value for name, value in REQUEST_ON_DISK.items() if name != field}
    with pytest.raises(DamagedRecordError, match="^the request lacks a field$"):
        request_from_json(short)


def test_a_request_of_no_service_or_with_odd_attributes_is_damaged() -> None:
    with pytest.raises(DamagedRecordError, match=f"^the request of run {RUN} names no service: the service is empty"):
        request_from_json({**REQUEST_ON_DISK, "words": []})
    with pytest.raises(DamagedRecordError, match="^the attributes of the process lack a field$"):
        request_from_json({**REQUEST_ON_DISK, "attributes": {}})


def test_a_state_has_these_fields_on_disk() -> None:
    value = plain(state_to_json(STATE))
    assert {name: value[name] for name in value if name not in {"format", "outcome"}} == STATE_ON_DISK
    assert state_from_json(value) == STATE


def test_a_state_has_what_is_not_known_left_out_or_null() -> None:
    value = state_to_json(State())
    assert value == {
        "phase": "starting",
        "pid": None,
        "start_ticks": None,
        "started_at": None,
        "started_monotonic": None,
        "oom_kills": 0,
        "survivors": "leave",
        "stop_timeout_seconds": 30.0,
        "gone": False,
    }
    assert state_from_json(value) == State()


@pytest.mark.parametrize("field", [name for name in STATE_ON_DISK if name not in OPTIONAL])
def test_a_state_without_a_field_is_damaged(field: str) -> None:
    short = {name: value for name, value in STATE_ON_DISK.items() if name != field}
    with pytest.raises(DamagedRecordError, match="^the state lacks a field$"):
        state_from_json(short)


@pytest.mark.parametrize("phase", ["starting", "running", "ended", "failed"])
def test_every_phase_is_read(phase: str) -> None:
    assert state_from_json({**STATE_ON_DISK, "phase": phase}).phase == phase


def test_odd_values_in_optional_fields_are_taken_for_none_but_an_odd_outcome_is_damage() -> None:
    odd = state_from_json({**STATE_ON_DISK, "boot": 1, "service_digest": 1, "stop": {"by": "x"}, "failure": ["x"]})
    assert (odd.boot, odd.service_digest, odd.stop, odd.failure) == (None, None, None, None)
    assert state_from_json({**STATE_ON_DISK, "stop": {"by": "x", "kill_at": 3}}).stop == StopOrder("x", 3)
    with pytest.raises(DamagedRecordError, match="outcome"):
        state_from_json({**STATE_ON_DISK, "outcome": None})


def test_a_line_is_its_checksum_and_the_shortest_json() -> None:
    body = '{"format":1,"text":"ü","list":[1,2]}'.encode()
    assert seal({"format": 1, "text": "ü", "list": [1, 2]}) == b"%08x " % binascii.crc32(body) + body + b"\n"


def sealed(body: bytes) -> bytes:
    return b"%08x %s\n" % (binascii.crc32(body), body)


def test_a_checksum_has_eight_digits_whatever_it_is() -> None:
    number = next(n for n in range(10_000) if binascii.crc32(json.dumps({"format": 1, "n": n}).encode()) < 1 << 28)
    body = json.dumps({"format": 1, "n": number}).encode()
    assert unseal(sealed(body)) == {"format": 1, "n": number}
    assert sealed(body)[:1] == b"0"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (sealed(b'{"format":1}')[:-1], "^the record is torn: its checksum does not match$"),
        (b"x" + sealed(b'{"format":1}'), "^the record is torn: its checksum does not match$"),
        (b"", "^the record is torn"),
        (sealed(b"{"), "^the record is not JSON: Expecting property name"),
        (sealed(b"[]"), "^the record has another format than 1$"),
        (sealed(b"{}"), "^the record has another format than 1$"),
        (sealed(b'{"format":0}'), "^the record has another format than 1$"),
        (sealed(b'{"format":"2"}'), "^the record has another format than 1$"),
    ],
)
def test_a_line_that_is_no_record_says_why(data: bytes, text: str) -> None:
    with pytest.raises(DamagedRecordError, match=text) as caught:
        unseal(data)
    assert not isinstance(caught.value, ForeignRecordError)


def test_what_follows_the_line_does_not_matter_and_blanks_in_it_do_not_part_it() -> None:
    assert unseal(sealed(b'{"format":1,"text":"a b"}') + b"\0 more\n") == {"format": 1, "text": "a b"}


def test_a_newer_format_is_told_apart() -> None:
    with pytest.raises(ForeignRecordError, match="^the record has format 2, of a newer server; this one knows 1$"):
        unseal(sealed(b'{"format":2}'))


def test_a_slot_is_a_page_with_its_number_and_nothing_after_the_line() -> None:
    data = slot(5, STATE)
    line, end, rest = data.partition(b"\n")
    assert (len(data), end, rest.strip(b"\0")) == (SLOT_BYTES, b"\n", b"")
    assert unseal(line + end)["sequence"] == 5
    with pytest.raises(RecordError, match=r"^a state of \d+ bytes does not fit into a slot of 4096$"):
        slot(1, replace(STATE, boot="x" * SLOT_BYTES))
    room = SLOT_BYTES - len(data.rstrip(b"\0"))
    assert STATE.boot is not None
    full = replace(STATE, boot=STATE.boot + "x" * room)
    assert newest(slot(5, full)) == (5, full)
    with pytest.raises(RecordError):
        slot(5, replace(full, boot=f"{full.boot}x"))


def test_the_slot_with_the_higher_number_counts_wherever_it_lies() -> None:
    older, newer = slot(8, State()), slot(9, STATE)
    assert newest(older + newer) == (9, STATE)
    assert newest(newer + older) == (9, STATE)
    assert newest(older + b"\0" * SLOT_BYTES) == (8, State())
    assert newest(b"\0" * SLOT_BYTES + older) == (8, State())
    assert newest(slot(9, State()) + newer) == (9, State())  # two alike: the first
    with pytest.raises(DamagedRecordError, match="^neither slot of the state is whole$"):
        newest(b"\0" * 2 * SLOT_BYTES)
    with pytest.raises(DamagedRecordError, match="^neither slot"):
        newest(seal({"format": FORMAT, "sequence": "1", **state_to_json(State())}))


def test_long_texts_are_cut_to_their_bounds_and_short_ones_are_not() -> None:
    exact = StopOrder("x" * (MAX_NAME_BYTES - 2), 1.0)  # and two quotes
    assert state_from_json(plain(state_to_json(replace(STATE, stop=exact)))).stop == exact
    cut = state_from_json(plain(state_to_json(replace(STATE, stop=StopOrder("x" * (MAX_NAME_BYTES - 1), 1.0))))).stop
    assert cut == StopOrder("x" * ((MAX_NAME_BYTES - 1) * 3 // 4), 1.0)
    long = replace(STATE, failure=("code", "x" * MAX_REASON_BYTES))
    assert state_from_json(plain(state_to_json(long))).failure == ("code", "x" * (MAX_REASON_BYTES * 3 // 4))


def test_an_outcomes_texts_are_cut_and_the_rest_of_it_stays() -> None:
    account = Account(stopped_by="y" * MAX_NAME_BYTES, survivors=2)
    kept = plain(state_to_json(replace(STATE, outcome=Lost("\x01" * 5000, account))))["outcome"]
    assert isinstance(kept, dict)
    assert set(kept["reason"]) == {"\x01"}
    assert MAX_REASON_BYTES // 2 < len(json.dumps(kept["reason"])) <= MAX_REASON_BYTES
    assert (kept["stopped_by"], kept["survivors"]) == ("y" * (MAX_NAME_BYTES * 3 // 4), 2)
    signaled = Signaled(9, Account(stopped_by="ü" * MAX_NAME_BYTES))
    by = state_from_json(plain(state_to_json(replace(STATE, outcome=signaled)))).outcome
    assert isinstance(by, Signaled)
    assert by.account.stopped_by is not None
    assert len(by.account.stopped_by.encode()) + 2 <= MAX_NAME_BYTES
    assert set(by.account.stopped_by) == {"ü"}


# The files.


def made(path: Path) -> Records:
    records = Records(str(path))
    records.prepare()
    return records


def test_a_record_has_these_files_from_its_making(tmp_path: Path) -> None:
    record = made(tmp_path).create(REQUEST, STATE)
    content = {name: (Path(record.path) / name).read_bytes() for name in os.listdir(record.path)}
    assert content == {
        "request": seal(request_to_json(REQUEST)),
        "state": slot(0, STATE) + slot(1, STATE),
        "collected": b"0",
        "lock": b"",
    }
    assert (record.run_id, record.path) == (RUN, str(tmp_path / "runs" / RUN))
    assert not record.is_collected()
    record.mark_collected()
    assert (Path(record.path) / "collected").read_bytes() == b"1"


def test_states_go_over_the_older_slot_in_turns(tmp_path: Path) -> None:
    record = made(tmp_path).create(REQUEST, State())
    file = StateFile(record)
    for number, pid in enumerate((1, 2, 3), 2):
        file.write(State(pid=pid))
        assert file.state == State(pid=pid)
        data = Path(record.file("state")).read_bytes()
        place = number % 2 * SLOT_BYTES
        assert data[place : place + SLOT_BYTES] == slot(number, State(pid=pid))
        assert len(data) == 2 * SLOT_BYTES
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file._fd)


def test_a_request_is_mended_in_one_step_though_a_former_attempt_was_left(tmp_path: Path) -> None:
    record = made(tmp_path).create(REQUEST, State())
    Path(record.file("request.new")).write_bytes(b"half of it")
    changed = replace(REQUEST, serial=8)
    record.mend_request(changed)
    assert record.read_request() == changed
    assert "request.new" not in os.listdir(record.path)
    assert Path(record.file("request")).stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_damaged_and_what_may_not_be_read_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = made(tmp_path)
    with pytest.raises(DamagedRecordError, match=r"runs/never/state: No such file or directory$") as caught:
        records.get("never").read_state()
    assert not isinstance(caught.value, UnreadableRecordError)
    record = records.create(REQUEST, State())

    def refused(path: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(UnreadableRecordError, match=r"request: Permission denied$") as unreadable:
        record.read_request()
    assert unreadable.value.number == 13


def test_what_is_no_record_of_ours_is_listed_apart(tmp_path: Path) -> None:
    records = made(tmp_path)
    record = records.create(REQUEST, State())
    (tmp_path / "runs" / "file").touch()
    (tmp_path / "runs" / "link").symlink_to(record.path)
    (tmp_path / "runs" / ".hidden").mkdir()
    assert [each.path for each in records.all()] == [record.path]
    assert sorted(records.junk()) == [str(tmp_path / "runs" / name) for name in ("file", "link")]


def test_aliases_are_found_again_and_what_is_no_link_is_left_out(tmp_path: Path) -> None:
    records = made(tmp_path)
    records.add_alias("one", RUN)
    records.add_alias("two", RUN)
    records.add_alias("two", "another")  # the first counts
    (tmp_path / "aliases" / "file").touch()
    again = made(tmp_path)
    assert sorted(again.aliases()) == [("one", RUN), ("two", RUN)]
    again.add_alias("three", RUN)
    again.remove_alias("one")
    again.remove_alias("never was")
    assert sorted(again.aliases()) == [("three", RUN), ("two", RUN)]
    again.remove(RUN)
    assert again.aliases() == []
    assert os.listdir(tmp_path / "aliases") == ["file"]


def test_a_run_that_was_not_started_and_cannot_be_removed_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = made(tmp_path)

    def refused(source: str, *_: object) -> None:
        raise OSError(30, "Read-only file system", source)

    for run_id, state in (("fresh", State()), ("runs", STATE), ("forked", State(pid=7))):
        records.create(replace(REQUEST, run_id=run_id), state)
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", refused)
            with pytest.raises(RecordError, match=r"Read-only file system$"):
                records.remove(run_id)
    assert records.get("fresh").read_state() == State(phase="failed", gone=True)
    assert records.get("runs").read_state() == STATE
    assert records.get("forked").read_state() == State(pid=7)


def test_one_file_that_cannot_be_thrown_away_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = made(tmp_path)
    records.create(REQUEST, State())
    unlink = os.unlink

    def stubborn(path: str, *, dir_fd: int | None = None) -> None:
        if os.path.basename(path) != "collected":
            unlink(path, dir_fd=dir_fd)
        else:
            raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "unlink", stubborn)
    records.remove(RUN)
    assert records.all() == []
    assert os.listdir(tmp_path / "runs" / f".old-{RUN}") == ["collected"]


def test_a_slot_written_in_part_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = made(tmp_path).create(REQUEST, STATE)
    file = StateFile(record)
    monkeypatch.setattr("appserver.records.write_at", lambda *_: SLOT_BYTES - 1)
    with pytest.raises(RecordError, match="^the state of a run: the slot was written in part only$"):
        file.write(State())
    assert (file.state, record.read_state()) == (STATE, STATE)
    file.close()


def test_the_file_that_failed_is_named(tmp_path: Path) -> None:
    records = made(tmp_path)
    with pytest.raises(RecordError, match=r"runs/never/collected: No such file or directory$"):
        records.get("never").mark_collected()
    with pytest.raises(RecordError, match=r"runs/never/state: No such file or directory$"):
        StateFile(records.get("never"))

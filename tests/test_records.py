"""What is on disk about each run: whole or damaged, never garbage; and always with room for the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appserver.identity import Service
from appserver.outcome import Account, Exited, Lost, Outcome, Signaled
from appserver.recordformat import (
    FORMAT,
    SLOT_BYTES,
    DamagedRecordError,
    ForeignRecordError,
    RecordError,
    Request,
    State,
    StopOrder,
    seal,
)
from appserver.records import Records, RunRecord, StateFile

RUN = "0123456789abcdef0123456789abcdef"
REQUEST = Request(RUN, Service("line", ("a  b",), "x"), "/bin/a", ("a", "b"), "/log", 10, "boot", 1.5)
RUNNING = State(phase="running", pid=7, start_ticks=8, started_at=1.5, started_monotonic=2.5, oom_kills=3)
ENDED = replace(
    RUNNING, phase="ended", stop=StopOrder("somebody", 9.5), outcome=Exited(3, Account(survivors=1)), gone=True
)

outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Exited, st.integers(0, 2**32 - 1)),
    st.builds(Signaled, st.integers(1, 127)),
    st.builds(Lost, st.text(st.characters(codec="utf-8"), max_size=250)),
)
moments = st.none() | st.floats(0, 1e12)
states = st.builds(
    State,
    phase=st.sampled_from(["starting", "running", "ended", "failed"]),
    pid=st.none() | st.integers(1, 2**22),
    start_ticks=st.none() | st.integers(0, 2**62),
    started_at=moments,
    started_monotonic=moments,
    oom_kills=st.integers(0, 2**62),
    survivors=st.sampled_from(["leave", "stop"]),
    stop_timeout_seconds=st.floats(0, 1e9),
    stop=st.none() | st.builds(StopOrder, st.text(st.characters(codec="utf-8"), max_size=20), st.floats(0, 1e12)),
    outcome=st.none() | outcomes,
    failure=st.none() | st.tuples(st.just("start-failed"), st.text(st.characters(codec="utf-8"), max_size=50)),
    gone=st.booleans(),
)


def records(path: Path) -> Records:
    made = Records(str(path))
    made.prepare()
    return made


def write(record: RunRecord, *new: State) -> None:
    file = StateFile(record)
    for state in new:
        file.write(state)
    file.close()


def read(record: RunRecord) -> State | None:
    try:
        return record.read_state()
    except DamagedRecordError:
        return None


@pytest.mark.parametrize(
    "service",
    [
        Service("line", ("a  b",), "x"),
        Service("vector", ("a", "", "ä b", "\n", "'")),
        Service("line", ("x" * 60000,)),
        Service("vector", ("\x01" * 60000,)),
    ],
    ids=["line", "vector", "long", "long and escaped"],
)
def test_a_request_comes_back_as_it_went(tmp_path: Path, service: Service) -> None:
    request = replace(REQUEST, service=service, argv=service.words)
    record = records(tmp_path).create(request, State())
    assert record.read_request() == request
    assert record.read_state() == State()
    assert not record.is_collected()


@settings(deadline=None, max_examples=40)
@given(new=st.lists(states, max_size=4))
def test_a_state_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, new: list[State]) -> None:
    record = records(tmp_path_factory.mktemp("records")).create(REQUEST, State())
    write(record, *new)
    assert record.read_state() == (new or [State()])[-1]


def test_a_writer_that_takes_over_goes_on_where_the_former_stopped(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, State())
    for pid in range(1, 6):
        write(record, replace(RUNNING, pid=pid))
        assert record.read_state().pid == pid


@pytest.mark.parametrize("byte", [b"\0", b"\n"])
def test_a_write_torn_at_any_byte_leaves_the_state_before_or_the_new_one(tmp_path: Path, byte: bytes) -> None:
    record = records(tmp_path).create(REQUEST, State())
    write(record, RUNNING)
    path = Path(record.file("state"))
    before = path.read_bytes()
    write(record, ENDED)
    after = path.read_bytes()
    (start,) = [
        start for start in (0, SLOT_BYTES) if before[start : start + SLOT_BYTES] != after[start : start + SLOT_BYTES]
    ]
    end = start + len(after[start : start + SLOT_BYTES].rstrip(b"\0"))
    found = []
    for cut in range(start, end + 1):
        for torn in (
            after[:cut] + before[cut:],
            after[:cut] + byte + after[cut + 1 :],
            after[:cut] + byte * 9 + before[cut + 9 :],
        ):
            path.write_bytes(torn)
            found.append(record.read_state())
    assert all(state in {RUNNING, ENDED} for state in found)
    assert RUNNING in found
    assert ENDED in found


def test_a_file_cut_at_any_byte_is_a_former_state_or_damaged_never_garbage(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, State())
    write(record, RUNNING, ENDED)
    path = Path(record.file("state"))
    whole = path.read_bytes()
    found = []
    for length in [*range(500), *range(SLOT_BYTES - 2, SLOT_BYTES + 500), len(whole)]:
        path.write_bytes(whole[:length])
        found.append(read(record))
    assert all(state in {None, RUNNING, ENDED} for state in found)
    assert found[0] is None
    assert found[-1] == ENDED


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\0" * 2 * SLOT_BYTES, b"\xff" * 2 * SLOT_BYTES, b"{}\n", b"00000000 \n", b"a3 {}\n"]
)
@pytest.mark.parametrize("name", ["state", "request"])
def test_what_never_was_a_record_is_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    record = records(tmp_path).create(REQUEST, State())
    Path(record.file(name)).write_bytes(content)
    with pytest.raises(DamagedRecordError):
        record.read_state() if name == "state" else record.read_request()


def test_a_request_cut_at_any_byte_is_damaged(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, State())
    path = Path(record.file("request"))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedRecordError):
            record.read_request()


def test_a_run_that_does_not_exist_is_damaged_and_not_collected(tmp_path: Path) -> None:
    record = records(tmp_path).get(RUN)
    assert read(record) is None
    assert not record.is_collected()
    with pytest.raises(DamagedRecordError):
        record.read_request()
    with pytest.raises(RecordError):
        record.mark_collected()
    with pytest.raises(RecordError):
        StateFile(record)


def test_the_longest_texts_that_a_peer_may_send_fit_into_a_slot(tmp_path: Path) -> None:
    # Who asked for a stop is made of two names of a greeting, 255 characters each, any of which may need an escape.
    record = records(tmp_path).create(REQUEST, State())
    name = "\x01" * 530
    stop = StopOrder(name, 1e18)
    outcome = Lost(
        "\x01" * 1000, Account(1e18 / 3, 1e18 / 3, 1e18 / 3, 1e18 / 3, 2**63, stopped_by=name, survivors=10**6)
    )
    write(record, replace(RUNNING, stop=stop), replace(RUNNING, phase="ended", stop=stop, outcome=outcome, gone=True))
    found = record.read_state()
    assert found.phase == "ended"
    assert isinstance(found.outcome, Lost)


def test_a_state_that_does_not_fit_is_refused_and_the_one_before_stands(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, RUNNING)
    file = StateFile(record)
    with pytest.raises(RecordError, match="does not fit"):
        file.write(replace(RUNNING, failure=("x" * SLOT_BYTES, "")))
    assert file.state == RUNNING
    file.close()
    assert record.read_state() == RUNNING


def test_that_an_outcome_was_collected_is_kept(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, ENDED)
    record.mark_collected()
    record.mark_collected()
    assert record.is_collected()
    assert RunRecord(record.path).is_collected()


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX files")
def test_everything_is_private_from_its_making(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        record = records(tmp_path / "state").create(REQUEST, State())
    finally:
        os.umask(former)
    paths = [tmp_path / "state" / "runs", Path(record.path), *Path(record.path).iterdir()]
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}


def test_what_a_crash_left_half_made_is_no_run_and_is_thrown_away(tmp_path: Path) -> None:
    made = records(tmp_path)
    made.create(REQUEST, State())
    for name in (".new-x", ".old-y"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "request").touch()
    assert [record.run_id for record in made.all()] == [RUN]
    made.prepare()
    assert os.listdir(tmp_path / "runs") == [RUN]


def test_a_run_is_made_once(tmp_path: Path) -> None:
    made = records(tmp_path)
    made.create(REQUEST, RUNNING)
    with pytest.raises(RecordError):
        made.create(REQUEST, State())
    assert made.get(RUN).read_state() == RUNNING
    assert os.listdir(tmp_path / "runs") == [RUN]


def test_a_removed_run_is_gone_with_its_aliases_and_no_other(tmp_path: Path) -> None:
    made = records(tmp_path)
    for run_id in ("one", "two"):
        made.create(replace(REQUEST, run_id=run_id), State())
        made.add_alias(f"alias-{run_id}", run_id)
        made.add_alias(f"alias-{run_id}", run_id)
    assert dict(made.aliases()) == {"alias-one": "one", "alias-two": "two"}
    made.remove("one")
    made.remove("one")
    made.remove("never was")
    assert [record.run_id for record in made.all()] == ["two"]
    assert dict(made.aliases()) == {"alias-two": "two"}


def test_aliases_are_looked_for_once_however_many_runs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = records(tmp_path)
    for number in range(5):
        made.add_alias(f"alias-{number}", "one")
    made.add_alias("other", "two")
    looks: list[str] = []
    listdir = os.listdir

    def look(path: str) -> list[str]:
        looks.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", look)
    for run_id in ("one", "three", "four"):
        made.create(replace(REQUEST, run_id=run_id), State())
        made.remove(run_id)
    assert looks == [str(tmp_path / "aliases")]
    assert listdir(tmp_path / "aliases") == ["other"]
    made.add_alias("another", "two")
    made.remove("two")
    assert listdir(tmp_path / "aliases") == []


def test_a_state_with_a_slot_of_a_newer_server_is_left_to_that_one(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, RUNNING)
    path = Path(record.file("state"))
    path.write_bytes(path.read_bytes()[:SLOT_BYTES] + seal({"format": FORMAT + 1}).ljust(SLOT_BYTES, b"\0"))
    with pytest.raises(ForeignRecordError, match="newer server"):
        record.read_state()


def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(tmp_path: Path) -> None:
    record = records(tmp_path).create(REQUEST, RUNNING)
    for name in ("request", "state"):
        os.unlink(record.file(name))
        os.mkfifo(record.file(name))
    with pytest.raises(DamagedRecordError):
        record.read_request()
    with pytest.raises(DamagedRecordError):
        record.read_state()


def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="file"):
        Records(str(tmp_path / "file" / "state")).prepare()
    with pytest.raises(RecordError):
        Records(str(tmp_path / "absent")).all()
    with pytest.raises(RecordError):
        Records(str(tmp_path / "absent")).create(REQUEST, State())


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "tmpfs", str(path)]
    path.mkdir()
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tmpfs")
def test_on_a_full_disk_nothing_is_begun_but_what_was_begun_gets_its_end(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        made = records(disk)
        record = made.create(REQUEST, RUNNING)
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(b"x" * 1024 * 1024)
        with pytest.raises(RecordError, match="No space left"):
            made.create(replace(REQUEST, run_id="another"), State())
        assert os.listdir(disk / "runs") == [RUN]
        write(record, ENDED, ENDED, ENDED)
        record.mark_collected()
        assert record.read_state() == ENDED
        assert record.is_collected()


def test_a_path_that_is_not_utf8_can_be_recorded(tmp_path: Path) -> None:
    odd = replace(REQUEST, executable="/opt/\udcff/app", log_path="/log/\udcff.log")
    assert records(tmp_path).create(odd, State()).read_request() == odd


def test_what_is_cleared_away_goes_with_all_that_is_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    records = Records(str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    records.prepare()
    left = tmp_path / "state" / "runs" / ".old-a"
    (left / "deep" / "deeper").mkdir(parents=True)
    (left / "deep" / "file").write_text("goes")
    (left / "link").symlink_to(outside)
    (left / "nowhere").symlink_to("nothing")
    linked = left.with_name(".old-b")
    linked.symlink_to(outside)
    records.prepare()
    assert not left.exists()
    assert linked.is_symlink()
    assert (outside / "file").read_text() == "stays"

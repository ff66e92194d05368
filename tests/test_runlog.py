"""The output of one run: the newest half and its order are kept, the bound holds, and old logs go."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leases import leased

from appserver import runlog
from appserver.identity import Service

PING = Service("line", ("/apps/ping_mon -x",))


def lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(count))


def test_a_log_within_its_bound_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    assert not runlog.trim(str(path), 100)
    assert path.read_bytes() == b"x" * 100


@pytest.mark.parametrize("size", [1001, 1500, 5000, 700_000])
def test_a_log_beyond_its_bound_keeps_its_newest_half_in_order(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    whole = lines(100_000)[-size:]
    path.write_bytes(whole)
    bound = 1000 if size < 10_000 else 600_000  # more than is copied at one go
    assert runlog.trim(str(path), bound)
    marker, _, kept = path.read_bytes().partition(b"\n")
    match = re.fullmatch(rb"\[(\d+) bytes of output trimmed\]", marker)
    assert match is not None
    assert whole.endswith(kept)
    assert whole[: -len(kept)].endswith(b"\n")
    assert int(match[1]) == size - len(kept)
    assert bound // 2 - 20 <= len(kept) <= bound // 2


@settings(deadline=None)
@given(data=st.binary(max_size=600), bound=st.integers(200, 400))
def test_a_trimmed_log_is_smaller_than_its_bound_and_ends_as_it_did(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, bound: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(data)
    trimmed = runlog.trim(str(path), bound)
    found = path.read_bytes()
    assert trimmed == (len(data) > bound)
    assert len(found) <= bound
    assert found == data if not trimmed else data.endswith(found.partition(b"\n")[2])


def test_a_log_of_one_endless_line_is_trimmed_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 10_000)
    assert runlog.trim(str(path), 1000)
    assert path.read_bytes() == b"[9500 bytes of output trimmed]\n" + b"x" * 500


def test_an_application_that_holds_the_log_open_goes_on_behind_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = runlog.open_log(str(path))
    os.write(fd, lines(1000))
    assert runlog.trim(str(path), 1000)
    os.write(fd, b"after\n")
    os.close(fd)
    assert path.read_bytes().endswith(b"line 999\nafter\n")
    assert b"\0" not in path.read_bytes()


def test_a_log_that_is_gone_is_not_made_again_by_trimming(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runlog.trim(str(tmp_path / "log"), 1)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX files")
def test_a_log_is_private_and_no_link_is_followed(tmp_path: Path) -> None:
    former = os.umask(0)
    os.close(runlog.open_log(str(tmp_path / "log")))
    os.umask(former)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="link"):
        runlog.open_log(str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("data", "count", "found"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\nc\n", 20, ["a", "b", "c"]),
        (b"a\n\n\n", 2, ["", ""]),
        (b"a\n", 0, []),
        (b"a\n", -1, []),
        ("ä\n".encode(), 1, ["ä"]),
        (b"\x1b[0m\r\n", 1, ["\x1b[0m\r"]),
    ],
)
def test_the_tail_is_the_last_lines(tmp_path: Path, data: bytes, count: int, found: list[str]) -> None:
    (tmp_path / "log").write_bytes(data)
    assert runlog.tail(str(tmp_path / "log"), count) == found


@pytest.mark.parametrize(
    "data",
    [lines(100_000), b"x" * 50_000, b"\xff" * 50_000, b"a\n" * 50_000, b"\xff\n" * 50_000, "ä".encode() * 50_000],
    ids=[
        "lines",
        "one line",
        "one line, not UTF-8",
        "short lines",
        "short lines, not UTF-8",
        "one line, two bytes each",
    ],
)
def test_the_tail_is_bounded_whatever_was_written(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "log").write_bytes(data)
    found = runlog.tail(str(tmp_path / "log"), 100_000)
    assert found
    assert sum(len(line.encode()) for line in found) <= runlog.MAX_TAIL_BYTES


def test_the_tail_does_not_begin_in_the_middle_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(lines(100_000))
    found = runlog.tail(str(tmp_path / "log"), 100_000)
    assert found[-1] == "line 99999"
    assert all(re.fullmatch(r"line \d{5}", line) for line in found)


def test_a_log_that_cannot_be_read_has_no_tail(tmp_path: Path) -> None:
    assert runlog.tail(str(tmp_path), 5) == []
    assert runlog.tail(str(tmp_path / "absent"), 5) == []


@pytest.mark.parametrize(
    ("executable", "name"),
    [
        ("/apps/ping_mon", "ping_mon"),
        ("/apps/ping mon/../a b;c", "a_b_c"),
        ("/apps/..", "run"),
        ("/apps/.hidden", "hidden"),
        ("/apps/" + "x" * 300, "x" * 40),
        ("/apps/ä", "_"),
    ],
)
def test_a_log_is_named_by_program_service_time_and_run(tmp_path: Path, executable: str, name: str) -> None:
    path = runlog.log_path(str(tmp_path), PING, executable, "0123456789abcdef")
    pattern = rf"{re.escape(name)}-[0-9a-f]{{8}}\.\d{{8}}T\d{{6}}-\d{{6}}Z\.01234567\.log"
    assert os.path.dirname(path) == str(tmp_path)
    assert re.fullmatch(pattern, os.path.basename(path))


def test_services_that_differ_have_logs_of_different_names() -> None:
    services = [
        PING,
        Service("line", ("/apps/ping_mon  -x",)),
        Service("vector", ("/apps/ping_mon", "-x")),
        Service("line", ("/apps/ping_mon -x",), "two"),
    ]
    assert len({runlog.log_name_prefix(service, "/apps/ping_mon") for service in services}) == len(services)


def test_the_newest_logs_of_one_service_stay_and_those_of_others_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"app-00000000.20260101T00000{number}-000000Z.abc.log" for number in range(8)]
    others = [
        tmp_path / "app-00000001.20200101T000000-000000Z.abc.log",
        tmp_path / "app.log",
        tmp_path / "app-00000000.20200101T000000-000000Z.abc.txt",
    ]
    for second, path in enumerate((*paths, *others)):
        path.touch()
        os.utime(path, (second, second))
    runlog.prune(str(paths[-1]), {str(paths[0])}, keep=3)
    assert sorted(tmp_path.iterdir()) == sorted([paths[0], *paths[-3:], *others])


def test_a_log_is_not_pruned_in_favour_of_older_ones_whose_name_lies_in_the_future(tmp_path: Path) -> None:
    paths = [tmp_path / f"app-00000000.20260101T00000{9 - number}-000000Z.abc.log" for number in range(4)]
    for second, path in enumerate(paths):
        path.touch()
        os.utime(path, (second, second))
    runlog.prune(str(paths[-1]), (), keep=2)
    assert sorted(tmp_path.iterdir()) == sorted(paths[-2:])


def test_logs_from_before_the_clock_was_set_back_count_as_the_oldest(tmp_path: Path) -> None:
    ages_seconds = (-400 * 86400, -401 * 86400, 30, 20, 10, 5)
    paths = [tmp_path / f"app-00000000.20260101T00000{number}-000000Z.abc.log" for number in range(len(ages_seconds))]
    now = time.time()
    for path, age_seconds in zip(paths, ages_seconds, strict=True):
        path.touch()
        os.utime(path, (now - age_seconds, now - age_seconds))
    runlog.prune(str(paths[-1]), (), keep=4)
    assert sorted(tmp_path.iterdir()) == paths[2:]


def test_pruning_where_there_is_no_directory_is_nothing(tmp_path: Path) -> None:
    runlog.prune(str(tmp_path / "absent" / "app-00000000.20260101T000000-000000Z.abc.log"), ())


def test_the_oldest_logs_of_all_services_go_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "MAX_LOGS", 3)
    paths = [tmp_path / f"app-0000000{number}.20260101T000000-000000Z.abc.log" for number in range(6)]
    foreign = tmp_path / "messages.log"
    for second, path in enumerate([foreign, *paths]):
        path.touch()
        os.utime(path, (second, second))
    runlog.prune(str(paths[-1]), {str(paths[1])})
    assert sorted(tmp_path.iterdir()) == sorted([foreign, paths[1], *paths[3:]])


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_a_lease_of_the_logs_owner_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a\n" * 1000)
    with leased(path):
        assert runlog.tail(str(path), 5) == []
        with pytest.raises(BlockingIOError):
            runlog.trim(str(path), 100)
    assert runlog.tail(str(path), 1) == ["a"]

"""Changes on disk: whole or not at all, with a backup, and with all that is not content as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appmgr.deploy import writing
from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import Change
from appmgr.deploy.writing import write_changes

NOON = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vm1.conf"
    path.write_bytes(b"old")
    return path


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_a_file_is_replaced_and_its_old_bytes_are_kept(path: Path) -> None:
    path.chmod(0o640)
    (backup,) = write_changes([Change(str(path), b"old", b"new")], NOON)
    assert path.read_bytes() == b"new"
    assert Path(backup).read_bytes() == b"old"
    assert Path(backup).parent == path.parent / ".backup"
    assert {stat.S_IMODE(os.stat(name).st_mode) for name in (path, backup)} == {0o640}
    assert stat.S_IMODE(os.stat(path.parent / ".backup").st_mode) == 0o700
    assert names(path.parent) == {"vm1.conf", ".backup"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_keeps_its_owner(path: Path) -> None:
    os.chown(path, 12, 34)
    (backup,) = write_changes([Change(str(path), b"old", b"new")], NOON)
    for name in (path, backup):
        assert (os.stat(name).st_uid, os.stat(name).st_gid) == (12, 34)


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "vm1.conf"
    link.parent.mkdir()
    link.symlink_to(path)
    write_changes([Change(str(link), b"old", b"new")], NOON)
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_backups_of_one_second_do_not_take_each_others_place(path: Path) -> None:
    for number in range(3):
        before = path.read_bytes()
        write_changes([Change(str(path), before, f"new {number}".encode())], NOON)
    assert sorted(entry.read_bytes() for entry in (path.parent / ".backup").iterdir()) == [b"new 0", b"new 1", b"old"]


def test_what_somebody_else_has_written_in_the_meantime_is_not_overwritten(path: Path) -> None:
    with pytest.raises(DeployError, match="somebody else"):
        write_changes([Change(str(path), b"older", b"new")], NOON)
    assert path.read_bytes() == b"old"
    assert names(path.parent) == {"vm1.conf"}


def test_two_at_once_do_not_write_into_one_directory(path: Path) -> None:
    with writing._locked(str(path.parent)), pytest.raises(DeployError, match="another cmdeployvpkg"):
        write_changes([Change(str(path), b"old", b"new")], NOON)
    assert path.read_bytes() == b"old"


def test_of_two_files_both_are_changed_or_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = path.with_name("vm1.cntl")
    second.write_bytes(b"old script")
    changes = [Change(str(path), b"old", b"new"), Change(str(second), b"old script", b"new script")]
    replace = os.replace

    def fail_second(source: str, target: str) -> None:
        if target == str(second):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail_second)
        with pytest.raises(DeployError, match="No space left"):
            write_changes(changes, NOON)
    assert (path.read_bytes(), second.read_bytes()) == (b"old", b"old script")
    assert names(path.parent) == {"vm1.conf", "vm1.cntl", ".backup"}
    assert len(write_changes(changes, NOON)) == 2
    assert (path.read_bytes(), second.read_bytes()) == (b"new", b"new script")

"""The launcher's own rules: one holder of a lock, a socket where the last one's lies, an order refused in words."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

from appserver import launcher
from appserver.launcher import _listen, _obey, _take_lock
from appserver.launching import is_locked

RUN = "0" * 32
ORDER = json.dumps({"launch": RUN}).encode()


def place(directory: Path) -> Path:
    """A run's directory below one that is the working directory."""
    run = directory / "runs" / RUN
    run.mkdir(parents=True)
    return run


def test_a_lock_has_one_holder_and_is_free_again_when_that_one_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        _take_lock(str(path))  # a run's lock is never made here
    first = _take_lock(str(path), os.O_CREAT)
    assert first is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(first)
    before = os.listdir("/proc/self/fd")
    assert _take_lock(str(path)) is None
    assert os.listdir("/proc/self/fd") == before
    os.close(first)
    again = _take_lock(str(path))
    assert again is not None
    os.close(again)


def test_a_lock_that_cannot_be_asked_for_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "lock").touch()
    monkeypatch.setattr("appserver.launcher.fcntl.flock", refused)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No locks available"):
        _take_lock(str(tmp_path / "lock"))
    assert os.listdir("/proc/self/fd") == before


def test_a_waiter_listens_where_a_former_one_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _listen("control").close()
    listener = _listen("control")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.socket(fileno=listener.detach()) as ours, client:
        client.connect("control")
        accepted, _ = ours.accept()
        accepted.close()
    with pytest.raises(OSError, match="No such file or directory"):
        _listen("nowhere/control")


def test_an_order_for_a_run_that_is_watched_or_not_there_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "cannot make a waiter: No such file or directory (errno:2)"
    assert json.loads(_obey(ORDER, {}, ())) == {"run": RUN, "error": text}
    run = place(tmp_path)
    held = _take_lock(str(run / "lock"), os.O_CREAT)
    assert held is not None
    assert json.loads(_obey(ORDER, {}, ())) == {"run": RUN, "error": "a waiter lives already"}
    os.close(held)


def test_an_order_tells_the_waiters_pid_and_leaves_lock_and_socket_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (place(tmp_path) / "lock").touch()
    monkeypatch.setattr("appserver.launcher.os.fork", lambda: 4711)
    before = os.listdir("/proc/self/fd")
    assert json.loads(_obey(ORDER, {}, ())) == {"run": RUN, "waiter": 4711}
    assert os.listdir("/proc/self/fd") == before
    assert (tmp_path / "runs" / RUN / "control").is_socket()


def test_a_fork_that_fails_is_told_and_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.chdir(tmp_path)
    run = place(tmp_path)
    (run / "lock").touch()
    monkeypatch.setattr("appserver.launcher.os.fork", no_fork)
    text = f"cannot make a waiter: Resource temporarily unavailable (errno:{errno.EAGAIN})"
    assert json.loads(_obey(ORDER, {}, ())) == {"run": RUN, "error": text}
    lock = _take_lock(str(run / "lock"))
    assert lock is not None
    os.close(lock)


def test_applications_get_the_environment_that_the_launcher_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_CTYPE", "changed since")
    with open("/proc/self/environ", "rb") as file:
        expected = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
    assert launcher._initial_environment() == expected
    assert expected.get(b"LC_CTYPE") != b"changed since"


def test_a_lock_is_held_free_or_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "lock")
    assert not is_locked(path, in_doubt=True)
    assert not is_locked(f"{__file__}/below", in_doubt=True)
    holder = _take_lock(path, os.O_CREAT)
    assert holder is not None
    before = os.listdir("/proc/self/fd")
    assert is_locked(path, in_doubt=False)
    os.close(holder)
    assert not is_locked(path, in_doubt=True)

    def broken(number: int) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("appserver.launching.fcntl.flock", lambda *_: broken(errno.EIO))
        assert [is_locked(path, in_doubt=doubt) for doubt in (True, False)] == [True, False]
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1
    for number, seen in ((errno.EIO, [True, False]), (errno.EMFILE, [True, True])):
        with monkeypatch.context() as patched:
            patched.setattr("appserver.launching.os.open", lambda *_, number=number: broken(number))
            assert [is_locked(path, in_doubt=doubt) for doubt in (True, False)] == seen

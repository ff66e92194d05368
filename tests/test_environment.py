"""Applications get the server's environment, less what belongs to systemd and to our interpreter."""

from __future__ import annotations

import pytest

from appserver import environment
from appserver.environment import application_environment


def test_what_is_the_administrators_is_passed_on() -> None:
    given = {
        "PATH": "/bin",
        "HOME": "/",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C",
        "ORACLE_SID": "x",
        "SYSTEMD_X": "1",
        "E": "",
    }
    assert application_environment(given) == given


@pytest.mark.parametrize(
    "name",
    [
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "MAINPID",
        "STATE_DIRECTORY",
        "RUNTIME_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
        "SYSTEMD_EXEC_PID",
        "MEMORY_PRESSURE_WATCH",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONUNBUFFERED",
        "VIRTUAL_ENV",
        "COVERAGE_PROCESS_START",
    ],
)
def test_what_is_systemds_or_the_interpreters_is_not(name: str) -> None:
    assert application_environment({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("value", "given", "kept"),
    [("C.UTF-8", False, False), ("C.UTF-8", True, True), ("de_DE.UTF-8", False, True)],
    ids=["set by the interpreter", "set by the administrator", "another"],
)
def test_the_locale_that_the_interpreter_sets_for_itself_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch, value: str, given: bool, kept: bool
) -> None:
    monkeypatch.setattr(environment, "_was_given", lambda _: given)
    assert application_environment({"LC_CTYPE": value}) == ({"LC_CTYPE": value} if kept else {})


def test_what_is_given_is_not_changed() -> None:
    given = {"NOTIFY_SOCKET": "x"}
    application_environment(given)
    assert given == {"NOTIFY_SOCKET": "x"}

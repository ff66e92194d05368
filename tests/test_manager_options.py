"""The command line of `cmappmgr` as a table: what is taken, and what is wrong usage."""

from __future__ import annotations

import pytest

from appmgr.options import ManagerOptions, UsageError, parse_options
from appserver.identity import Service

SERVICE = Service("line", ("/apps/ping_mon",))
LEAST = ["-node", "g1", "-service", "/apps/ping_mon"]


def parse(*words: str) -> ManagerOptions:
    options = parse_options(words)
    assert isinstance(options, ManagerOptions)
    return options


def parse_with(*words: str) -> ManagerOptions:
    return parse("-node", "g1", *words, "-service", "/apps/ping_mon")


def test_the_least_that_is_needed_has_the_contracts_defaults() -> None:
    assert parse(*LEAST) == ManagerOptions(
        node="g1",
        service=SERVICE,
        timeout_seconds=60.0,
        boot_timeout_seconds=60.0,
        poll_seconds=5.0,
        port=None,
        config=None,
        on_halt="detach",
        stop_timeout_seconds=30.0,
        survivors="leave",
        failure_status=1,
        tail_lines=20,
    )


def test_every_option_is_taken() -> None:
    options = parse_with(
        *("--cmappserver-timeout", "240", "--boot-timeout", "600.5", "--poll-interval", "1e1", "--port", "5316"),
        *("--config", "/etc/other.conf", "--instance", "zwei", "--on-halt", "stop", "--stop-timeout", ".5"),
        *("--survivors", "stop", "--failure-status", "255", "--tail", "0"),
    )
    service = Service("line", ("/apps/ping_mon",), "zwei")
    assert options == ManagerOptions(
        "g1", service, 240.0, 600.5, 10.0, 5316, "/etc/other.conf", "stop", 0.5, "stop", 255, 0
    )


@pytest.mark.parametrize("option", ["-cmappserver_timeout", "--cmappserver-timeout", "-cmappmgr_timeout"])
def test_the_timeout_has_three_spellings_and_sets_the_boot_timeout(option: str) -> None:
    options = parse_with(option, "240")
    assert (options.timeout_seconds, options.boot_timeout_seconds) == (240.0, 240.0)
    assert parse_with(option, "240", "--boot-timeout", "5").boot_timeout_seconds == 5.0


@pytest.mark.parametrize("node", ["-node", "--node"])
@pytest.mark.parametrize("service", ["-service", "--service"])
def test_both_dash_forms_are_taken(node: str, service: str) -> None:
    assert parse(node, "g1", service, "/apps/ping_mon") == parse(*LEAST)


def test_an_equals_sign_joins_option_and_value() -> None:
    assert parse("--node=g1", "--port=1", "-service", "x") == parse("-node", "g1", "--port", "1", "-service", "x")
    assert parse_with("--instance=a=b").service.instance == "a=b"


@pytest.mark.parametrize(
    ("words", "service"),
    [
        (["/bin/x -c 1"], Service("line", ("/bin/x -c 1",))),
        (["/bin/x -c 1 "], Service("line", ("/bin/x -c 1 ",))),
        (["/bin/x", "-c", "1"], Service("vector", ("/bin/x", "-c", "1"))),
        (["/bin/sh", "-c", "exit 3"], Service("vector", ("/bin/sh", "-c", "exit 3"))),
        (["--", "x"], Service("vector", ("--", "x"))),
        (["x", "--", "-node", "y", "--help"], Service("vector", ("x", "--", "-node", "y", "--help"))),
        (["x", "-service", "y"], Service("vector", ("x", "-service", "y"))),
        (["--service"], Service("line", ("--service",))),
        (["x", "", "\u2013"], Service("vector", ("x", "", "\u2013"))),
    ],
)
def test_all_that_follows_service_belongs_to_it(words: list[str], service: Service) -> None:
    assert parse("-node", "g1", "-service", *words).service == service


@pytest.mark.parametrize("wish", ["help", "version"])
def test_help_and_version_need_nothing_else(wish: str) -> None:
    assert parse_options([f"--{wish}"]) == wish
    assert parse_options([f"--{wish}", "--port", "x", *LEAST]) == wish


def test_a_timeout_beyond_all_reason_is_for_ever() -> None:
    assert parse_with("--boot-timeout", "1e300").boot_timeout_seconds == 1e9


WRONG_SECONDS = ["0", "-1", "nan", "inf", "-inf", "1e999", "1_0", "5s", " 5", "", "٣", "0x10", "1e-999", "1.2.3"]
WRONG = {
    "nothing": ([], "-node is missing"),
    "no node": (["-service", "x"], "-node is missing"),
    "no service": (["-node", "g1"], "-service is missing"),
    "no command": (["-node", "g1", "-service"], "empty or blank"),
    "empty command": (["-node", "g1", "-service", ""], "empty or blank"),
    "blank command": (["-node", "g1", "-service", " \t "], "empty or blank"),
    "empty first word": (["-node", "g1", "-service", "", "x"], "empty or blank"),
    "NUL in the service": (["-node", "g1", "-service", "x\0"], "NUL"),
    "service not utf-8": (["-node", "g1", "-service", "x\udcff"], "not UTF-8"),
    "node not utf-8": (["-node", "g\udcff", "-service", "x"], "not UTF-8"),
    "service longer than a message": (["-node", "g1", "-service", "x" * 65536], "-service: .*65536"),
    "vector longer than a message": (["-node", "g1", "-service", "x", *["ü" * 100] * 400], "at most 65536"),
    "unknown option": (["-nodes", "g1", *LEAST], "unknown option '-nodes'"),
    "abbreviated": (["-nod", "g1", "-service", "x"], "cannot be abbreviated"),
    "abbreviated long": (["--por", "1", *LEAST], "unknown option '--por'"),
    "one dash too few": (["-port", "1", *LEAST], "unknown option '-port'"),
    "a word": (["stray", *LEAST], "unexpected word 'stray'"),
    "a dash": (["-", *LEAST], "unknown option '-'"),
    "two dashes": (["--", *LEAST], "unknown option '--'"),
    "empty word": (["", *LEAST], "unexpected word ''"),
    "service joined": (["-node", "g1", "--service=x"], "words of their own"),
    "value missing at the end": (["-node", "g1", "--port", "-service", "x"], "--port needs a value"),
    "value missing in the middle": (["-node", "--port", "1", "-service", "x"], "-node needs a value"),
    "twice": (["-node", "g2", *LEAST], "-node is given twice"),
    "twice by synonyms": (
        ["-cmappmgr_timeout", "5", "--cmappserver-timeout", "5", *LEAST],
        "--cmappserver-timeout is given twice",
    ),
    "empty node": (["--node=", "-service", "x"], "no host name"),
    "node with a blank": (["-node", "g 1", "-service", "x"], "no host name"),
    "node with a control character": (["-node", "g\n1", "-service", "x"], "no host name"),
    "node with a dash": (["-node", "-x", "-service", "x"], "no host name"),
    "empty config": (["--config=", *LEAST], "is no path"),
    "empty instance": (["--instance=", *LEAST], "is no name"),
    "long instance": (["--instance", "x" * 256, *LEAST], "is no name"),
    "NUL in the instance": (["--instance", "x\0", *LEAST], "NUL"),
    "en dash": (["\u2013node", "g1", "-service", "x"], "dash of a word processor"),
    "em dash": (["-node", "g1", "\u2014service", "x"], "dash of a word processor"),
    "minus sign": (["-node", "g1", "\u2212service", "x"], "dash of a word processor"),
    "on-halt": (["--on-halt", "kill", *LEAST], "neither detach nor stop"),
    "survivors": (["--survivors", "kill", *LEAST], "neither leave nor stop"),
    "action": (["--action", "start", *LEAST], "neither run nor attach nor stop"),
    "run id": (["--run-id", "A" * 32, *LEAST], "not 32 lowercase hexadecimal digits"),
    "short run id": (["--run-id", "a" * 31, *LEAST], "not 32 lowercase hexadecimal digits"),
    "empty status file": (["--status-file=", *LEAST], "is no path"),
    "NUL in the status file": (["--status-file=x\0", *LEAST], "is no path"),
    **{
        f"port {value}": (["--port", value, *LEAST], "--port")
        for value in ("0", "65536", "-1", "x", "1.5", "٣", "9" * 5000)
    },
    **{f"status {value}": (["--failure-status", value, *LEAST], "from 1 to 255") for value in ("0", "256", "-1")},
    **{f"tail {value}": (["--tail", value, *LEAST], "from 0 to 1000") for value in ("-1", "1001", "all")},
    **{
        f"{option} {value!r}": ([option, value, *LEAST], "positive finite|needs a value")
        for value in WRONG_SECONDS
        for option in ("-cmappserver_timeout", "--boot-timeout", "--poll-interval", "--stop-timeout")
    },
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=[ascii(name)[1:-1] for name in WRONG])
def test_wrong_usage_is_refused_with_a_reason(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(words)

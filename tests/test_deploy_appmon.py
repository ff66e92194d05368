"""The values of an application monitor, the form with colons, and the command of its service."""

from __future__ import annotations

import re
import subprocess

import pytest

from appmgr.deploy.appmon import AppMonitor, Manager, parse_colons, parse_name, watched_by
from appmgr.deploy.errors import AnswerRefused, UsageError
from appmgr.deploy.options import DeployOptions, parse_options
from appserver.identity import Service as Application


@pytest.mark.parametrize("name", ["a", "0", "appmon0", "a.b-c_d", "A" * 39])
def test_a_name_within_the_rules_of_serviceguard_is_taken(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "A" * 40, ".a", "a.", "-a", "a_", "a b", "a/b", "büro", "a\n", "a:b"])
def test_a_name_outside_the_rules_is_refused(name: str) -> None:
    with pytest.raises(AnswerRefused):
        parse_name(name)


@pytest.mark.parametrize(
    ("text", "monitor"),
    [
        (
            "app_mon:/application/directory/app-mon-script:10:1:300",
            ("/application/directory/app-mon-script", 10, "1", 300),
        ),
        ("app_mon:/apps/x:::", ("/apps/x", 10, "none", 300)),
        (r"app_mon:C:\apps\web.exe:60:unlimited:0", (r"C:\apps\web.exe", 60, "unlimited", 0)),
        (r"app_mon:C:\a\b.exe:::", (r"C:\a\b.exe", 10, "none", 300)),
        ("app_mon:/apps/x --listen 127.0.0.1:80:5:NONE:4294", ("/apps/x --listen 127.0.0.1:80", 5, "none", 4294)),
        ("app_mon::x:1:1:1", (":x", 1, "1", 1)),
    ],
)
def test_the_form_with_colons_has_one_reading(text: str, monitor: tuple[str, int, str, int]) -> None:
    assert parse_colons(text) == AppMonitor("app_mon", *monitor)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("app_mon:/apps/x:10:1", "all four colons"),
        ("/apps/x", "all four colons"),
        ("app_mon::10:1:300", "empty"),
        ("app_mon: :10:1:300", "empty"),
        ("a b:/apps/x:10:1:300", "no name"),
        ("app_mon:/apps/x:0:1:300", "from 1 to"),
        ("app_mon:/apps/x:1.5:1:300", "whole number"),
        ("app_mon:/apps/x:10:0:300", "none"),
        ("app_mon:/apps/x:10:-1:300", "unlimited"),
        ("app_mon:/apps/x:10:1:4295", "4294"),
        ("app_mon:/apps/x\n:10:1:300", "control character"),
        ("app_mon:/apps/\udcff:10:1:300", "UTF-8"),
        (f"app_mon:{'x' * 70_000}:10:1:300", "65536"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_by_name(text: str, fault: str) -> None:
    with pytest.raises(AnswerRefused, match=fault):
        parse_colons(text)


COMMANDS = [
    "/apps/ping_mon",
    "/apps/x -y  two",
    "/apps/x ",
    "/apps/it's $HOME `id` \\ \"quoted\" # * ; & | ' '",
    r'"C:\Program Files\apache group\apache.exe" -k run',
    "/apps/büro",
    "-x",
    "--help",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_of_a_service_survives_the_shell_and_keeps_its_identity(command: str) -> None:
    service = Manager("vm1").command(AppMonitor("a", command, 240))
    show = service.replace("/usr/sbin/cmappmgr", "printf '%s\\0'", 1)
    words = subprocess.run(["/bin/sh", "-c", show], env={}, capture_output=True, check=True).stdout.decode().split("\0")
    assert words == ["-node", "vm1", "-cmappserver_timeout", "240", "-service", command, ""]
    options = watched_by(service)
    assert options is not None
    assert (options.node, options.timeout_seconds) == ("vm1", 240)
    assert options.service == Application("line", (command,))


def test_the_command_is_the_one_that_the_old_script_wrote() -> None:
    expected = "/usr/sbin/cmappmgr -node slvm1 -cmappserver_timeout 10 -service /apps/ping_mon"
    assert Manager("slvm1").command(AppMonitor("ping_mon", "/apps/ping_mon")) == expected


@pytest.mark.parametrize(
    "command", ["", "/etc/cmcluster/vm1/hpvmsg_mon vm1", "'open", "/usr/sbin/cmappmgr -node x", "a --help"]
)
def test_a_command_that_calls_no_manager_is_about_no_application(command: str) -> None:
    assert watched_by(command) is None


ASKED = ["-P", "vm1", "-x", "merge", "-x", "appmon"]
GIVEN = ["-Q", "-P", "vm1", "-x", "merge", "-x", "appmon=a:/apps/a:::"]


def test_the_command_lines_of_the_guide_are_understood() -> None:
    assert parse_options(ASKED) == DeployOptions("vm1", "vm1", None)
    words = ["-Q", "-P", "vm1", "-x", "merge", "-x", "appmon=app_mon:/application/directory/app-mon-script:10:1:300"]
    monitor = AppMonitor("app_mon", "/application/directory/app-mon-script", 10, "1", 300)
    assert parse_options(words) == DeployOptions("vm1", "vm1", (monitor,), quiet=True)


def test_a_monitor_may_be_given_again_and_again() -> None:
    options = parse_options([*GIVEN, "-x", "appmon=b:/apps/b:::", "--node", "g"])
    assert options.monitors == (AppMonitor("a", "/apps/a"), AppMonitor("b", "/apps/b"))
    assert options.node == "g"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "-P is missing"),
        (["-P", "vm1"], "-x appmon is missing"),
        (["-P", "a b", *ASKED[2:]], "no name of a package"),
        (["-P", "../x", *ASKED[2:]], "no name of a package"),
        (["-P", "vm1", "-x", "appmon"], "-x merge is missing: this program makes no packages"),
        ([*ASKED, "-Q"], "-Q asks no questions"),
        ([*ASKED, "-x", "appmon=a:/apps/a:::"], "choose one"),
        ([*ASKED, "-x", "volume=1"], "none of merge, appmon"),
        ([*ASKED, "-x", "engine=corosync"], "serviceguard and pacemaker"),
        ([*ASKED, "-x", "engine"], "serviceguard and pacemaker"),
        (["-P", "vm1", "-x", "appmon=a"], "all four colons"),
        ([*ASKED, "-n", "node1"], "takes no node"),
        ([*ASKED, "node1"], "unexpected word 'node1'"),
        ([*ASKED, "--frobnicate"], "--frobnicate"),
        ([*ASKED, "--dir", "/x"], "--dir"),
        ([*ASKED, "-x", "engine=pacemaker", "--file", "x"], "Pacemaker has not"),
        (["-C", "-P", "vm1"], "-C converts packages"),
        (["-P", "vm1", "-U"], "-U removes packages"),
        (["-m", "1", "-P", "vm1"], "-m switches maintenance modes"),
        (["-P"], "expected one argument"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_what_this_program_does(words: list[str], fault: str) -> None:
    with pytest.raises(UsageError, match=re.escape(fault)):
        parse_options(words)

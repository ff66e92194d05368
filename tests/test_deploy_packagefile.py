"""Package files: what is read out of them, and that adding to them changes no other byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from serviceguard import legacy_entries, modular_entries

from appmgr.deploy import legacy, modular
from appmgr.deploy.appmon import AppMonitor, Manager
from appmgr.deploy.difference import difference
from appmgr.deploy.errors import DeployError
from appmgr.deploy.merging import merge, wanted_service
from appmgr.deploy.package import Package, configuration_directory, names_elsewhere, read_package
from appmgr.deploy.packagefile import Change, Service, lines_of, parameters, with_lines

MODULAR = b"""\
# a template's comment\xe9 in an older encoding
package_name          slvm1
module_name           sg/service
node_name             node1
NODE_NAME             node2

#VM Service
service_name          slvm1
service_cmd           "$SGCONF/scripts/tkit/vtn/tkit_module.sh guest_monitor"
service_restart       none
service_fail_fast_enabled no
service_halt_timeout  300

local_lan_failover_allowed yes
#Guest Application Monitor
SERVICE_NAME   ping_mon
Service_Cmd /usr/sbin/cmappmgr -node slvm1 -cmappserver_timeout 10 -service /apps/ping_mon
service_halt_timeout\t300   # seconds
"""

ASCII = b"""\
PACKAGE_NAME                 vm1
RUN_SCRIPT                   /etc/cmcluster/vm1/vm1.cntl
RUN_SCRIPT_TIMEOUT           NO_TIMEOUT
SERVICE_NAME                 vm1
SERVICE_FAIL_FAST_ENABLED    YES
SERVICE_HALT_TIMEOUT         300
SUBNET                       10.0.0.0
"""

SCRIPT = b"""\
#!/usr/bin/sh
VG[0]="vg01"
# SERVICE NAMES AND COMMANDS.
#SERVICE_NAME[0]=
#SERVICE_CMD[0]=
#SERVICE_RESTART[0]=
SERVICE_NAME[0]=vm1
SERVICE_CMD[0]="/etc/cmcluster/vm1/hpvmsg_mon vm1"
SERVICE_RESTART[0]="-R"   # for ever
function customer_defined_run_cmds
{
test_return 51
}
"""

PING = wanted_service(AppMonitor("ping_mon", "/apps/ping_mon"), Manager("slvm1"))


def test_the_services_of_a_modular_package_are_found_whatever_the_case_of_their_names() -> None:
    first, second = modular.services(MODULAR)
    assert first == Service("slvm1", "$SGCONF/scripts/tkit/vtn/tkit_module.sh guest_monitor", "none", "no", "300")
    assert second == PING


def test_what_is_added_to_a_modular_package_is_read_back_by_the_clusters_rules() -> None:
    service = wanted_service(AppMonitor("x", "/apps/it's  two", 60, "3", 20), Manager("slvm1"))
    after = modular.with_services(MODULAR, [service])
    assert modular.services(after)[2] == service
    entry = modular_entries(after.decode("latin-1"))[2]
    assert (entry.name, entry.command, entry.restart, entry.halt_timeout) == ("x", service.command, "3", 20)


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("/apps/x", '"/usr/sbin/cmappmgr -node g -cmappserver_timeout 10 -service /apps/x"'),
        ("/apps/x #1", "\"/usr/sbin/cmappmgr -node g -cmappserver_timeout 10 -service '/apps/x #1'\""),
        (r"C:\x.exe", r"/usr/sbin/cmappmgr -node g -cmappserver_timeout 10 -service 'C:\x.exe'"),
        ('"C:/a b"', "/usr/sbin/cmappmgr -node g -cmappserver_timeout 10 -service '\"C:/a b\"'"),
    ],
)
def test_a_command_stands_in_double_quotes_unless_it_has_what_they_would_change(command: str, value: str) -> None:
    service = wanted_service(AppMonitor("x", command), Manager("g"))
    assert modular.written(service.command) == value
    assert modular.services(b"service_name x\nservice_cmd " + value.encode())[0].command == service.command


WHOLE = MODULAR.replace(b"ping_mon", b"other_mon")


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        WHOLE.removesuffix(b"\n"),
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE.replace(b"\n", b"\r\n").removesuffix(b"\r\n"),
        b"\xef\xbb\xbf" + WHOLE,
        WHOLE + b"\n\n",
        WHOLE.replace(b"\n", b"\x0b\x0c\x1c\x85\n"),
        b"",
    ],
    ids=["plain", "no newline", "crlf", "crlf, no newline", "byte order mark", "blank end", "odd separators", "empty"],
)
def test_every_other_byte_of_a_modular_file_stays(data: bytes) -> None:
    after = modular.with_services(data, [PING])
    assert after.startswith(data)
    added = after.removeprefix(data)
    assert data.endswith(b"\n") == after.endswith(b"\n") or not data
    assert added.count(b"\r") == (added.count(b"\n") if b"\r" in data else 0)
    assert PING in modular.services(after)


def test_lines_are_those_of_newlines_only() -> None:
    data = b"a\r\nb\x0bc\x85d\re\n\nf"
    assert lines_of(data) == [b"a\r\n", b"b\x0bc\x85d\re\n", b"\n", b"f"]
    assert lines_of(b"") == []


def test_lines_are_added_where_they_are_wanted() -> None:
    assert with_lines(b"a\nb\n", 0, ["x", "y"]) == b"a\nx\ny\nb\n"
    assert with_lines(b"a\nb", 1, ["x"]) == b"a\nb\nx"
    assert with_lines(b"a\nb", 0, []) == b"a\nb"


def test_a_value_loses_the_quotes_around_it_and_nothing_else() -> None:
    data = b'a "x y"\nb "x" y\nc "x" # y\nd \nE "a "b" c"\n'
    values = {parameter.name: parameter.value for parameter in parameters(data)}
    assert values == {"a": "x y", "b": '"x" y', "c": "x", "d": "", "e": 'a "b" c'}


def test_the_services_of_a_legacy_package_are_in_two_files() -> None:
    assert legacy.services(ASCII, SCRIPT) == [
        Service("vm1", "/etc/cmcluster/vm1/hpvmsg_mon vm1", "unlimited", "yes", "300")
    ]


@pytest.mark.parametrize("command", ["/apps/x", "/apps/it's $HOME", r'"C:\Program Files\x" -k'])
@pytest.mark.parametrize(("restart", "words"), [("none", "none"), ("3", "3"), ("unlimited", "unlimited")])
def test_what_is_added_to_a_legacy_package_is_read_back_by_a_shell(command: str, restart: str, words: str) -> None:
    service = wanted_service(AppMonitor("x", command, 60, restart, 20), Manager("vm1"))
    data, script = legacy.with_services(ASCII, SCRIPT, [service], "vm1.cntl")
    assert legacy.services(data, script)[1] == service
    head = script.decode().partition("function")[0]
    entry = legacy_entries(head)[1]
    assert (entry.name, entry.command, entry.restart) == ("x", service.command, words)


def test_the_additions_to_a_legacy_package_stand_behind_the_last_of_their_kind() -> None:
    data, script = legacy.with_services(ASCII, SCRIPT, [PING, Service("b", "/x", "none", "no", "1")], "vm1.cntl")
    assert data == ASCII.replace(
        b"SUBNET",
        b"\nSERVICE_NAME                 ping_mon\nSERVICE_FAIL_FAST_ENABLED    NO\nSERVICE_HALT_TIMEOUT         300\n"
        b"\nSERVICE_NAME                 b\nSERVICE_FAIL_FAST_ENABLED    NO\nSERVICE_HALT_TIMEOUT         1\nSUBNET",
    )
    assert script == SCRIPT.replace(
        b"function",
        b'\nSERVICE_NAME[1]="ping_mon"\nSERVICE_CMD[1]="' + PING.command.encode() + b'"\nSERVICE_RESTART[1]=""\n'
        b'\nSERVICE_NAME[2]="b"\nSERVICE_CMD[2]="/x"\nSERVICE_RESTART[2]=""\nfunction',
    )


def test_the_first_service_of_a_control_script_stands_behind_the_examples_of_the_template() -> None:
    template = b"".join(line for line in lines_of(SCRIPT) if not line.startswith(b"SERVICE"))
    _, script = legacy.with_services(ASCII, template, [PING], "vm1.cntl")
    lines = script.splitlines()
    assert lines[lines.index(b"#SERVICE_RESTART[0]=") + 2] == b'SERVICE_NAME[0]="ping_mon"'


def test_a_script_that_is_not_made_from_the_template_is_left_alone() -> None:
    with pytest.raises(DeployError, match="by hand"):
        legacy.with_services(ASCII, b"#!/bin/sh\nexec /x\n", [PING], "vm1.cntl")


# What may be added.


def wanted(name: str = "a", command: str = "/apps/a", node: str = "slvm1", restart: str = "none") -> Service:
    return wanted_service(AppMonitor(name, command, restart=restart), Manager(node))


def test_what_is_there_already_is_not_added_again() -> None:
    merger = merge(modular.services(MODULAR), [PING, wanted()], {})
    assert (merger.present, merger.added) == (("ping_mon",), (wanted(),))
    assert merge(modular.services(modular.with_services(MODULAR, [wanted()])), [PING, wanted()], {}).added == ()


@pytest.mark.parametrize(
    ("services", "elsewhere", "fault"),
    [
        ([wanted("ping_mon")], {}, "has a service 'ping_mon' already"),
        ([wanted("ping_mon", "/apps/ping_mon", restart="3")], {}, "with other values"),
        ([wanted("a", "/apps/ping_mon")], {}, "'ping_mon' watches this very command"),
        ([wanted("a", "/apps/ping_mon", "SLVM1")], {}, "by an added blank"),
        ([wanted("a"), wanted("a", "/apps/b")], {}, "has a service 'a' already"),
        ([wanted("a"), wanted("b")], {}, "'a' watches"),
        ([wanted("a")], {"a": "vm2"}, "the package 'vm2'"),
        ([wanted(f"a{number}", f"/apps/{number}") for number in range(29)], {}, "would have 31 services"),
    ],
)
def test_what_is_taken_is_refused(services: list[Service], elsewhere: Mapping[str, str], fault: str) -> None:
    with pytest.raises(DeployError, match=fault):
        merge(modular.services(MODULAR), services, elsewhere)


def test_an_added_blank_or_another_guest_makes_another_application() -> None:
    services = [wanted("a", "/apps/ping_mon "), wanted("b", "/apps/ping_mon", "slvm2")]
    assert merge(modular.services(MODULAR), services, {}).added == tuple(services)


# Reading from disk.


def test_a_package_is_read_with_all_its_files(tmp_path: Path) -> None:
    path, script = tmp_path / "vm1.conf", tmp_path / "vm1.cntl"
    path.write_bytes(ASCII.replace(b"/etc/cmcluster/vm1/vm1.cntl", str(script).encode()))
    script.write_bytes(SCRIPT)
    package = read_package("vm1", str(path))
    assert package.files == (str(path), str(script))
    assert [change.path for change in package.with_services([PING])] == [str(path), str(script)]
    path.write_bytes(MODULAR)
    package = read_package("slvm1", str(path))
    assert package.files == (str(path),)
    assert package.members() == ["node1", "node2"]
    assert package.with_services([]) == ()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "does not exist"),
        (b"# nothing\n", "no package_name"),
        (b"package_name vm2\n", "is of the package 'vm2'"),
        ("package_name vm1\n".encode("utf-16"), "UTF-16"),
        (b"package_name vm1\nrun_script vm1.cntl\n", "not an absolute path"),
        (b"package_name vm1\nrun_script /nowhere/vm1.cntl\n", "control script '/nowhere/vm1.cntl' does not exist"),
    ],
)
def test_a_file_that_is_not_of_the_package_is_refused(tmp_path: Path, data: bytes | None, fault: str) -> None:
    path = tmp_path / "vm1.conf"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DeployError, match=fault):
        read_package("vm1", str(path))


def test_names_of_other_packages_are_known(tmp_path: Path) -> None:
    for name in ("slvm1", "vm2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.conf").write_bytes(MODULAR)
    (tmp_path / "vm3").mkdir()
    assert names_elsewhere(str(tmp_path), "slvm1") == {"slvm1": "vm2", "ping_mon": "vm2"}
    assert names_elsewhere(str(tmp_path / "nowhere"), "slvm1") == {}


def test_the_clusters_own_settings_say_where_packages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "cmcluster.conf"
    monkeypatch.setattr("appmgr.deploy.package.SETTINGS_PATH", str(settings))
    assert configuration_directory() == "/etc/cmcluster"
    settings.write_text("SGROOT=/opt/cmcluster\nSGCONF=/opt/cmcluster/conf  # here\n")
    assert configuration_directory() == "/opt/cmcluster/conf"


def test_a_package_without_the_module_for_services_is_warned_about() -> None:
    assert not Package("slvm1", "/x", MODULAR).warnings()
    (warning,) = Package("slvm1", "/x", MODULAR.replace(b"sg/service", b"sg/basic")).warnings()
    assert "cmmakepkg -i /x -m sg/service" in warning


def test_the_difference_is_shown_without_what_a_terminal_would_obey() -> None:
    shown = difference(Change("/x", b"a\x1b[2J\xff\r\nb", b"a\x1b[2J\xff\r\nb\r\nc\td"))
    assert shown == (
        "--- /x\n+++ /x (new)\n@@ -1,2 +1,3 @@\n a\\x1b[2J\\xff\r\n-b\n\\ No newline at end of file\n"
        "+b\r\n+c\td\n\\ No newline at end of file\n"
    )
    assert not difference(Change("/x", b"a\n", b"a\n"))

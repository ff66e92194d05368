"""Service entries in the quoting of the old guide, read and run by Serviceguard's rules: what reaches the guest.

Most of them are only read: by the cluster's rules, then by a real `/bin/sh`, then by the manager's own options, out of
which the request to the guest is made. A few run the pair.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pair import NODE, Guest, is_alive, wait_ended, wait_for_match
from serviceguard import Entry, Service, legacy_entries, modular_entries

from appmgr.options import ManagerOptions, UsageError, parse_options
from appserver.identity import Service as Application

XCLOCK_COMMAND = (
    "/usr/sbin/cmappmgr -node mmpf121 -cmappserver_timeout 240 -service /usr/bin/X11/xclock -display 16.213.12.70:0.0"
)
XCLOCK = f"""\
service_name mmpf121-xclock
service_cmd "{XCLOCK_COMMAND}"
service_restart 3
#service_fail_fast_enabled
service_halt_timeout      300
"""

PING_MON = """\
service_name              ping_mon
service_cmd               /usr/sbin/cmappmgr -node slvm1 -cmappserver_timeout 10 -service /apps/ping_mon
service_restart           none
service_fail_fast_enabled no
service_halt_timeout      300
"""

WINDOWS = r'"\"C:\\Program Files\\apache group\\apache\\apache\""'
"""The service of the guide's Windows example, exactly as it stands there, save for the quotes that its printer bent."""


def options_of(command: str, program: str = "/usr/sbin/cmappmgr") -> ManagerOptions:
    """Have the shell split a service command, and the manager read what comes of it."""
    show = command.replace(program, """printf '%s\\0'""", 1)
    assert show != command
    words = subprocess.run(["/bin/sh", "-c", show], env={}, capture_output=True, check=True).stdout.decode()
    options = parse_options(words.split("\0")[:-1])
    assert isinstance(options, ManagerOptions)
    return options


def test_the_modular_example_of_the_guide_arrives_as_a_vector() -> None:
    (entry,) = modular_entries(XCLOCK)
    assert (entry.name, entry.restart, entry.halt_timeout) == ("mmpf121-xclock", "3", 300)
    options = options_of(entry.command)
    assert (options.node, options.timeout_seconds) == ("mmpf121", 240)
    assert options.service == Application("vector", ("/usr/bin/X11/xclock", "-display", "16.213.12.70:0.0"))


def test_the_entry_that_the_old_script_wrote_needs_no_quotes() -> None:
    (entry,) = modular_entries(PING_MON)
    assert entry.restart == "none"
    assert options_of(entry.command).service == Application("line", ("/apps/ping_mon",))


@pytest.mark.parametrize(
    ("written", "service"),
    [
        ("'/apps/ping mon'", "/apps/ping mon"),
        ("'/apps/x '", "/apps/x "),
        ("'/apps/x  --two  blanks'", "/apps/x  --two  blanks"),
        ("'/apps/x $HOME `id` * # ; & |'", "/apps/x $HOME `id` * # ; & |"),
        (r"'/apps/it'\''s'", "/apps/it's"),
        (r"'C:\Program Files\web\web.exe -k run'", r"C:\Program Files\web\web.exe -k run"),
        ("'/apps/büro'", "/apps/büro"),
    ],
)
def test_single_quotes_bring_a_command_line_through_as_it_is(written: str, service: str) -> None:
    text = f'service_name x\nservice_cmd "/usr/sbin/cmappmgr -node g -service {written}"\n'
    (entry,) = modular_entries(text)
    assert options_of(entry.command).service == Application("line", (service,))


def test_without_quotes_the_shell_folds_blanks_and_two_services_become_one() -> None:
    commands = [f"/usr/sbin/cmappmgr -node g -service /apps/x{blank}" for blank in ("", " ")]
    assert options_of(commands[0]).service == options_of(commands[1]).service


def test_the_windows_example_arrives_with_its_blanks_backslashes_and_quotes() -> None:
    r"""One shell makes `"C:\Program Files\..."` of it; the Windows guest takes those quotes off."""
    (entry,) = modular_entries(f"service_name w\nservice_cmd /usr/sbin/cmappmgr -node v-smp25 -service {WINDOWS}\n")
    expected = Application("line", (r'"C:\Program Files\apache group\apache\apache"',))
    assert options_of(entry.command).service == expected


def test_in_a_control_script_the_windows_example_wants_single_quotes_around_it() -> None:
    command = f"/usr/sbin/cmappmgr -node v-smp25 -service {WINDOWS}"
    script = f"""SERVICE_NAME[1]=v-smp25_guest_apache\nSERVICE_CMD[1]='{command}'\nSERVICE_RESTART[1]="-r 1"\n"""
    (entry,) = legacy_entries(script)
    assert entry == Entry("v-smp25_guest_apache", command, "1")
    expected = Application("line", (r'"C:\Program Files\apache group\apache\apache"',))
    assert options_of(entry.command).service == expected


def test_in_a_control_script_the_windows_example_as_it_is_printed_assigns_nothing() -> None:
    """The shell takes the words behind the first for a command: the printer lost the outer quotes."""
    script = f"SERVICE_NAME[1]=w\nSERVICE_CMD[1]=/usr/sbin/cmappmgr -node v-smp25 -service {WINDOWS}\n"
    (entry,) = legacy_entries(script)
    assert not entry.command


def test_the_dashes_of_the_printed_example_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="dash of a word processor"):
        options_of("/usr/sbin/cmappmgr \u2013node v-smp25 \u2013service /apps/x")


@pytest.mark.parametrize(
    ("assigned", "restart"), [('""', "none"), ('"-r 3"', "3"), ('"-R"', "unlimited"), ("", "none")]
)
def test_a_legacy_entry_is_read_by_a_shell(assigned: str, restart: str) -> None:
    script = (
        'SERVICE_NAME[0]="ping_mon"\n'
        'SERVICE_CMD[0]="/usr/sbin/cmappmgr -node slvm1 -cmappserver_timeout 240 -service /apps/ping_mon"\n'
        f"SERVICE_RESTART[0]={assigned}\n"
    )
    (entry,) = legacy_entries(script)
    assert entry.restart == restart
    assert options_of(entry.command).service == Application("line", ("/apps/ping_mon",))


# The runner itself, with commands of a shell.


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Entry], Service]]:
    services: list[Service] = []

    def start(entry: Entry) -> Service:
        services.append(Service(entry, tmp_path / f"package-{len(services)}.log"))
        services[-1].start()
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.mark.parametrize("status", [0, 1, 7])
def test_any_end_of_a_service_is_a_failure(run: Callable[[Entry], Service], status: int) -> None:
    assert run(Entry("x", f"exit {status}")).await_end() == "failed over"


def test_a_service_is_restarted_as_often_as_its_entry_says_and_then_fails_over(run: Callable[[Entry], Service]) -> None:
    service = run(Entry("x", "exit 1", "2"))
    assert [service.await_end() for _ in range(3)] == ["restarted", "restarted", "failed over"]
    assert service.await_end() == "failed over", "the count went back by itself"
    service.reset_count()
    assert service.await_end() == "restarted"


def test_an_unlimited_service_never_fails_over(run: Callable[[Entry], Service]) -> None:
    service = run(Entry("x", "exit 0", "unlimited"))
    assert {service.await_end() for _ in range(5)} == {"restarted"}


def test_a_service_gets_no_environment_not_even_a_path(run: Callable[[Entry], Service]) -> None:
    service = run(Entry("x", "/usr/bin/env"))
    service.await_end()
    # The shell itself sets PWD and its like.
    assert {line.partition("=")[0] for line in service.log.splitlines()} <= {"PWD", "OLDPWD", "SHLVL", "_"}


def test_a_halt_kills_what_ignores_its_term_after_the_halt_timeout(run: Callable[[Entry], Service]) -> None:
    ready = "echo ready; while :; do sleep 0.05; done"
    meek, stubborn = run(Entry("x", ready, halt_timeout=40)), run(Entry("y", f"trap '' TERM; {ready}", halt_timeout=0))
    for service in (meek, stubborn):
        while "ready" not in service.log:
            assert service.processes[-1].poll() is None
    assert not meek.halt()
    assert stubborn.halt()


# The pair under the runner.


@pytest.fixture
def program(tmp_path: Path, guest: Guest) -> str:
    """A path that can stand for /usr/sbin/cmappmgr, with this guest's configuration as the default one."""
    path = tmp_path / "cmappmgr"
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from appmgr.cli import main\n"
        f"sys.argv[1:1] = ['--config', {str(guest.host_config)!r}]\n"
        "main()\n"
    )
    path.chmod(0o755)
    return str(path)


def test_an_application_is_restarted_counted_and_fails_the_package_over(
    program: str, tmp_path: Path, run: Callable[[Entry], Service]
) -> None:
    app = tmp_path / "ping mon"
    app.write_text('#!/bin/sh\necho up >> "$0.starts"\nexit 3\n')
    app.chmod(0o755)
    text = f"""service_name x\nservice_cmd "{program} -node {NODE} -service '\"{app}\"'"\nservice_restart 1\n"""
    service = run(modular_entries(text)[0])
    assert [service.await_end(), service.await_end()] == ["restarted", "failed over"]
    assert Path(f"{app}.starts").read_text() == "up\nup\n"
    assert service.log.count("PROGRAM EXIT CODE 3") == 2


def test_a_halt_detaches_and_the_next_start_finds_the_application(
    program: str, run: Callable[[Entry], Service]
) -> None:
    entry = Entry("x", f"{program} -node {NODE} -service /bin/sleep 1000", halt_timeout=40)
    first = run(entry)
    pid = guest_pid(first, "started")
    assert not first.halt()
    # A shell that stays before the manager (dash does, bash does not) ends at once, and the manager goes on by itself.
    wait_for_match(lambda: first.log, "PROGRAM EXIT CODE 143")
    assert is_alive(pid)
    second = run(Entry("x", entry.command.replace("-service", "--on-halt stop -service"), halt_timeout=40))
    assert guest_pid(second, "attached to") == pid
    assert not second.halt()
    wait_ended(pid)


def test_a_customers_run_script_may_call_the_manager_without_a_service(
    program: str, tmp_path: Path, run: Callable[[Entry], Service]
) -> None:
    """It stands in the script like any other command, and its status is the application's."""
    script = tmp_path / "customer.sh"
    script.write_text(
        "#!/bin/sh\n"
        f"{program} -node {NODE} -service /bin/sh -c 'exit 5'\n"
        "test $? = 5 || exit 1\n"
        f"{program} -node {NODE} -service /bin/true && echo prepared\n"
    )
    service = run(Entry("x", f"/bin/sh {script}"))
    service.await_end()
    assert service.log.endswith("prepared\n")


def guest_pid(service: Service, how: str) -> int:
    return int(wait_for_match(lambda: service.log, rf"{how} the application .* process (\d+)")[1])

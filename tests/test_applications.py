"""What an application gets, and what its manager reports of it, with the real pair."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pair import Guest, Manager, is_alive, open_guest, python, wait_ended, wait_until

from appserver import procfs

SIGNALS = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGKILL,
    signal.SIGPIPE,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGRTMAX,
]

OF_PROGRAMS = ~(0b11 << 31)
"""Without signals 32 and 33: they are glibc's own, its posix_spawn (make uses it) leaves them ignored in the whole tree
below, and it lets nobody set them."""

OF_PYTHON = ~(1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))
"""Without those that Python ignores for itself."""

INVENTORY = """
import json, os, signal, sys
status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)
print(json.dumps({
    'environment': dict(os.environ),
    'directory': os.getcwd(),
    'descriptors': sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1],
    'input': os.readlink('/proc/self/fd/0'),
    'umask': status['Umask'].strip(),
    'blocked': int(status['SigBlk'], 16),
    'ignored': int(status['SigIgn'], 16) & int(sys.argv[1]),
    'oom_score_adj': open('/proc/self/oom_score_adj').read().strip(),
    'is_session_leader': os.getsid(0) == os.getpid(),
}))
"""

# Python ignores SIGPIPE and SIGXFSZ for itself, so whether they were inherited as ignored is asked of a shell.
IGNORED_SIGNALS = "grep SigIgn /proc/self/status"


def last_output(guest: Guest, manager_log: str) -> str:
    path = manager_log.rsplit("output in ", 1)[1].split("\n", maxsplit=1)[0]
    assert path.startswith(str(guest.log_dir))
    return Path(path).read_text()


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 143, 254, 255])
def test_exit_code_is_the_managers(guest: Guest, code: int) -> None:
    status, log = guest.run("-service", "/bin/sh", "-c", f"exit {code}")
    assert status == code
    assert log.endswith(f": PROGRAM EXIT CODE {code}\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_128_and_its_number(guest: Guest, number: int) -> None:
    manager = guest.manager("-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    if number == signal.SIGCHLD:  # does not end a process: the next signal does
        os.kill(pid, number)
        number = signal.SIGUSR1
    os.kill(pid, number)
    assert manager.wait() == 128 + number
    assert f"ended by signal {number}" in manager.log


def test_detached_and_attached_again_in_between(guest: Guest) -> None:
    words = ("-service", "/bin/sh", "-c", f"while ! test -e {guest.directory}/go; do sleep 0.05; done; exit 77")
    first = guest.manager(*words)
    pid = first.wait_started()
    first.signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    assert is_alive(pid)
    second = guest.manager(*words)
    assert second.wait_started() == pid
    (guest.directory / "go").touch()
    assert second.wait() == 77


def test_one_word_is_a_line_and_several_are_a_vector(guest: Guest) -> None:
    assert guest.run("-service", "/bin/sh -c 'exit 3'")[0] == 3
    assert guest.run("-service", "/bin/sh", "-c", "exit 4")[0] == 4
    line, vector = guest.manager("-service", "/bin/sleep 1000"), guest.manager("-service", "/bin/sleep", "1000")
    assert line.wait_started() != vector.wait_started()


def test_blank_and_instance_tell_services_apart(guest: Guest) -> None:
    managers = [
        guest.manager("-service", "/bin/sleep 1000"),
        guest.manager("-service", "/bin/sleep 1000 "),
        guest.manager("--instance", "two", "-service", "/bin/sleep 1000"),
    ]
    assert len({manager.wait_started() for manager in managers}) == 3


def test_application_gets_what_the_contract_says(tmp_path: Path, keys: Path) -> None:
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.environment = {
            "PATH": "/usr/bin:/bin",
            "GREETING": "hello world",
            "NOTIFY_SOCKET": "",
            "INVOCATION_ID": "1",
            "JOURNAL_STREAM": "1:1",
            "PYTHONUNBUFFERED": "1",
            "VIRTUAL_ENV": "/nowhere",
            "LISTEN_FDS": "1",
        }
        guest.start_server()
        status, log = guest.run("-service", *python(INVENTORY), str(OF_PROGRAMS & OF_PYTHON))
        assert status == 0
        found = json.loads(last_output(guest, log))
        environment = found.pop("environment")
        environment.pop("LC_CTYPE", None)  # the application's own Python sets it
        assert environment == {"PATH": "/usr/bin:/bin", "GREETING": "hello world"}
        assert found == {
            "directory": "/",
            "descriptors": [0, 1, 2],
            "input": "/dev/null",
            "umask": "0022",
            "blocked": 0,
            "ignored": 0,
            "oom_score_adj": "0",
            "is_session_leader": True,
        }
        status, log = guest.run("-service", "/bin/sh", "-c", IGNORED_SIGNALS)
        assert int(last_output(guest, log).split()[1], 16) & OF_PROGRAMS == 0


def test_last_lines_of_the_output_are_logged(guest: Guest) -> None:
    source = r"print('\n'.join(f'line {n}' for n in range(100))); print('a\x1b[31mred\rbell\a'); raise SystemExit(1)"
    status, log = guest.run("--tail", "3", "-service", *python(source))
    assert status == 1
    output = [line.split("output: ")[1] for line in log.splitlines() if "output: " in line]
    assert output == ["line 98", "line 99", r"a\x1b[31mred\x0dbell\x07"]


def test_output_is_bounded_also_while_no_server_runs(guest: Guest) -> None:
    guest.configure("logMaxBytes=64KiB")
    guest.stop_server()
    guest.start_server()
    source = """
import os, sys, time
for n in range(100000):
    os.write(1, b'%08d\\n' % n)
    if n == 50000:
        open(sys.argv[1] + '.half', 'w').close()
        while not os.path.exists(sys.argv[1] + '.go'):
            time.sleep(0.01)
"""
    path = guest.directory / "app"
    manager = guest.manager("-service", *python(source), str(path))
    manager.wait_started()
    wait_until(Path(f"{path}.half").exists)
    (log,) = guest.log_dir.iterdir()
    wait_until(lambda: log.stat().st_size <= 65536, "trimming")
    guest.kill_server()
    Path(f"{path}.go").touch()
    wait_until(lambda: log.read_text().endswith("00099999\n"))
    wait_until(lambda: log.stat().st_size <= 65536, "trimming without a server")
    lines = log.read_text().splitlines()
    assert "trimmed" in lines[0]
    assert [int(line) for line in lines[1:]] == list(range(100000 - len(lines) + 1, 100000))
    guest.start_server()
    assert manager.wait() == 0


def test_old_logs_of_a_service_are_removed(guest: Guest) -> None:
    for _ in range(7):
        assert guest.run("-service", "/bin/true")[0] == 0
    assert len(list(guest.log_dir.iterdir())) == 5


def survivor_script(guest: Guest) -> tuple[str, ...]:
    marker = guest.directory / "survivor"
    return ("-service", "/bin/sh", "-c", f"setsid sleep 1000 & echo $! > {marker}; exit 6")


def test_survivors_are_counted_and_left_alone(guest: Guest) -> None:
    status, log = guest.run(*survivor_script(guest))
    assert status == 6
    assert "1 descendant lives on" in log
    survivor = int((guest.directory / "survivor").read_text())
    assert is_alive(survivor)
    os.kill(survivor, signal.SIGKILL)


def test_survivors_are_stopped_where_that_is_wanted(guest: Guest) -> None:
    status, _ = guest.run("--survivors", "stop", *survivor_script(guest))
    assert status == 6
    wait_ended(int((guest.directory / "survivor").read_text()))


def test_stubborn_survivors_are_killed_after_the_stop_timeout_and_the_next_run_waits(guest: Guest) -> None:
    source = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1], 'a').write(f'{os.getpid()} ')
    time.sleep(1000)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
sys.exit(6)
"""
    marker = guest.directory / "survivors"
    words = ("--survivors", "stop", "--stop-timeout", "1", "-service", *python(source), str(marker))
    assert guest.run(*words)[0] == 6
    first = int(marker.read_text().split()[0])
    assert guest.run(*words)[0] == 6  # was started when the first one's survivor had gone
    assert not is_alive(first)
    wait_ended(int(marker.read_text().split()[-1]))


def test_every_watcher_gets_the_outcome(guest: Guest) -> None:
    words = ("-service", "/bin/sh", "-c", f"while ! test -e {guest.directory}/go; do sleep 0.05; done; exit 9")
    watchers = [guest.manager(*words) for _ in range(3)]
    assert len({watcher.wait_started() for watcher in watchers}) == 1
    (guest.directory / "go").touch()
    assert [watcher.wait() for watcher in watchers] == [9, 9, 9]


def test_stop_ends_it_for_all_watchers_who_learn_who_asked(guest: Guest) -> None:
    words = ("-service", "/bin/sleep", "1000")
    bystander = guest.manager(*words)
    bystander.wait_started()
    stopper = guest.manager("--on-halt", "stop", *words)
    stopper.wait_started()
    stopper.signal(signal.SIGTERM)
    assert (stopper.wait(), bystander.wait()) == (143, 143)
    assert f"stopped by cmappmgr[{stopper.process.pid}] on " in bystander.log


def test_nobody_is_said_to_live_on_after_a_stop(guest: Guest) -> None:
    manager = guest.manager("--on-halt", "stop", "-service", "/bin/sh", "-c", "trap : TERM; sleep 1000 & wait; exit 0")
    manager.wait_started()
    wait_until(lambda: len(guest_processes(guest, manager)) > 1)
    manager.signal(signal.SIGTERM)
    manager.wait()
    assert "stopped by" in manager.log
    assert "lives on" not in manager.log


def test_what_an_application_starts_in_order_to_end_is_left_alone(guest: Guest) -> None:
    # Long enough to be there when the tree is looked through again; ended by TERM it would be 143.
    source = "trap 'sleep 1; exit $?' TERM; while :; do sleep 0.05; done"
    manager = guest.manager("--on-halt", "stop", "-service", "/bin/sh", "-c", source)
    manager.wait_started()
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 0, manager.log


def guest_processes(guest: Guest, manager: Manager) -> list[int]:
    waiter = guest.waiter_pid(manager.wait_started())
    return [stat.pid for stat in procfs.descendants(waiter)]


def test_run_during_a_stop_waits_for_the_end_and_starts(guest: Guest) -> None:
    source = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], 'a').write('x')
time.sleep(1000)
"""
    marker = guest.directory / "marker"
    words = ("-service", *python(source), str(marker))
    first = guest.manager("--on-halt", "stop", "--stop-timeout", "2", *words)
    pid = first.wait_started()
    wait_until(lambda: marker.exists() and marker.read_text() == "x")
    first.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in guest.server_log)
    second = guest.manager(*words)
    assert first.wait() == 128 + signal.SIGKILL
    other = second.wait_started()
    assert other != pid
    assert "started the application" in second.log
    assert not is_alive(pid)


def test_second_term_detaches_from_a_stop(guest: Guest) -> None:
    source = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open(sys.argv[1], 'w').close(); time.sleep(1000)"
    )
    marker = guest.directory / "marker"
    manager = guest.manager("--on-halt", "stop", "-service", *python(source), str(marker))
    manager.wait_started()
    wait_until(marker.exists)
    manager.signal(signal.SIGTERM)
    manager.wait_for("stopping the application")
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 143


def test_hup_is_taken_as_term(guest: Guest) -> None:
    manager = guest.manager("-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    manager.signal(signal.SIGHUP)
    assert manager.wait() == 143
    assert is_alive(pid)


def test_thirty_run_the_next_is_refused_and_each_manager_reports_its_own(guest: Guest) -> None:
    def start(number: int) -> Manager:
        script = f"while ! test -e {guest.directory}/go; do sleep 0.2; done; exit {100 + number}"
        return guest.manager("-service", "/bin/sh", "-c", script)

    managers = [start(number) for number in range(30)]
    pids = {manager.wait_started() for manager in managers}
    assert len(pids) == 30
    status, log = guest.run("--failure-status", "42", "-service", "/bin/sleep", "7")
    assert status == 42
    assert "30 processes run already" in log
    assert all(is_alive(pid) for pid in pids)
    (guest.directory / "go").touch()
    assert [manager.wait() for manager in managers] == [100 + number for number in range(30)]
    assert guest.run("-service", "/bin/sh", "-c", "exit 3")[0] == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("nothing", "no such command"),
        ("directory", "is a directory"),
        ("without x", "not executable"),
        ("no interpreter", "no such command"),
        ("not a program", "neither a binary of this machine nor a script"),
    ],
)
def test_what_cannot_be_started_is_refused_with_the_reason(guest: Guest, make: str, words: str) -> None:
    path = guest.directory / "command"
    if make == "directory":
        path.mkdir()
    elif make != "nothing":
        path.write_text("#!/nowhere/sh\n" if make == "no interpreter" else "no program\n")
        path.chmod(0o644 if make == "without x" else 0o755)
    status, log = guest.run("-service", str(path))
    assert status == 1
    assert words in log.lower()
    assert str(path) in log
    assert log.count("\n") == 2
    assert "Traceback" not in guest.server_log
    assert guest.run("-service", sys.executable, "-c", "raise SystemExit(5)")[0] == 5


def test_line_that_does_not_split_is_refused(guest: Guest) -> None:
    status, log = guest.run("-service", "/bin/sh -c 'exit 3")
    assert status == 1
    assert "cannot be split" in log


def test_allow_rules_are_matched_on_the_resolved_path(guest: Guest) -> None:
    guest.configure(f"allow={Path('/bin/sleep').resolve()}", "allow=/opt/apps/*")
    guest.stop_server()
    guest.start_server()
    link = guest.directory / "sleep"
    link.symlink_to("/bin/sh")
    status, log = guest.run("-service", str(link), "-c", "exit 3")
    assert status == 1
    assert "no 'allow' rule" in log
    assert guest.run("-service", "/opt/apps/../../bin/sh", "-c", "exit 3")[0] == 1
    assert guest.run("-service", "/bin/sleep", "0")[0] == 0


def test_a_program_whose_real_name_is_no_unicode_runs_and_its_status_arrives(guest: Guest, tmp_path: Path) -> None:
    """Its manager names a link; what the link points to goes from the waiter to the server, and into the record."""
    odd = os.fsencode(tmp_path) + b"/\xfcberwachung"
    os.mkdir(odd)
    with open(odd + b"/mon", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nsleep 1\nexit 7\n")
    os.chmod(odd + b"/mon", 0o755)
    os.symlink(odd + b"/mon", tmp_path / "mon")
    manager = guest.manager("-service", str(tmp_path / "mon"))
    manager.wait_started()
    guest.kill_server()
    guest.start_server()
    assert manager.wait() == 7
    assert "Traceback" not in guest.server_log


def test_called_as_a_cluster_calls_it(guest: Guest) -> None:
    program = Path(sys.executable).with_name("cmappmgr")
    command = f"{program} -node g1 --config {guest.host_config} -service /bin/sh -c 'exit 31'"
    done = subprocess.run(["/usr/bin/env", "-i", "/bin/sh", "-c", command], cwd="/", capture_output=True, check=False)
    assert done.returncode == 31
    assert done.stdout == b""
    assert done.stderr.endswith(b"PROGRAM EXIT CODE 31\n")


def test_closed_standard_streams_change_nothing(guest: Guest) -> None:
    program = Path(sys.executable).with_name("cmappmgr")
    command = f"exec {program} -node g1 --config {guest.host_config} -service /bin/sh -c 'exit 32' <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], env={}, cwd="/", check=False).returncode == 32


def test_blocked_standard_error_changes_nothing(guest: Guest) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    program = Path(sys.executable).with_name("cmappmgr")
    words = [str(program), "-node", "g1", "--config", str(guest.host_config), "-service", "/bin/sh", "-c", "exit 33"]
    try:
        assert subprocess.run(words, env={}, cwd="/", stderr=write, check=False, timeout=40).returncode == 33
    finally:
        os.close(read)
        os.close(write)

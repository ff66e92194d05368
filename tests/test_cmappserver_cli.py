"""`cmappserver` as a process: what it says, how it ends, and what its signals do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("speaks of POSIX signals", allow_module_level=True)

import fcntl

from fakes import fill, small_disk
from pair import PATIENCE_SECONDS, Guest, is_alive, open_guest, wait_for_match, wait_until

from appserver.options import read_all, read_plainly
from appserver.statelock import LOCK_NAME, StateDirError, check_state_dir, locked_state_dir
from appserver.version import VERSION
from pki.cli import main as cmapppki


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which has to come by itself."""
    argv = [sys.executable, "-m", "appserver", *map(str, words)]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)


def patient(guest: Guest, code: int = 7) -> tuple[str, ...]:
    """Words of an application that ends with `code` when `go` appears in the guest's directory."""
    return ("-service", "/bin/sh", "-c", f"while ! test -e {guest.directory}/go; do sleep 0.02; done; exit {code}")


def test_help_and_version() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("--config", "--listen", "--port", "--state-dir", "--log-dir", "--check", "TERM", "HUP", "exit status"):
        assert word in done.stdout
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cmappserver {VERSION}\n", "")


@pytest.mark.parametrize(
    "words",
    [("--frobnicate",), ("--chec",), ("--port", "x"), ("--port", "65536"), ("--port", "-1"), ("--port",), ("word",)],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: cmappserver" in done.stderr
    assert "Traceback" not in done.stderr


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The program could not start, and says so in one line."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.match(r"\w{3} [ \d]\d \d\d:\d\d:\d\d \S+ cmappserver\[\d+\]: ", done.stderr)
    return done.stderr


def test_missing_named_configuration_is_an_error(tmp_path: Path) -> None:
    assert str(tmp_path / "none.conf") in one_line(run("--config", tmp_path / "none.conf"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("frobnicate=1",), r"cmappserver\.conf.*frobnicate"),
        (("port=1", "port=2"), r"cmappserver\.conf.*port"),
        (("maxProcesses=many",), r"cmappserver\.conf.*maxProcesses"),
        (("logMaxBytes=1",), r"cmappserver\.conf.*logMaxBytes"),
        (("keyStorePassword=wrong",), r"server\.private.*password"),
    ],
    ids=["unknown key", "repeated key", "bad value", "out of bounds", "wrong password"],
)
def test_unusable_configuration_is_said_in_one_line(idle: Guest, lines: tuple[str, ...], words: str) -> None:
    idle.configure(*lines)
    assert re.search(words, one_line(run("--config", idle.server_config, "--port", "0")))


@pytest.mark.parametrize(
    ("store", "make", "words"),
    [
        ("server.private", "nothing", "No such file|does not exist|cannot be read"),
        ("server.private", "garbage", "neither|not a"),
        ("server.private", "client.public", "key"),
        ("client.public", "nothing", "No such file|does not exist|cannot be read"),
        ("client.public", "a directory", "not a regular file"),
    ],
)
def test_unusable_store_is_said_in_one_line(idle: Guest, store: str, make: str, words: str) -> None:
    path = idle.directory / store
    data = (idle.directory / "client.public").read_bytes() if make == "client.public" else b"garbage\n"
    path.unlink()
    if make == "a directory":
        path.mkdir()
    elif make != "nothing":
        path.write_bytes(data)
    line = one_line(run("--config", idle.server_config, "--port", "0"))
    assert str(path) in line
    assert re.search(words, line)


def test_taken_port_is_said_in_one_line(idle: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = one_line(run("--config", idle.server_config, "--port", str(port)))
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in line


@pytest.mark.parametrize("option", ["--state-dir", "--log-dir"])
def test_directory_that_cannot_be_made_is_said_in_one_line(idle: Guest, option: str) -> None:
    file = idle.directory / "file"
    file.touch()
    idle.state_dir = idle.directory / "other"  # of which nothing is made
    words = ("--config", idle.server_config, "--port", "0", "--state-dir", idle.directory / "made")
    for more in ((), ("--check",)):
        done = run(*words, option, file / "directory", *more)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert str(file) in done.stderr


def test_state_directory_of_another_server_is_refused_and_that_one_goes_on(guest: Guest) -> None:
    assert guest.server is not None
    line = one_line(run("--config", guest.server_config, "--port", "0"))
    assert f"is used by another server with pid {guest.server.pid}" in line
    assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5


def test_lock_of_the_state_directory_goes_with_whoever_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with locked_state_dir(str(path)):
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / LOCK_NAME).read_text() == f"{os.getpid()}\n"
        with pytest.raises(StateDirError, match=f"another server with pid {os.getpid()}"), locked_state_dir(str(path)):
            pass
    with locked_state_dir(str(path)):
        pass


def test_lock_whose_holder_could_not_write_its_pid_is_still_a_lock(tmp_path: Path) -> None:
    with (tmp_path / LOCK_NAME).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StateDirError, match="another server: end that one"), locked_state_dir(str(tmp_path)):
            pass


def test_check_of_a_directory_looks_at_the_nearest_that_exists(tmp_path: Path) -> None:
    check_state_dir(str(tmp_path / "a" / "b" / "c"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StateDirError, match="is not a directory"):
        check_state_dir(str(tmp_path / "file" / "x"))


def test_check_says_what_would_be_done_and_does_nothing(idle: Guest) -> None:
    idle.configure("maxProcesses=7", "allow=/opt/*")
    done = run("--config", idle.server_config, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("all in order\n")
    for words in (
        str(idle.server_config),
        "127.0.0.1 port 5315",
        "1 trusted",
        "7 at once",
        "/opt/*",
        str(idle.log_dir),
    ):
        assert words in done.stdout
    assert not idle.state_dir.exists()
    assert not idle.log_dir.exists()


def test_check_shows_rules_and_what_is_odd_about_them(idle: Guest) -> None:
    idle.configure(
        "rule r:", "allow=/srv/*", "user=nobody-here", "clientpublic:", "stop=nothing", "node7:maxProcesses=3"
    )
    done = run("--config", idle.server_config, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all in order" not in done.stdout
    for words in (
        "may be started /srv/*: rule 'r', user nobody-here",
        "clientpublic: stop nothing",
        "node7: 3 at once",
        "the section 'node7' names no certificate in",
        "the rule 'r' refuses every start: there is no user 'nobody-here' in this guest",
    ):
        assert words in done.stdout


def test_check_of_keys_that_do_not_work_ends_with_1(idle: Guest) -> None:
    (idle.directory / "server.private").unlink()
    done = run("--config", idle.server_config, "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert str(idle.directory / "server.private") in done.stderr
    assert done.stderr.count("\n") == 1


@contextmanager
def started(guest: Guest, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start the program with other words than `Guest` uses; ended with the test."""
    log = guest.directory / "other.log"
    argv = [sys.executable, "-m", "appserver", "--config", str(guest.server_config), *words]
    with log.open("wb") as file, subprocess.Popen(argv, stderr=file, cwd="/", env=guest.environment) as process:
        try:
            yield process, log
        finally:
            process.kill()


def test_free_port_is_one_for_both_families_and_each_address_is_logged(idle: Guest) -> None:
    config = idle.server_config.read_text()
    idle.server_config.write_text(config.replace("listen=127.0.0.1\n", ""))
    with started(idle, "--port", "0") as (process, log):
        port = wait_for_match(log.read_text, r"listening on 0\.0\.0\.0 port (\d+)\n").group(1)
        if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
            wait_for_match(log.read_text, rf"listening on :: port {port}\n")
            socket.create_connection(("::1", int(port))).close()
        socket.create_connection(("127.0.0.1", int(port))).close()
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_term_ends_it_with_0_and_its_managers_find_the_next_one(guest: Guest) -> None:
    manager = guest.manager(*patient(guest))
    pid = manager.wait_started()
    assert guest.stop_server() == 0
    assert "SIGTERM: letting the managers go" in guest.server_log
    assert is_alive(pid)
    guest.start_server()
    wait_until(lambda: "found again an application that runs" in guest.server_log)
    (guest.directory / "go").touch()
    assert manager.wait() == 7
    assert "Traceback" not in guest.server_log


def test_term_that_comes_again_and_again_still_ends_it_with_0(guest: Guest) -> None:
    manager = guest.manager(*patient(guest))
    pid = manager.wait_started()
    assert guest.server is not None
    while guest.server.poll() is None:
        guest.server.terminate()
        time.sleep(0.001)  # not to wait for anything: to let it run
    assert guest.server.returncode == 0
    assert is_alive(pid)
    guest.start_server()
    (guest.directory / "go").touch()
    assert manager.wait() == 7
    assert "Traceback" not in guest.server_log


SLOW_START = """
import appserver.cli, sys, time
def read(*_):
    print("reading", flush=True)
    time.sleep(1000)
appserver.cli.load_server_settings = read
sys.exit(appserver.cli.main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_that_is_asked_for_during_the_start_is_one_without_a_traceback(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_START], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_SECONDS) == (b"", b"")
        assert process.returncode == 0


SIGNALLED_AS_IT_LEAVES = """
import appserver.cli, os, signal, sys
class Last:
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGTERM):
        kill(own, number)
appserver.last = Last()
sys.exit(appserver.cli.main())
"""


def test_term_in_the_last_moments_does_not_take_the_place_of_the_exit_status(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SIGNALLED_AS_IT_LEAVES, "--config", str(tmp_path / "none.conf")]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert "none.conf" in one_line(done)


def reload(guest: Guest, said: str) -> str:
    """Send HUP and wait for what the log says; give that."""
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.send_signal(signal.SIGHUP)
    wait_for_match(lambda: guest.server_log[before:], said)
    return guest.server_log[before:]


def test_hup_takes_new_configuration_and_keys_and_lets_sessions_be(guest: Guest, tmp_path: Path) -> None:
    manager = guest.manager(*patient(guest))
    manager.wait_started()
    other = tmp_path / "other"
    assert cmapppki(["client", "--dir", str(other)]) == 0
    ours = {name: (guest.directory / name).read_bytes() for name in ("client.private", "client.public")}
    (guest.directory / "client.public").write_bytes((other / "client.public").read_bytes())
    guest.log_dir = guest.directory / "logs of later"
    config = guest.server_config.read_text()
    guest.server_config.write_text(config.replace("logDir=log\n", f"logDir={guest.log_dir}\nport=1\n"))
    log = reload(guest, "configuration and keys read again and in force")
    assert log.count("will be refused at its next connection") == 1
    assert f"cmappmgr[{manager.process.pid}] on " in log
    (guest.directory / "client.private").write_bytes((other / "client.private").read_bytes())
    status, text = guest.run("-service", "/bin/sh", "-c", "exit 5")
    assert status == 5
    assert str(guest.log_dir) in text
    (guest.directory / "client.private").write_bytes(ours["client.private"])
    assert guest.run("-cmappserver_timeout", "1", "-service", "/bin/true")[0] == 1
    (guest.directory / "go").touch()
    assert manager.wait() == 7


@pytest.mark.parametrize("broken", ["key store", "configuration", "log directory"])
def test_hup_with_something_wrong_keeps_the_old_and_says_why(guest: Guest, broken: str) -> None:
    config = guest.server_config.read_text()
    if broken == "key store":
        (guest.directory / "server.private").write_bytes(b"garbage\n")
    elif broken == "configuration":
        guest.server_config.write_text(config + "frobnicate=1\n")
    else:
        guest.server_config.write_text(config.replace("logDir=log\n", "logDir=client.public/log\n"))
    said = {"key store": "server.private", "configuration": "frobnicate", "log directory": "client.public/log"}
    log = reload(guest, f"reload failed, the old configuration and keys stay in force: .*{said[broken]}")
    assert log.count("\n") == 1
    assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5


def test_service_manager_is_told_when_it_listens_and_when_it_ends(idle: Guest) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        name = f"cmapp-test-{os.getpid()}"
        notified.bind(f"\0{name}")
        notified.settimeout(PATIENCE_SECONDS)
        idle.environment = {**os.environ, "NOTIFY_SOCKET": f"@{name}"}
        with started(idle, "--port", "0") as (process, log):
            ready = notified.recv(4096).decode().splitlines()
            assert ready[0] == "READY=1"
            assert ready[1].startswith("STATUS=listening on port ")
            socket.create_connection(("127.0.0.1", int(ready[1].split()[-1]))).close()
            process.send_signal(signal.SIGHUP)
            reloading = notified.recv(4096).decode().splitlines()
            assert reloading[0] == "RELOADING=1"
            reloaded_at = int(reloading[1].removeprefix("MONOTONIC_USEC=")) / 1e6
            assert abs(time.monotonic() - reloaded_at) < PATIENCE_SECONDS
            assert notified.recv(4096).decode().splitlines() == ready
            process.terminate()
            assert notified.recv(4096) == b"STOPPING=1"
            assert process.wait(PATIENCE_SECONDS) == 0
            assert "Traceback" not in log.read_text()


def test_journal_gets_priorities_and_no_time(idle: Guest) -> None:
    log = idle.directory / "server.log"
    log.touch()
    status = log.stat()
    idle.environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    idle.start_server()
    assert idle.run("-service", "/nowhere")[0] == 1
    assert idle.stop_server() == 0
    lines = idle.server_log.splitlines()
    assert all(re.match(r"<[346]>[a-zA-Z]", line) for line in lines), lines
    assert f"<6>listening on 127.0.0.1 port {idle.port}" in lines
    assert any(line.startswith("<4>refused (no-such-command)") for line in lines)


def test_full_disk_refuses_a_start_and_neither_harms_nor_loses_what_runs(tmp_path: Path, keys: Path) -> None:
    directory = tmp_path / "guest"
    with small_disk(directory / "state", 256), open_guest(directory, keys) as guest:
        guest.start_server()
        manager = guest.manager(*patient(guest))
        pid = manager.wait_started()
        fill(guest.state_dir)
        status, log = guest.run("--failure-status", "42", "-service", "/bin/sleep", "7")
        assert status == 42
        assert "No space left on device" in log
        assert "cannot be recorded" in log
        assert is_alive(pid)
        (guest.directory / "go").touch()
        assert manager.wait() == 7
        assert guest.run("-service", "/bin/sleep", "7")[0] == 1
        assert "Traceback" not in guest.server_log


@pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
def test_state_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(0o777)
    for use in (check_state_dir, lambda path: locked_state_dir(path).__enter__()):
        with pytest.raises(StateDirError, match=r"can be written by everybody \(mode 0777\): chmod o-w"):
            use(str(path))
    path.chmod(0o1777)
    check_state_dir(str(path))
    (path / "runs").mkdir()
    (path / "runs").chmod(0o777)
    with pytest.raises(StateDirError, match="runs can be written by everybody"):
        check_state_dir(str(path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a directory away")
def test_state_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(StateDirError, match="belongs to user 65534"):
        check_state_dir(str(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--config /c",
        "--config=/c --port=0",
        "--config= --port 00080",
        "--listen ::1 --listen=127.0.0.1 --state-dir s --log-dir=l=m --port 65535",
        "--config a --config b",
        f"--port {'0' * 5000}80",
    ],
)
def test_the_words_of_a_server_mean_without_the_parser_what_they_mean_to_it(line: str) -> None:
    assert read_plainly(line.split()) == read_all(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "--check",
        "--version",
        "--help",
        "--stop-all 5",
        "--conf c",
        "--config",
        "--config --check",
        "--listen -1",
        "--port x",
        "--port 65536",
        f"--port {'1' * 5000}",
        "--port x --port 5",
        "c",
        "--",
        "--config c d",
    ],
)
def test_all_other_words_are_the_parsers_business(line: str) -> None:
    assert read_plainly(line.split()) is None

"""What keeps the pair light, whatever mood a machine is in: imports, system calls, descriptors, memory of its own.

No time is asserted: that is for `make bench`. A bound has a margin over what was seen, so that another release of
Python or trio does not break it; what it is to catch (a library that creeps in, a descriptor that stays for each
application, a process that copies what it should share) is well beyond.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from oldest import LOADED_WITH_TRIO
from pair import MEASURED, NODE, PATIENCE_SECONDS, Guest, open_guest, wait_for_match, wait_until

from bench.measure import descendants, memory_of, memory_together, name_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(bool(MEASURED), reason="coverage has imports and memory of its own"),
]

Number = TypeVar("Number", int, float)

ROOT = Path(__file__).resolve().parent.parent
LOOK_SECONDS = 0.02
APPLICATIONS = 3
"""Enough to tell what each costs from what there is anyway."""

HEAVY = {
    "_cffi_backend",
    "asyncio",
    "concurrent",
    "cryptography",
    "datetime",
    "decimal",
    "doctest",
    "email",
    "http",
    "importlib.metadata",
    "multiprocessing",
    "optparse",
    "pkg_resources",
    "psutil",
    "pydoc",
    "secrets",
    "sqlite3",
    "statistics",
    "trio.testing",
    "unittest",
    "urllib.request",
    "xml",
    "pki.certificates",
    "pki.reading",
    "pki.stores",
}
"""What none of the daemons needs; `cryptography` alone is 65 ms and 10 MB."""

NOT_IN_A_MANAGER = HEAVY | {
    "argparse",
    "ast",
    "attr.converters",
    "attr.validators",
    "base64",
    "dataclasses",
    "dis",
    "encodings.idna",
    "gettext",
    "hashlib",
    "hmac",
    "idna",
    "inspect",
    "ipaddress",
    "logging",
    "platform",
    "selectors",
    "shlex",
    "shutil",
    "subprocess",
    "tempfile",
    "textwrap",
    "pathlib",
    "tokenize",
    "traceback",
    "trio._dtls",
    "trio._file_io",
    "trio._path",
    "trio._subprocess",
    "trio._threads",
    "urllib",
}
"""Loaded by the end of its run: what waits for a first use in vain (`pki.later`) is not."""

NOT_IN_A_SERVER = HEAVY | {
    "appmgr",
    "appserver.launcher",
    "appserver.portable",
    "appserver.waiter",
    "argparse",
    "ast",
    "attr.converters",
    "attr.validators",
    "base64",
    "bz2",
    "dataclasses",
    "dis",
    "encodings.idna",
    "gettext",
    "hmac",
    "idna",
    "inspect",
    "ipaddress",
    "locale",
    "logging",
    "lzma",
    "pathlib",
    "platform",
    "selectors",
    "shutil",
    "stringprep",
    "subprocess",
    "tempfile",
    "trio._dtls",
    "trio._file_io",
    "trio._path",
    "trio._subprocess",
    "urllib",
}
"""Loaded after all that it may have to do."""

NOT_IN_A_LAUNCHER = HEAVY | {
    "_ssl",
    "appmgr",
    "argparse",
    "attr",
    "dataclasses",
    "hashlib",
    "inspect",
    "ipaddress",
    "logging",
    "random",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "trio",
    "typing",
}
"""Every application has a waiter that is a fork of it."""

OURS_IN_A_MANAGER = {
    "atonce",
    "codec",
    "disks",
    "identity",
    "latelog",
    "messages",
    "outcome",
    "ports",
    "protocol",
    "report",
    "sinks",
    "version",
}
"""What the host's side has of the guest's floor: what both must agree on, how both send, and the log."""

MAX_SYSTEM_CALLS = 4800
"""Of one run of a manager from start to end, waiting for a lock left out: 3,200 were seen, half of them look-ups of
modules, the number of which depends on how long the interpreter's path is."""

MAX_CALLS_TO_AN_END = 540
"""Of functions, Python's and others', from the bytes of an outcome to the end of its manager. It was asleep, and has
most of this code before it for the first time: two microseconds for each. Seen were 478 with Python 3.11."""

MAX_PROGRAMS = 1
"""A manager itself, and nobody else: trio would ask `ldconfig` at its import where the C library lies."""

MAX_MANAGER_DESCRIPTORS = 12
"""Nine were seen: three standard ones, a connection, what the loop wakes itself by, and syslog."""

MAX_SERVER_DESCRIPTORS_OF_AN_APPLICATION = 4
"""The manager's connection, the waiter's socket, the process, the log."""

MAX_WAITER_DESCRIPTORS = 10
"""Eight were seen."""

MAX_MEMORY = {"manager": 5.6, "server": 6.4, "waiter": 0.32, "launcher and waiters": 4.2}
"""As a multiple of what a bare interpreter has for itself: private memory, and of the launcher with its waiters, which
share what they can, what they take together. Seen were 4.9, 5.2, 0.23 and 3.1 with Python 3.11; 5.3, 5.7, 0.22 and 3.7
with Python 3.13, where a server that has to compile its modules first has 6.0."""

OLDER_PYTHON = 1.25 if sys.version_info < (3, 11) else 1.0
"""What these are multiplied by with Python 3.10, which is smaller itself, learns nothing while code runs that waiters
could share, and has a library for groups of exceptions. Seen were 6.4, 7.2, 0.36 and 4.8."""


@dataclass(frozen=True)
class Readings:
    """What was read of a pair at rest. Descriptors of the server are counted with no application, and with all."""

    server_loaded: set[str]
    server_descriptors: tuple[int, int]
    manager_descriptors: list[int]
    waiter_descriptors: list[int]
    memory: dict[str, float]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Guest]:
    with open_guest(tmp_path_factory.mktemp("light") / "guest", keys) as guest:
        guest.environment = {}
        guest.server_program = [sys.executable, "-c", TELLING_SERVER]
        guest.start_server()
        yield guest


@pytest.fixture(scope="module")
def readings(lasting: Guest) -> Readings:
    assert lasting.server is not None
    server, launcher = lasting.server.pid, lasting.launcher_pid()
    loaded = loaded_in(lasting)
    descriptors_before = settled(partial(count_descriptors, server))
    managers = [lasting.manager("-service", "/bin/sleep", str(1000 + number)) for number in range(APPLICATIONS)]
    pids = [manager.wait_started() for manager in managers]
    waiters = [lasting.waiter_pid(pid) for pid in pids]
    mebibytes = {
        "manager": [settled(partial(private_mib, manager.process.pid)) for manager in managers],
        "server": [settled(partial(private_mib, server))],
        "waiter": [settled(partial(private_mib, pid)) for pid in waiters],
        "launcher and waiters": [memory_together([launcher, *waiters]).pss_mib],
    }
    bare = bare_interpreter_mib()
    return Readings(
        server_loaded=loaded,
        server_descriptors=(descriptors_before, settled(partial(count_descriptors, server))),
        manager_descriptors=[count_descriptors(manager.process.pid) for manager in managers],
        waiter_descriptors=[count_descriptors(pid) for pid in waiters],
        memory={name: max(values) / bare for name, values in mebibytes.items()},
    )


TELLING_SERVER = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
def tell(*_):
    names = [name for name, module in list(sys.modules.items()) if type(module).__name__ != "_Later"]
    os.write(2, ("LOADED " + " ".join(names) + "\\n").encode())
signal.signal(signal.SIGUSR1, tell)
from appserver.cli import main
main()
"""
"""A server that says which modules are loaded when it is asked."""

TELLING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
leave, told = os._exit, sys.argv.pop(1)
def tell(status):
    with open(told, "w") as file:  # its standard output is closed by now
        print(*[name for name, module in list(sys.modules.items()) if type(module).__name__ != "_Later"], file=file)
    leave(status)
os._exit = tell
from appmgr.cli import main
main()
"""
"""A manager that writes at its end, into a file, which modules are loaded."""

COUNTING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
leave, told, calls = os._exit, sys.argv.pop(1), []
def count(frame, event, called):
    if event in ("call", "c_call"):
        calls.append(frame.f_code.co_name if event == "call" else called.__name__)
def tell(status):
    sys.setprofile(None)
    with open(told, "w") as file:
        print(*calls, sep="\\n", file=file)
    leave(status)
os._exit = tell
from appmgr import link
decoded = link.Connection.next_event
def decode(connection):
    if b'"ended"' in connection._buffer:
        sys.setprofile(count)
    return decoded(connection)
link.Connection.next_event = decode
from appmgr.cli import main
main()
"""
"""A manager that writes at its end, into a file, what was called from when it had the outcome's bytes."""


def manager_words(guest: Guest, *program: str, service: Sequence[str] = ("/bin/true",)) -> list[str]:
    """Give the command of a manager that runs to its end."""
    own = ["-node", NODE, "--config", str(guest.host_config), "-service", *service]
    return [sys.executable, *(program or ("-m", "appmgr")), *own]


def loaded_in(guest: Guest) -> set[str]:
    """Have the server say which modules are loaded."""
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.send_signal(signal.SIGUSR1)
    return set(wait_for_match(lambda: guest.server_log[before:], r"(?m)^LOADED (.*)\n").group(1).split())


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def private_mib(pid: int) -> float:
    return memory_of(pid).private_mib


def settled(reading: Callable[[], Number]) -> Number:
    """Read until a value stays: what was just started still moves."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    now = reading()
    while True:
        time.sleep(LOOK_SECONDS)
        before, now = now, reading()
        if now == before or time.monotonic() > deadline:
            return now


def bare_interpreter_mib() -> float:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            return settled(partial(private_mib, process.pid))
        finally:
            process.kill()


def test_a_manager_imports_nothing_that_its_run_does_not_need(lasting: Guest, tmp_path: Path) -> None:
    words = manager_words(lasting, "-c", TELLING, str(tmp_path / "told"))
    done = subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    names = set((tmp_path / "told").read_text().split())
    assert "trio" in names
    assert not names & NOT_IN_A_MANAGER - LOADED_WITH_TRIO
    guest_side = {name.partition(".")[2] for name in names if name.startswith("appserver.")}
    assert guest_side <= OURS_IN_A_MANAGER, "the host's side takes more of the guest's floor than both must agree on"


def test_a_server_loads_nothing_that_it_does_not_need_and_nothing_once_it_serves(
    lasting: Guest, readings: Readings
) -> None:
    """An upgrade may have taken the files away, and others all descriptors."""
    assert lasting.server is not None
    assert "appserver.supervisor" in readings.server_loaded
    assert not readings.server_loaded & NOT_IN_A_SERVER - LOADED_WITH_TRIO
    assert lasting.run("-service", "/bin/true")[0] == 0
    assert lasting.run("-service", "/nowhere/such")[0] == 1
    assert lasting.run("--action", "stop", "-service", "/bin/sleep", "1000")[0] == 0
    socket.create_connection(("127.0.0.1", lasting.port)).close()
    lasting.server.send_signal(signal.SIGHUP)
    wait_for_match(lambda: lasting.server_log, "read again and in force")
    os.kill(lasting.launcher_pid(), signal.SIGKILL)
    wait_for_match(lambda: lasting.server_log, "the launcher ended")
    assert lasting.run("-service", "/bin/true")[0] == 0
    assert loaded_in(lasting) <= readings.server_loaded


def test_a_launcher_imports_nothing_that_each_waiter_would_pay_for() -> None:
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import appserver.launcher; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert "appserver.waiter" in names
    assert not names & NOT_IN_A_LAUNCHER


def test_a_manager_makes_a_bounded_number_of_system_calls(lasting: Guest, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    counts = tmp_path / "counts"
    words = [strace, "-f", "-c", "-o", str(counts), *manager_words(lasting)]
    done = subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if not counts.exists() or "PTRACE" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    # share, seconds, microseconds for each call, calls, errors where there are any, name
    rows = [line.split() for line in counts.read_text().splitlines()]
    calls = {row[-1]: int(row[3]) for row in rows if len(row) > 4 and row[3].isdigit() and row[-1] != "total"}
    assert calls["execve"] <= MAX_PROGRAMS
    assert sum(number for name, number in calls.items() if name != "futex") < MAX_SYSTEM_CALLS


def test_a_manager_calls_a_bounded_number_of_functions_from_an_outcome_to_its_end(
    lasting: Guest, tmp_path: Path
) -> None:
    counts = tmp_path / "counts"
    words = manager_words(lasting, "-c", COUNTING, str(counts), service=("/bin/sleep", "0.3"))
    done = subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    called = counts.read_text().splitlines()
    assert "received" in called
    assert "leave" in called
    assert len(called) < MAX_CALLS_TO_AN_END, called


def test_descriptors_of_each_process_are_few(readings: Readings) -> None:
    before, after = readings.server_descriptors
    assert after - before <= MAX_SERVER_DESCRIPTORS_OF_AN_APPLICATION * APPLICATIONS
    assert max(readings.manager_descriptors) <= MAX_MANAGER_DESCRIPTORS
    assert max(readings.waiter_descriptors) <= MAX_WAITER_DESCRIPTORS


@pytest.mark.parametrize("who", sorted(MAX_MEMORY))
def test_memory_stays_a_bounded_multiple_of_a_bare_interpreter(readings: Readings, who: str) -> None:
    assert readings.memory[who] <= MAX_MEMORY[who] * OLDER_PYTHON


def test_nothing_of_a_server_is_left_after_a_manager_has_ended(lasting: Guest) -> None:
    assert lasting.server is not None
    server = lasting.server.pid
    before = settled(partial(count_descriptors, server))
    assert lasting.run("-service", "/bin/true")[0] == 0
    wait_until(lambda: count_descriptors(server) <= before, "the end of the session")
    stay = {"cmapp-launcher", "cmapp-waiter", "sleep"}
    # One that ends as it is looked at has no name.
    wait_until(lambda: {name_of(pid) for pid in descendants(server)} <= stay, "the end of its processes")

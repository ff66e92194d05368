"""`cmappmgr` as a process: called as a cluster calls it, against a small server made of the protocol and a script."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appmgr import cli
from appmgr.cli import main
from appserver.messages import Ack, Bye, Ended, Greeting, Hello, Message, Run, Running, Stop, Stopping
from appserver.outcome import Account, Exited, Signaled
from appserver.protocol import NEED_DATA, Connection
from appserver.version import software
from pki.certificates import Purpose, issue
from pki.contexts import server_context
from pki.material import Keys
from pki.unlock import load_material

if sys.platform == "win32":
    pytest.skip("signals and an empty environment are those of POSIX", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60.0
EMPTY = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
"""The environment that a cluster gives, except where the coverage of the child is measured."""

PREFIX = re.compile(r"^[A-Z][a-z]{2} [ 123]\d \d\d:\d\d:\d\d \S+ cmappmgr\[\d+\]: ")


@dataclass(frozen=True)
class Place:
    """A directory with keys for one host and one guest, and the host's configuration."""

    path: Path

    @property
    def config(self) -> str:
        return str(self.path / "cmappmgr.conf")

    def guest_keys(self) -> Keys:
        return Keys(str(self.path / "server.pem"), "", str(self.path / "client.crt"), "")

    def configure(self, port: int, trust_store: str = "server.crt") -> None:
        text = f"keyStore=client.pem\ntrustStore={trust_store}\nport={port}\naddress=127.0.0.1\n"
        Path(self.config).write_text(text, encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name, purpose in (("client", Purpose.CLIENT), ("server", Purpose.SERVER), ("other", Purpose.SERVER)):
        issued = issue(purpose, name, now=datetime.now(timezone.utc))
        certificate = issued.certificate.public_bytes(Encoding.PEM)
        key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.crt").write_bytes(certificate)
        (tmp_path / f"{name}.pem").touch(0o600)
        (tmp_path / f"{name}.pem").write_bytes(key + certificate)
    found = Place(tmp_path)
    found.configure(free_port())
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Session:
    """The server's half of one conversation."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = Connection("server")

    async def say(self, message: Message) -> None:
        await self._stream.send_all(self._protocol.send(message))

    async def hear(self) -> object:
        while (event := self._protocol.next_event()) is NEED_DATA:
            self._protocol.receive_data(await self._stream.receive_some(65536))
        return event

    async def hear_run(self) -> Run:
        await self.say(Greeting((1,), "a test", "g1"))
        assert isinstance(await self.hear(), Hello)
        run = await self.hear()
        assert isinstance(run, Run)
        return run


Script = Callable[[Session, trio.Process], Awaitable[None]]


@dataclass(frozen=True)
class Result:
    status: int
    lines: list[str]

    def texts(self) -> list[str]:
        """The lines of the log without what each starts with."""
        assert all(PREFIX.match(line) for line in self.lines), self.lines
        return [PREFIX.sub("", line) for line in self.lines]


async def run_against(place: Place, script: Script, *options: str) -> Result:
    """Run the program with an empty environment, and `script` as its server, once for each connection."""
    context = server_context(load_material(place.guest_keys()))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    place.configure(listener.socket.getsockname()[1])
    process: list[trio.Process] = []

    async def converse(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async with stream:
            try:
                await script(Session(stream), process[0])
            except trio.BrokenResourceError:
                # The host did not accept the server's key, or left in the middle.
                return

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, converse, [trio.SSLListener(listener, context)])
            result = await run_program(place, process, *options)
            nursery.cancel_scope.cancel()
    return result


async def run_program(place: Place, process: list[trio.Process], *options: str) -> Result:
    words = [sys.executable, "-c", BOOTSTRAP, "-node", "g1", "--config", place.config, *options]
    words += ["-service", "/bin/sh", "-c", "exit 3"]
    started: trio.Process = await trio.lowlevel.open_process(
        words, env=EMPTY, cwd="/", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    process.append(started)
    assert started.stderr is not None
    text = b""
    try:
        async for chunk in started.stderr:
            text += chunk
        status = await started.wait()
    finally:
        started.kill()
    return Result(status, text.decode().splitlines())


BOOTSTRAP = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from appmgr.cli import main; main()"


def running(run: Run) -> Running:
    return Running(run.seq, run.run, "running", False, 77, 1e9, 0.0, "/log", None)


async def test_a_run_under_an_empty_environment_ends_with_its_status(place: Place) -> None:
    acknowledged: list[object] = []

    async def script(session: Session, _process: trio.Process) -> None:
        run = await session.hear_run()
        assert (run.service.words, run.service.form) == (("/bin/sh", "-c", "exit 3"), "vector")
        await session.say(running(run))
        await session.say(Ended(None, run.run, Exited(3, Account(ran_seconds=0.1)), ("last words",)))
        acknowledged.append(await session.hear())
        assert await session.hear() == Bye()

    result = await run_against(place, script)
    assert result.status == 3
    assert result.texts() == [
        "started the application \"/bin/sh -c 'exit 3'\" on the node g1: process 77, output in /log",
        "output: last words",
        "the application \"/bin/sh -c 'exit 3'\" on the node g1 ended after 0.10 s: exited with code 3, by itself",
        "PROGRAM EXIT CODE 3",
    ]
    assert isinstance(acknowledged[0], Ack)


async def test_a_cut_between_request_and_reply_asks_again_with_the_same_id(place: Place) -> None:
    runs: list[Run] = []

    async def script(session: Session, _process: trio.Process) -> None:
        runs.append(await session.hear_run())
        if len(runs) == 2:
            await session.say(Ended(runs[1].seq, runs[1].run, Signaled(9)))
            await session.hear()

    result = await run_against(place, script)
    assert result.status == 137
    assert runs[0].run == runs[1].run
    texts = result.texts()
    assert texts[0].startswith("lost contact with the node g1")
    assert texts[1].startswith("contact with the node g1 is back")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_halt_detaches(place: Place, number: int) -> None:
    heard: list[object] = []

    async def script(session: Session, process: trio.Process) -> None:
        await session.say(running(await session.hear_run()))
        process.send_signal(number)
        heard.append(await session.hear())

    result = await run_against(place, script)
    expected = 130 if number == signal.SIGINT else 143
    assert result.status == expected
    assert result.texts()[-1] == f"PROGRAM EXIT CODE {expected}"
    assert "detached" in result.texts()[-2]
    assert heard == [Bye()]


async def test_a_halt_with_stop_waits_for_the_outcome(place: Place) -> None:
    async def script(session: Session, process: trio.Process) -> None:
        run = await session.hear_run()
        await session.say(running(run))
        process.terminate()
        stop = await session.hear()
        assert isinstance(stop, Stop)
        assert (stop.run, stop.timeout_seconds) == (run.run, 7.0)
        await session.say(Stopping(stop.seq, stop.run))
        await session.say(Ended(None, run.run, Exited(5, Account(stopped_by="node1"))))
        await session.hear()

    result = await run_against(place, script, "--on-halt", "stop", "--stop-timeout", "7")
    assert result.status == 5
    assert "stopped by node1" in result.texts()[-2]


async def test_another_guests_key_is_a_failed_contact_that_is_tried_until_the_timeout(place: Place) -> None:
    async def script(session: Session, _process: trio.Process) -> None:
        await session.hear_run()
        raise AssertionError("a server with the wrong key was spoken to")

    (place.path / "server.crt").write_bytes((place.path / "other.crt").read_bytes())
    result = await run_against(place, script, "--boot-timeout", "1", "--failure-status", "9")
    assert result.status == 9
    texts = result.texts()
    assert texts[0] == "Could not connect to the node g1"
    assert "trust store" in texts[1]
    assert texts[-1] == "PROGRAM EXIT CODE 9"


async def test_a_host_whose_key_the_guest_does_not_know_is_told_so(place: Place) -> None:
    async def script(session: Session, _process: trio.Process) -> None:
        await session.hear_run()

    (place.path / "client.crt").write_bytes((place.path / "other.crt").read_bytes())
    result = await run_against(place, script, "--boot-timeout", "1")
    assert (result.status, result.texts()[0]) == (1, "Could not connect to the node g1")


def call(*words: str) -> Result:
    program = [sys.executable, "-c", BOOTSTRAP, *words]
    found = subprocess.run(
        program, env=EMPTY, cwd="/", capture_output=True, timeout=PATIENCE_SECONDS, text=True, check=False
    )
    return Result(found.returncode, found.stderr.splitlines())


def test_a_refused_connection_is_logged_as_the_old_program_did(place: Place) -> None:
    result = call("-node", "g1", "--config", place.config, "-cmappserver_timeout", "0.5", "-service", "x")
    assert result.status == 1
    texts = result.texts()
    assert texts[0].startswith("poll interval lowered")
    assert texts[1] == "Could not connect to the node g1"
    assert re.fullmatch(r"Connection refused \(errno:\d+\)", texts[2])
    assert texts[3].startswith("no contact with the node g1 within 0.50 s")
    assert texts[4] == "PROGRAM EXIT CODE 1"


def test_a_term_before_the_first_contact_ends_it_at_once(place: Place) -> None:
    program = [sys.executable, "-c", BOOTSTRAP, "-node", "g1", "--config", place.config, "-service", "x"]
    with subprocess.Popen(program, env=EMPTY, cwd="/", stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.terminate()
        rest = process.stderr.read().splitlines()
        assert process.wait(PATIENCE_SECONDS) == 143
    assert first.endswith("Could not connect to the node g1\n")
    assert rest[-2].endswith("SIGTERM before the first contact: nothing was started")
    assert rest[-1].endswith("PROGRAM EXIT CODE 143")


def test_closed_standard_descriptors_change_nothing(place: Place) -> None:
    contact = f"-node g1 --config {place.config} -cmappserver_timeout 0.3 --failure-status 44 -service x"
    for words, status in ((contact, 44), ("", 2), ("--wrong", 2), ("--help", 0)):
        command = f'exec {sys.executable} -c "{BOOTSTRAP}" {words} <&- >&- 2>&-'
        found = subprocess.run(["/bin/sh", "-c", command], env=EMPTY, cwd="/", timeout=PATIENCE_SECONDS, check=False)
        assert found.returncode == status


def test_an_unusable_configuration_is_one_clear_line(place: Place) -> None:
    result = call("-node", "g1", "--config", str(place.path / "none.conf"), "--failure-status", "4", "-service", "x")
    assert result.status == 4
    fault, last = result.texts()
    assert "none.conf" in fault
    assert last == "PROGRAM EXIT CODE 4"


def test_unusable_keys_are_one_clear_line(place: Place) -> None:
    os.unlink(place.path / "client.pem")
    result = call("-node", "g1", "--config", place.config, "-service", "x")
    assert result.status == 1
    fault, last = result.texts()
    assert "client.pem" in fault
    assert last == "PROGRAM EXIT CODE 1"


def test_bytes_that_are_not_utf8_are_wrong_usage() -> None:
    found = subprocess.run(
        [os.fsencode(sys.executable), b"-c", BOOTSTRAP.encode(), b"-node", b"g1", b"-service", b"/x\xff"],
        env=EMPTY,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert found.returncode == 2
    assert b"is not UTF-8" in found.stderr
    assert b"PROGRAM EXIT CODE" not in found.stderr


SIGNALLED_AS_IT_LEAVES = """
import os, signal
leave = os._exit
def signalled(status):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.raise_signal(number)
    leave(status)
os._exit = signalled
"""


def test_a_signal_in_the_last_moments_does_not_take_the_place_of_the_exit_status(place: Place) -> None:
    words = ["-node", "g1", "--config", str(place.path / "none.conf"), "--failure-status", "4", "-service", "x"]
    program = [sys.executable, "-c", SIGNALLED_AS_IT_LEAVES + BOOTSTRAP, *words]
    found = subprocess.run(
        program, env=EMPTY, cwd="/", capture_output=True, timeout=PATIENCE_SECONDS, text=True, check=False
    )
    assert found.returncode == 4
    assert found.stderr.splitlines()[-1].endswith("PROGRAM EXIT CODE 4")


NEEDED = ["-node", "g1", "-service", "x"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_anything_else_is_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(cli, "load_node_settings", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert main(NEEDED) == (130 if number == signal.SIGINT else 143)
    assert signal.getsignal(number) is before
    assert "before the first contact: nothing was started" in capfd.readouterr().err


def test_signals_are_collected_once_the_loop_begins_and_an_ignored_hup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.EarlySignals() as early:
            assert early.numbers == (signal.SIGTERM, signal.SIGINT)
            early.collect()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            assert early.take_over() == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bug_is_reported_and_gives_the_failure_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load_node_settings", lambda *_: 1 // 0)
    assert main(["--failure-status", "77", *NEEDED]) == 77
    lines = capfd.readouterr().err.splitlines()
    assert "internal error, please report it: ZeroDivisionError" in lines[0]
    assert all(PREFIX.match(line) for line in lines)
    assert lines[-1].endswith("PROGRAM EXIT CODE 77")


def test_a_bug_gives_the_failure_status_also_where_nothing_more_can_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load_node_settings", lambda *_: 1 // 0)
    monkeypatch.setitem(sys.modules, "traceback", None)
    assert main(["--failure-status", "77", *NEEDED]) == 77
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("]: ")[1] for line in lines] == [
        "internal error, please report it: ZeroDivisionError: integer division or modulo by zero",
        "PROGRAM EXIT CODE 77",
    ]


def test_no_words_give_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: cmappmgr")


def test_wrong_usage_gives_the_reason_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-node", "g1"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("cmappmgr: -service is missing")
    assert "cmappmgr --help" in output.err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for option in ("--boot-timeout", "-cmappmgr_timeout", "--survivors", "exit status:", "examples:"):
        assert option in output.out
    assert max(len(line) for line in output.out.splitlines()) <= 120


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == software("cmappmgr") + "\n"


def test_a_signal_that_comes_in_the_callback_of_a_weak_reference_is_kept_and_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Thing:
        pass

    hook = sys.unraisablehook
    with cli.EarlySignals() as early:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing
        assert reference() is None
        assert early.take_over() == [signal.SIGTERM]
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("broken", [SyntaxError("half written"), NameError("of another version"), OSError("no files")])
def test_a_library_that_is_being_exchanged_does_not_end_a_manager_that_settles(
    monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    class Exchanged(ModuleType):
        def __getattr__(self, _: str) -> NoReturn:
            raise broken

    monkeypatch.setitem(sys.modules, "trio.to_thread", Exchanged("trio.to_thread"))
    cli._load_for_later()

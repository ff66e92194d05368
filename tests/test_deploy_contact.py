"""The check of the communication, over streams in memory and with a real server; and the whole program as a process."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pair import NODE, PATIENCE_SECONDS, Guest, wait_until
from serviceguard import Service, modular_entries

from appmgr.deploy import cli
from appmgr.deploy.contact import check_contact, greet
from appmgr.deploy.errors import ContactFailed
from appmgr.dial import Contact, ContactError
from appserver.messages import Greeting, Refused
from appserver.protocol import Connection

CONFIGURATION = f"package_name {NODE}\nnode_name node1\n"


class Played:
    """A guest that says one thing, or nothing."""

    def __init__(self, message: Greeting | Refused | None = None, failure: str | None = None) -> None:
        self.message = message
        self.failure = failure
        self.stream: trio.testing.MemoryReceiveStream | None = None

    async def dial(self) -> Contact:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise ContactError(self.failure)
        ours, theirs = trio.testing.memory_stream_pair()
        if self.message is not None:
            await theirs.send_all(Connection("server").send(self.message))
        self.theirs = theirs
        return Contact(ours)


GREETING = Greeting((1,), "cmappserver 0", "vm1")


async def test_a_server_that_greets_is_in_contact_and_left_at_once(autojump_clock: trio.testing.MockClock) -> None:
    waited: list[float] = []
    played = Played(GREETING)
    began = autojump_clock.current_time()
    await greet(played.dial, waited.append)
    assert autojump_clock.current_time() == began
    assert not waited
    said = bytes(await played.theirs.receive_some())
    assert b"cmdeployvpkg" in said
    assert await played.theirs.receive_some() == b"", "it left"


@pytest.mark.parametrize(
    ("played", "fault"),
    [
        (Played(failure="Connection refused (errno:111)"), "Connection refused"),
        (Played(Refused(None, "sessions", "too many")), r"the server refused: too many \(sessions\)"),
        (Played(Refused(None, "certificate", "unknown")), "does not accept our key: unknown"),
        (Played(Greeting((99,), "cmappserver 9", "vm1")), "protocol versions"),
    ],
)
async def test_why_there_is_no_contact_is_told(played: Played, fault: str) -> None:
    with pytest.raises(ContactFailed, match=fault):
        await greet(played.dial, lambda _: None)


async def test_a_silent_server_is_waited_for_in_public_and_not_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert autojump_clock.autojump_threshold == 0
    waited: list[float] = []
    with pytest.raises(ContactFailed, match="did not greet within 10 s"):
        await greet(Played().dial, waited.append)
    assert waited[:2] == [2.0, 4.0]


async def test_an_attempt_that_takes_for_ever_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    assert autojump_clock.autojump_threshold == 0

    async def dial() -> Contact:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(ContactFailed, match="no answer within 15 s"):
        await greet(dial, lambda _: None)


# With the real server and the real program.


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "cmcluster" / NODE / f"{NODE}.conf"
    path.parent.mkdir(parents=True)
    path.write_text(CONFIGURATION)
    return path


def words(package: Path, *more: str) -> list[str]:
    return ["-P", NODE, "--directory", str(package.parents[1]), "-x", "merge", *more]


@pytest.fixture
def service(guest: Guest, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Service]:
    program = tmp_path / "cmappmgr"
    program.write_text(f"#!{sys.executable}\nfrom appmgr.cli import main\nmain()\n")
    program.chmod(0o755)
    application = tmp_path / "ping mon"
    application.write_text('#!/bin/sh\necho "$@" > "$0.words"\nexit 3\n')
    application.chmod(0o755)
    monitor = f"appmon=ping_mon:'{application}' \"it's  C:\\x\":60:1:20"
    given = ["-Q", *words(package, "-x", monitor, "--config", str(guest.host_config), "--cmappmgr", str(program))]
    assert cli.main(given) == 0
    said = capsys.readouterr()
    assert f"Checking communications with the application monitor server on : {NODE}\n" in said.out
    assert not said.err
    after = package.read_bytes()
    assert cli.main(given) == 0
    assert package.read_bytes() == after
    assert capsys.readouterr().out.endswith("Nothing to change.\n")
    (entry,) = modular_entries(package.read_text())
    service = Service(entry, tmp_path / "package.log")
    service.start()
    yield service
    service.close()


def test_what_is_deployed_runs_under_serviceguard_word_for_word(service: Service, tmp_path: Path) -> None:
    assert (service.entry.restart, service.entry.halt_timeout) == ("1", 20)
    assert [service.await_end(), service.await_end()] == ["restarted", "failed over"]
    assert service.log.count("PROGRAM EXIT CODE 3") == 2
    assert (tmp_path / "ping mon.words").read_text() == "it's  C:\\x\n"


def test_a_guest_without_a_server_is_not_deployed_to(
    idle: Guest, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle.configure_host(port=1)
    given = words(package, "-x", "appmon=a:/apps/a:::", "--config", str(idle.host_config))
    assert cli.main(["-Q", *given]) == 1
    said = capsys.readouterr().err
    expected = f"cmdeployvpkg: no contact with the application monitor server on {NODE}: Connection refused"
    assert said == f"{expected} (errno:{errno.ECONNREFUSED}); nothing was changed\n"
    with pytest.raises(ContactFailed, match="does not exist"):
        check_contact(NODE, str(idle.directory / "none.conf"), lambda _: None)
    assert package.read_text() == CONFIGURATION


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, "cmdeployvpkg 0"),
        (["--help"], 0, "exit status: 0 done"),
        (["-P", "x", "-U"], 2, "cmdeployvpkg: -U removes packages"),
        (
            ["-Q", "-P", "x", "--directory", "/nowhere", "-x", "merge", "-x", "appmon=a:/a:::"],
            1,
            "; nothing was changed\n",
        ),
    ],
)
def test_every_end_has_its_exit_status(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    texts = capsys.readouterr()
    assert said in (texts.err if status else texts.out)


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_a_stream_that_was_closed_before_the_start_is_one_that_has_ended(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    monkeypatch.setattr(sys, name, None)
    assert cli.main(words(package, "-x", "appmon")) == 1
    assert (
        capsys.readouterr().err
        == "cmdeployvpkg: the answers ended in the middle of the questions: nothing was changed\n"
    )


def begin(package: Path, **streams: int) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "appmgr.deploy", *words(package, "-x", "appmon")]
    return subprocess.Popen(program, **streams)  # type: ignore[call-overload, no-any-return]  # files of Popen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_of_the_questions_changes_nothing(package: Path, number: signal.Signals) -> None:
    with begin(package, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"y\ny\n")
        process.stdin.flush()
        heard = b""
        while not heard.endswith(b"Configure an application monitor service? (y/n):"):
            heard += os.read(process.stdout.fileno(), 4096)
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 128 + number
        assert process.stderr.read().decode() == f"cmdeployvpkg: {number.name}: nothing was changed\n"
    assert package.read_text() == CONFIGURATION


@pytest.mark.skipif(sys.platform == "win32", reason="there a signal cannot be sent to a thread")
def test_a_signal_between_a_question_and_the_wait_for_its_answer_is_heard_all_the_same(
    package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answers, answering = os.pipe()
    over = threading.Event()
    helped: list[bool] = []

    def signal_beside() -> None:
        # What another thread receives interrupts no wait of the main one, as what came just before it does not.
        wait_until(lambda: not select.select([answers], [], [], 0)[0], "the first answer being read")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if not over.wait(PATIENCE_SECONDS):
            helped.append(True)
            os.write(answering, b"n\n")

    with open(answers, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(answering, b"y\n")
        beside = threading.Thread(target=signal_beside)
        beside.start()
        status = cli.main(words(package, "-x", "appmon"))
        over.set()
        beside.join()
        os.close(answering)
    assert not helped
    assert status == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "cmdeployvpkg: SIGTERM: nothing was changed\n"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_terminal_that_is_closed_changes_nothing(package: Path) -> None:
    ours, theirs = os.openpty()
    try:
        process = begin(package, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
        os.close(theirs)
        heard = b""
        while not heard.endswith(b"Do you wish to continue? (y/n):"):
            heard += os.read(ours, 4096)
    finally:
        os.close(ours)
    with process:
        assert process.wait(PATIENCE_SECONDS) == 1
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert said.startswith("cmdeployvpkg: the answers ")
    assert said.endswith(": nothing was changed\n")
    assert said.count("\n") == 1
    assert package.read_text() == CONFIGURATION

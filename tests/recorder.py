"""Keep what later versions are tested against: `recorder.py [--commit REVISION]`, as `make record-release` does.

Builds the wheel of a commit, installs it into an environment of its own, and has the true server and the true manager
of it play some stories, with somebody in the middle who holds the keys of both and writes down what they say. Then it
keeps a state directory with runs in every phase. Needs root, for a host name of its own: none of this machine is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import trio
from pair import PATIENCE_SECONDS, Guest, Manager, Place, kill_tree, make_keys, open_guest, wait_ended, wait_until
from released import BOUND, RELEASES, TREE, python_of

from pki.contexts import client_context, load_material, server_context
from pki.material import Keys, Material

DIRECTORY = Path("/tmp/cmapp-recording")  # its name gets into the records

FOREVER = ("/bin/sleep", "1000")
STUBBORN = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")


def named(host: str) -> tuple[str, ...]:
    """Give the words that run a command on a machine that is called so."""
    return ("unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh")


class Scribe:
    """Relays between manager and server, each of which takes it for the other, and writes down what they say."""

    def __init__(self, keys: Path) -> None:
        self.lines: list[str] = []
        self.port = 0
        self.target = 0
        self.open = 0
        guest, host = (_material(keys, *pair) for pair in (("server", "client"), ("client", "server")))
        self._as_server, self._as_manager = server_context(guest), client_context(host)
        self._ready = threading.Event()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)
        thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        try:
            yield
        finally:
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
            thread.join()

    def note(self, line: str) -> None:
        self.lines.append(line)

    async def _serve(self) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            self._ready.set()
            await trio.serve_listeners(self._relay, [listener])

    async def _relay(self, accepted: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            plain = await trio.open_tcp_stream("127.0.0.1", self.target)
            server = trio.SSLStream(plain, self._as_manager, https_compatible=True)
            manager = trio.SSLStream(accepted, self._as_server, server_side=True, https_compatible=True)
            self.note("connect")
            self.open += 1
            try:
                async with manager, server, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, "M", manager, server, nursery.cancel_scope)
                    await self._pump("S", server, manager, nursery.cancel_scope)
            finally:
                self.note("close")
                self.open -= 1

    async def _pump(self, who: str, source: trio.abc.Stream, sink: trio.abc.Stream, both: trio.CancelScope) -> None:
        rest = b""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                *whole, rest = (rest + data).split(b"\n")
                self.lines += [f"{who} {line.decode()}" for line in whole]
                await sink.send_all(data)
        both.cancel()


def _material(keys: Path, own: str, peer: str) -> Material:
    passwords = {"client": "clientpw", "server": "serverpw"}
    return load_material(
        Keys(str(keys / f"{own}.private"), passwords[own], str(keys / f"{peer}.public"), "public", "accept")
    )


class Recording:
    """One guest, and the stories that are played in it."""

    def __init__(self, guest: Guest, scribe: Scribe, keys: Path) -> None:
        self.guest = guest
        self.scribe = scribe
        self._context = client_context(_material(keys, "client", "server"))

    def start_server(self) -> None:
        self.guest.start_server()
        self.scribe.target = self.guest.port
        self.guest.configure_host(self.scribe.port)

    def story(self, name: str) -> None:
        self.settle()
        self.scribe.note(f"story {name}")

    def settle(self) -> None:
        wait_until(lambda: self.scribe.open == 0, "the end of all connections")

    def manager(self, *words: str) -> Manager:
        self.settle()
        self.scribe.note(f"words {json.dumps(words)}")
        return self.guest.manager(*words)

    def run(self, *words: str) -> int:
        status = self.manager(*words).wait()
        self.settle()
        return status

    def detach(self, manager: Manager) -> None:
        self.scribe.note("signal 15")
        manager.signal(signal.SIGTERM)
        manager.wait()
        self.settle()

    def by_hand(self, *messages: dict[str, object]) -> None:
        """Say this to a greeting, and wait for what the server says to all of it."""
        self.settle()
        self.scribe.note("words null")
        with (
            socket.create_connection(("127.0.0.1", self.scribe.port), PATIENCE_SECONDS) as plain,
            self._context.wrap_socket(plain) as stream,
            stream.makefile("rwb") as lines,
        ):
            assert lines.readline()
            lines.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
            lines.flush()
            assert lines.readline()
        self.settle()


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)


def play_stories(it: Recording) -> None:
    guest = it.guest
    it.story("run to the end")
    it.run("--tail", "2", "-service", "/bin/sh", "-c", "echo one; echo two; echo three; sleep 0.3; exit 3")
    it.story("ended by a signal, as a line")
    it.run("--instance", "two", "-service", "/bin/sh -c 'sleep 0.3; kill -9 $$'")
    it.story("poll, leave, attach, and what nobody had collected")
    manager = it.manager("-cmappserver_timeout", "3", "--poll-interval", "0.3", "-service", *FOREVER)
    pid = manager.wait_started()
    wait_until(lambda: sum('"status"' in line for line in it.scribe.lines) >= 3, "three polls")
    it.detach(manager)
    manager = it.manager("-service", *FOREVER)
    assert manager.wait_started() == pid
    it.detach(manager)
    manager = it.manager("-service", *FOREVER)
    assert manager.wait_started() == pid
    it.detach(manager)
    it.scribe.note("application ends")
    end(pid)
    wait_until(lambda: "ended" in guest.server_log.splitlines()[-1], "the outcome")
    manager = it.manager("--on-halt", "stop", "-service", *FOREVER)
    manager.wait_started()
    it.scribe.note("signal 15")
    manager.signal(signal.SIGTERM)
    manager.wait()
    it.story("stop of one that ignores TERM")
    manager = it.manager("--on-halt", "stop", "--stop-timeout", "1", "--survivors", "stop", "-service", *STUBBORN)
    manager.wait_started()
    it.scribe.note("signal 15")
    manager.signal(signal.SIGTERM)
    manager.wait()
    it.story("refusals")
    for words in (("/nowhere/command",), ("/usr", "x"), ("/etc/passwd", "x"), ("'open",)):
        it.run("-service", *words)
    beside: list[int] = []
    for number in range(BOUND):
        manager = it.manager("--instance", f"{number}", "-service", *FOREVER)
        beside.append(manager.wait_started())
        it.detach(manager)
    it.run("-service", *FOREVER)
    for pid in beside:
        end(pid)
    it.story("words of a later version")
    hello = {"type": "hello", "version": 1, "software": "later 9", "host": "node1", "pid": 7, "poll_seconds": 60}
    run_id = secrets.token_hex(16)
    terms = {"survivors": "leave", "stop_timeout_seconds": 30.0, "tail_lines": 20}
    service = {"form": "line", "line": "/bin/true"}
    attach = {"type": "attach", "seq": 1, "run": run_id, "service": service, "instance": None, **terms}
    it.by_hand(hello, {"type": "dance", "seq": 1})
    it.by_hand({**hello, "mood": "good"}, attach)
    it.by_hand({**hello, "version": 99})
    it.story("goodbye, and a guest that forgets")
    manager = it.manager("-service", *FOREVER)
    manager.wait_started()
    it.scribe.note("server ends")
    guest.stop_server()
    it.settle()
    forget(guest)
    it.scribe.note("server forgets")
    it.start_server()
    manager.wait()
    it.settle()


def forget(guest: Guest) -> None:
    """End everything in a guest, and have it know nothing any more."""
    kill_tree(guest.launcher_pid())
    shutil.rmtree(guest.state_dir)


def keep_state(guest: Guest, target: Path) -> None:
    """Bring runs into every phase, and keep the state directory as it is then."""
    guest.start_server()
    guest.run("-service", "/bin/sh", "-c", "exit 3")
    deaf = guest.manager("-service", "/bin/sh", "-c", "sleep 0.5; exit 4")
    pid = deaf.wait_started()
    deaf.kill()
    wait_ended(pid)
    guest.manager("-service", *FOREVER).wait_started()
    other = guest.manager("-service", *FOREVER)
    other.wait_started()
    stopped = guest.manager("--on-halt", "stop", "--stop-timeout", "600", "-service", *STUBBORN)
    stopped.wait_started()
    stopped.signal(signal.SIGTERM)
    wait_until(lambda: any(record.read_state().stop for record in guest.records.all()), "the stop on record")
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    try:
        known = len(guest.records.all())
        guest.manager("--instance", "starting", "-service", *FOREVER)
        wait_until(lambda: len(guest.records.all()) > known, "the record of a start")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(guest.state_dir, target, symlinks=True, ignore=_no_sockets)
    finally:
        os.kill(launcher, signal.SIGCONT)


def _no_sockets(directory: str, names: list[str]) -> set[str]:
    files = {*("control", "server.lock", "launcher.log")}
    return {name for name in names if name in files or (Path(directory) / name).is_socket()}


def build_wheel(commit: str) -> str:
    """Build the wheel of a commit, the same at any time, into the directory of its version; give the version."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        source.mkdir()
        archive = subprocess.run(["git", "-C", str(TREE), "archive", commit], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
        words = ["git", "-C", str(TREE), "log", "-1", "--format=%ct", commit]
        date = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--no-deps"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": date}
        subprocess.run([*pip, "--wheel-dir", directory, str(source)], env=environment, check=True)
        (made,) = Path(directory).glob("cmapp-*.whl")
        match = re.match(r"cmapp-(.+?)-py3", made.name)
        assert match is not None
        target = RELEASES / match[1]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, target / made.name)
        return match[1]


def record(version: str, play: Callable[[Recording], None] = play_stories) -> None:
    """Record conversation and state of a release whose wheel is there."""
    python = python_of(version)
    DIRECTORY.mkdir(mode=0o700)
    try:
        (DIRECTORY / "keys").mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            keys = make_keys(DIRECTORY / "keys")
        place = Place(in_guest=named("guest1"), on_host=named("node1"))
        scribe = Scribe(keys)
        with open_guest(DIRECTORY / "talk", keys, place) as guest, scribe.at_work():
            guest.server_program, guest.manager_program = [python, "-m", "appserver"], [python, "-m", "appmgr"]
            guest.configure(f"maxProcesses={BOUND}")
            recording = Recording(guest, scribe, keys)
            recording.start_server()
            play(recording)
        (RELEASES / version / "conversation.txt").write_text("\n".join([*scribe.lines, ""]), encoding="utf-8")
        with open_guest(DIRECTORY / "guest", keys, place) as guest:
            guest.server_program, guest.manager_program = [python, "-m", "appserver"], [python, "-m", "appmgr"]
            keep_state(guest, RELEASES / version / "state")
    finally:
        shutil.rmtree(DIRECTORY)


def main() -> int:
    parser = argparse.ArgumentParser(description="Keep what later versions are tested against.")
    parser.add_argument("--commit", default="HEAD", help="what is released (default: %(default)s)")
    version = build_wheel(parser.parse_args().commit)
    record(version)
    print(f"recorded {version}: {len((RELEASES / version / 'conversation.txt').read_text().splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The main job for real, on loopback: an application runs, and neither a killed server nor a killed manager loses it.

`make demo` runs it. It makes keys in a temporary directory, starts a server on a free port, and runs an application
through a manager, with an empty environment as a cluster would. In the middle it kills the server and the manager,
lets the application end while no server runs, and shows that its exit status arrives all the same.

Everything that it starts becomes its own descendant again when orphaned (it is a subreaper), so whatever happens, at
the end it can kill and reap all of them. Waiting is for lines of a log and for the ends of processes, never for a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

LIMIT_SECONDS = 25  # for everything; it takes about two
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
PR_SET_CHILD_SUBREAPER = 36
EXIT_STATUS = 7
NODE = "g1"

APPLICATION = f"""\
echo "working as process $$"
echo "$$" >> starts
read word < the_word
echo "got the word: $word"
exit {EXIT_STATUS}
"""


class DemoError(Exception):
    """What was promised did not happen."""


class Program:
    """One of the programs, running; its log lines are printed when the story comes to them."""

    def __init__(self, *words: str) -> None:
        say_command(*words)
        # In a session of its own, so that Ctrl-C reaches the demo alone, which then ends everything in order.
        self.process = subprocess.Popen(
            installed(words), stderr=subprocess.PIPE, env={}, cwd="/", start_new_session=True, text=True
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, pattern: str) -> str:
        """Print its log up to the line that matches, and give the last group of the match."""
        for line in iter(self._lines.get, None):
            print(f"  {line}")
            if match := re.search(pattern, line):
                return match[match.re.groups]
        raise DemoError(f"{self.process.args!r} ended without a log line like {pattern!r}")

    def wait_for_end(self) -> int:
        for line in iter(self._lines.get, None):
            print(f"  {line}")
        return self.process.wait()

    def kill(self) -> None:
        say_command("kill", "-KILL", str(self.process.pid))
        self.process.kill()
        self.wait_for_end()


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def say_command(*words: str) -> None:
    print(f"$ {shlex.join(words)}")


def installed(words: tuple[str, ...]) -> list[str]:
    """Name the program by its absolute path: with an empty environment there is no PATH."""
    return [os.path.join(os.path.dirname(sys.executable), words[0]), *words[1:]]


def make_keys(*words: str) -> None:
    say_command(*words)
    made = subprocess.run(installed(words), env={}, check=True, capture_output=True, text=True).stdout
    print("".join(f"  {line}\n" for line in made.splitlines() if line.startswith("made")), end="")


def write_file(path: str, text: str) -> str:
    Path(path).write_text(text, encoding="utf-8")
    return path


def tell_story(directory: str) -> str:
    """Run the demonstration; give its last line. Raises DemoError, or what a broken system raises."""
    say("Each side makes its own key; only certificates would travel between two machines.")
    make_keys("cmapppki", "client", "--dir", directory)
    make_keys("cmapppki", "server", "--guest", NODE, "--dir", directory)

    say("The server, in the guest:")
    own = "keyStore=server.private\ntrustStore=client.public\nstateDir=state\nlogDir=log\nlisten=127.0.0.1\n"
    server_words = ("cmappserver", "--config", write_file(f"{directory}/cmappserver.conf", own), "--port")
    server = Program(*server_words, "0")
    port = server.wait_for(r"listening on 127\.0\.0\.1 port (\d+)")

    say("The manager, on the host, has it run an application:")
    node = f"keyStore=client.private\n{NODE}:\naddress=127.0.0.1\nport={port}\ntrustStore=server_{NODE}.public\n"
    host_config = write_file(f"{directory}/cmappmgr.conf", node)
    os.mkfifo(f"{directory}/the_word")
    write_file(f"{directory}/app", f"cd {shlex.quote(directory)}\n{APPLICATION}")
    service = ("-service", "/bin/sh", f"{directory}/app")
    manager_words = ("cmappmgr", "-node", NODE, "--config", host_config, *service)
    manager = Program(*manager_words)
    pid = int(manager.wait_for(r"started the application .*: process (\d+)"))
    application = os.pidfd_open(pid)
    server.wait_for(r"\]: started ")

    say("Both are killed, first the server. The application does not notice:")
    server.kill()
    manager.kill()
    say_command("ps", "-o", "pid,args", "-p", str(pid))
    print(f"  {pid} {shlex.join(psutil.Process(pid).cmdline())}")

    say("The next server finds it again, and the next manager attaches to it:")
    server = Program(*server_words, port)
    server.wait_for("found again an application that runs")
    server.wait_for("listening on")
    manager = Program(*manager_words)
    attached = int(manager.wait_for(r"attached to the application .*: process (\d+)"))
    server.wait_for(r"\]: attached to ")

    say("The server is killed once more, and the application ends while there is none:")
    server.kill()
    print(f"$ echo enough > {directory}/the_word")
    write_file(f"{directory}/the_word", "enough\n")
    select.select([application], [], [])

    say("Yet the next server knows how it ended, and the manager, which kept trying, ends like the application:")
    server = Program(*server_words, port)
    server.wait_for("listening on")
    status = manager.wait_for_end()
    print(f"$ echo $?\n  {status}")

    server.process.terminate()
    facts = (Path(f"{directory}/starts").read_text(encoding="ascii"), attached, status, server.wait_for_end())
    if facts != (f"{pid}\n", pid, EXIT_STATUS, 0):
        raise DemoError(f"starts, attached process, exit status and the server's were {facts}: something was lost")
    return f"nothing was lost: one start, process {pid} throughout, and its exit status {status} arrived"


def end_descendants() -> None:
    """Kill and reap whatever lives of what was started, orphans included."""
    while living := psutil.Process().children(recursive=True):
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                process.kill()
                os.waitpid(process.pid, 0)


def give_up(number: int, _frame: FrameType | None) -> NoReturn:
    for handled in SIGNALS:
        signal.signal(handled, signal.SIG_IGN)  # so that nothing disturbs the cleaning up
    raise DemoError(f"not finished within {LIMIT_SECONDS} s" if number == signal.SIGALRM else "interrupted")


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in SIGNALS:
        signal.signal(number, give_up)
    signal.alarm(LIMIT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(prefix="cmapp-demo-") as directory:
            try:
                last = tell_story(directory)
            finally:
                end_descendants()
    except (DemoError, OSError, psutil.Error, subprocess.SubprocessError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    say(last)
    return 0


if __name__ == "__main__":
    sys.exit(main())

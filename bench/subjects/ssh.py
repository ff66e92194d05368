"""OpenSSH, which brings an exit status back too: a daemon of its own, on a port of its own, with files of its own.

Keys are ed25519, and PAM is off. What its configuration says beyond that only lets three hundred come at once, which
the default `MaxStartups` would turn away at random. The user is whoever runs the benchmark; nothing of that user's own
configuration is read or changed.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import final

from bench.goals import SSH, SSH_SHARED
from bench.processes import BenchError, end, start, tail
from bench.subjects.subject import Subject

SEPARATION_DIRECTORY = "/run/sshd"
"""Where the daemon of root insists on an empty directory, which a package's service would have made."""

_MOST_SESSIONS = 2000
_LOOK_SECONDS = 0.01
_MASTER_SECONDS = 20


def program(name: str) -> str:
    """Find a program, also where only root has the directory on its path. Raises BenchError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise BenchError(f"{name} is not installed: install OpenSSH's client and server")
    return found


class Ssh(Subject):
    """A connection for each client."""

    name = SSH
    client_mib = 6.0

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.control_path = "none"

    def open(self, most: int) -> float:
        """Make keys and configurations, and start the daemon; its limits are high enough for any `most`."""
        assert most <= _MOST_SESSIONS
        for name in ("host_key", "user_key"):
            if not os.path.exists(self._file(name)):
                words = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self._file(name)]
                subprocess.run(words, check=True)
        shutil.copyfile(self._file("user_key.pub"), self._file("authorized_keys"))
        port = _free_port()
        self._write_daemon(port)
        self._write_client(port)
        if os.geteuid() == 0:
            os.makedirs(SEPARATION_DIRECTORY, 0o755, exist_ok=True)
        seconds, _ = self.listen(
            [program("sshd"), "-D", "-e", "-f", self._file("sshd_config")],
            rf"listening on 127\.0\.0\.1 port {port}",
            {"PATH": os.defpath},
        )
        return seconds

    def client(self, words: Sequence[str]) -> list[str]:
        """Give the command of a client."""
        return [program("ssh"), "-F", self._file("ssh_config"), "-T", "guest", shlex.join(words)]

    def _write_daemon(self, port: int) -> None:
        lines = [
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self._file('host_key')}",
            f"AuthorizedKeysFile {self._file('authorized_keys')}",
            "PidFile none",
            "UsePAM no",
            "UseDNS no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",  # it refuses whatever lies under a directory like /tmp
            f"MaxStartups {_MOST_SESSIONS}",
            f"MaxSessions {_MOST_SESSIONS}",
        ]
        self._write("sshd_config", lines)

    def _write_client(self, port: int) -> None:
        with open(self._file("host_key.pub"), encoding="ascii") as file:
            self._write("known_hosts", [f"[127.0.0.1]:{port} {file.read().strip()}"])
        lines = [
            "HostName 127.0.0.1",
            f"Port {port}",
            f"User {pwd.getpwuid(os.geteuid()).pw_name}",
            f"IdentityFile {self._file('user_key')}",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self._file('known_hosts')}",
            "GlobalKnownHostsFile none",
            "StrictHostKeyChecking yes",
            "BatchMode yes",
            "LogLevel ERROR",
            "ControlMaster no",
            f"ControlPath {self.control_path}",
        ]
        self._write("ssh_config", ["Host guest", *lines])

    def _file(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _write(self, name: str, lines: list[str]) -> None:
        with open(self._file(name), "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))


@final
class SharedSsh(Ssh):
    """One connection for all clients, kept by a master that runs from the start to the end."""

    name = SSH_SHARED

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.control_path = os.path.join(self.directory, "s")
        self._master: int | None = None

    def open(self, most: int) -> float:
        """Start the daemon, then the connection that is shared; the seconds are the daemon's."""
        seconds = super().open(most)
        log = os.path.join(self.directory, "master.log")
        self._master = start(
            [program("ssh"), "-F", self._file("ssh_config"), "-o", "ControlMaster=yes", "-N", "-T", "guest"], log
        )
        patience = time.monotonic() + _MASTER_SECONDS
        while not os.path.exists(self.control_path):
            if time.monotonic() > patience:
                raise BenchError(f"the shared connection did not come about within {_MASTER_SECONDS} s: {tail(log)}")
            time.sleep(_LOOK_SECONDS)
        return seconds

    def close(self) -> None:
        """End the connection, then the daemon."""
        if self._master is not None:
            end(self._master)
            self._master = None
        super().close()

    def host_pids_beside(self) -> set[int]:
        """Give the master."""
        return set() if self._master is None else {self._master}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

"""A minimal pair in Java, over JSSE with keys on both sides. A stand-in for the original pair, which cannot be had.

It does less than any real one would (no poll, no log, no state, no configuration), so it flatters the original: what
remains is what every Java program of this kind has, a machine of its own for each application. Its stores are those
that `cmapppki` makes, which are the original's own format.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import ClassVar, final

from bench.goals import JAVA, JAVA_DEFAULT
from bench.processes import BenchError
from bench.subjects.pair import NODE, make_keys
from bench.subjects.subject import Subject

SOURCES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "java")
SMALL_FLAGS = ["-Xms4m", "-Xmx16m", "-Xss256k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
"""What somebody would write who minds memory and starts: a small heap, the simplest collector and compiler."""


def program(name: str) -> str:
    """Find a program of the JDK. Raises BenchError."""
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not installed: install a headless JDK")
    return os.path.realpath(found)  # the link of the alternatives is no business of the measurement


class Java(Subject):
    """With flags for a small machine."""

    name = JAVA
    client_mib = 80.0
    flags: ClassVar[list[str]] = SMALL_FLAGS

    def open(self, most: int) -> float:
        """Compile it and make keys, the first time, and start the server, which has no limit to heed."""
        del most
        classes = self._file("classes")
        if not os.path.exists(classes):
            sources = sorted(os.path.join(SOURCES, name) for name in os.listdir(SOURCES))
            subprocess.run([program("javac"), "-d", classes, *sources], check=True)
            make_keys(self.directory)
            self._write("server", "server.private", "serverpw", "client.public", 0)
        server = [program("java"), *self.flags, "-cp", classes, "Server", self._file("server.properties")]
        seconds, match = self.listen(server, r"listening on port (\d+)")
        self._write("client", "client.private", "clientpw", f"server_{NODE}.public", int(match[1]))
        return seconds

    def client(self, words: Sequence[str]) -> list[str]:
        """Give the command of a client: a machine of its own."""
        machine = [program("java"), *self.flags, "-cp", self._file("classes")]
        return [*machine, "Client", self._file("client.properties"), *words]

    def _write(self, side: str, key_store: str, password: str, trust_store: str, port: int) -> None:
        with open(self._file(f"{side}.properties"), "w", encoding="ascii") as file:
            file.write(f"keyStore={self._file(key_store)}\nkeyStorePassword={password}\n")
            file.write(f"trustStore={self._file(trust_store)}\ntrustStorePassword=public\nport={port}\n")

    def _file(self, name: str) -> str:
        return os.path.join(self.directory, name)


@final
class DefaultJava(Java):
    """As it comes: the machine chooses heap and collector."""

    name = JAVA_DEFAULT
    client_mib = 150.0
    flags: ClassVar[list[str]] = []

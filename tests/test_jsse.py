"""A Java client over our stores: the other implementation of TLS that administrators have at hand."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from pair import Guest, make_keys, wait_for_match

JAVA = shutil.which("java")
SOURCE = Path(__file__).resolve().parent / "fixtures" / "Greeted.java"
START_SECONDS = 120
"""For a Java that compiles its source first, on busy cores."""

pytestmark = pytest.mark.skipif(JAVA is None or shutil.which("javac") is None, reason="no JDK on this machine")


def greet(guest: Guest, keys: Path) -> subprocess.CompletedProcess[str]:
    """Run the Java client with a host's key out of `keys`, and the trust store of the guest."""
    assert JAVA is not None
    stores = [str(keys / "client.private"), "clientpw", str(guest.directory / "server.public"), "public"]
    return subprocess.run(
        [JAVA, str(SOURCE), str(guest.port), *stores],
        capture_output=True,
        check=False,
        text=True,
        timeout=START_SECONDS,
    )


@pytest.mark.slow
def test_java_client_with_our_stores_shakes_hands_and_is_greeted(guest: Guest) -> None:
    done = greet(guest, guest.directory)
    assert done.returncode == 0, done.stderr
    version, peer, greeting = done.stdout.splitlines()
    assert (version, peer) == ("TLSv1.3", "CN=g1")
    assert json.loads(greeting)["type"] == "greeting"


@pytest.mark.slow
def test_java_client_with_a_foreign_key_is_refused_by_an_alert(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    done = greet(guest, make_keys(tmp_path / "foreign"))
    assert done.returncode != 0
    assert "SSLHandshakeException: Received fatal alert: unknown_ca" in done.stderr
    wait_for_match(lambda: guest.server_log, r"refused a connection .*is not in the trust store '.*/client\.public'")

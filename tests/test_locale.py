"""Words and paths mean the same files under every locale: those of UTF-8, as on the wire and in the configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("names of files are not bytes there", allow_module_level=True)

from pair import open_guest, wait_for_match


def plain_c(_directory: Path) -> dict[str, str]:
    """The locale of a system that has set none, without the help that Python gives itself there."""
    return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def latin_1(directory: Path) -> dict[str, str]:
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef to make a locale with")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(directory / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    if not (directory / "de_DE.ISO-8859-1").is_dir():
        pytest.skip(f"no locale can be made here: {made.stderr.decode().strip()}")
    return {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(directory), "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "locale", [pytest.param(plain_c, id="C"), pytest.param(latin_1, id="ISO 8859-1", marks=pytest.mark.long)]
)
def test_word_that_is_not_ascii_starts_the_same_program(
    tmp_path: Path, keys: Path, locale: Callable[[Path], dict[str, str]]
) -> None:
    locale_dir = tmp_path / "locales"
    locale_dir.mkdir()
    with open_guest(tmp_path / "gäste €", keys) as guest:
        guest.configure("allow=/bin/*", f"allow={guest.directory}/prüfung-*")
        program = guest.directory / "prüfung-日本"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$1"\necho "$LC_ALL"\nexit 3\n')
        program.chmod(0o700)
        guest.environment = {"PATH": os.defpath} | locale(locale_dir)
        guest.start_server()
        status, log = guest.run("--tail", "5", "-service", str(program), "größe €")
        assert status == 3, log
        assert "output: größe €" in log
        assert f"output: {guest.environment['LC_ALL']}" in log  # applications get the server's locale
        wait_for_match(lambda: guest.server_log, "prüfung-日本")
        assert list(guest.log_dir.iterdir())
        status, log = guest.run("-service", str(guest.directory / "gibt's nicht"))
        assert status == 1
        assert "gibt's nicht" in log

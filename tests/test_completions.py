"""What a shell offers for a half-typed command line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from completions import completions
from program_tables import programs

from appmgr.deploy.options import parse_options

COMPLETIONS = completions()
CONFIG = """\
# nobody:
keyStore=/etc/a:b
mmpf121:
trustStore=/etc/one
 mmpf122 : port=5316
[fd00::7]:
"""


def offered(line: str, *, before: str = "") -> list[str]:
    """Give what bash offers at the end of the line, of which a blank at its end begins a word."""
    program, _, _ = line.partition(" ")
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    script = f"""
        {before}
        . /dev/stdin
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
        _cmapp_{program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        input=COMPLETIONS[f"bash/{program}"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    assert not done.stderr
    return sorted(done.stdout.split())


def test_every_program_has_its_completions() -> None:
    names = {program.name for program in programs()}
    assert set(COMPLETIONS) == {f"bash/{name}" for name in names} | {f"zsh/_{name}" for name in names}


def test_options_are_offered_by_their_beginnings() -> None:
    for program in programs():
        options = sorted(spelling for option in program.options for spelling in option.spellings)
        assert offered(f"{program.name} -") == options
        assert offered(f"{program.name} --l") == [option for option in options if option.startswith("--l")]
    assert {"-node", "-service", "--tail"} <= set(offered("cmappmgr "))


def test_words_to_choose_from_are_offered() -> None:
    assert offered("cmappmgr -node g1 --on-halt ") == ["detach", "stop"]
    assert offered("cmappmgr -node g1 --on-halt = st") == ["stop"]
    assert offered("cmappmgr -node g1 --survivors =") == ["leave", "stop"]
    assert offered("cmappmgr -node g1 --tail ") == []


def test_nodes_come_from_the_sections_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "cmappmgr.conf"
    file.write_text(CONFIG, encoding="utf-8")
    assert offered(f"cmappmgr --config {file} -node ") == ["[fd00::7]", "mmpf121", "mmpf122"]
    assert offered(f"cmappmgr --config = {file} --node mmpf121") == ["mmpf121"]


def test_what_can_be_deployed_is_offered_and_taken() -> None:
    offered_extras = offered("cmdeployvpkg -P vm1 -x ")
    assert offered_extras == ["appmon", "engine=pacemaker", "merge"]
    parse_options(["-P", "vm1", *(word for extra in offered_extras for word in ("-x", extra))])


def test_files_and_directories_are_offered(tmp_path: Path) -> None:
    (tmp_path / "a.conf").touch()
    (tmp_path / "a.dir").mkdir()
    assert offered(f"cmappserver --config {tmp_path}/a") == [f"{tmp_path}/a.conf", f"{tmp_path}/a.dir"]
    assert offered(f"cmappserver --state-dir {tmp_path}/a") == [f"{tmp_path}/a.dir"]
    assert offered(f"cmapppki list {tmp_path}/a.c") == [f"{tmp_path}/a.conf"]


def test_behind_service_all_is_a_command(tmp_path: Path) -> None:
    (tmp_path / "--tail.me").touch()
    assert "env" in offered("cmappmgr -node g1 -service en")
    assert offered(f"cmappmgr -node g1 --service cat {tmp_path}/--t") == [f"{tmp_path}/--tail.me"]
    assert offered("cmappmgr -node g1 -service sh --on-halt ", before=f"cd {tmp_path}") == ["--tail.me"]


def test_bash_completion_completes_the_command_where_it_is_installed() -> None:
    told = "_command_offset() { COMPREPLY=(offset$1); }"
    assert offered("cmappmgr -node g1 -service cat x", before=told) == ["offset4"]


def test_commands_have_options_of_their_own() -> None:
    assert offered("cmapppki ") == ["check", "client", "list", "renew", "server", "trust"]
    assert offered("cmapppki server --g") == ["--guest"]
    assert offered("cmapppki client --g") == []
    assert offered("cmapppki renew ") == ["client", "server"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize("name", sorted(name for name in COMPLETIONS if name.startswith("zsh/")))
def test_zsh_can_read_its_completions(name: str) -> None:
    subprocess.run(["zsh", "-n"], input=COMPLETIONS[name], encoding="utf-8", check=True, timeout=60)

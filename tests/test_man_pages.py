"""Manual pages and completions keep up with the programs, and readers of both take them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from contents import PROGRAMS as PACKAGED
from man_pages import ROOT, pages
from program_tables import Program, programs
from roff import escape, paragraph, table_rows, tagged

from appmgr.settings import KNOWN_KEYS as MANAGER_KEYS
from appserver.rulesfile import GRANT_KEYS, RULE_KEYS
from appserver.settings import KNOWN_KEYS as SERVER_KEYS

PAGES = pages(0)
PROGRAMS = programs()


def tags(page: str) -> set[str]:
    """What stands in bold in the tags of a page, as it is read."""
    lines = re.findall(r"^\.TP\n(.+)$", page, re.MULTILINE)
    return {word.replace("\\-", "-") for line in lines for word in re.findall(r"\\fB(.+?)\\fR", line)}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_option_is_in_the_page_of_its_program(program: Program) -> None:
    wanted = set(program.spellings())
    assert len(wanted) > 5
    assert wanted - {"-h", "--help"} <= tags(PAGES[f"{program.name}.1m"])


def test_every_program_that_is_installed_has_a_page_and_a_package() -> None:
    scripts = re.findall(
        r'^(\w+) = "[\w.]+:main"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(scripts) == {program.name for program in PROGRAMS} == set(PACKAGED)
    assert {f"{script}.1m" for script in scripts} <= set(PAGES)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_command_is_in_the_page_of_its_program(program: Program) -> None:
    found = re.findall(r"^\.SS (.+)$", PAGES[f"{program.name}.1m"], re.MULTILINE)
    assert {command.name for command in program.commands} <= set(found)


@pytest.mark.parametrize(
    ("page", "keys"),
    [("cmappmgr.conf.4", MANAGER_KEYS), ("cmappserver.conf.4", (*SERVER_KEYS, *RULE_KEYS, *GRANT_KEYS))],
)
def test_every_key_is_in_the_page_of_its_file_and_no_other(page: str, keys: tuple[str, ...]) -> None:
    keys_of_page = PAGES[page].partition(".SH KEYS")[2].partition(".SH FILES")[0]
    assert tags(keys_of_page) == set(keys)


def test_no_page_holds_what_was_to_be_made() -> None:
    for page, text in PAGES.items():
        assert not re.search(r"^@", text, re.MULTILINE), page
        assert text.startswith(f'.TH {page.rpartition(".")[0].upper()} {page.rpartition(".")[2]} "1970-01-01"')


def test_no_page_names_one_that_is_not_there() -> None:
    for page, text in PAGES.items():
        see_also = text.partition(".SH SEE ALSO")[2]
        named = {f"{name}.{section}" for name, section in re.findall(r"(cm[\w.]+) \((\w+)\)", see_also)}
        assert named, page
        assert named <= set(PAGES), page


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_finds_nothing_to_say(tmp_path: Path) -> None:
    for page, text in PAGES.items():
        (tmp_path / page).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wbase", *sorted(PAGES)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_roff_would_take_for_a_request_means_itself() -> None:
    assert escape("a\\b-c …") == r"a\eb\-c \[u2026]"
    assert paragraph(".so far, 'twas `-node` and [a link](x.md).") == r"\&.so far, 'twas \fB\-node\fR and a link."
    assert tagged("x", "") == ".TP\nx\n\\&"


def test_a_heading_of_the_guide_that_is_gone_is_noticed() -> None:
    text = "## One\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n## Two\n\nnothing\n"
    assert list(table_rows(text, "One")) == [["1", "2"]]
    for heading in ("Two", "Three"):
        with pytest.raises(ValueError, match="no table under the heading"):
            table_rows(text, heading)

"""The guide keeps up with the programs: every option, key and refusal is in it, and no link leads nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from appmgr.settings import KNOWN_KEYS as MANAGER_KEYS
from appmgr.usage import help_text
from appserver import cli as server_cli
from appserver.messages import RefusalCode
from appserver.settings import KNOWN_KEYS as SERVER_KEYS
from pki import cli as pki_cli

KEY_COMMANDS = ("client", "server", "list", "trust", "check", "renew")

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z_-]+", text))


def section(first: str, after: str) -> str:
    return GUIDE.partition(f"\n## {first}\n")[2].partition(f"\n## {after}\n")[0]


def test_every_option_of_the_manager_is_in_the_guide() -> None:
    options = options_in(help_text().partition("examples:")[0])
    assert {"-node", "--on-halt"} <= options
    assert options <= options_in(section("cmappmgr", "cmappserver"))


@pytest.mark.parametrize(
    ("main", "words", "section_of"),
    [
        (server_cli.main, [], ("cmappserver", "Configuration files")),
        *((pki_cli.main, [command], ("Keys: cmapppki", "Logs")) for command in KEY_COMMANDS),
    ],
    ids=["cmappserver", *(f"cmapppki {command}" for command in KEY_COMMANDS)],
)
def test_every_option_in_the_help_is_in_the_guide(
    main: Callable[[list[str]], int], words: list[str], section_of: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    options = options_in(capsys.readouterr().out)
    assert len(options) > 2
    assert options - {"--help"} <= options_in(section(*section_of))


def test_every_key_of_the_files_is_in_the_guide() -> None:
    files = section("Configuration files", "Keys: cmapppki")
    host, _, guest = files.partition("### The guest's file")
    assert set(MANAGER_KEYS) <= set(re.findall(r"^\| `(\w+)` \|", host, re.MULTILINE))
    assert set(SERVER_KEYS) <= set(re.findall(r"^\| `(\w+)` \|", guest, re.MULTILINE))


def test_every_refusal_is_in_the_guide() -> None:
    table = GUIDE.partition("#### Refusals")[2].partition("###")[0]
    for code in get_args(RefusalCode):
        assert f"`{code}`" in table


def anchor(heading: str) -> str:
    """Name a heading as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target, _, name in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if name:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert name in {anchor(heading) for heading in headings}, f"{page.name} links to #{name}"

from __future__ import annotations

from pathlib import Path

import figures
import pytest

TEXT = """# Page

Words before.

<!-- figures: one -->
<!-- end -->

Words between.

<!-- figures: two -->

old

<!-- end -->
"""


def test_a_table_replaces_that_of_its_section_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(figures.VARIABLE, "1")
    page = tmp_path / "page.md"
    page.write_text(TEXT)
    figures.record("two", ["what", "how many"], [["a|b", "1"], ["c", "0"]], "Seen today.", page=page)
    once = page.read_text()
    table = "Seen today.\n\n| what | how many |\n| --- | --- |\n| a\\|b | 1 |\n| c | 0 |"
    assert once == TEXT.replace("old", table)
    figures.record("two", ["what", "how many"], [["a|b", "1"], ["c", "0"]], "Seen today.", page=page)
    assert page.read_text() == once


def test_figures_are_only_printed_unless_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(figures.VARIABLE, raising=False)
    page = tmp_path / "page.md"
    page.write_text(TEXT)
    figures.record("one", ["runs"], [["7"]], "Seen.", page=page)
    assert page.read_text() == TEXT
    assert "| 7 |" in capsys.readouterr().out


def test_the_page_has_the_section_of_every_suite() -> None:
    text = figures.PAGE.read_text()
    for section in ("drill", "network", "strangers", "sequences", "disk", "ends", "mutation"):
        assert "new figures" in figures.replace(text, section, "new figures")


def test_an_unknown_section_and_a_row_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="figures: three"):
        figures.replace(TEXT, "three", "")
    with pytest.raises(ValueError, match="2 cells"):
        figures.record("one", ["a", "b"], [["1"]], "")

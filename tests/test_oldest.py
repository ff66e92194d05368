from __future__ import annotations

from pathlib import Path

import oldest
import pytest

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def test_the_oldest_libraries_are_those_that_pyproject_names() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    found = [pin.split("==") for pin in oldest.of_this_project()]
    assert "trio" in [name for name, _ in found]
    for name, floor in found:
        assert f'"{name} >= {floor}",' in text


@pytest.mark.parametrize("requirement", ["trio", "trio<1", "trio>=0.27,<1", 'trio>=0.27; python_version < "3.12"'])
def test_a_requirement_that_is_not_a_name_and_a_floor_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="expected a name and its oldest release"):
        oldest.oldest([requirement])


def test_a_floor_is_the_oldest_release_of_all() -> None:
    assert oldest.oldest(["trio>=0.27", "types-psutil >= 5.9.8"]) == ["trio==0.27", "types-psutil==5.9.8"]

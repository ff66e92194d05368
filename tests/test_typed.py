"""What stands in for `typing` when a launcher runs, held to the standard library's."""

from __future__ import annotations

import pickle

import pytest

from appserver.procfs import Stat
from pki import typed

SOURCE = """
from __future__ import annotations
from {module} import NamedTuple

class Example(NamedTuple):
    'What it is.'
    pid: int
    words: tuple[str, ...]
    'What was said.'

one = Example(4, words=("a",))
assert one == (4, ("a",)) and isinstance(one, tuple) and hash(one) == hash((4, ("a",)))
assert repr(one) == "Example(pid=4, words=('a',))"
assert (one.pid, one.words) == one
assert one._replace(pid=5) == (5, ("a",)) and one._asdict() == {{"pid": 4, "words": ("a",)}}
match one:
    case Example(pid, words):
        assert (pid, words) == one
for wrong in ("one.pid = 5", "Example(4)", "Example(4, (), 5)"):
    try:
        exec(wrong)
    except (AttributeError, TypeError):
        continue
    raise AssertionError(wrong)
"""


def test_a_class_of_tuples_is_as_that_of_the_standard_library() -> None:
    made: list[object] = []
    for module in ("pki.typed", "typing"):
        space: dict[str, object] = {"__name__": "somewhere"}
        exec(SOURCE.format(module=module), space)
        made.append(space["Example"])
    ours, standard = made
    for name in ("__doc__", "__module__", "__qualname__", "__match_args__", "_fields", "__bases__"):
        assert getattr(ours, name) == getattr(standard, name), name


def test_one_in_a_module_is_pickled() -> None:
    stat = Stat(1, "S", 0, 1, 2, 3, 4, 5, 6)
    assert pickle.loads(pickle.dumps(stat)) == stat
    assert type(pickle.loads(pickle.dumps(stat))) is Stat


def test_what_it_is_not_made_for_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="more than fields, 'number'"):

        class _WithDefault(typed.NamedTuple):
            name: str
            number: int = 3

    with pytest.raises(TypeError, match="more than fields, 'twice'"):

        class _WithMethod(typed.NamedTuple):
            number: int

            def twice(self) -> int:
                return 2 * self.number


def test_a_class_and_its_values_are_left_as_they_are() -> None:
    assert typed.final(Stat) is Stat
    assert typed.Literal["a", "b"] is typed.Literal["c"]

"""The light decorator of classes, held to the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import typing
from pathlib import Path
from typing import ClassVar

import pytest

from pki import frozen
from pki.material import Keys

LIGHT = frozen.dataclass


def make(light: bool) -> type:
    decorator = LIGHT if light else dataclasses.dataclass
    field = frozen.field if light else dataclasses.field

    @decorator(frozen=True, slots=True)
    class Example:
        """What it is."""

        kind: ClassVar[str] = "example"
        other_kind: typing.ClassVar = "also an example"
        name: str
        password: str = field(repr=False)
        number: int = 3
        words: tuple[str, ...] = ()
        hidden: int = field(default=7, repr=False)
        note: str = field(default="", compare=False)
        steps: list[int] = field(default_factory=list, compare=False)

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("a name is wanted")

        @property
        def twice(self) -> int:
            return 2 * self.number

    return Example


def make_changeable(light: bool) -> type:
    decorator = LIGHT if light else dataclasses.dataclass
    field = frozen.field if light else dataclasses.field

    @decorator(eq=False, slots=True)
    class Changeable:
        name: str
        number: int = 3
        words: dict[str, None] = field(default_factory=dict)
        password: str = field(default="secret", repr=False)

    return Changeable


LIGHT_ONE, STANDARD = make(True), make(False)
CALLS: list[tuple[tuple[object, ...], dict[str, object]]] = [
    (("a", "secret"), {}),
    (("a", "secret", 4, ("x",), 8), {}),
    (("a",), {"password": "secret", "words": ("y",)}),
    ((), {"name": "a", "password": "secret", "hidden": None}),
]


@pytest.mark.parametrize("call", CALLS)
def test_instances_are_as_those_of_the_standard_decorator(call: tuple[tuple[object, ...], dict[str, object]]) -> None:
    values, named = call
    ours, standard = LIGHT_ONE(*values, **named), STANDARD(*values, **named)
    assert repr(ours) == repr(standard)
    assert "secret" not in repr(ours)
    assert dataclasses.asdict(ours) == dataclasses.asdict(standard)
    assert ours.twice == standard.twice
    assert ours == LIGHT_ONE(*values, **named) == copy.deepcopy(ours) == copy.copy(ours)
    assert hash(ours) == hash(LIGHT_ONE(*values, **named)) == hash(standard)
    assert (ours != standard) is (ours != tuple(dataclasses.astuple(ours))) is True
    changed, also = dataclasses.replace(ours, number=9), dataclasses.replace(standard, number=9)
    assert dataclasses.asdict(changed) == dataclasses.asdict(also)
    assert changed != ours
    assert not hasattr(ours, "__dict__")


def test_a_field_may_not_count_in_comparisons() -> None:
    for made in (LIGHT_ONE, STANDARD):
        one, other = made("a", "b", note="one", steps=[1]), made("a", "b", note="other")
        assert one == other
        assert hash(one) == hash(other)
        assert one != made("a", "b", 4, note="one")
        assert dataclasses.asdict(one) != dataclasses.asdict(other)
        assert "note='one'" in repr(one)


def test_a_default_may_be_made_for_each_instance() -> None:
    for made in (LIGHT_ONE, STANDARD, make_changeable(True), make_changeable(False)):
        own, others = made("a", "b"), made("a", "b")
        name = "steps" if hasattr(own, "steps") else "words"
        assert getattr(own, name) == getattr(others, name)
        assert getattr(own, name) is not getattr(others, name)


def test_a_changeable_class_is_as_that_of_the_standard_decorator() -> None:
    described: list[tuple[object, ...]] = []
    standard = make_changeable(False)
    for made in (make_changeable(True), standard):
        one, same = made("a", words={"w": None}), made("a", words={"w": None})
        assert one == one  # noqa: PLR0124  (it has no comparison of its own)
        assert one != same
        assert {one: 1}[one] == 1
        assert len({one, same}) == 2
        one.number = 4
        one.words["x"] = None
        del one.password
        with pytest.raises(AttributeError):
            one.other = 1
        copied = copy.copy(same)
        assert (copied.name, copied.words) == ("a", {"w": None})
        with pytest.raises(TypeError):
            made()
        described.append((
            repr(one),
            repr(dataclasses.replace(same, number=5)),
            frozen.replace(copied, number=6).number if made is not standard else 6,
            dataclasses.asdict(same),
            [(each.name, each.type, each.repr, each.compare) for each in dataclasses.fields(made)],
        ))
    assert described[0] == described[1]


@pytest.mark.parametrize(
    ("values", "named", "error"),
    [
        ((), {}, TypeError),
        (("a",), {}, TypeError),
        (("a", "b", 1, (), 2, "", [], 3), {}, TypeError),
        (("a", "b"), {"name": "c"}, TypeError),
        (("a", "b"), {"other": 1}, TypeError),
        (("", "b"), {}, ValueError),
    ],
)
def test_what_the_standard_decorator_refuses_is_refused(
    values: tuple[object, ...], named: dict[str, object], error: type[Exception]
) -> None:
    for made in (LIGHT_ONE, STANDARD):
        with pytest.raises(error):
            made(*values, **named)


def test_nothing_of_an_instance_can_be_changed() -> None:
    ours = LIGHT_ONE("a", "b")
    for name in ("name", "other"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(ours, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del ours.name


def test_classes_are_described_as_by_the_standard_decorator() -> None:
    assert LIGHT_ONE.__doc__ == STANDARD.__doc__
    assert LIGHT_ONE.__qualname__ == STANDARD.__qualname__
    assert LIGHT_ONE.__module__ == STANDARD.__module__
    assert LIGHT_ONE.__match_args__ == STANDARD.__match_args__  # type: ignore[attr-defined]
    ours, standard = dataclasses.fields(LIGHT_ONE), dataclasses.fields(STANDARD)
    assert [(one.name, one.type, one.default, one.default_factory, one.repr, one.compare) for one in ours] == [
        (one.name, one.type, one.default, one.default_factory, one.repr, one.compare) for one in standard
    ]
    own = [(one.name, one.type, one.repr) for one in frozen.fields(LIGHT_ONE)]
    assert own == [(one.name, one.type, one.repr) for one in standard]
    assert frozen.fields(LIGHT_ONE("a", "b")) == frozen.fields(LIGHT_ONE)
    assert dataclasses.is_dataclass(LIGHT_ONE)


def test_a_copy_with_changes_is_as_that_of_the_standard_library() -> None:
    ours, standard = LIGHT_ONE("a", "secret", 4, hidden=8), STANDARD("a", "secret", 4, hidden=8)
    assert frozen.replace(ours) == ours
    changed, also = frozen.replace(ours, name="b", words=("d",)), dataclasses.replace(standard, name="b", words=("d",))
    assert dataclasses.asdict(changed) == dataclasses.asdict(also)
    assert type(changed) is LIGHT_ONE
    for replace in (frozen.replace, dataclasses.replace):
        with pytest.raises(TypeError):
            replace(ours, other=1)
        with pytest.raises(ValueError, match="a name is wanted"):
            replace(ours, name="")


def test_the_standard_module_is_imported_only_where_it_is_asked() -> None:
    source = (
        "import sys; from pki.material import Keys, Pin; from pki.frozen import fields, replace\n"
        "keys = replace(Keys('k', 'p', 't', 'p'), key_store='other'); repr(keys), hash(keys), fields(keys)\n"
        "assert 'dataclasses' not in sys.modules and 'inspect' not in sys.modules\n"
        "import dataclasses; assert dataclasses.asdict(keys)['key_store'] == 'other'\n"
    )
    subprocess.run([sys.executable, "-S", "-c", source], check=True, cwd=Path(__file__).parent.parent)


def test_a_pattern_takes_fields_by_their_place() -> None:
    match Keys("k", "kp", "t", "tp"):
        case Keys(key_store, _, trust_store):
            assert (key_store, trust_store) == ("k", "t")
        case _:
            raise AssertionError


def test_values_are_pickled() -> None:
    keys = Keys("k", "kp", "t", "tp")
    assert pickle.loads(pickle.dumps(keys)) == keys


class Base:
    pass


def test_what_it_is_not_made_for_is_refused_when_the_class_is_made() -> None:
    for kind in (
        {"frozen": True, "slots": False},
        {"eq": False, "slots": False},
        {"slots": True},
        {"frozen": True, "eq": False, "slots": True},
    ):
        with pytest.raises(TypeError, match="only classes with slots are made here, frozen ones or those with eq"):
            LIGHT(**kind)
    with pytest.raises(TypeError, match="has a base"):
        LIGHT(frozen=True, slots=True)(type("Below", (Base,), {"__annotations__": {"a": "int"}}))
    with pytest.raises(TypeError, match="is a field of the standard library"):
        LIGHT(frozen=True, slots=True)(
            type("Lists", (), {"__annotations__": {"a": "list"}, "a": dataclasses.field(default_factory=list)})
        )
    for no_field in ("InitVar[int]", "dataclasses.InitVar", "dataclasses.KW_ONLY"):
        with pytest.raises(TypeError, match="is no field but"):
            LIGHT(frozen=True, slots=True)(type("Other", (), {"__annotations__": {"a": no_field}}))


@pytest.mark.parametrize("shared", [[], {}, set()])
def test_a_default_that_all_instances_would_change_is_refused(shared: object) -> None:
    for default in (shared, frozen.field(default=shared)):
        with pytest.raises(ValueError, match="take default_factory"):
            LIGHT(frozen=True, slots=True)(type("Shared", (), {"__annotations__": {"a": "object"}, "a": default}))

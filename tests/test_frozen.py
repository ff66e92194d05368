"""The light decorator of frozen classes, held to the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
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
        name: str
        password: str = field(repr=False)
        number: int = 3
        words: tuple[str, ...] = ()
        hidden: int = field(default=7, repr=False)

        def __post_init__(self) -> None:
            if not self.name:
                raise ValueError("a name is wanted")

        @property
        def twice(self) -> int:
            return 2 * self.number

    return Example


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


@pytest.mark.parametrize(
    ("values", "named", "error"),
    [
        ((), {}, TypeError),
        (("a",), {}, TypeError),
        (("a", "b", 1, (), 2, 3), {}, TypeError),
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
    assert [(one.name, one.type, one.default, one.repr) for one in ours] == [
        (one.name, one.type, one.default, one.repr) for one in standard
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
    with pytest.raises(TypeError, match="only frozen classes with slots"):
        LIGHT(frozen=True, slots=False)
    with pytest.raises(TypeError, match="has a base"):
        LIGHT(frozen=True, slots=True)(type("Below", (Base,), {"__annotations__": {"a": "int"}}))
    with pytest.raises(TypeError, match="is a field of the standard library"):
        LIGHT(frozen=True, slots=True)(
            type("Lists", (), {"__annotations__": {"a": "list"}, "a": dataclasses.field(default_factory=list)})
        )

"""Functions that are compiled when they are called are those that would have been compiled at once."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Protocol

import attr
import pytest

from pki import methods
from pki.methods import compiled_when_called

if TYPE_CHECKING:
    from _typeshed import TraceFunction

WRITER = """
def write(text, mode="exec", **names):
    made = {}
    eval(compile(text, "<written>", mode), names, made)
    return made
"""


class Write(Protocol):
    def __call__(self, text: str, mode: str = "exec", **names: object) -> dict[str, FunctionType]: ...


FUNCTIONS = """def plain(self, other):
    return self, other

def all_kinds(a, /, b=ABSENT,
  *rest, c, d=ABSENT, **others
):
    return a, b, rest, c, d, others
def wrong():

    return missing
"""


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that writes functions as attrs does."""
    module = ModuleType("writer")
    exec(WRITER, vars(module))
    monkeypatch.setitem(sys.modules, "writer", module)
    return module


@pytest.fixture
def write(writer: ModuleType) -> Iterator[Write]:
    with compiled_when_called("writer"):
        yield writer.write


def is_compiled(function: object) -> bool:
    assert isinstance(function, FunctionType)
    return function.__code__.co_filename != methods.__file__


def test_a_function_is_compiled_by_its_first_call_and_no_other_with_it(write: Write) -> None:
    made = write(FUNCTIONS, ABSENT=None)
    assert list(made) == ["plain", "all_kinds", "wrong"]
    before = made["plain"]
    assert before(1, 2) == before(self=1, other=2) == (1, 2)
    assert {name: is_compiled(each) for name, each in made.items()} == {
        "plain": True,
        "all_kinds": False,
        "wrong": False,
    }


def test_a_function_that_was_called_is_the_one_that_was_written(write: Write) -> None:
    ours, names = write(FUNCTIONS, ABSENT="absent"), {"ABSENT": "absent"}
    whole: dict[str, FunctionType] = {}
    exec(compile(FUNCTIONS, "<written>", "exec"), names, whole)
    call: Callable[[FunctionType], object] = lambda function: function(1, 2, 3, c=4, e=5)  # noqa: E731
    assert call(ours["all_kinds"]) == call(whole["all_kinds"]) == call(ours["all_kinds"])
    assert ours["all_kinds"](1, c=2) == whole["all_kinds"](1, c=2)
    for of_a_function in ("__name__", "__qualname__", "__defaults__", "__kwdefaults__", "__closure__"):
        assert getattr(ours["all_kinds"], of_a_function) == getattr(whole["all_kinds"], of_a_function)
    assert ours["all_kinds"].__code__ == whole["all_kinds"].__code__
    assert inspect.signature(ours["all_kinds"]) == inspect.signature(whole["all_kinds"])


def test_a_function_fails_as_it_would_have(write: Write) -> None:
    made = write(FUNCTIONS)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"plain\(\) missing 1 required positional argument: 'other'"):
            made["plain"](1)
        with pytest.raises(NameError, match="missing") as caught:
            made["wrong"]()
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (last.filename, last.lineno, last.name) == ("<written>", 10, "wrong")


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n",
        "class x:\n    pass\n",
        "@staticmethod\ndef x(): pass\n",
        "def f(): pass\nx = f\n",
        "# nothing\ndef x(): pass\n",
        "async def x(): pass\n",
    ],
)
def test_any_other_text_is_compiled_at_once(write: Write, text: str) -> None:
    assert "x" in write(text)
    assert all(is_compiled(each) for each in write(text).values() if isinstance(each, FunctionType))


def test_what_is_wrong_with_a_text_is_told_by_its_compiler(write: Write) -> None:
    with pytest.raises(SyntaxError, match=r"invalid syntax.*written"):
        write("x = = 1\n")
    assert write("1 + 1", "eval") == {}


def test_threads_that_call_a_function_first_all_find_it_whole(write: Write) -> None:
    for _ in range(20):
        function, start, found = write(FUNCTIONS, ABSENT=None)["all_kinds"], threading.Barrier(4), []

        def call() -> None:
            start.wait(10)  # noqa: B023
            found.append(function(1, c=2, d=3))  # noqa: B023

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert found == [(1, None, (), 2, 3, {})] * 4


@pytest.mark.parametrize("step", range(8))
def test_a_function_can_be_called_at_any_step_of_being_compiled(write: Write, step: int) -> None:
    """As another thread may."""
    function, steps = write(FUNCTIONS, ABSENT=None)["all_kinds"], iter(range(100))

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if frame.f_code is not methods._Text.compile.__code__:
            return None
        if event == "line" and next(steps) == step:
            sys.settrace(None)
            assert function(1, c=2, d=3) == (1, None, (), 2, 3, {})
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert function(1, c=2) == (1, None, (), 2, None, {})
    finally:
        sys.settrace(before)
    assert function(1, c=2, d=3) == (1, None, (), 2, 3, {})
    assert next(steps) == step + 1, "there are fewer steps"


def test_the_name_that_was_replaced_is_as_before(writer: ModuleType) -> None:
    before = dict(vars(writer))
    with compiled_when_called("writer"):
        assert vars(writer) != before
    assert vars(writer) == before
    vars(writer)["compile"] = own = lambda *_: compile("", "", "exec")
    with compiled_when_called("writer"):
        assert writer.compile is not own
    assert writer.compile is own
    with compiled_when_called("no.such.module"):
        assert "no.such.module" not in sys.modules


def make_class() -> type:
    @attr.s(auto_attribs=True, hash=True, order=True)
    class Point:
        x: int
        y: int = attr.ib(default=2, repr=False, converter=int)
        z: list[int] = attr.ib(factory=list, kw_only=True, hash=False)

    Point.__qualname__ = "Point"
    return Point


def test_a_class_of_attrs_is_as_ever() -> None:
    with compiled_when_called("attr._make"):
        light = make_class()
    whole = make_class()
    assert not is_compiled(vars(light)["__init__"])
    assert is_compiled(vars(whole)["__init__"])
    for made in (light, whole):
        assert repr(made(1, "3")) == "Point(x=1, z=[])"
        assert made(1, 3) == made(1, y=3) != made(1, 3, z=[4])
        assert hash(made(1, 3)) == hash(made(1, 3, z=[4]))
        assert made(1) < made(2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'w'"):
            made(1, w=2)
    for name in ("__init__", "__repr__", "__eq__", "__hash__"):
        ours, theirs = vars(light)[name], vars(whole)[name]
        assert ours.__code__.co_code == theirs.__code__.co_code
        assert (ours.__qualname__, ours.__doc__, ours.__module__) == (
            theirs.__qualname__,
            theirs.__doc__,
            theirs.__module__,
        )
    assert inspect.signature(light) == inspect.signature(whole)


TRIO = """
import inspect, sys
from pki import methods
from pki.later import import_trio
import_trio()
import trio
assert "compile" not in vars(sys.modules["attr._make"])
def written():
    classes = [each for name, module in list(sys.modules.items()) if name.startswith("trio.")
               for each in vars(module).values() if isinstance(each, type) and "__attrs_attrs__" in vars(each)]
    return {method for each in classes for method in vars(each).values()
            if inspect.isfunction(method) and method.__code__.co_filename == methods.__file__}
before = len(written())
assert before > 50, before
one, other = (trio.lowlevel.ParkingLot().statistics() for _ in range(2))
assert repr(one) == "ParkingLotStatistics(tasks_waiting=0)" and one == other and hash(one) == hash(other)
async def main():
    with trio.move_on_after(0.01) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught
    return repr(trio.lowlevel.current_statistics())
assert trio.run(main).startswith("RunStatistics(tasks_living=")
assert 20 < len(written()) < before, (before, len(written()))
"""


def test_the_methods_of_trio_are_compiled_as_they_are_called() -> None:
    subprocess.run([sys.executable, "-c", TRIO], check=True, cwd=Path(__file__).resolve().parent.parent, timeout=60)

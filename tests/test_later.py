"""Modules that wait for their first use: that they do, and that nobody who uses one can tell."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pki.later import UNUSED_BY_TRIO_HERE, loaded_when_used

Make = Callable[[str, str], None]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes modules `waiting…` from their source; a slash makes it one of a package."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, source: str) -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")

    yield make
    for name in [name for name in sys.modules if name.startswith("waiting")]:
        del sys.modules[name]


def import_waiting(name: str) -> ModuleType:
    with loaded_when_used({name}):
        return importlib.import_module(name)


def is_loaded(module: ModuleType) -> bool:
    return type(module) is ModuleType


def test_a_module_is_loaded_by_its_first_use_and_only_then(make: Make) -> None:
    make("waiting", "def answer(): return 42\n")
    module = import_waiting("waiting")
    assert not is_loaded(module)
    assert importlib.import_module("waiting") is module
    assert not is_loaded(module)  # a second import is no use either
    assert module.answer() == 42
    assert is_loaded(module)
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert module.__file__ is not None


def test_what_a_module_does_not_have_is_missing_as_ever(make: Make) -> None:
    make("waiting", "")
    module = import_waiting("waiting")
    with pytest.raises(AttributeError, match="waiting.*nothing_such"):
        _ = module.nothing_such


def test_all_of_a_module_can_be_imported_from_it(make: Make) -> None:
    make("waiting", "one, two, _three = 1, 2, 3\n")
    make("waiting_star", "from waiting import *\n")
    import_waiting("waiting")
    everything = vars(importlib.import_module("waiting_star"))
    assert (everything["one"], everything["two"]) == (1, 2)


def test_a_module_of_a_package_can_wait_and_a_package_too(make: Make) -> None:
    make("waiting/__init__", "from . import part\nown = 1\n")
    make("waiting/part", "value = 2\n")
    package = import_waiting("waiting")
    part = import_waiting("waiting.part")
    assert not is_loaded(package)
    assert not is_loaded(part)
    assert part.value == 2
    assert package.own == 1
    assert package.part is part


def test_a_module_that_cannot_be_loaded_fails_at_each_use(make: Make) -> None:
    make("waiting", "raise LookupError('broken')\n")
    module = import_waiting("waiting")
    for _ in range(2):
        with pytest.raises(LookupError, match="broken"):
            _ = module.anything


def test_what_was_imported_before_and_what_is_imported_after_does_not_wait(make: Make) -> None:
    make("waiting_before", "value = 1\n")
    make("waiting_after", "value = 2\n")
    before = importlib.import_module("waiting_before")
    with loaded_when_used({"waiting_before", "waiting_after"}):
        assert importlib.import_module("waiting_before") is before
    assert is_loaded(importlib.import_module("waiting_after"))


def test_two_threads_that_use_it_first_both_find_it_whole(make: Make) -> None:
    make("waiting", "import time\ntime.sleep(0.05)\nlast = 1\n")
    module = import_waiting("waiting")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(module.last)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4


PROGRAM = """
import subprocess as before, sys
for name in {names!r}:
    sys.modules.pop(name, None)
from pki.later import import_trio
import_trio()
waiting = [name for name in {names!r} if name in sys.modules and type(sys.modules[name]).__name__ == "_Later"]
assert "idna" in waiting and "subprocess" in waiting, waiting
import ctypes.util, trio
assert ctypes.util.find_library.__module__ == "ctypes.util"
async def main():
    with trio.fail_after(30):
        await trio.run_process([sys.executable, "-c", ""])
        found = await trio.socket.getaddrinfo("127.0.0.1", 1)
        assert found[0][4] == ("127.0.0.1", 1)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, "not a number")
    except* TypeError:
        pass
trio.run(main)
import idna
assert idna.encode("b\\u00fccher.example") == b"xn--bcher-kva.example"
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except*")
def test_trio_works_with_all_that_waits() -> None:
    root = Path(__file__).resolve().parent.parent
    program = PROGRAM.format(names=sorted(UNUSED_BY_TRIO_HERE))
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=60)

"""Modules that wait for their first use: that they do, and that nobody who uses one can tell."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pki.later import UNUSED_BY_TRIO_HERE, UNUSED_OF_TRIO_HERE, Finish, loaded_when_used, names_loaded_when_used

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


GATHERING = {
    "waiting/__init__": "from . import inner\nfrom .early import *\nfrom .part import Thing as Thing, make as build\n",
    "waiting/early": "soon = 1\n",
    "waiting/inner": "from .part import make\n",
    "waiting/part": "class Thing: pass\ndef make(): return Thing()\n",
}


def import_gathering(make: Make, finish: Finish | None, **more: str) -> tuple[ModuleType, ModuleType]:
    """Import a package that hands on names of a part, and give both."""
    for name, source in (GATHERING | {f"waiting/{each}": source for each, source in more.items()}).items():
        make(name, source)
    gathering = ("waiting", "waiting.inner")
    with loaded_when_used({"waiting.part"}), names_loaded_when_used(gathering, lambda: finish):
        package = importlib.import_module("waiting")
    return package, sys.modules["waiting.part"]


def test_a_package_hands_on_a_name_of_a_part_without_loading_it(make: Make) -> None:
    finished: list[tuple[str, list[str]]] = []
    package, part = import_gathering(make, lambda module, names: finished.append((module, list(names))))
    assert not is_loaded(part)
    assert {"Thing", "build", "soon"} <= set(dir(package))
    assert not is_loaded(part)
    assert type(package.build()) is package.Thing is part.Thing
    assert is_loaded(part)
    assert package.inner.make is part.make is package.build
    assert finished == [("waiting", ["Thing"]), ("waiting", ["build"]), ("waiting.inner", ["make"])]
    # And nothing tells that there was anything but the names themselves.
    assert vars(package)["Thing"] is part.Thing
    assert not {"__getattr__", "__dir__"} & set(vars(package)) | set(vars(package.inner)) & {"__getattr__", "__dir__"}


def test_names_handed_on_are_taken_like_any_others(make: Make) -> None:
    package, part = import_gathering(make, lambda *_: None)
    make("waiting_user", "from waiting import Thing\nclass Own(Thing): pass\n")
    own = importlib.import_module("waiting_user").Own
    assert own.__mro__[1] is part.Thing
    assert pickle.loads(pickle.dumps(package.Thing)) is part.Thing
    with pytest.raises(AttributeError, match="waiting.*nothing_such"):
        _ = package.nothing_such


def test_all_names_that_a_package_hands_on_can_be_imported_from_it(make: Make) -> None:
    import_gathering(make, lambda *_: None)
    make("waiting_star", "from waiting import *\n")
    assert {"Thing", "build", "soon"} <= set(vars(importlib.import_module("waiting_star")))


def test_what_was_put_in_the_place_of_a_name_stays(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    package, part = import_gathering(make, lambda *_: None)
    package.Thing = 1  # type: ignore[attr-defined]
    assert part.make() is not None
    assert package.Thing == 1
    monkeypatch.setattr(package, "build", len)
    monkeypatch.undo()
    assert package.build is part.make


def test_a_package_that_answers_for_other_names_still_does(make: Make) -> None:
    source = GATHERING["waiting/__init__"] + "def __getattr__(name): return name.upper()\n"
    package, part = import_gathering(make, lambda *_: None, __init__=source)
    assert package.other == "OTHER"
    assert package.Thing is part.Thing
    assert package.another == "ANOTHER"


@pytest.mark.parametrize(
    "use",
    ["class Below(Thing): own = 1", "made = build()", "looked = Thing.__name__", "from .user import Thing as also"],
)
def test_a_name_that_is_used_in_the_import_of_its_package_is_real(make: Make, use: str) -> None:
    source = f"{GATHERING['waiting/__init__']}from . import user\n{use}\n"
    package, part = import_gathering(make, lambda *_: None, __init__=source, user="from .part import Thing\n")
    found = vars(package)
    assert package.user.Thing is part.Thing
    if "Below" in found:
        assert found["Below"].__mro__[1] is part.Thing
    if "made" in found:
        assert type(found["made"]) is part.Thing
    if "looked" in found:
        assert found["looked"] == "Thing"
    assert package.Thing is part.Thing


def test_a_function_of_the_package_finds_a_name_that_it_hands_on(make: Make) -> None:
    source = GATHERING["waiting/__init__"] + "def use(): return build()\n"
    package, part = import_gathering(make, lambda *_: None, __init__=source)
    assert type(package.use()) is part.Thing is package.Thing


def test_a_placeholder_that_another_module_has_taken_is_replaced(make: Make) -> None:
    source = GATHERING["waiting/__init__"] + "from . import user\n"
    package, part = import_gathering(make, lambda *_: None, __init__=source, user="from waiting import Thing\n")
    assert vars(package.user)["Thing"] is part.Thing


def test_all_is_loaded_where_it_is_not_known_what_is_to_be_done_with_names(make: Make) -> None:
    package, part = import_gathering(make, None)
    assert is_loaded(part)
    assert vars(package)["build"] is part.make


def test_a_part_that_cannot_be_loaded_fails_where_its_name_is_looked_up(make: Make) -> None:
    package, _ = import_gathering(make, lambda *_: None, part="raise LookupError('broken')\n")
    for _ in range(2):
        with pytest.raises(LookupError, match="broken"):
            _ = package.Thing


TELLING = """
import sys
if {light}:
    from pki.later import import_trio
    import_trio()
import trio
of_modules = "__getattr__", "__dir__", "__builtins__", "__spec__", "__loader__", "__cached__"
for module in (trio, trio.lowlevel, trio.socket, trio.abc, trio.from_thread, trio.to_thread, trio._core):
    for name in [name for name in dir(module) if name not in of_modules]:
        found = getattr(module, name)
        if not (name[0] == "_" and isinstance(found, type(sys))):
            said = [getattr(found, word, None) for word in ("__module__", "__qualname__", "__name__")]
            if isinstance(found, type(sys)):
                said = [found.__name__]
            elif isinstance(found, type):
                said += [(key, getattr(value, "__qualname__", None)) for key, value in sorted(vars(found).items())
                         if key != "__replace__"]
            print(module.__name__, name, said)
"""


def test_all_of_trio_is_as_if_it_had_been_loaded_at_once() -> None:
    root = Path(__file__).resolve().parent.parent
    told = [
        subprocess.run(
            [sys.executable, "-c", TELLING.format(light=light)], check=True, cwd=root, timeout=60, capture_output=True
        ).stdout
        for light in (False, True)
    ]
    assert told[0].count(b"\n") > 100
    assert told[0] == told[1]


PROGRAM = """
import subprocess as before, sys
for name in {names!r}:
    sys.modules.pop(name, None)
from pki.later import import_trio
import_trio()
waiting = [name for name in {names!r} if name in sys.modules and type(sys.modules[name]).__name__ == "_Later"]
assert "idna" in waiting and "trio._dtls" in waiting and "trio._subprocess" in waiting, waiting
import ctypes.util, trio
assert ctypes.util.find_library.__module__ == "ctypes.util"
async def main():
    with trio.fail_after(30):
        await trio.run_process([sys.executable, "-c", ""])
        assert await trio.Path(sys.executable).exists()
        assert type(await trio.open_file(sys.executable, "rb")).__module__ == "trio._file_io"
        assert await trio.to_thread.run_sync(len, "four") == 4
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
    program = PROGRAM.format(names=sorted(UNUSED_BY_TRIO_HERE | UNUSED_OF_TRIO_HERE))
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=60)


WITHOUT_FILES = """
import sys
from pki.later import import_trio
import_trio()
import trio
from appmgr.cli import _load_for_later
if sys.argv[1] == "settled":
    _load_for_later()
from pki.der import fingerprint
sys.meta_path.clear()  # nothing more is found
async def look_up():
    return await trio.to_thread.run_sync(lambda: 7)
assert trio.run(look_up) == 7
assert fingerprint(b"").startswith("E3:B0:C4:42")
"""


@pytest.mark.parametrize("when", ["settled", "at once"])
def test_a_manager_that_has_settled_can_use_threads_and_name_certificates_when_its_files_are_gone(when: str) -> None:
    # As it does when the guest has another key, and it looks into its trust store and says whose it is.
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_FILES, when], cwd=Path(__file__).parent.parent, capture_output=True, check=False
    )
    assert (ended.returncode == 0) == (when == "settled"), ended.stderr

"""Modules that are loaded when somebody uses them, and not when somebody imports them.

`import trio` takes most of a manager's start and of its memory, and a good part of it is for what these programs never
do: names in other alphabets, DTLS, subprocesses, temporary files. `import x` of such a module gives an empty one, which
loads itself when the first attribute is asked for; so nothing hangs on what the importing library makes of it, and in
another version of it the module is simply loaded. (`importlib.util.LazyLoader` does not serve: up to Python 3.13 a
second `import x` counts as a use.)

A package that gathers its public names from its parts would load all of them at once by `from .part import name`. That
statement alone, in the package's own module and of a part that waits, is answered by a placeholder (PEP 690 has all
imports so). Placeholders live as long as the package is being imported. Then each is taken out of the package again,
which asks for the real thing, by a `__getattr__` of PEP 562, when the name is looked up: `dir`, `from package import
name` and `import *` have all names, and whatever comes out is what the part has. A name that somebody else took in the
meantime is loaded at once.

Measured (Python 3.11, trio 0.35): 12 of 100 ms, 1.7 of 15 MiB, and one program less to start; by trio's own parts
another 1.1 MiB.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Final, TypeAlias, cast, final

from pki.answers import ANSWERS, LASTING, Answer, Loaded
from pki.methods import compiled_when_called

if TYPE_CHECKING:
    from importlib.abc import Loader

UNUSED_BY_TRIO_HERE: Final = frozenset({
    "attr.converters",
    "attr.filters",
    "attr.validators",
    "attrs.converters",
    "attrs.filters",
    "attrs.validators",
    "ast",
    "base64",
    "ctypes.util",
    "hmac",
    "idna",
    "inspect",
    "ipaddress",
    "locale",
    "logging",
    "platform",
    "selectors",
    "shutil",
    "subprocess",
    "tempfile",
    "textwrap",
    "tokenize",
    "traceback",
})
"""What trio and its own libraries import, and need for nothing that a server or a manager does all the time."""

UNUSED_OF_TRIO_HERE: Final = frozenset({
    "trio._channel",
    "trio._core._mock_clock",
    "trio._core._unbounded_queue",
    "trio._dtls",
    "trio._file_io",
    "trio._highlevel_open_tcp_listeners",
    "trio._highlevel_open_tcp_stream",
    "trio._highlevel_open_unix_stream",
    "trio._highlevel_serve_listeners",
    "trio._highlevel_ssl_helpers",
    "trio._path",
    "trio._subprocess",
    "trio._threads",
    "trio._unix_pipes",
})
"""Its own parts of that kind."""

TRIO_GATHERS_IN: Final = ("trio", "trio.from_thread", "trio.lowlevel", "trio.to_thread", "trio._core")
"""Where trio hands on the names of its parts."""

Finish: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""What a package does to names before it hands them on: called with its own name and with them."""

_LOCK = "__waiting_lock__"
"""Among a module's names, too: who loads it."""

_WAITING = "__waiting_loader__"
"""Among a module's names for as long as it is not loaded: what will load it."""

_AWAITED = "__awaited_by__"
"""The same: who wants to be told when it is loaded."""

_answers: dict[str, Answer] = {}
"""What is answered without loading, as long as libraries are being imported."""

_answered: dict[str, object] = {}
"""What was answered already, so that it is the same for all who ask."""

_gathering: set[str] = set()
"""The modules that hand names on, as long as they are being imported."""


@final
class _Later(ModuleType):
    """A module that loads itself at its first use."""

    def __getattr__(self, name: str) -> object:
        # The import system asks whether it is a package; it would have the attribute already.
        if name != "__path__":
            if _WAITING in vars(self):
                if _gathering and _is_gathered(sys._getframe(1)):  # noqa: SLF001  (documented)
                    return _Name(self, name)
                if f"{self.__name__}.{name}" in _answers:
                    return self._answer(f"{self.__name__}.{name}")
            # One for each module: what is loaded may import what another thread is importing, and that wait for us.
            with vars(self).setdefault(_LOCK, threading.RLock()):
                loader = vars(self).pop(_WAITING, None)
                if loader is not None:
                    self._load(loader)
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)

    def _load(self, loader: Loader) -> None:
        self.__loader__ = loader
        if self.__spec__ is not None:
            self.__spec__.loader = loader
        try:
            loader.exec_module(self)
        except BaseException:
            vars(self)[_WAITING] = loader
            raise
        self.__class__ = ModuleType  # type: ignore[assignment]  # what it is from now on
        for tell in vars(self).pop(_AWAITED, ()):
            tell(self)

    def _answer(self, full_name: str) -> object:
        if full_name not in _answered:
            told: list[Loaded] = vars(self).setdefault(_AWAITED, [])
            _answered[full_name] = _answers[full_name](self, told.append)
        return _answered[full_name]


def _is_gathered(asking: FrameType) -> bool:
    return asking.f_code.co_name == "<module>" and asking.f_globals.get("__name__") in _gathering


@final
class _Name:
    """Stands for a name of a module that waits, as long as the package that hands it on is being imported."""

    def __init__(self, module: _Later, name: str) -> None:
        self._of = module
        self._name = name

    def real(self) -> object:
        """Give what it stands for, and load the module for it."""
        return getattr(self._of, self._name)

    @property
    def part(self) -> _Later:
        """The module that has it."""
        return self._of

    def __getattr__(self, name: str) -> object:
        return getattr(self.real(), name)

    def __call__(self, *values: object, **named: object) -> object:
        found = self.real()
        assert callable(found)
        given: object = found(*values, **named)
        return given

    def __mro_entries__(self, _bases: object) -> tuple[object]:
        return (self.real(),)


@final
class _Gathered:
    """The names of one module that are not there yet."""

    def __init__(self, module: ModuleType, names: Mapping[str, _Name], finish: Finish) -> None:
        self._module = module
        self._names = dict(names)
        self._finish = finish
        space = vars(module)
        self._before: Callable[[str], object] | None = space.get("__getattr__")
        for name in names:
            del space[name]
        space["__getattr__"] = self.get
        space["__dir__"] = self._dir
        for part in {found.part for found in names.values()}:
            if _WAITING in vars(part):
                vars(part).setdefault(_AWAITED, []).append(self.arrived)
            else:  # it was used while the package was being imported
                self.arrived(part)

    def arrived(self, part: ModuleType) -> None:
        """Take over what is from `part`, but for what somebody has put into its place; the last one leaves no trace."""
        space = vars(self._module)
        for name, found in tuple(self._names.items()):
            if found.part is part:
                space.setdefault(name, found.real())
                self._finish(self._module.__name__, {name: found.real()})
                del self._names[name]
        if not self._names:
            del space["__dir__"]
            space.pop("__getattr__")
            if self._before is not None:
                space["__getattr__"] = self._before

    def get(self, name: str) -> object:
        """Give the value of a name that the module does not have yet. Raises `AttributeError`."""
        if name == "__all__":  # `import *` takes what it finds, if there is none
            for each in tuple(self._names.values()):
                each.real()
        elif (found := self._names.get(name)) is not None:  # another thread may take it over just now
            found.real()
        if name in vars(self._module):  # by now, or since another thread has loaded it
            return vars(self._module)[name]
        if self._before is not None:
            return self._before(name)
        raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}", name=name, obj=self._module)

    def _dir(self) -> list[str]:
        return sorted({*vars(self._module), *self._names} - {"__dir__"})


@final
class _LaterLoader:
    """Makes an empty module in place of `loader`."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty: from now on its first use loads it."""
        vars(module)[_WAITING] = self._loader
        vars(module).update(LASTING.get(module.__name__, {}))


@final
class _Finder:
    """Finds the modules that are to wait, as the import system would."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _LaterLoader(spec.loader))
        return spec


@contextlib.contextmanager
def loaded_when_used(names: Collection[str], answers: Mapping[str, Answer] | None = None) -> Iterator[None]:
    """Have modules of these full names wait for their first use, where one is imported in the context. A name for which
    there are `answers` is no use in it.

    What was imported before stays as it is. Not for several threads at once.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    _answers.update(answers or {})
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _answers.clear()
        _answered.clear()


@contextlib.contextmanager
def names_loaded_when_used(modules: Sequence[str], finish: Callable[[], Finish | None]) -> Iterator[None]:
    """Have these modules of one package hand on the names of parts that wait without loading them, where they are
    imported in the context.

    `finish` gives, at the end, what the package does to its public names; with `None` all of them are loaded then.
    """
    _gathering.update(modules)
    try:
        yield
    finally:
        _gathering.clear()
    package = modules[0].partition(".")[0]
    of_package = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    for name in of_package:
        if name not in modules:
            _settle(sys.modules[name], None)
    end = finish()
    for name in modules:  # in their order, in which the package comes to its names itself
        if name in of_package:
            _settle(sys.modules[name], end)


def _settle(module: ModuleType, finish: Finish | None) -> None:
    """Take the placeholders out of `module`."""
    space = vars(module)
    names = {name: value for name, value in space.items() if type(value) is _Name}
    if finish is None:
        space.update({name: found.real() for name, found in names.items()})
    elif names:
        gathered = _Gathered(module, names, finish)
        # Functions look names up in the module itself, without asking its `__getattr__`.
        functions = [each for each in space.values() if isinstance(each, FunctionType) and each.__globals__ is space]
        for name in names.keys() & {word for each in functions for word in each.__code__.co_names}:
            gathered.get(name)


def load_now(name: str) -> None:
    """Import a module and wait no longer with loading it. Raises what importing it raises."""
    module = importlib.import_module(name)
    if isinstance(module, _Later):
        # Asking for a name that no module has is a use.
        getattr(module, "__use__", None)


def import_trio() -> None:
    """Import trio without what it is not needed for here, and without having it look for the C library, for which it
    would run `ldconfig`; then its helper threads have no names.
    """
    with (
        loaded_when_used(UNUSED_BY_TRIO_HERE | UNUSED_OF_TRIO_HERE, ANSWERS),
        names_loaded_when_used(TRIO_GATHERS_IN, _what_trio_does_to_names),
    ):
        import ctypes.util

        namespace = vars(ctypes.util)
        before = namespace.get("find_library")
        namespace["find_library"] = lambda _name: None
        try:
            with contextlib.suppress(ImportError):  # a trio without it
                importlib.import_module("attr")
            with compiled_when_called("attr._make"):
                import trio  # noqa: F401
        finally:
            del namespace["find_library"]
            if before is not None:
                namespace["find_library"] = before
    sources = sys.modules.get("linecache")
    if sources is not None:  # attrs has left the source of every method there that it made, for tracebacks
        sources.clearcache()


def _what_trio_does_to_names() -> Finish | None:
    """Give what has classes and functions say that they are of the public module; `None` if that is no more there."""
    fix = getattr(sys.modules.get("trio._util"), "fixup_module_metadata", None)
    if fix is None:
        return None

    def finish(module_name: str, names: Mapping[str, object]) -> None:
        if not module_name.startswith("trio._"):
            fix(module_name, names)

    return finish

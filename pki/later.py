"""Modules that are loaded when somebody uses them, and not when somebody imports them.

`import trio` takes most of a manager's start and of its memory, and a good part of it is for what these programs never
do: names in other alphabets, DTLS, subprocesses, temporary files. `import x` of such a module gives an empty one, which
loads itself when the first attribute is asked for; so nothing hangs on what the importing library makes of it, and in
another version of it the module is simply loaded. (`importlib.util.LazyLoader` does not serve: up to Python 3.13 a
second `import x` counts as a use.)

Measured (Python 3.11, trio 0.35): 12 of 100 ms, 1.7 of 15 MiB, and one program less to start.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast, final

if TYPE_CHECKING:
    from importlib.abc import Loader

UNUSED_BY_TRIO_HERE: Final = frozenset({
    "attr.filters",
    "attrs.converters",
    "attrs.filters",
    "attrs.validators",
    "ctypes.util",
    "hmac",
    "idna",
    "ipaddress",
    "locale",
    "selectors",
    "shutil",
    "subprocess",
    "tempfile",
    "traceback",
})
"""What trio and its own libraries import, and need for nothing that a server or a manager does all the time."""

_lock = threading.RLock()

_WAITING = "__waiting_loader__"
"""Among a module's names for as long as it is not loaded: what will load it."""


@final
class _Later(ModuleType):
    """A module that loads itself at its first use."""

    def __getattr__(self, name: str) -> object:
        # The import system asks whether it is a package; it would have the attribute already.
        if name != "__path__":
            with _lock:
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
def loaded_when_used(names: Collection[str]) -> Iterator[None]:
    """Have modules of these full names wait for their first use, where one is imported in the context.

    What was imported before stays as it is. Not for several threads at once.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def import_trio() -> None:
    """Import trio without what it is not needed for here, and without having it look for the C library, for which it
    would run `ldconfig`; then its helper threads have no names.
    """
    with loaded_when_used(UNUSED_BY_TRIO_HERE):
        import ctypes.util

        namespace = vars(ctypes.util)
        before = namespace.get("find_library")
        namespace["find_library"] = lambda _name: None
        try:
            import trio  # noqa: F401
        finally:
            del namespace["find_library"]
            if before is not None:
                namespace["find_library"] = before

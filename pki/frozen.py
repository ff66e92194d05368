"""`dataclass(frozen=True, slots=True)` for the classes that a manager needs, at a twentieth of its price.

The standard library's decorator writes the source of six methods for each class and compiles it: half a millisecond a
class. A manager needs some forty of them and is started for every application at once; measured, a seventh of its start
went there. Here the methods exist once, in a base class, and look up the names of the fields when they are called,
which costs an instance two microseconds more.

To type checkers this *is* the standard decorator, and to `dataclasses.fields`, `replace` and `asdict` an instance is a
dataclass. It takes what this project uses: frozen classes with slots and without a base, whose annotations are strings
(`from __future__ import annotations`), with defaults, hidden fields (`field(repr=False)`), `ClassVar` and
`__post_init__`. Anything else is refused when the class is made. A test holds it to the standard one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    from dataclasses import _FIELD, MISSING, Field, FrozenInstanceError, field

    _set = object.__setattr__

    def dataclass(*, frozen, slots):
        """Make a frozen class with slots, as the decorator of that name does. Raises `TypeError` for other kinds."""
        if not (frozen and slots):
            raise TypeError("only frozen classes with slots are made here: take the standard library's decorator")
        return _make

    def _make(cls):
        body = dict(cls.__dict__)
        fields = {
            name: _field(name, kind, body.pop(name, MISSING))
            for name, kind in body.get("__annotations__", {}).items()
            if not kind.startswith("ClassVar")
        }
        if cls.__bases__ != (object,) or any(found.default_factory is not MISSING for found in fields.values()):
            raise TypeError(f"{cls.__name__} has a base or a factory: take the standard library's decorator")
        body["__qualname__"] = cls.__qualname__
        body["__slots__"] = body["__match_args__"] = tuple(fields)
        body["__dataclass_fields__"] = fields
        for of_the_other in ("__dict__", "__weakref__"):
            del body[of_the_other]
        return type(cls.__name__, (_Frozen,), body)

    def _field(name, kind, default) -> Field:
        found = default if isinstance(default, Field) else field(default=default)
        found.name, found.type, found._field_type = name, kind, _FIELD  # noqa: SLF001  (as `dataclasses` does)
        return found

    class _Frozen:
        __slots__ = ()

        def __init__(self, *values, **named):
            names = self.__match_args__
            if len(values) > len(names):
                raise TypeError(f"{type(self).__name__} has {len(names)} fields, but {len(values)} were given")
            for name, value in zip(names, values, strict=False):
                _set(self, name, value)
            for name in names[len(values) :]:
                value = named.pop(name) if name in named else self.__dataclass_fields__[name].default
                if value is MISSING:
                    raise TypeError(f"{type(self).__name__} wants a value for {name!r}")
                _set(self, name, value)
            if named:
                raise TypeError(f"{type(self).__name__} has no place for {', '.join(map(repr, named))}")
            self.__post_init__()

        def __post_init__(self):
            pass

        def _values(self):
            return tuple([getattr(self, name) for name in self.__match_args__])

        def __repr__(self):
            shown = [name for name, found in self.__dataclass_fields__.items() if found.repr]
            return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

        def __eq__(self, other):
            return self._values() == other._values() if type(other) is type(self) else NotImplemented

        def __hash__(self):
            return hash(self._values())

        def __setattr__(self, name, value):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name):
            raise FrozenInstanceError(f"cannot delete field {name!r}")

        def __reduce__(self):
            return type(self), self._values()

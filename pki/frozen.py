"""`dataclass(frozen=True, slots=True)` for the classes that the daemons need, at a twentieth of its price.

The standard library's decorator writes the source of six methods for each class and compiles it: half a millisecond a
class. A manager needs some forty of them and is started for every application at once; measured, a seventh of its start
went there. Here the methods exist once, in a base class, and look up the names of the fields when they are called,
which costs an instance two microseconds more. The module `dataclasses` itself, with all that it imports, is loaded only
when somebody asks it about one of these classes.

To type checkers these *are* the standard decorator and functions, and to those an instance is a dataclass. It takes
what this project uses: classes with slots and without a base, whose annotations are strings
(`from __future__ import annotations`), with defaults, lists and the like that each instance has of its own
(`default_factory`), hidden fields (`repr=False`), fields that do not count in a comparison, `ClassVar` and
`__post_init__`. They are frozen, or (`eq=False`) can be changed and are equal to themselves only. Anything else is
refused when the class is made. A test holds it to the standard one.
"""

from __future__ import annotations

from pki.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import replace as replace
else:
    from operator import attrgetter

    _set = object.__setattr__

    _MISSING = object()
    """In place of a default where there is none."""

    def dataclass(*, slots, frozen=False, eq=True):
        """Make a class with slots, frozen or without a comparison, as the decorator of that name does. Raises
        `TypeError` for other kinds.
        """
        if not slots or frozen is not eq:
            raise TypeError(
                "only classes with slots are made here, frozen ones or those with eq=False: take the standard "
                "library's decorator"
            )
        return _make_frozen if frozen else _make_changeable

    def field(*, default=_MISSING, default_factory=None, repr=True, compare=True):  # noqa: A002  (its name there)
        """Say of a field whether `repr` shows it and comparisons heed it, and what it is where nothing is given."""
        return _Field(default, default_factory, repr, compare)

    def fields(made):
        """Give the fields of such a class or instance in their order, each with its `name`."""
        return tuple(made.__frozen_fields__.values())

    def replace(instance, /, **changes):
        """Make another like `instance`, with these fields changed. Raises `TypeError` for a field that it has not."""
        kept = {name: getattr(instance, name) for name in instance.__match_args__ if name not in changes}
        return type(instance)(**kept, **changes)

    class _Field:
        __slots__ = ("compare", "default", "factory", "name", "repr", "type")

        def __init__(self, default, factory=None, shown=True, compared=True):  # noqa: FBT002  (as `field` has them)
            self.default = default
            self.factory = factory
            self.repr = shown
            self.compare = compared

    def _make_frozen(cls):
        return _make(cls, _Frozen)

    def _make_changeable(cls):
        return _make(cls, _Made)

    def _make(cls, base):
        body = dict(cls.__dict__)
        found = {
            name: _named(name, kind, body.pop(name, _MISSING))
            for name, kind in body.get("__annotations__", {}).items()
            if _bare(kind) != "ClassVar"
        }
        if cls.__bases__ != (object,):
            raise TypeError(f"{cls.__name__} has a base: take the standard library's decorator")
        body["__qualname__"] = cls.__qualname__
        body["__slots__"] = body["__match_args__"] = tuple(found)
        body["__frozen_fields__"] = found
        body["__compared__"] = staticmethod(_getter(tuple(name for name, each in found.items() if each.compare)))
        for of_the_other in ("__dict__", "__weakref__"):
            del body[of_the_other]
        return type(cls.__name__, (base,), body)

    def _getter(names):
        """Give what takes the values of these fields from an instance, as a tuple, without a call of ours for each."""
        if len(names) > 1:
            return attrgetter(*names)
        return lambda instance: tuple([getattr(instance, name) for name in names])

    def _bare(kind):
        """Give the last word of an annotation before its parameters."""
        return kind.partition("[")[0].rpartition(".")[2].strip()

    def _named(name, kind, default):
        if _bare(kind) in {"InitVar", "KW_ONLY"}:
            raise TypeError(f"{name!r} is no field but {kind!r}: take the standard library's decorator")
        if type(default).__module__ == "dataclasses":
            raise TypeError(f"{name!r} is a field of the standard library's: take its decorator, or `field` from here")
        named = default if isinstance(default, _Field) else _Field(default)
        if named.default.__class__.__hash__ is None:
            raise ValueError(f"the default of {name!r} would be shared by all instances: take default_factory")
        named.name, named.type = name, kind
        return named

    class _StandardFields:
        """The fields as the standard library has them, made when it first asks a class for them."""

        def __get__(self, _, cls):
            import dataclasses

            standard = {}
            for name, found in cls.__frozen_fields__.items():
                default = dataclasses.MISSING if found.default is _MISSING else found.default
                factory = dataclasses.MISSING if found.factory is None else found.factory
                standard[name] = made = dataclasses.field(
                    default=default, default_factory=factory, repr=found.repr, compare=found.compare
                )
                made.name, made.type, made._field_type = name, found.type, dataclasses._FIELD  # noqa: SLF001  (as it does)
            cls.__dataclass_fields__ = standard
            return standard

    class _Made:
        __slots__ = ()
        __dataclass_fields__ = _StandardFields()
        __frozen_fields__ = {}  # noqa: RUF012  (each class has its own)

        def __init__(self, *values, **named):
            names = self.__match_args__
            if len(values) > len(names):
                raise TypeError(f"{type(self).__name__} has {len(names)} fields, but {len(values)} were given")
            for name, value in zip(names, values, strict=False):
                _set(self, name, value)
            for name in names[len(values) :]:
                if name in named:
                    value = named.pop(name)
                else:
                    found = self.__frozen_fields__[name]
                    value = found.default if found.factory is None else found.factory()
                    if value is _MISSING:
                        raise TypeError(f"{type(self).__name__} wants a value for {name!r}")
                _set(self, name, value)
            if named:
                raise TypeError(f"{type(self).__name__} has no place for {', '.join(map(repr, named))}")
            self.__post_init__()

        def __post_init__(self):
            pass

        def __repr__(self):
            shown = [name for name, found in self.__frozen_fields__.items() if found.repr]
            return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    class _Frozen(_Made):
        __slots__ = ()

        def __eq__(self, other):
            if type(other) is not type(self):
                return NotImplemented
            values = self.__compared__
            return values(self) == values(other)

        def __hash__(self):
            return hash(self.__compared__(self))

        def __setattr__(self, name, value):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot delete field {name!r}")

        def __reduce__(self):
            return type(self), _getter(self.__match_args__)(self)

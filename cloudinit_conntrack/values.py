"""Frozen values: what :mod:`dataclasses` makes, without its price at a boot.

That module imports inspect and ten others, and compiles six functions for each class: a quarter of
what a boot with nothing to do took.  Here all classes share a few functions, which are a little
slower when they run: what is made a hundred thousand times (lines, rules) stays with dataclasses.
Type checkers read the real thing, and what is asked through :mod:`dataclasses` (``fields``,
``replace``, a class that inherits from one of these) is answered by it.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
    from typing import Any

_NOTHING: Any = object()
_put = object.__setattr__


class _Field:
    """What :func:`field` says; *default* and *factory* may be ``_NOTHING``."""

    def __init__(self, default: Any, factory: Any = _NOTHING, compare: bool = True) -> None:
        self.default, self.factory, self.compare = default, factory, compare

    def value(self, of: object, name: str) -> Any:
        """What *of*, which is made without it, gets as its *name*."""
        if self.default is not _NOTHING:
            return self.default
        if self.factory is not _NOTHING:
            return self.factory()
        raise TypeError(f"{of.__class__.__name__}.{name} is missing")

    def real(self) -> Any:
        """The same for :mod:`dataclasses`."""
        from dataclasses import field as real

        said = {"default": self.default, "default_factory": self.factory}
        return real(compare=self.compare, **{key: value for key, value in said.items() if value is not _NOTHING})


class _Real:
    """An attribute that :mod:`dataclasses` looks for, made by it then."""

    def __init__(self, name: str, fields: dict[str, _Field], frozen: bool) -> None:
        self._name, self._fields, self._frozen = name, fields, frozen

    def __get__(self, instance: object, owner: type) -> Any:
        from dataclasses import dataclass as real

        body = {name: one.real() for name, one in self._fields.items()}
        shadow = type(owner.__name__, (), {**body, "__annotations__": dict.fromkeys(body, object)})
        return getattr(real(frozen=self._frozen)(shadow), self._name)


def _dataclass(cls: Any = None, *, frozen: bool = False) -> Any:
    return _made(cls, frozen) if cls is not None else lambda given: _made(given, frozen)


def _field(*, default: Any = _NOTHING, default_factory: Any = _NOTHING, compare: bool = True) -> Any:
    return _Field(default, default_factory, compare)


def _replace(value: Any, **changes: Any) -> Any:
    fields = getattr(value, "__value_fields__", None)
    if fields is None:
        from dataclasses import replace as real

        return real(value, **changes)
    return value.__class__(**{**{name: getattr(value, name) for name in fields}, **changes})


def _made(cls: Any, frozen: bool) -> Any:
    fields = dict(getattr(cls, "__value_fields__", {}))
    own = cls.__dict__
    for name in _annotated(cls):
        default = own.get(name, _NOTHING)
        fields[name] = default if isinstance(default, _Field) else _Field(default)
        if isinstance(default, _Field):
            delattr(cls, name)
    key = _key_of(fields)
    methods = {"__init__": _init_of(fields, getattr(cls, "__post_init__", None)), "__repr__": _repr_of(tuple(fields)),
               "__eq__": _eq_of(key)}
    for name, method in methods.items():
        if name not in own:
            setattr(cls, name, method)
    if own.get("__hash__") is None:
        cls.__hash__ = (lambda value: hash(key(value))) if frozen else None
    if frozen:
        cls.__setattr__ = cls.__delattr__ = _refuse
    attributes = {"__value_fields__": fields, "__match_args__": tuple(fields)}
    real = {name: _Real(name, fields, frozen) for name in ("__dataclass_fields__", "__dataclass_params__")}
    for name, value in {**attributes, **real}.items():
        setattr(cls, name, value)
    return cls


def _annotated(cls: Any) -> Any:
    """The names that *cls* itself annotates; from Python 3.14 on they may have to be asked for."""
    own = cls.__dict__
    return cls.__annotations__ if "__annotate_func__" in own else own.get("__annotations__", ())


def _key_of(fields: dict[str, _Field]) -> Callable[[Any], tuple[Any, ...]]:
    """What is compared of a value."""
    names = [name for name, one in fields.items() if one.compare]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _init_of(fields: dict[str, _Field], ready: Callable[[Any], None] | None) -> Callable[..., None]:
    names = tuple(fields)

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        for name, value in zip(names, given):
            _put(self, name, value)
        for name in names[len(given) :]:
            _put(self, name, named.pop(name) if name in named else fields[name].value(self, name))
        if named or len(given) > len(names):
            told = f"{len(given)} values and {', '.join(named) or 'no names'}"
            raise TypeError(f"{self.__class__.__name__}() takes {', '.join(names)}, and was given {told}")
        if ready is not None:
            ready(self)

    return __init__


def _repr_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        return f"{self.__class__.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _eq_of(key: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:
        return bool(key(self) == key(other)) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _refuse(self: object, name: str, *value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


if not TYPE_CHECKING:
    dataclass, field, replace = _dataclass, _field, _replace

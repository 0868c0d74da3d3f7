"""`@frozen`: a frozen dataclass with slots that costs a fifth to define.

`dataclass(frozen=True, slots=True)` writes six functions for each class and has every one compiled.
The trees of a policy and their meaning are some fifty classes, and defining them was a sixth of the
0.3 s that `urelay check` takes. Here `dataclass` is left to write `__init__`; the rest are closures,
which cost nothing to make. What it makes is a dataclass to `replace`, `fields`, `match` and the type
checker, and it compares, hashes, prints and refuses changes like a frozen one.

It is for classes that are read by the time a command starts and made while a policy is read: making
a value takes half as long again. What is made for each connection is a plain dataclass.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")

_set = object.__setattr__


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """The frozen dataclass, with slots, that `cls` describes. Methods it has itself are kept."""
    made: Any = dataclass(slots=True, eq=False, repr=False)(cls)
    compared = tuple(one.name for one in fields(made) if one.compare)
    shown = tuple(one.name for one in fields(made) if one.repr)

    def equal(self: object, other: object) -> object:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in compared)

    def hashed(self: object) -> int:
        return hash(tuple([getattr(self, name) for name in compared]))

    def text(self: object) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{self.__class__.__qualname__}({values})"

    methods = {
        "__eq__": equal,
        "__hash__": hashed,
        "__repr__": text,
        "__setattr__": _fill,
        "__delattr__": _refuse,
    }
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(made, name, method)
    return cast(type[T], made)


def _fill(self: object, name: str, value: object) -> None:
    # `__init__` comes by here too, once for each field: a slot may be filled, but not filled again.
    if hasattr(self, name):
        raise FrozenInstanceError(f"cannot assign to field `{name}`")
    _set(self, name, value)


def _refuse(self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field `{name}`")

"""Parts of a task as objects: what the class of one declares, which methods it defines or lacks, and a changed copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeVar

from healsg.errors import ConfigError

Part = TypeVar("Part")


def declares(part: object, name: str) -> bool:
    """Whether the class of ``part`` sets its attribute ``name`` to True in its own body.

    An inherited value is ignored: a user's subclass may do what its base class does not.
    """
    return bool(vars(type(part)).get(name, False))


def defines(part: object, base: type, *names: str) -> bool:
    """Whether ``part`` has at least one of these methods of its own, instead of that of ``base``.

    It may be defined in the part's class, in a class between it and ``base`` or in a mixin, or be set on the object.
    Code that has to know this asks once, and keeps the answer under a name that says what it means, such as
    ``TaskMethod.evaluates_itself``.
    """
    subclasses = takewhile(lambda kind: kind is not base, type(part).__mro__)
    return any(name in vars(holder) for holder in (part, *subclasses) for name in names)


def undefined(key: str, part: object, name: str) -> ConfigError:
    """The error for a part whose class lacks a method that its base class leaves to it.

    Args:
        key: ``data``, ``model`` or ``method``.
        part: the part.
        name: of the method.
    """
    need = f"a Task{key.capitalize()} needs"
    return ConfigError(f"{key}: {type(part).__name__}: defines no {name}, which {need} (docs/extending.md)")


def require_defined(key: str, part: object, base: Any) -> None:
    """Raise ConfigError if a part lacks a method that ``base.required`` lists."""
    for name, callers in base.required.items():
        if not defines(part, base, name, *callers):
            raise undefined(key, part, name)


def require_constructed(part: object, base: type) -> None:
    """Raise ConfigError if the constructor of a part's class does not call that of its base class."""
    if not getattr(part, "constructed", True):
        way = f"does not call that of {base.__name__}: super().__init__(...)"
        raise ConfigError(f"{type(part).__name__}.__init__: {way}")


def copied(part: Part, changed: Mapping[str, Any], without: Sequence[str] = ()) -> Part:
    """A shallow copy with some attributes changed, and without some others."""
    duplicate = copy.copy(part)
    attributes = vars(duplicate)
    for name in without:
        attributes.pop(name, None)
    attributes.update(changed)
    return duplicate

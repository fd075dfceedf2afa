"""Installed packages that add parts: each names, by an entry point of the group ``healsg.conf``, a package of modules.

Only the files that describe the installed packages are read; none is imported.
"""

from __future__ import annotations

import keyword
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from healsg.errors import ConfigError

GROUP = "healsg.conf"
RESERVED = sys.stdlib_module_names | {"healsg", "torch", "torchvision"}
"""Packages of which no other one may say what is a part."""


class Added(NamedTuple):
    """A package that adds parts.

    Args:
        distribution: what was installed, with its version, such as ``my-parts 1.0``.
        package: the package whose classes are parts, and whose folder ``conf/`` holds their options.
    """

    distribution: str
    package: str


def added() -> tuple[Added, ...]:
    """The packages that add parts, by name. Raises ConfigError where an entry point names no package of its own."""
    return _added(tuple(sys.path))


@lru_cache(4)
def _added(path: tuple[str, ...]) -> tuple[Added, ...]:
    """The same for an import path."""
    return tuple(sorted({_read(point) for point in entry_points(group=GROUP)}))


def _read(point: EntryPoint) -> Added:
    name = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
    parts = point.value.strip().split(".")
    if not all(part.isascii() and part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ConfigError(f"{name}: its entry point {GROUP} names {point.value!r}, which is no package")
    if parts[0] in RESERVED:
        raise ConfigError(f"{name}: its entry point {GROUP} names {point.value}, which is not its own package")
    return Added(name, ".".join(parts))

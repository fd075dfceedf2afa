"""Installed packages that add parts: each names its package of parts by an entry point of the group ``healsg.conf``.

Only the metadata of the installed packages are read; none is imported.
"""

from __future__ import annotations

import contextlib
import keyword
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from healsg.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "healsg.conf"
RESERVED = sys.stdlib_module_names | {"healsg", "torch", "torchvision"}
"""Packages that an entry point of another package may not name."""


class Added(NamedTuple):
    """A package that adds parts.

    Args:
        distribution: the installed distribution with its version, such as ``my-parts 1.0``.
        package: the package whose classes are parts, and whose folder ``conf/`` holds their options.
    """

    distribution: str
    package: str


def added() -> tuple[Added, ...]:
    """The packages that add parts, by name. Raises ConfigError if an entry point does not name its own package."""
    return _added(tuple(sys.path))


@lru_cache(4)
def _added(path: tuple[str, ...]) -> tuple[Added, ...]:
    """The same, cached by ``sys.path``."""
    if not any(_may_name(folder) for folder in path):
        return ()
    from importlib.metadata import entry_points

    return tuple(sorted({_read(point) for point in entry_points(group=GROUP)}))


def _may_name(folder: str) -> bool:
    """Whether a package in a folder of ``sys.path`` may add parts: an entry-points file there contains the group.

    Importing ``importlib.metadata`` and reading all entry points takes six times as long as this, about 5 % of the CPU
    time of a short command.
    """
    try:
        entries = list(Path(folder).iterdir())
    except NotADirectoryError:
        return True  # a zip archive
    except OSError:
        return False
    for entry in entries:
        if entry.suffix in (".dist-info", ".egg-info"):
            with contextlib.suppress(OSError):
                if GROUP.encode() in (entry / "entry_points.txt").read_bytes():
                    return True
        elif entry.suffix == ".egg":
            return True
    return False


def _read(point: EntryPoint) -> Added:
    name = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
    parts = point.value.strip().split(".")
    if not all(part.isascii() and part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ConfigError(f"{name}: its entry point {GROUP} names {point.value!r}, which is no package")
    if parts[0] in RESERVED:
        raise ConfigError(f"{name}: its entry point {GROUP} names {point.value}, which is not its own package")
    return Added(name, ".".join(parts))

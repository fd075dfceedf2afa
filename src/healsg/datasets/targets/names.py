"""Names of classes: how they are shown in a message, and those that may be one class in two spellings."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

SHOWN = 8
"""Names in one message."""


def shown(names: Sequence[str], most: int = SHOWN) -> str:
    """Names for a message, the first of them if there are many: ``'a', 'b' and 5 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case, spaces, accents' encoding or in how a number is written (1 and 01)."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bare(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def bare(name: str) -> str:
    """A name without what two spellings of one class may differ in."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())
    try:
        return repr(float(name))
    except ValueError:
        return text

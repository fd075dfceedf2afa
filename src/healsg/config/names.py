"""Names: the nearest of several, and which are below which."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?``, or an empty text if no name is near."""
    folded = {other.lower(): other for other in reversed([*names])}
    near = difflib.get_close_matches(name.lower(), folded, 3, 0.6)
    swapped = [other for other in near if sorted(other) == sorted(name.lower())]  # for mpl rather mlp than smp
    return f"; did you mean {folded[[*swapped, *near][0]]}?" if near else ""


def is_below(name: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of ``names`` or below one of them."""
    return any(name == one or name.startswith(f"{one}.") for one in names)

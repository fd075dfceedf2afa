"""Names: the nearest of several, and which stand below which."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing where no name is near."""
    folded = {other.lower(): other for other in reversed([*names])}
    near = difflib.get_close_matches(name.lower(), folded, 3, 0.6)
    swapped = [one for one in near if sorted(one) == sorted(name.lower())]  # mpl is mlp before it is smp
    return f"; did you mean {folded[[*swapped, *near][0]]}?" if near else ""


def is_below(name: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of ``names`` or stands below one."""
    return any(name == one or name.startswith(f"{one}.") for one in names)

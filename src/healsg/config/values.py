"""Plain values of a configuration by dotted key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain configuration by dotted key; an empty collection is a leaf."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, with both values; None for a missing key."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {key: (one.get(key), other.get(key)) for key in keys}


def has_key(config: Any, key: str) -> bool:
    """Whether a configuration has a dotted key."""
    from omegaconf import OmegaConf

    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(node) and leaf in list(node.keys())  # "in node" is False where the value is still ???

"""A bound for interpolations: ``a: ${b}${b}``, ``b: ${c}${c}`` and so on is a few lines that stand for gigabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from healsg.errors import ConfigError

LARGEST = 1 << 18
"""Characters and values that a configuration may have when its interpolations are written out."""

MOST_COMPUTED = 20
"""Interpolations whose own name is an interpolation, of which only OmegaConf can tell what they stand for.

As many can make at most some thousand times as much of a text, since each step of a growth needs two of them.
"""

_INNERMOST = re.compile(r"\$\{([^{}]*)\}")
_UNKNOWN = "?"


def check_interpolations(config: dict[str, Any]) -> None:
    """Refuse a configuration that would grow beyond bounds when it is resolved. Raises ConfigError, in bounded time.

    What refers to itself, or to a key that there is not, is left to OmegaConf, which says so.

    Args:
        config: plain values, with the interpolations as they are written.
    """
    measured = _Sizes(config)
    for key in config:
        if measured.of(key, config[key]) > LARGEST:
            reason = f"stands for more than {LARGEST:,} characters, as interpolations of interpolations may"
            raise ConfigError(f"{measured.culprit or key}: {reason}; write out what is meant")
    if measured.computed > MOST_COMPUTED:
        raise ConfigError(f"config: has more than {MOST_COMPUTED} interpolations in others, such as ${{a.${{b}}}}")


class _Sizes:
    """How much the values of a configuration stand for, each measured once."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.known: dict[str, int] = {}
        self.computed = 0
        self.culprit = ""

    def of(self, key: str, value: Any) -> int:
        """The characters and values below ``key``, at most a little more than ``LARGEST``."""
        if key not in self.known:
            self.known[key] = 0  # while it is measured: whatever refers to itself
            self.known[key] = self._measure(key, value)
        return self.known[key]

    def _measure(self, key: str, value: Any) -> int:
        size = 1
        if isinstance(value, str):
            size += len(value) + sum(self._referred(key, name) for name in self._names(value))
        elif isinstance(value, dict):
            size += sum(self.of(f"{key}.{name}", inner) for name, inner in value.items())
        elif isinstance(value, list):
            size += sum(self.of(f"{key}.{place}", inner) for place, inner in enumerate(value))
        if size > LARGEST and not self.culprit:
            self.culprit = key
        return min(size, LARGEST + 1)

    def _names(self, text: str) -> Iterator[str]:
        """The names of the keys that a text refers to; those that are only known when it is resolved are counted."""
        while found := _INNERMOST.search(text):
            resolver, _, given = found[1].rpartition(":")
            for name in re.split(r"[\s,]+", given) if resolver else [given.strip()]:
                if _UNKNOWN in name:
                    self.computed += 1
                elif name:
                    yield name
            text = text[: found.start()] + _UNKNOWN + text[found.end() :]

    def _referred(self, key: str, name: str) -> int:
        """The size of what ``name`` stands for in the text at ``key``; 0 where there is no such key."""
        above = len(name) - len(name.lstrip("."))
        parts = key.split(".")[:-above] if above else []
        parts += [part for part in re.split(r"[.\[\]]+", name.lstrip(".")) if part]
        value: Any = self.config
        for part in parts:
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return 0
        return self.of(".".join(parts), value) if parts else 0

"""A limit for interpolations: a few lines such as ``a: ${b}${b}``, ``b: ${c}${c}`` can expand to gigabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from healsg.errors import ConfigError

LARGEST = 1 << 18
"""The most characters and values that a configuration may have after its interpolations are resolved."""

MOST_COMPUTED = 20
"""The most interpolations that are nested in others, such as ``${a.${b}}``, whose size only OmegaConf can determine.

Each doubling needs two of them, so that this many can expand a text at most about a thousandfold.
"""

_INNERMOST = re.compile(r"\$\{([^{}]*)\}")
_UNKNOWN = "?"


def check_interpolations(config: dict[str, Any]) -> None:
    """Raise ConfigError, in bounded time, for a configuration that would expand beyond the limits when it is resolved.

    References to themselves and to missing keys are left to OmegaConf, which reports them.

    Args:
        config: plain values, with unresolved interpolations.
    """
    sizes = _Sizes(config)
    for key in config:
        if sizes.of(key, config[key]) > LARGEST:
            reason = f"stands for more than {LARGEST:,} characters, as interpolations of interpolations may"
            raise ConfigError(f"{sizes.first_too_large or key}: {reason}; write out what is meant")
    if sizes.nested > MOST_COMPUTED:
        raise ConfigError(f"config: has more than {MOST_COMPUTED} interpolations in others, such as ${{a.${{b}}}}")


class _Sizes:
    """The sizes of the values of a configuration with their interpolations resolved, each computed once."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.cache: dict[str, int] = {}
        self.nested = 0
        self.first_too_large = ""

    def of(self, key: str, value: Any) -> int:
        """The characters and values below ``key``, at most a little more than ``LARGEST``."""
        if key not in self.cache:
            self.cache[key] = 0  # the size of a reference to itself, found while the key is measured
            self.cache[key] = self._measure(key, value)
        return self.cache[key]

    def _measure(self, key: str, value: Any) -> int:
        size = 1
        if isinstance(value, str):
            size += len(value) + sum(self._referred(key, name) for name in self._names(value))
        elif isinstance(value, dict):
            size += sum(self.of(f"{key}.{name}", inner) for name, inner in value.items())
        elif isinstance(value, list):
            size += sum(self.of(f"{key}.{index}", inner) for index, inner in enumerate(value))
        if size > LARGEST and not self.first_too_large:
            self.first_too_large = key
        return min(size, LARGEST + 1)

    def _names(self, text: str) -> Iterator[str]:
        """The keys that a text refers to; names that contain an interpolation themselves are only counted."""
        while match := _INNERMOST.search(text):
            resolver, _, arguments = match[1].rpartition(":")
            for name in re.split(r"[\s,]+", arguments) if resolver else [arguments.strip()]:
                if _UNKNOWN in name:
                    self.nested += 1
                elif name:
                    yield name
            text = text[: match.start()] + _UNKNOWN + text[match.end() :]

    def _referred(self, key: str, name: str) -> int:
        """The size of the value that ``name`` refers to in the text at ``key``; 0 if there is no such key."""
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

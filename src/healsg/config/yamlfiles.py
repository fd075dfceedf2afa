"""YAML files that may be anybody's, looked at before they are loaded: no file may grow beyond bounds by its aliases.

``a: &a [x, x]``, ``b: &b [*a, *a]`` and so on is a few hundred bytes that stand for billions of values. PyYAML keeps
such values as references, OmegaConf makes a node of each. Ordinary anchors, aliases and merges stay allowed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from healsg.errors import ConfigError

LARGEST = 1 << 18
"""Bytes of a configuration file."""

MOST = 20_000
"""Values of a configuration file, aliases written out: OmegaConf makes some thousand a second."""

DEEPEST = 100
"""Levels of nesting, those that aliases add included."""


def check_file(path: Path) -> None:
    """Refuse a file that would grow beyond bounds when it is loaded. Raises ConfigError, in bounded time and memory.

    What is no YAML at all is left to the reader that follows, and so is a file that cannot be opened.
    """
    if not path.is_file():  # a FIFO would block, a device may have no end; links are the user's own
        raise ConfigError(f"{path}: is no regular file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError:
        return
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST:,} bytes, which no configuration file is")
    if _is_harmless(content):
        return
    try:
        size, depth = measure(content)
    except (yaml.YAMLError, ValueError):
        return
    if size > MOST:
        reason = f"stands for more than {MOST:,} values, as aliases of aliases may"
        raise ConfigError(f"{path}: {reason}; write out what is meant")
    if depth > DEEPEST:
        raise ConfigError(f"{path}: is nested more than {DEEPEST} levels deep, or refers to itself")


def read_yaml(file: Path) -> Any:
    """The values of a YAML file as OmegaConf reads them, by libyaml where PyYAML has it: ten times as fast.

    Raises:
        OSError, UnicodeError: it cannot be read.
        yaml.YAMLError: it is no YAML; in the words of PyYAML's own parser, which names the file and shows the line.
    """
    fast, usual = _loaders()
    with file.open(encoding="utf-8") as stream:
        try:
            return _values(fast(stream.read()))
        except yaml.YAMLError:
            stream.seek(0)
            return _values(usual(stream))


def _values(loader: yaml.SafeLoader) -> Any:
    """What a loader reads: plain values, since it constructs nothing else."""
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@cache
def _loaders() -> tuple[Any, Any]:
    """OmegaConf's loader over libyaml's parser, and as it is."""
    from omegaconf._utils import get_yaml_loader  # its numbers, such as 1e-3, and no key twice

    usual: Any = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return usual, usual

    class Fast(yaml.cyaml.CParser, usual):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Fast, usual


def _is_harmless(content: bytes) -> bool:
    """Whether a short look shows that a file cannot break the bounds: reading it event by event takes milliseconds."""
    aliases = b"*" in content and b"&" in content
    nested = content.count(b"[") + content.count(b"{") + content.count(b"- ") > DEEPEST or b" " * DEEPEST in content
    return len(content) < MOST // 2 and not aliases and not nested


def measure(content: bytes) -> tuple[int, int]:
    """How many values a YAML text stands for, and how deeply they are nested, with all aliases written out.

    Nothing is constructed: the text is read as a stream of events, and only up to the first bound that it breaks.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    total, deepest = 0, 0
    known: dict[str, tuple[int, int]] = {}  # by anchor: values and levels of what it names
    opened: list[_Collection] = []
    for event in yaml.parse(content, yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            opened.append(_Collection(event.anchor))
            if event.anchor:
                known[event.anchor] = (0, DEEPEST + 1)  # until it is closed, an alias of it is one of itself
            if len(opened) > DEEPEST:
                return total, len(opened)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = opened.pop()
            values, levels = closed.values + 1, closed.levels + 1
            if closed.anchor:
                known[closed.anchor] = values, levels
        elif isinstance(event, yaml.AliasEvent):
            values, levels = known.get(event.anchor, (1, 1))
        elif isinstance(event, yaml.ScalarEvent):
            values, levels = 1, 1
            if event.anchor:
                known[event.anchor] = 1, 1
        else:
            continue
        if opened:
            opened[-1].add(values, levels)
        total = max(total, values, opened[-1].values if opened else 0)
        deepest = max(deepest, levels + len(opened))
        if total > MOST or deepest > DEEPEST:
            return total, deepest
    return total, deepest


class _Collection:
    """A mapping or sequence whose end has not come yet: the values below it so far, and their levels."""

    def __init__(self, anchor: Any) -> None:
        self.anchor = anchor
        self.values = 0
        self.levels = 0

    def add(self, values: int, levels: int) -> None:
        """One of its elements has ended, which stands for so many values in so many levels."""
        self.values += values
        self.levels = max(self.levels, levels)

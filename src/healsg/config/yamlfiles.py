"""A check of YAML files, which may come from anybody, before they are loaded: aliases must not expand beyond limits.

A few hundred bytes such as ``a: &a [x, x]``, ``b: &b [*a, *a]`` can expand to billions of values. PyYAML keeps these as
references, but OmegaConf creates a node for each. Ordinary anchors, aliases and merges are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from healsg.errors import ConfigError, one_line

LARGEST = 1 << 18
"""The most bytes of a configuration file."""

MOST = 20_000
"""The most values of a configuration file with expanded aliases: OmegaConf creates some thousand nodes per second."""

DEEPEST = 100
"""The most levels of nesting with expanded aliases."""


def check_file(path: Path) -> None:
    """Raise ConfigError, in bounded time and memory, for a file that would expand beyond the limits when it is loaded.

    Invalid YAML and files that cannot be opened are left to the loader, which reports them.
    """
    with suppress(OSError):
        _check_content(path, _content(path))


def _content(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, and ConfigError for one that is not a regular file or too large."""
    if not path.is_file():  # a FIFO would block, a device may have no end; links are the user's own
        raise ConfigError(f"{path}: is no regular file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST:,} bytes, which no configuration file is")
    return content


def _check_content(path: Path, content: bytes) -> None:
    """Raise ConfigError if the content of a file would expand beyond the limits; invalid YAML passes."""
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


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a configuration file; none for an empty one. Raises ConfigError: see ``read_text``,
    ``parse``."""
    return parse(file, read_text(file))


def read_text(file: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: the file cannot be opened, is not UTF-8 text, or expands beyond the limits.
    """
    try:
        content = _content(file)
        _check_content(file, content)
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def parse(file: Path, text: str) -> dict[str, Any]:
    """The keys and values in the text of a configuration file, as OmegaConf reads them.

    Text that PyYAML's parser would read in the same way, and that cannot expand, is parsed by libyaml if PyYAML has it,
    which is ten times as fast.

    Raises:
        ConfigError: the text is not YAML, or not a mapping.
    """
    fast, usual = _loaders()
    # libyaml accepts tabs that PyYAML's parser refuses, with which ``read_text`` has looked for aliases.
    slow = "\t" in text or not _is_harmless(text.encode())
    try:
        values = _values(usual if slow else fast, text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: is not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}: is not valid YAML: {one_line(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds {type(values).__name__} {str(values)[:40]!r}; write lines of key: value")
    return values


def _values(loader: Callable[[str], yaml.SafeLoader], text: str) -> Any:
    """The values of a text: numbers, strings, lists and dicts, since the loader constructs nothing else."""
    made = loader(text)
    try:
        return made.get_single_data()
    finally:
        made.dispose()


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
    """Whether counting characters shows that a file is within the limits: parsing it takes milliseconds longer."""
    aliases = b"*" in content and b"&" in content
    nested = content.count(b"[") + content.count(b"{") + content.count(b"- ") > DEEPEST or b" " * DEEPEST in content
    return len(content) < MOST // 2 and not aliases and not nested


def measure(content: bytes) -> tuple[int, int]:
    """The number of values in a YAML text and the depth of their nesting, with all aliases expanded.

    Nothing is constructed: the text is read as a stream of events, and only until it exceeds a limit.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    total, deepest = 0, 0
    anchors: dict[str, tuple[int, int]] = {}  # the number of values and of levels below each anchor
    opened: list[_Collection] = []
    for event in yaml.parse(content, yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            opened.append(_Collection(event.anchor))
            if event.anchor:
                anchors[event.anchor] = (0, DEEPEST + 1)  # an alias inside the collection would refer to itself
            if len(opened) > DEEPEST:
                return total, len(opened)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            closed = opened.pop()
            values, levels = closed.values + 1, closed.levels + 1
            if closed.anchor:
                anchors[closed.anchor] = values, levels
        elif isinstance(event, yaml.AliasEvent):
            values, levels = anchors.get(event.anchor, (1, 1))
        elif isinstance(event, yaml.ScalarEvent):
            values, levels = 1, 1
            if event.anchor:
                anchors[event.anchor] = 1, 1
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
    """A mapping or sequence that has not ended yet: the number of values in it so far, and of levels below it."""

    def __init__(self, anchor: Any) -> None:
        self.anchor = anchor
        self.values = 0
        self.levels = 0

    def add(self, values: int, levels: int) -> None:
        """Add an element that has ended, with so many values in so many levels."""
        self.values += values
        self.levels = max(self.levels, levels)

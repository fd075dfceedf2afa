"""The comments of a YAML file: the header, and the comment at the end of each key's line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from healsg.config.yamlfiles import check_file


class Comments(NamedTuple):
    """The comments of one file.

    Args:
        header: the comment lines at the top, without ``#`` and without Hydra's ``@package``.
        keys: the comment at the end of a key's line, by dotted key.
    """

    header: tuple[str, ...]
    keys: dict[str, str]


def read_comments(path: Path) -> Comments:
    """The comments of a file. Raises ConfigError if its aliases expand beyond the limits; invalid YAML has none."""
    check_file(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return Comments((), {})
    keys: dict[str, str] = {}
    _collect(node, "", text.splitlines(), keys, 0)
    return Comments(_header(text), keys)


def _header(text: str) -> tuple[str, ...]:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return tuple(lines)


def _collect(node: yaml.Node | None, parent: str, lines: list[str], keys: dict[str, str], depth: int) -> None:
    """Add the comments below a mapping. PyYAML drops comments, but gives the line and column where a value ends."""
    if not isinstance(node, yaml.MappingNode) or depth > 32:
        return
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            continue
        key = f"{parent}.{name.value}" if parent else str(name.value)
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = name.end_mark if block or _is_block_text(value) else value.end_mark
        rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
        if found := re.match(r":?\s*#\s*(.*)$", rest):
            keys[key] = found[1].strip()
        _collect(value, key, lines, keys, depth + 1)


def _is_block_text(value: yaml.Node) -> bool:
    return isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")

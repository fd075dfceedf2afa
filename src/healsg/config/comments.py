"""The comments of a YAML file: what stands above it, and beside each of its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from healsg.config.yamlfiles import check_file


class Comments(NamedTuple):
    """What a file says of itself and of its keys.

    Args:
        header: the lines of comment at the top, without ``#``; Hydra's ``@package`` is none of them.
        keys: by dotted key, the comment that ends its line.
    """

    header: tuple[str, ...]
    keys: dict[str, str]


def read_comments(path: Path) -> Comments:
    """The comments of a file. Raises ConfigError where it would grow beyond bounds; a file that is no YAML has none."""
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
    """Add the comments below a mapping; PyYAML drops them, but knows in which line and column a value ends."""
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

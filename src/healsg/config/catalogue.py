"""The options and keys of a configuration with everything known about them: values, comments, kinds, papers.

Everything is read from YAML files and from the sources of the parts; no part is imported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from healsg.config import check
from healsg.config.comments import read_comments
from healsg.config.compose import Composer
from healsg.config.hydra_loader import Layer, merged
from healsg.config.signature import Constructor, Kind, constructor
from healsg.config.targets import resolve
from healsg.errors import ConfigError

TOP = "healsg.config.schema.TaskConfig"
"""The constructor of the top level."""

HIDDEN = ("method/recipe",)
"""Groups whose options are chosen through the parent group: ``method=recipe/fixmatch``."""

_REFERENCE = re.compile(r"\(([^()]*?\b(?:19|20)\d\d\b[^()]*|arXiv [\d., ]+)\)")
_INTERNAL = ("_target_", "_partial_", "_recursive_", "_convert_")


@dataclass(frozen=True)
class Argument:
    """One key.

    Args:
        key: dotted, as it is set on the command line.
        value: its default; ``???`` if it must be set.
        comment: the comment at its line of the YAML file, else its entry in the docstring.
        kind: the values that it accepts, in words; empty if unknown.
        group: the group of options whose part it configures, such as ``method/optimizer``; empty at the top level.
    """

    key: str
    value: Any
    comment: str
    kind: str
    group: str = ""


@dataclass(frozen=True)
class Option:
    """One option of a group.

    Args:
        group: such as ``method``.
        name: such as ``fixmatch``.
        summary: the first line of its YAML file.
        details: the further lines.
        target: the class that it configures; empty if there is none, or several.
        description: the class's docstring without its sections.
        papers: the publications that the YAML file and the docstrings cite.
        file: the YAML file.
        parts: the options of the groups inside it, by group.
        arguments: its keys, and those of its parts.
    """

    group: str
    name: str
    summary: str
    details: tuple[str, ...]
    target: str
    description: str
    papers: tuple[str, ...]
    file: Path
    parts: dict[str, str] = field(default_factory=dict)
    arguments: tuple[Argument, ...] = ()


class Catalogue:
    """What can be chosen and set.

    Args:
        composer: it has the folders of the configuration.
    """

    def __init__(self, composer: Composer) -> None:
        self.composer = composer

    @cached_property
    def choices(self) -> dict[str, list[str]]:
        """The options by group, outermost groups first."""
        groups = self.composer.choices().items()
        return {group: names for group, names in groups if names and group not in HIDDEN}

    def summaries(self, group: str) -> dict[str, tuple[str, Path]]:
        """The first line and the file of each option of a group. Raises ConfigError if there is no such group."""
        if group not in self.choices:
            near = difflib.get_close_matches(group, self.choices, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.choices)}"
            raise ConfigError(f"{group}: no such group; {hint}")
        files = {name: self.composer.layers.file_of(f"{group}/{name}") for name in self.choices[group]}
        existing = ((name, file) for name, file in files.items() if file is not None)
        return {name: ((read_comments(file).header or ("",))[0], file) for name, file in existing}

    def usual(self) -> dict[str, str]:
        """The default option of each group."""
        layers = self.composer.layers.of(self.composer.name)
        chosen = (layer.path.rpartition("/") for layer in layers)
        return {group: name for group, _, name in chosen if group in self.choices}

    def option(self, group: str, name: str) -> Option:
        """Everything about one option. Raises ConfigError, which suggests the nearest ones, if it does not exist."""
        file = self.composer.layers.file_of(f"{group}/{name}")
        if file is None:
            self.summaries(group)
            raise ConfigError(check.explain_option(group, name, self.choices[group]))
        header = read_comments(file).header
        layers = self._layers_of(group, name)
        values, comments = merged(layers), comments_of(layers)
        package = group.replace("/", ".")
        parts = {
            layer.path.rpartition("/")[0]: layer.path.rpartition("/")[2]
            for layer in layers
            if layer.package != package and layer.path.rpartition("/")[0] in self.choices and group != "recipe"
        }
        node: Any = values if group == "recipe" else _at(values, package)
        target = str(node.get("_target_", "")) if isinstance(node, dict) else ""
        description, cited = _documentation(target)
        papers = tuple(dict.fromkeys([*(paper for line in header for paper in _REFERENCE.findall(line)), *cited]))
        own_keys = {key for layer in layers if layer.path == f"{group}/{name}" for key in layer.content}
        arguments = sorted(  # the option's own keys first
            self._arguments(values, comments, self.choices),
            key=lambda argument: argument.key.removeprefix(f"{package}.").split(".")[0] not in own_keys,
        )
        return Option(
            group,
            name,
            (header or ("",))[0],
            header[1:],
            target,
            description,
            papers,
            file,
            parts,
            tuple(arguments),
        )

    def settings(self, overrides: Sequence[str], only: str = "") -> list[Argument]:
        """Every key of a run with these overrides; only ``only`` if that is one of them. Raises ConfigError."""
        composed = self.composer.compose(overrides, checked=False)
        chosen = [
            text
            for text, override in zip(overrides, self.composer.parse(overrides), strict=True)
            if self.composer.options(override.key_or_group) and override.value() is not None
        ]
        comments = comments_of(self.composer.layers.of(self.composer.name, chosen))
        known = any(key == only for key, *_ in leaves(composed.values))
        return list(self._arguments(composed.values, comments, self.choices, only if known else ""))

    def holders(self, key: str) -> list[str]:
        """The options, as ``group=name``, whose own YAML files set a key."""
        holders = []
        for group, names in self.choices.items():
            package = f"{group.replace('/', '.')}."
            if group != "recipe" and key.startswith(package):
                inner = key[len(package) :]
                candidates = [name for name in names if self._mentions(f"{group}/{name}", inner.partition(".")[0])]
                contents = {name: self.composer.layers.content(f"{group}/{name}") for name in candidates}
                holders += [f"{group}={name}" for name, content in contents.items() if _has(content, inner)]
        return holders

    def _mentions(self, option: str, key: str) -> bool:
        """Whether a file contains the word at all: parsing it as YAML takes a hundred times as long."""
        file = self.composer.layers.file_of(option)
        return file is not None and key in file.read_text(encoding="utf-8", errors="replace")

    def neighbours(self, key: str) -> list[str]:
        """The keys of all options of the group that ``key`` would belong to."""
        packages = {group.replace("/", "."): group for group in self.choices if group != "recipe"}
        inside = max((package for package in packages if key.startswith(f"{package}.")), key=len, default="")
        group = packages.get(inside, "")
        contents = [self.composer.layers.content(f"{group}/{name}") for name in self.choices.get(group, ())]
        keys = (f"{inside}.{name}" for content in contents for name in content if name not in _INTERNAL)
        return list(dict.fromkeys(keys))

    def _layers_of(self, group: str, name: str) -> list[Layer]:
        """The files that an option adds to a run's configuration; later ones override earlier ones."""
        package = group.replace("/", ".")
        try:
            layers = self.composer.layers.of(self.composer.name, [f"{group}={name}"])
        except HydraException:  # the default configuration does not have this group: compose the option by itself
            return self.composer.layers.of(f"{group}/{name}")
        if group == "recipe":
            return [layer for layer in layers if layer.path == f"recipe/{name}"]
        return [layer for layer in layers if f"{layer.package}.".startswith(f"{package}.")]

    def _arguments(
        self, values: dict[str, Any], comments: dict[str, str], groups: dict[str, list[str]], wanted: str = ""
    ) -> Iterator[Argument]:
        packages = {group.replace("/", "."): group for group in groups}
        top = _constructor(TOP)
        for key, value, owner, target in leaves(values):
            if wanted and key != wanted:
                continue  # before its constructor is looked up, which takes longest
            around = [package for package in packages if key == package or key.startswith(f"{package}.")]
            group = packages[max(around, key=len)] if around else ""
            signature = _constructor(target) if target else top
            name = key.rpartition(".")[2] if owner else key
            parameter = signature.parameters.get(name) if signature and _is_direct(key, owner) else None
            node = isinstance(value, dict) and "_target_" in value
            if node and key in packages:
                continue  # the option of a group, which is shown as such
            comment = comments.get(key) or comments.get(f"{key}._target_") or _documented(target, name)
            if node and not comment:
                comment = _documentation(value["_target_"])[0].partition("\n")[0]
            kind = "a part" if node else brief(parameter.kind) if parameter else ""
            yield Argument(key, value["_target_"] if node else value, comment, kind, group)


_BRIEF = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text", "none": "null"}
_BRIEF |= {"list": "list", "dict": "mapping", "part": "a part", "any": ""}


def brief(kind: Kind) -> str:
    """The values that a kind accepts, in few words: ``number >= 0, < 1``, ``text or null``; empty for any value."""
    if kind.name == "literal":
        return ", ".join(map(check.show, kind.values)).replace("'", "")
    if kind.name == "union":
        return " or ".join(filter(None, (brief(inner) for inner in kind.inner if inner.name != "part")))
    if kind.name == "tuple":
        return f"list of {len(kind.inner)}"
    if kind.name == "list" and kind.inner and (inside := brief(kind.inner[0])):
        return f"list of: {inside}"
    return f"{_BRIEF[kind.name]} {kind.range or ''}".rstrip().replace(" and ", ", ")


def comments_of(layers: Sequence[Layer]) -> dict[str, str]:
    """The comments of a composition by key, each from the last file that has one."""
    comments: dict[str, str] = {}
    for layer in layers:
        prefix = f"{layer.package}." if layer.package else ""
        comments |= {f"{prefix}{key}": comment for key, comment in read_comments(layer.file).keys.items() if comment}
    return comments


def leaves(values: dict[str, Any], key: str = "", owner: str = "", target: str = "") -> Iterator[tuple[Any, ...]]:
    """Each key that can be set, with its value, and the key and the target of the node whose argument it is.

    A node with a ``_target_`` inside another one comes before its arguments. A mapping without parts, such as further
    options of an argument, is one value.
    """
    for name, value in values.items():
        path = f"{key}.{name}" if key else str(name)
        if name in _INTERNAL or name == "hydra":
            continue
        if isinstance(value, dict) and "_target_" in value:
            if key:
                yield path, value, owner, target
            yield from leaves(value, path, path, value["_target_"])
        elif isinstance(value, dict) and value and (not target or _holds_parts(value)):
            yield from leaves(value, path, owner, target)
        else:
            yield path, value, owner, target


def _holds_parts(value: dict[str, Any]) -> bool:
    return any(isinstance(inner, dict) and "_target_" in inner for inner in value.values())


def _is_direct(key: str, owner: str) -> bool:
    """Whether a key is an argument of its owner itself, and not nested inside an argument."""
    return key.rpartition(".")[0] == owner


def _at(values: dict[str, Any], key: str) -> Any:
    node: Any = values
    for name in filter(None, key.split(".")):
        node = node.get(name, {}) if isinstance(node, dict) else {}
    return node


def _has(values: dict[str, Any], key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = _at(values, parent)
    return isinstance(node, dict) and leaf in node


def _constructor(target: str) -> Constructor | None:
    with suppress(ConfigError):
        return constructor(target, [Path.cwd()])
    return None


def _documentation(target: str) -> tuple[str, tuple[str, ...]]:
    """The docstring of a class without its sections, and the publications that it and its module cite."""
    definition = None
    with suppress(ConfigError):
        definition = resolve(target, [Path.cwd()]) if target else None
    if definition is None or not isinstance(definition.node, (ast.ClassDef, ast.FunctionDef)):
        return "", ()
    prose = _prose(ast.get_docstring(definition.node) or "")
    of_module = ""
    if definition.module.file:
        with suppress(SyntaxError, ValueError, OSError):
            of_module = ast.get_docstring(ast.parse(definition.module.file.read_bytes())) or ""
    references = [reference for text in (prose, of_module) for reference in _REFERENCE.findall(" ".join(text.split()))]
    return prose, tuple(dict.fromkeys(references))


def _prose(docstring: str) -> str:
    """A docstring without its sections, its code marks and its line breaks; paragraphs are kept."""
    text = re.split(r"\n\s*(?:Args|Raises|Returns|Example|Yields|Attributes):\s*\n", f"{docstring}\n")[0]
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph.replace("``", "") for paragraph in paragraphs if paragraph)


def _documented(target: str, name: str) -> str:
    """The entry of one argument in the docstring of a class; empty if there is none."""
    definition = None
    with suppress(ConfigError):
        definition = resolve(target, [Path.cwd()]) if target else None
    node = definition.node if definition else None
    docstring = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
    section = re.search(r"\n\s*Args:\s*\n(.*?)(?:\n\S|\n\n|\Z)", f"{docstring or ''}\n", re.DOTALL)
    if section is None:
        return ""
    text = re.search(rf"^ {{4}}(?:[\w, ]*\b)?{re.escape(name)}(?:\b[\w, ]*)?: (.*(?:\n {{5,}}.*)*)", section[1], re.M)
    return " ".join(text[1].split()).replace("``", "") if text else ""

"""What a recipe is to reproduce: the number that was published, where it stands, and whether it was reached."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from healsg.config.compose import conf_folder
from healsg.config.yamlfiles import check_file
from healsg.errors import ConfigError, one_line

SHOWN = 5
"""Changed settings that a verdict names."""


@dataclass(frozen=True)
class Target:
    """What a recipe reproduces: its node ``recipe``.

    Args:
        paper: authors, year, arXiv number.
        table: where the number stands.
        data, budget: on what, and how long.
        metric: the key of the number: one of the test, such as ``test/acc``, or what is monitored, such as
            ``val/acc``, of which the best counts.
        published: the number, in 0..1.
        spread: its standard deviation over runs; None where that is not told.
        tolerance: how far below the published number still passes.
        first: the recipe that must run before; None for none.
        gives: the setting that gets the name of that run, such as ``method.teacher``.
        measured: what this project measured; None where it never ran the recipe.
    """

    name: str
    paper: str
    table: str
    data: str
    budget: str
    metric: str
    published: float
    spread: float | None
    tolerance: float
    first: str | None
    gives: str | None
    measured: float | None

    def run(self, seed: int) -> str:
        """The name of its run."""
        return f"reproduce-{self.name}-{seed}"

    @property
    def record(self) -> str:
        return "never run" if self.measured is None else f"{self.measured:.4f}"

    @property
    def goal(self) -> str:
        spread = "" if self.spread is None else f" +- {self.spread:.4f}"
        return f"{self.metric} {self.published:.4f}{spread}"


def recipes(config_dir: str | None = None) -> dict[str, Path]:
    """The files of all recipes by name: those of a folder of the user's own too."""
    folders = [Path(config_dir), conf_folder()] if config_dir else [conf_folder()]
    return dict(sorted((path.stem, path) for folder in folders for path in (folder / "recipe").glob("*.yaml")))


def read_target(path: Path) -> Target:
    """What a recipe's file says it reproduces. Raises ConfigError: the file, the key, what would be right."""
    check_file(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error
    node = content.get("recipe") if isinstance(content, dict) else None
    names = [field.name for field in fields(Target)][1:]
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: has no node recipe, with {', '.join(names)}")
    if wrong := next((name for name in [*names, *node] if (name in node) != (name in names)), None):
        told = f"no such key; there are {', '.join(names)}" if wrong in node else "is missing"
        raise ConfigError(f"{path}: recipe.{wrong}: {told}")
    for name in names:
        if meant := _misfit(name, node[name]):
            raise ConfigError(f"{path}: recipe.{name}: {node[name]!r} is not {meant}")
    if (node["first"] is None) != (node["gives"] is None):
        raise ConfigError(f"{path}: recipe.gives: the setting that gets the name of first's run; both or none is null")
    return Target(name=path.stem, **node)


def _misfit(name: str, value: Any) -> str | None:
    """What a value of the node should be, where it is not that."""
    nullable = name in ("spread", "first", "gives", "measured")
    if nullable and value is None:
        return None
    if name in ("published", "spread", "tolerance", "measured"):
        fits = type(value) in (int, float) and 0 <= value <= 1
        return None if fits else "a number from 0 to 1" + ", or null" * nullable
    return None if isinstance(value, str) and value.strip() else "a text" + ", or null" * nullable


def chain(name: str, found: dict[str, Path]) -> list[Target]:
    """A recipe and those that must run before it, in their order. Raises ConfigError."""
    targets: list[Target] = []
    wanted: str | None = name
    while wanted is not None:
        if wanted not in found:
            near = difflib.get_close_matches(wanted, found, 1, 0.5)
            told = f"no such recipe{f'; did you mean {near[0]}?' if near else '; healsg reproduce shows what there is'}"
            place = f"{found[targets[0].name]}: recipe.first: " if targets else ""
            raise ConfigError(f"{place}{wanted}: {told}")
        target = read_target(found[wanted])
        targets.insert(0, target)
        wanted = target.first
        if wanted in [other.name for other in targets]:
            raise ConfigError(f"{found[target.name]}: recipe.first: {wanted} would have to run before itself")
    return targets


def verdict(target: Target, values: list[float], changed: list[str]) -> tuple[bool, str]:
    """Whether the mean of the seeds' numbers reaches what was published, and that in one line.

    Args:
        target: what was to be reproduced.
        values: the numbers, one a seed.
        changed: the settings that are not those of the publication.
    """
    mean = fmean(values)
    gap = mean - target.published
    passed = gap >= -target.tolerance - 1e-9
    spread = f" +- {stdev(values):.4f} over {len(values)} seeds" if len(values) > 1 else ""
    line = f"{target.name}: {'passed' if passed else 'missed'}: {target.metric} {mean:.4f}{spread}"
    line += f", published {target.published:.4f}, gap {gap:+.4f}, tolerance {target.tolerance:.4f}"
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        line += f"; not the published setting: {', '.join(changed[:SHOWN])}{more}"
    return passed, line

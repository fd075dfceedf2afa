"""The target of a recipe: the published number, its source, and whether it was reached."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from healsg.config.compose import conf_folder
from healsg.config.yamlfiles import read_yaml
from healsg.errors import ConfigError

SHOWN = 5
"""Most changed settings that a verdict names."""


@dataclass(frozen=True)
class Target:
    """The target of a recipe: its node ``recipe``.

    Args:
        paper: authors, year, arXiv number.
        table: the source of the number.
        data, budget: on what, and how long.
        metric: the key of the number: one of the test, such as ``test/acc``, or what is monitored, such as
            ``val/acc``, of which the best counts.
        published: the number, in 0..1.
        spread: its standard deviation over runs; None if not published.
        tolerance: how far below the published number still passes.
        first: the recipe that must run before; None for none.
        gives: the setting that gets the name of that run, such as ``method.teacher``.
        measured: what this project measured; None if it never ran the recipe.
        without: the overrides that switch the method off. Such a recipe passes where it reaches the published number
            and gains over the same recipe with these overrides; None if the number alone shows the gain.
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
    without: list[str] | None = None

    def run(self, seed: int, off: bool = False) -> str:
        """The name of its run, or of the run with the method off."""
        return f"reproduce-{self.name}{'-off' if off else ''}-{seed}"

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
    """Read the target from a recipe's file. Raises ConfigError with the file, the key and what would be right."""
    node = read_yaml(path).get("recipe")
    names = [field.name for field in fields(Target)][1:]
    needed = [field.name for field in fields(Target) if field.default is MISSING][1:]
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: has no node recipe, with {', '.join(names)}")
    if unknown := next((name for name in node if name not in names), None):
        raise ConfigError(f"{path}: recipe.{unknown}: no such key; there are {', '.join(names)}")
    if missing := next((name for name in needed if name not in node), None):
        raise ConfigError(f"{path}: recipe.{missing}: is missing")
    for name in node:
        if meant := _misfit(name, node[name]):
            raise ConfigError(f"{path}: recipe.{name}: {node[name]!r} is not {meant}")
    if (node["first"] is None) != (node["gives"] is None):
        raise ConfigError(f"{path}: recipe.gives: the setting that gets the name of first's run; both or none is null")
    return Target(name=path.stem, **node)


def _misfit(name: str, value: Any) -> str | None:
    """What a value of the node should be, if it is wrong."""
    nullable = name in ("spread", "first", "gives", "measured", "without")
    if nullable and value is None:
        return None
    if name == "without":
        overrides = isinstance(value, list) and value and all(isinstance(text, str) and "=" in text for text in value)
        return None if overrides else "a list of overrides such as method.label_smoothing=0, or null"
    if name in ("published", "spread", "tolerance", "measured"):
        fits = type(value) in (int, float) and 0 <= value <= 1
        return None if fits else "a number from 0 to 1" + ", or null" * nullable
    return None if isinstance(value, str) and value.strip() else "a text" + ", or null" * nullable


def chain(name: str, files: dict[str, Path]) -> list[Target]:
    """A recipe and those that must run before it, in their order. Raises ConfigError."""
    targets: list[Target] = []
    wanted: str | None = name
    while wanted is not None:
        if wanted not in files:
            near = difflib.get_close_matches(wanted, files, 1, 0.5)
            detail = (
                f"no such recipe{f'; did you mean {near[0]}?' if near else '; healsg reproduce shows what there is'}"
            )
            prefix = f"{files[targets[0].name]}: recipe.first: " if targets else ""
            raise ConfigError(f"{prefix}{wanted}: {detail}")
        target = read_target(files[wanted])
        targets.insert(0, target)
        wanted = target.first
        if wanted in [other.name for other in targets]:
            raise ConfigError(f"{files[target.name]}: recipe.first: {wanted} would have to run before itself")
    return targets


def reaches(target: Target, values: list[float]) -> bool:
    """Whether the mean over the seeds reaches the published number minus the tolerance."""
    return fmean(values) - target.published >= -target.tolerance - 1e-9


def verdict(
    target: Target, values: list[float], changed: list[str], off: list[float] | None = None
) -> tuple[bool, str]:
    """Whether a recipe passes, and the reason in one line.

    It passes if the mean over the seeds reaches the published number and, for a recipe with ``without``, if this mean
    is above that of the runs with the method off. If those runs are not given, the line says ``reached`` instead of
    ``passed``.

    Args:
        target: of the recipe.
        values: the results, one per seed.
        changed: the settings that differ from the publication.
        off: the results with the method off, for the same seeds; None without these runs.
    """
    mean = fmean(values)
    reached = reaches(target, values)
    passed = reached and (off is None or mean > fmean(off))
    word = "missed" if not passed else "reached" if target.without and off is None else "passed"
    line = f"{target.name}: {word}: {target.metric} {mean:.4f}{_spread(values)}"
    line += f", published {target.published:.4f}, gap {mean - target.published:+.4f}, tolerance {target.tolerance:.4f}"
    if off is not None:
        gains = [value - other for value, other in zip(values, off, strict=True)]
        line += f"; with the method off {fmean(off):.4f}, gain {fmean(gains):+.4f}{_spread(gains)}"
    elif target.without and reached:
        line += "; the gain over the method off is not measured"
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        line += f"; not the published setting: {', '.join(changed[:SHOWN])}{more}"
    return passed, line


def _spread(values: list[float]) -> str:
    """The standard deviation over the seeds, if there are several."""
    return f" +- {stdev(values):.4f} over {len(values)} seeds" if len(values) > 1 else ""

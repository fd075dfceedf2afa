"""The configurations of a sweep's jobs; jobs that differ only in plain values are composed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from healsg.config.schema import Composed

if TYPE_CHECKING:
    from healsg.config.compose import Composer

Setting = tuple[list[str], Any]
"""The parts of a key, and its value."""


def compose_jobs(composer: Composer, jobs: Sequence[list[str]], overrides: Sequence[str]) -> list[Composed]:
    """The unchecked configuration of each job, given by its overrides.

    Where plain values of keys are swept on which nothing else depends, the first job's configuration serves for all,
    with other values: composing takes a tenth of a second a job. Raises ConfigError.
    """
    first = composer.compose(jobs[0], checked=False)
    swept = [index for index, override in enumerate(overrides) if any(job[index] != override for job in jobs)]
    if len(jobs) > 2 and swept and _stand_alone(composer, jobs[0], swept):
        settings = [[_setting(composer, job[index], first) for index in swept] for job in jobs]
        if all(setting is not None for row in settings for setting in row):
            return [first, *(_changed(first, job, row) for job, row in zip(jobs[1:], settings[1:], strict=True))]  # type: ignore[arg-type]
    return [first, *(composer.compose(job, checked=False) for job in jobs[1:])]


def _stand_alone(composer: Composer, overrides: list[str], swept: list[int]) -> bool:
    """Whether no other override touches the swept keys, and no value of the configuration refers to another."""
    from omegaconf import OmegaConf

    keys = [f"{override.key_or_group}." for override in composer.parse(overrides)]
    others = [(keys[one], keys[other]) for one in swept for other in range(len(keys)) if other != one]
    if any(one.startswith(other) or other.startswith(one) for one, other in others):
        return False
    config = composer.unresolved(overrides)
    del config["hydra"]
    return "${" not in str(OmegaConf.to_container(config, resolve=False))


def _setting(composer: Composer, text: str, first: Composed) -> Setting | None:
    """The key and value of an override that changes a plain number or boolean."""
    override = composer.parse([text])[0]
    value, parts = override.value(), override.key_or_group.split(".")
    parent: Any = first.values
    for part in parts[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    known = isinstance(parent, dict) and parts[-1] in parent and not isinstance(parent[parts[-1]], (dict, list))
    simple = not any(mark in text for mark in "/@~+:") and type(value) in (int, float, bool)
    return (parts, value) if known and simple else None


def _changed(first: Composed, overrides: list[str], settings: Sequence[Setting]) -> Composed:
    """The first job's configuration with other values, also in what Hydra records of the command."""
    values, hydra = copy.deepcopy(first.values), copy.deepcopy(first.hydra)
    for parts, value in settings:
        node = values
        for part in parts[:-1]:
            node = node[part]
        node[parts[-1]] = value
    changed = dict(zip(first.overrides, overrides, strict=True))
    hydra["overrides"]["task"] = [changed.get(override, override) for override in hydra["overrides"]["task"]]
    hydra["job"]["override_dirname"] = ",".join(sorted(hydra["overrides"]["task"]))
    return replace(first, values=values, hydra=hydra, choices=dict(first.choices), overrides=list(overrides))

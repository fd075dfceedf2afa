"""The typed top level of a run's configuration, a composed configuration, and the check of both; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healsg.config import check
from healsg.errors import ConfigError, RunError, one_line
from healsg.runs import provenance, redact
from healsg.types import Natural


@dataclass
class TaskConfig:
    """The typed top level of a run's configuration; the nodes below it are constructor calls."""

    name: str | None
    seed: Natural
    fresh: bool
    trusted: list[str]
    init_from: str | None
    use_wandb: bool
    wandb: dict[str, Any]
    quiet: bool
    debug: bool
    resume: dict[str, Any]
    args: dict[str, Any]
    task: Any
    data: Any
    model: Any
    method: Any
    runner: Any
    logger: Any
    recipe: Any
    record_patch: bool = False
    launcher: Any = None
    search: Any = None


@dataclass(frozen=True)
class Composed:
    """A checked configuration: plain values, the option chosen for each group, Hydra's own node, the overrides."""

    values: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)
    hydra: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    project: tuple[Path, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """Plain values, to pass the configuration to another process as YAML or JSON."""
        return {**vars(self), "project": [str(path) for path in self.project]}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Composed:
        """The inverse of ``as_plain``; also registers the configuration's secrets for redaction."""
        redact.config(values["values"])
        return cls(**{**values, "project": tuple(map(Path, values["project"]))})


def verify(composed: Composed) -> None:
    """Check keys, types, ranges and targets. Raises ConfigError."""
    values = dict(composed.values)
    strings = ((key, value) for key, value in check.entries(values) if isinstance(value, str))
    if unresolved := next((key for key, value in strings if "${" in value), None):
        raise ConfigError(f"{unresolved}: holds ${{, which is no text of a configuration but asks for another value")
    resume = values.get("resume", {"force": False})
    if not isinstance(resume, dict) or list(resume) != ["force"] or type(resume["force"]) is not bool:
        raise ConfigError("resume: has one key, resume.force, which is true or false")
    provenance.check_detector(values.get("record_patch") is True)
    if isinstance(wandb := values.get("wandb"), dict):
        values["wandb"] = {"_target_": "healsg.loggers.wandb.Wandb", **wandb}
    if not isinstance(trusted := values.get("trusted") or [], list):
        raise ConfigError(f"trusted: {check.show(trusted)} is not a list of packages; write trusted=[my_package]")
    check.check(values, trusted=trusted, project=composed.project)


def check_init_from(composed: Composed) -> None:
    """Raise ConfigError if ``init_from`` does not exist, before anything is started."""
    from healsg.runs.folder import weights_file

    if source := composed.values.get("init_from"):
        try:
            weights_file(source)
        except (RunError, OSError) as error:
            raise ConfigError(f"init_from: {one_line(error)}") from error

"""TaskConfig, and the way from a checked configuration to the parts of a task: the only importer of ``hydra.utils``.

Everything up to ``build_task`` answers without importing torch.
"""

from __future__ import annotations

import re
import shlex
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
        """Plain values, by which another process is handed the configuration as YAML or JSON."""
        return {**vars(self), "project": [str(path) for path in self.project]}

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Composed:
        """The configuration that ``as_plain`` gave; its secrets are known from now on."""
        redact.config(values["values"])
        return cls(**{**values, "project": tuple(map(Path, values["project"]))})


def verify(composed: Composed) -> None:
    """Check keys, types, ranges and targets. Raises ConfigError."""
    values = dict(composed.values)
    if odd := next((key for key, value in check.entries(values) if isinstance(value, str) and "${" in value), None):
        raise ConfigError(f"{odd}: holds ${{, which is no text of a configuration but asks for another value")
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
    """Refuse a source of weights that does not exist, before anything is started. Raises ConfigError."""
    from healsg.runs.folder import weights_file

    if source := composed.values.get("init_from"):
        try:
            weights_file(source)
        except (RunError, OSError) as error:
            raise ConfigError(f"init_from: {one_line(error)}") from error


def _is_text(override: str) -> bool:
    """Whether the value of an override that Hydra cannot read does not even begin as a list, a quotation or a call."""
    key, _, value = override.partition("=")
    begun = re.match(r"""['"\[{=]|\$\{|\w+\(""", value.strip())
    return bool(key.strip() and value.strip()) and not begun and "${" not in value


def quoted(override: str) -> str:
    """``key=value`` with the value as a text in Hydra's quotes."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = override.partition("=")
    double = '"' not in value and not value.endswith("\\")
    text = QuotedString(text=value.strip(), quote=Quote.double if double else Quote.single)
    return f"{key}={text.with_quotes()}"


def _unreadable(override: str, error: BaseException) -> str:
    """Why an override cannot be read, in one line; and how its value is written where it is meant as a text."""
    if "=" not in override:
        dashes = "; settings are given without dashes, such as runner.epochs=10" * override.startswith("-")
        return f"{override}: is not of the form key=value{dashes}"
    reason = (str(error).splitlines() or ["?"])[0]
    line = f"{override}: is not of the form key=value ({reason})"
    return line if "${" in override else f"{line}; a text is quoted: {shlex.quote(quoted(override))}"

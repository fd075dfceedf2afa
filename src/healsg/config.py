"""TaskConfig, and the way from a checked configuration to the parts of a task: the only importer of ``hydra.utils``.

Everything up to ``build_task`` answers without importing torch.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg import provenance
from healsg.checks import check, targets
from healsg.errors import ConfigError, RunError
from healsg.types import Natural

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from healsg.info import DataInfo
    from healsg.mirror import Mirror
    from healsg.task import BasicTask


LONGEST = 4096
"""Characters of an override: Hydra's grammar takes time that grows with their square."""


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


@dataclass(frozen=True)
class Composed:
    """A checked configuration: plain values, the option chosen for each group, Hydra's own node, the overrides."""

    values: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)
    hydra: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    project: tuple[Path, ...] = ()


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
    from healsg.folder import weights_file

    if source := composed.values.get("init_from"):
        try:
            weights_file(source)
        except (RunError, OSError) as error:
            raise ConfigError(f"init_from: {one_line(error)}") from error


def parse(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Read overrides in Hydra's grammar. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for override in overrides:
        if len(override) > LONGEST:
            raise ConfigError(f"{override[:40]!r}...: has more than {LONGEST} characters; use a file in --config-dir")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in override):
            raise ConfigError(f"{override!r}: holds a character that is no text, such as a line break")
        try:
            parsed.append(parser.parse_override(override))
            parsed[-1].config_loader = loader
        except (HydraException, RecursionError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise ConfigError(f"{override}: is not of the form key=value ({reason})") from error
    return parsed


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain configuration by dotted key; an empty collection is a leaf."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def has_key(config: Any, key: str) -> bool:
    """Whether a configuration has a dotted key."""
    from omegaconf import OmegaConf

    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(node) and leaf in node


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def build_task(composed: Composed, data_info: DataInfo | None = None) -> BasicTask:
    """Make the parts and join them: the only place where targets are imported and called.

    Args:
        composed: the checked configuration.
        data_info: of a checkpoint, where only the network is wanted: the data set is then not made, and has no samples.

    Raises:
        ConfigError: a part cannot be made, or the parts do not fit each other.
    """
    from omegaconf import OmegaConf

    from healsg.callbacks import Callback
    from healsg.data import KnownData, TaskData
    from healsg.method import TaskMethod
    from healsg.model import TaskModel
    from healsg.runner import TaskRunner
    from healsg.task import BasicTask

    values = composed.values
    tops = {target.split(".")[0] for target in targets.named(values)}
    if any(found and found.file for found in (targets.find_module(top, composed.project) for top in tops)):
        sys.path += [str(folder) for folder in composed.project if str(folder) not in sys.path]
    kinds = {"data": TaskData, "model": TaskModel, "method": TaskMethod, "runner": TaskRunner}
    parts: dict[str, Any] = {} if data_info is None else {"data": KnownData(data_info)}
    parts |= {key: make(values[key], key, composed, kind) for key, kind in kinds.items() if key not in parts}
    runner = parts.pop("runner")
    for name, callback in runner.callbacks.items():
        if not isinstance(callback, Callback):
            raise ConfigError(f"runner.callbacks.{name}._target_: {type(callback).__name__} is no Callback")
    config = OmegaConf.create(values)
    OmegaConf.set_readonly(config, True)
    factory = make(values["task"], "task", composed, BasicTask, partial=True)
    task = factory(config=config, runner=runner, **{f"task_{key}": part for key, part in parts.items()})
    assert isinstance(task, BasicTask)
    if data_info is None:
        task.check()
    return task


def make(node: dict[str, Any], key: str, composed: Composed, kind: type, partial: bool = False) -> Any:
    """Call the constructor that a checked node names, if it makes what belongs there. Raises ConfigError."""
    from hydra.errors import HydraException
    from hydra.utils import get_object, instantiate

    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key}: names no part; give it a _target_")
    trusted = composed.values.get("trusted") or []
    try:
        for target in targets.named(node):
            targets.verify_origin(get_object(target), target, trusted, composed.project)
        part = get_object(node["_target_"])
        if issubclass(part, kind) if inspect.isclass(part) else not partial:
            zoo = any(str(target).startswith("torchvision.models.") for target in targets.named(node))
            with weights_only() if zoo else contextlib.nullcontext():
                made = instantiate(node, _convert_="all", _partial_=partial)
            if partial or isinstance(made, kind):
                return made
        raise ConfigError(f"{key}._target_: {node['_target_']} is no {kind.__name__}")
    except ConfigError as error:
        raise ConfigError(str(error) if "." in str(error).split(":")[0] else f"{key}: {error}") from error
    except (HydraException, ImportError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or composed.values.get("debug"):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            raise cause from error
        raise ConfigError(f"{key}: {node['_target_']} cannot be made: {one_line(cause)}") from error


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Let torch.load read tensors and plain values alone, also where a library asks for more, as torchvision does."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def build_mirrors(composed: Composed) -> dict[str, Mirror]:
    """The mirrors of a run: the loggers that were chosen, Weights & Biases, the report. Raises ConfigError."""
    values = composed.values
    nodes = {name: node for name, node in (values["logger"] or {}).items() if node is not None}
    from healsg.mirror import Mirror

    mirrors: dict[str, Mirror] = {name: make(node, f"logger.{name}", composed, Mirror) for name, node in nodes.items()}
    if values["use_wandb"]:
        mirrors["wandb"] = leaf("wandb.Wandb")(**values["wandb"])
    return mirrors | {"report": leaf("report.Report")()}


def leaf(path: str) -> Any:
    """A class or function of ``healsg.loggers`` by its address, as a ``_target_`` would name it."""
    module, _, name = path.partition(".")
    return getattr(import_module(f"healsg.loggers.{module}"), name)

"""The saved configuration of a run, with changes. It may come from anybody, so it is read as data, not as a program."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import safefiles
from healsg.config import check, targets
from healsg.config.overrides import parse
from healsg.config.schema import Composed, verify
from healsg.config.values import flat, has_key
from healsg.errors import ConfigError, RunError, one_line
from healsg.paths import absolute, project_folders
from healsg.runs import redact
from healsg.runs.folder import ROOT, RunFolder

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

LARGEST = 1 << 17
"""The most bytes of a run's ``config.yaml``: about thirty times its usual size."""

PLAIN = (str, int, float, bool, type(None), dict, list)


def read_saved(path: Path) -> dict[str, Any]:
    """The plain values of a run's ``config.yaml``, read in bounded time; interpolations are not resolved.

    Raises:
        RunError: it cannot be read, contains other than plain values, or would expand beyond the limits.
    """
    try:
        content = safefiles.read_bytes(path, LARGEST)
        depth = 0
        for event in yaml.parse(content, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > check.DEEPEST:
                raise RunError(f"{path}: refers to itself, or is too deep; no configuration of a run does or is")
        values = yaml.safe_load(content)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: is no configuration of a run")
    for key, value in check.entries(values):
        names = value if isinstance(value, dict) else ()
        if type(value) not in PLAIN or any(type(name) not in PLAIN[:4] for name in names) or check.huge(value):
            raise RunError(f"{path}: {key or 'the whole'} is no plain value")
        if isinstance(value, str) and "${" in value:
            raise RunError(f"{path}: {key} holds an interpolation; the configuration of a run is resolved")
    return values


def load_saved(folder: RunFolder, overrides: Sequence[str], parts: Mapping[str, Any] | None = None) -> Composed:
    """The saved configuration of a run, with changes. Its own ``trusted`` is ignored.

    Args:
        folder: the run's folder.
        overrides: the changes of settings.
        parts: by dotted key, nodes that replace those of the run before the overrides are applied.

    Raises:
        ConfigError: an override does not name a key of it, or the result does not pass the checks.
        RunError: it cannot be read, or contains other than plain values.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = read_saved(folder.config)
    values |= {"trusted": [], "fresh": False, "resume": {"force": False}}  # these applied to the original command only
    if isinstance(runner := values.get("runner"), dict) and runner.get("pause_after") is not None:
        values["runner"] = runner | {"pause_after": None}
    try:
        saved = OmegaConf.create(values)
        for key, node in (parts or {}).items():
            OmegaConf.update(saved, key, node, merge=False, force_add=True)
        for override in parse(overrides):
            _change(saved, override)
        plain: Any = OmegaConf.to_container(saved, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'config'}: {one_line(error)}") from error
    if hidden := next((key for key, value in flat(plain) if redact.HIDDEN in str(value)), None):
        raise ConfigError(f"{hidden}: is hidden in {folder.shown / 'config.yaml'}; give it again: {hidden}=...")
    run_folders = [path.resolve() for path in (folder.path, absolute(ROOT))]
    inside = next((target for target in targets.targets_in(plain) if any(_within(_files(target), run_folders))), None)
    if inside is not None:
        raise ConfigError(f"{inside} is not a part: its file lies in a run's own folder")
    projects = project_folders()
    project = () if any(_within(projects, run_folders)) else tuple(projects)
    composed = Composed(plain, overrides=list(overrides), project=project)
    verify(composed)
    return composed


def _files(target: Any) -> Iterator[Path]:
    """The files that importing a target runs: those of its packages, then its module's."""
    parts, search = str(target).split("."), project_folders()
    with contextlib.suppress(ConfigError):  # the checks report a target that cannot be resolved
        module = targets.find_module(parts[0], [*search, *sys.path], installed=True)
        for name in (*parts[1:], None):
            if module and module.file:
                yield module.file
            module = targets.find_module(f"{module.name}.{name}", module.folders) if module and name else None
        if file := targets.resolve(str(target), search).module.file:
            yield file


def _within(files: Iterable[Path], folders: Sequence[Path]) -> Iterator[Path]:
    return (file for file in files for folder in folders if file.resolve().is_relative_to(folder))


def _change(saved: Any, override: Override) -> None:
    """Apply one override to the saved configuration of a run. Raises ConfigError."""
    from omegaconf import OmegaConf

    key = override.key_or_group
    text = override.input_line
    value = override.value()
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values; a run that exists takes one, and a list is {key}=[a,b]")
    if override.is_delete() or "/" in key:
        raise ConfigError(f"{text}: a run that exists keeps its parts; change their settings one by one")
    if not override.is_add() and not has_key(saved, key):
        raise ConfigError(check.explain_unknown(key, saved, str(text).partition("=")[2]))
    if OmegaConf.is_dict(OmegaConf.select(saved, key)) and isinstance(value, str):
        raise ConfigError(f"{text}: a run that exists keeps its {key}; change its settings one by one: {key}.KEY=VALUE")
    OmegaConf.update(saved, key, value, force_add=True)

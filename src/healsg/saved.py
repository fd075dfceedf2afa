"""The configuration of a run that exists, with changes: data of somebody's, not a program."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import redact
from healsg.checks import check, targets
from healsg.config import Composed, flat, has_key, one_line, parse, verify
from healsg.errors import ConfigError, RunError
from healsg.folder import ROOT, RunFolder

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def load_saved(folder: RunFolder, overrides: Sequence[str]) -> Composed:
    """The configuration of a run that exists, with changes. It is data: what it trusts does not count.

    Raises:
        ConfigError: an override names no key of it, or it does not pass the checks.
        RunError: it cannot be read, or holds what only a program could.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = yaml.safe_load(folder.config.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{folder.config}: cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise RunError(f"{folder.config}: is no configuration of a run")
    if "${" in yaml.safe_dump(values):
        raise RunError(f"{folder.config}: holds an interpolation; the configuration of a run is resolved")
    values |= {"trusted": [], "fresh": False, "resume": {"force": False}}  # what was asked for then, not now
    saved = OmegaConf.create(values)
    for override in parse(overrides):
        _change(saved, override)
    try:
        plain: Any = OmegaConf.to_container(saved, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'config'}: {one_line(error)}") from error
    if hidden := next((key for key, value in flat(plain) if value == redact.HIDDEN), None):
        raise ConfigError(f"{hidden}: is hidden in {folder.config}; give it again: {hidden}=...")
    for target in targets.named(plain):
        file: Path | None = None
        with contextlib.suppress(ConfigError):  # what cannot be resolved is refused below
            file = targets.resolve(str(target), [Path.cwd()]).module.file
        if file and any(file.resolve().is_relative_to(place.resolve()) for place in (folder.path, ROOT)):
            raise ConfigError(f"{target} is not a part: its file lies in a run's own folder")
    composed = Composed(plain, overrides=list(overrides), project=(Path.cwd(),))
    verify(composed)
    return composed


def _change(saved: Any, override: Override) -> None:
    """Apply one override to the configuration of a run that exists. Raises ConfigError."""
    from omegaconf import OmegaConf

    key, text, value = override.key_or_group, override.input_line, override.value()
    if override.is_sweep_override():
        raise ConfigError(f"{text}: several values; a run that exists takes one, and a list is {key}=[a,b]")
    if override.is_delete() or "/" in key:
        raise ConfigError(f"{text}: a run that exists keeps its parts; change their settings one by one")
    if not override.is_add() and not has_key(saved, key):
        raise ConfigError(check.explain_unknown(key, saved))
    if OmegaConf.is_dict(OmegaConf.select(saved, key)) and isinstance(value, str):
        raise ConfigError(f"{text}: a run that exists keeps its {key}; change its settings one by one: {key}.KEY=VALUE")
    OmegaConf.update(saved, key, value, force_add=True)

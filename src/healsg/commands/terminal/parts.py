"""Other parts for a run that exists, chosen on the command line as ``group=option``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from healsg.config.check import explain_option
from healsg.config.compose import Composer
from healsg.config.hydra_loader import merged
from healsg.config.schema import Composed
from healsg.errors import ConfigError
from healsg.runs.folder import RunFolder
from healsg.runs.saved_config import load_saved, read_saved

KEPT = ("root", "batch_size", "workers", "image_size", "channels", "mean", "std", "timeout", "prefetch", "on_error")
"""Settings of a run's data that are kept for another data set: how samples are read, and the preprocessing."""


def with_parts(
    folder: RunFolder, overrides: list[str], groups: Sequence[str], config_dir: str | None = None
) -> Composed:
    """The configuration of a run with other options of some groups, where ``overrides`` choose any.

    Args:
        folder: of the run.
        overrides: changes of settings, and options.
        groups: of which options may be chosen.
        config_dir: a folder with options of the user's own.

    Raises:
        ConfigError: there is no such option, or the result does not pass the checks.
    """
    chosen = {key: value for key, _, value in (text.partition("=") for text in overrides) if key in groups}
    settings = [text for text in overrides if text.partition("=")[0] not in groups]
    if not chosen:
        return load_saved(folder, settings)
    composer = Composer(config_dir)
    parts: dict[str, Any] = {}
    for group, value in chosen.items():
        key = group.replace("/", ".")
        parts[key] = {}
        for option in value.strip("[]").split(",") if value != "null" else ():
            if composer.layers.file_of(f"{group}/{option.strip()}") is None:
                raise ConfigError(explain_option(group, option, composer.options(group)))
            content: Any = merged(composer.layers.of(f"{group}/{option.strip()}"))
            for name in key.split("."):
                content = content[name]
            parts[key] |= content
    if "data" in parts:
        before = read_saved(folder.config).get("data")
        known = before if isinstance(before, dict) else {}
        parts["data"] |= {key: known[key] for key in KEPT if key in known and key in parts["data"]}
    return load_saved(folder, settings, parts)

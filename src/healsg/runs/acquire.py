"""Acquire a folder for a run: its name, its lock, the check whether a run in it may be continued, and the files that
are written at the start."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from healsg import distributed, safefiles
from healsg.config.check import show
from healsg.config.names import is_below
from healsg.config.schema import Composed
from healsg.config.values import flat
from healsg.errors import ConfigError, RunError
from healsg.paths import absolute, current_folder
from healsg.runs import provenance, redact
from healsg.runs.folder import ROOT, RunFolder, timestamp, write_text
from healsg.runs.saved_config import read_saved
from healsg.system import HELD

FREE = (
    "name",
    "fresh",
    "trusted",
    "use_wandb",
    "wandb",
    "quiet",
    "debug",
    "resume",
    "logger",
    "recipe",
    "record_patch",
    "launcher",
    "search",
    "data.root",
    "data.mirror",
    "data.workers",
    "data.timeout",
    "data.prefetch",
    "data.max_errors",
    "data.in_memory",
    "data.cache",
    "runner.save_every",
    "runner.max_time",
    "runner.timeout",
    "runner.pause_after",
    "runner.keep_last",
    "runner.processes",  # their number is in run.json, however they were started, and checked there
)
"""Keys that cannot alter a run's result, so that they may change when it is continued."""

BEGINNING = (".lock", ".lock" + HELD, "run.json", ".hydra")
"""Files that a run may leave without a ``config.yaml`` if it is killed while it starts."""

TRAINED = "trained"
"""The key of ``run.json`` that records whether an update was ever saved."""

LENGTH = ("runner.epochs", "runner.steps")
"""Keys that may be raised to train a finished run further."""


def new_name(choices: dict[str, str]) -> str:
    """A unique name for a run that was given none: date, time, the chosen parts, a short random id."""
    parts = [choices[group] for group in ("data", "model", "method") if choices.get(group)]
    return "_".join([time.strftime("%Y-%m-%d_%H-%M-%S"), "-".join(parts).replace("/", "_"), os.urandom(2).hex()])


def new_id() -> str:
    """A random id of a run, which stays the same when its folder is renamed or moved."""
    return os.urandom(8).hex()


def check_name(name: str) -> None:
    """Raise ConfigError unless ``name`` can be the name of a single folder."""
    invalid = not name or len(name.encode()) > 200 or name != name.strip() or name[0] == "."
    if invalid or re.search(r"[/\\\x00-\x1f]", name):
        raise ConfigError(f"name: {name!r} is no name of a folder: up to 200 bytes, no slash, no leading dot")


def acquire_folder(composed: Composed, path: Path | None = None) -> RunFolder:
    """Create the folder of a run if it does not exist, lock it, and check that the run may start or continue there.

    Nothing but the lock is written yet.

    Args:
        composed: the run's configuration.
        path: the folder; None stands for ``runs/<name>``.

    Raises:
        RunError: another process trains there, or the run there is finished.
        ConfigError: the run there was started with other settings; the message names the key.
    """
    values = composed.values
    name = values["name"] or new_name(composed.choices)
    check_name(name)
    folder = RunFolder(path or ROOT / name)
    safefiles.check_run_folder(folder.path, writing=True)
    folder.lock()
    try:
        if folder.config.exists():
            if has_trained(folder) and not values["fresh"] and not values["resume"]["force"]:
                _check_continuation(folder, values)
        elif any(entry.name not in BEGINNING and not entry.name.endswith(".tmp") for entry in folder.path.iterdir()):
            raise RunError(f"{folder.shown}: holds files that are not of a run; use another name")
        folder.sweep()
    except BaseException:
        folder.unlock()
        raise
    return folder


def has_trained(folder: RunFolder) -> bool:
    """Whether the run in a folder has trained for at least one update, so that there is something to continue.

    A run that has not may be replaced by one with other settings, since no training is lost.
    """
    if folder.metrics.exists() and folder.metrics.stat().st_size > 0:
        return True
    known = folder.record.get(TRAINED)
    return folder.has_checkpoint if known is None else bool(known)


def start_run(folder: RunFolder, composed: Composed) -> RunFolder:
    """Write ``config.yaml``, ``.hydra/`` and ``run.json``, without secrets; ``fresh`` renames an old run."""
    config = composed.values
    if config["fresh"] and folder.config.exists():
        folder = _set_aside(folder)
    trained = has_trained(folder)
    if not trained:
        folder.record_file.unlink(missing_ok=True)  # of an earlier start before the first update
    if record := folder.record:
        ended = {key: record.get(key) for key in ("end", "best", "test", "digest")}
        earlier = [*(record.get("earlier") or []), *([ended] if ended["digest"] else [])]
        open_again = {"best": None, "test": None, "digest": None, "last": None, "earlier": earlier}
        times = [*(record.get("continued") or []), timestamp()]
        folder.note(status="running", reason=None, continued=times, **open_again, **_facts())
    else:
        beginning = {"command": _command(), "seed": config["seed"], "begin": timestamp(), TRAINED: trained}
        beginning["choices"] = {group: redact.text(option) for group, option in composed.choices.items()}
        if not trained:  # otherwise run.json was lost, and the id is in the checkpoints
            beginning["id"] = new_id()
        patch = bool(config.get("record_patch"))
        code = provenance.code_state(folder.path, absolute(ROOT), current_folder(), patch)
        folder.note(status="running", **beginning, **_facts(), **code)
    folder.note(config_digest=config_digest(config))
    shown, hydra = redact.config(config), redact.config(composed.hydra)
    overrides = [redact.override(override) for override in composed.overrides]
    if overrides != composed.overrides and "job" in hydra:
        hydra["job"]["override_dirname"] = redact.HIDDEN
    safefiles.make_folder(folder.path / ".hydra")
    for name, content in {
        "config.yaml": shown,
        ".hydra/config.yaml": shown,
        ".hydra/hydra.yaml": {"hydra": hydra},
        ".hydra/overrides.yaml": overrides,
    }.items():
        write_text(folder.path / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder


def _set_aside(folder: RunFolder) -> RunFolder:
    """Rename the folder of an old run to ``<name>~<number>`` and lock a new one; nothing is deleted."""
    path = folder.path
    path.rename(safefiles.aside_name(path))
    fresh = RunFolder(path)
    fresh.lock()
    folder.unlock()
    return fresh


def changed(folder: RunFolder, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which ``config`` differs from the run in ``folder``, by key: (old, new); except FREE."""
    old, new = counting(read_saved(folder.config)), counting(config)
    keys = [key for key in [*new, *(key for key in old if key not in new)] if old.get(key) != new.get(key)]
    return {key: (old.get(key), new.get(key)) for key in keys}


def counting(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that can alter the result (all but those in FREE), by dotted key, without secrets."""
    return {key: value for key, value in flat(redact.config(config)) if not is_below(key, FREE)}


def config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of the settings that can alter the result."""
    return hashlib.sha256(json.dumps(counting(config), sort_keys=True).encode()).hexdigest()


def is_longer(old: Any, new: Any) -> bool:
    """Whether both are whole numbers and ``new`` is larger, as when ``runner.epochs`` is raised."""
    return type(old) is int and type(new) is int and new > old


def _check_continuation(folder: RunFolder, config: dict[str, Any]) -> None:
    record, differing = folder.record, changed(folder, config)
    finished = record.get("status") == "finished"
    way_out = "use another name, fresh=true to start anew, or resume.force=true"
    for key, (old, new) in differing.items():
        if not (key in LENGTH and is_longer(old, new) and (finished or record.get("earlier"))):
            raise ConfigError(f"{key}: {folder.shown} was started with {show(old)}, not {show(new)}; {way_out}")
    if finished and folder.best.is_file() and not folder.has_checkpoint:
        way = f"init_from={folder.shown} starts another one from them"
        raise RunError(f"{folder.shown}: is finished, and kept its best weights alone (runner.keep_last); {way}")
    if finished and not differing:
        ways = "more runner.epochs train on, fresh=true starts anew, another name keeps both"
        raise RunError(f"{folder.shown}: is finished; {ways}")
    processes, now = record.get("processes"), distributed.processes().world
    if processes not in (None, now):
        raise ConfigError(f"processes: {folder.shown} was started with {processes}, not {now}; {way_out}")


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *map(redact.override, sys.argv[1:])])


def _facts() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "versions": _versions(),
        "processes": distributed.processes().world,
        "process": os.getpid(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for package in ("healsg", "torch", "torchvision", "numpy", "hydra-core", "omegaconf"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions

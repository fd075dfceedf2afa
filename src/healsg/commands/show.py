"""``healsg show RUN``: the settings, results and files of a run, read from its folder alone."""

from __future__ import annotations

import json
from typing import Any

import yaml

from healsg import safefiles
from healsg.commands.explain import shown
from healsg.commands.terminal import layout
from healsg.commands.terminal.flags import Flags
from healsg.config.catalogue import Catalogue
from healsg.config.compose import Composer
from healsg.config.values import flat
from healsg.errors import ConfigError, one_line
from healsg.loggers.screen import number
from healsg.runs import redact
from healsg.runs.folder import RunFolder, find, finite
from healsg.runs.registry import DEAD, LIVE, is_live
from healsg.runs.saved_config import read_saved

FILES = {
    "best weights": "checkpoints/best.pt",
    "last state": "checkpoints/last.pt",
    "metrics": "metrics.jsonl",
    "report": "report.html",
    "log": "train.log",
    "configuration": "config.yaml",
}

LARGEST = 1 << 20
"""Bytes of ``.hydra/hydra.yaml``."""


def run(arguments: list[str]) -> int:
    """``RUN [--config-dir DIR] [--json]``."""
    flags = Flags(
        "show",
        "Show which settings of a run differ from the defaults of its parts, its status, best and test numbers, and "
        "its files.",
    )
    flags.add_run()
    flags.add_json()
    flags.add_argument(
        "--config-dir", metavar="DIR", help="the folder of your own options, if the run was started with it"
    )
    args = flags.read(arguments)
    facts = facts_of(find(args.run), args.config_dir)
    print(json.dumps(finite(facts), ensure_ascii=False, indent=1) if args.json else "\n".join(lines_of(facts)))
    return 0


def facts_of(folder: RunFolder, config_dir: str | None = None) -> dict[str, Any]:
    """The facts of a run, as plain values. Raises RunError if the folder is not a run's.

    ``changed`` is a list of the settings that differ from the defaults of the chosen parts: ``key``, ``value``,
    ``default`` and ``comment``. It is None, with a ``reason``, if the parts are not available here.
    """
    record = folder.record
    values = redact.config(read_saved(folder.config))
    found = choices_of(folder)
    choices = {group: found[group] for group in sorted(found, key=_place)}
    status = str(record.get("status") or "unknown")
    if status == "running":
        status = LIVE if is_live(folder.path, record) else DEAD
    changed: list[dict[str, Any]] | None = None
    reason = None
    try:
        changed = changes(values, choices, config_dir)
    except ConfigError as error:
        reason = one_line(error)
    kept = ("reason", "command", "begin", "end", "seconds", "best", "test", "last", "device", "parameters", "digest")
    files = {name: str(folder.shown / path) for name, path in FILES.items() if (folder.path / path).is_file()}
    return {
        "run": str(folder.shown),
        "status": status,
        **{key: record.get(key) for key in kept},
        "parts": choices,
        "changed": changed,
        "changed_reason": reason,
        "files": files,
    }


def _place(group: str) -> tuple[int, str]:
    """The sort key of a group: data, model, method, then the others."""
    first = ("data", "model", "method")
    top = group.partition("/")[0]
    return (first.index(top) if top in first else len(first)), group


def choices_of(folder: RunFolder) -> dict[str, str]:
    """The option of each group that a run was started with, as recorded by Hydra; empty if that cannot be read."""
    path = folder.path / ".hydra" / "hydra.yaml"
    try:
        content = yaml.safe_load(safefiles.read_bytes(path, LARGEST)) if path.is_file() else {}
        chosen = content["hydra"]["runtime"]["choices"]
        pairs = [(str(group), option) for group, option in chosen.items() if not str(group).startswith("hydra")]
        return {group: option for group, option in pairs if isinstance(option, str)}
    except (OSError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return {}


def changes(values: dict[str, Any], choices: dict[str, str], config_dir: str | None) -> list[dict[str, Any]]:
    """The settings that differ from the defaults of the chosen parts. Raises ConfigError if one is not there."""
    composer = Composer(config_dir)
    catalogue = Catalogue(composer)
    usual = catalogue.usual()
    for group, option in choices.items():
        if composer.layers.file_of(f"{group}/{option}") is None or group not in catalogue.choices:
            raise ConfigError(f"{group}={option}: is no option that is known here; --config-dir names a folder of more")
    overrides = [f"{group}={option}" for group, option in choices.items() if usual.get(group) != option]
    known = {argument.key: argument for argument in catalogue.settings(overrides)}
    defaults = dict(flat(composer.compose(overrides, checked=False).values))
    found = []
    for key, value in flat(values):
        if key.endswith(("_target_", "_partial_")) or key == "name" or key.partition(".")[0] == "recipe":
            continue
        if key not in defaults or defaults[key] != value:
            comment = known[key].comment if key in known else ""
            found.append({"key": key, "value": value, "default": defaults.get(key), "comment": comment})
    return found


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The same, as lines for a terminal."""
    status = facts["status"]
    ways = {DEAD: "resumes it", "stopped": "resumes it", "failed": "tries again"}
    way = f"healsg resume {facts['run']} {ways[status]}" if status in ways else ""
    detail = "; ".join(filter(None, [status, facts["reason"], way]))
    head = [("status", detail)]
    head += [(key, str(facts[key])) for key in ("command", "begin") if facts[key]]
    if facts["seconds"] is not None:
        head.append(("time", f"{facts['seconds']:.1f} s on {facts['device'] or 'an unknown device'}"))
    best = facts["best"] or {}
    if "monitor" in best:
        epoch = f" in epoch {best['epoch']}" if "epoch" in best else ""
        head.append(("best", f"{best['monitor']} {_number(best.get('value'))}{epoch}"))
    for name in ("test", "last"):
        numbers = {key: value for key, value in (facts[name] or {}).items() if isinstance(value, (int, float))}
        if numbers:
            head.append((name, ", ".join(f"{key} {_number(value)}" for key, value in numbers.items())))
    lines = [facts["run"], *layout.rows(head)]
    lines += ["", "Parts", *layout.prose(" ".join(f"{group}={name}" for group, name in facts["parts"].items()), 2)]
    if facts["changed"] is None:
        lines += ["", f"  (settings cannot be compared with their defaults: {facts['changed_reason']})"]
    else:
        lines += ["", "Settings that differ from the defaults of these parts"]
        lines += layout.rows([_change(one) for one in facts["changed"]] or [("none", "")])
    lines += ["", "Files", *layout.rows(list(facts["files"].items()))]
    return lines


def _change(one: dict[str, Any]) -> tuple[str, str]:
    before = f"({shown(one['default'])}) " if one["default"] is not None else ""
    return f"{one['key']}={shown(one['value'])}", f"{before}{one['comment']}"


def _number(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)

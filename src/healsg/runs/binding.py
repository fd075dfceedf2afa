"""Binding: the run, the configuration and the data that a checkpoint belongs to, and in what two of these differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from healsg.config.check import show
from healsg.data import fingerprint
from healsg.runs import acquire

KEY = "belongs"
"""Under which a checkpoint keeps it."""


@dataclass(frozen=True)
class Binding:
    """What this process trains with, to be written into each checkpoint and compared with that of an older one.

    Args:
        config: the settings that can alter the result, by dotted key, without secrets.
        data: the fingerprint of the data.
    """

    config: dict[str, Any]
    data: fingerprint.Fingerprint

    @property
    def data_digest(self) -> str:
        return fingerprint.digest(self.data)

    def state_dict(self, run: str, name: str) -> dict[str, str]:
        """As a checkpoint holds it: texts alone, so that a save takes no longer for it."""
        return {"run": run, "name": name, "config": json.dumps(self.config), "data": json.dumps(self.data)}


def of_run(config: dict[str, Any], data: fingerprint.Fingerprint, split_digest: str | None) -> Binding:
    """The binding of a run whose data have been read.

    Args:
        config: all settings of the run.
        data: from which files or tensors the samples come.
        split_digest: of which samples each split holds; None where the data set does not say.
    """
    parts = dict(data)
    if split_digest:
        parts["split"] = split_digest
    return Binding(acquire.counting(config), parts)


def foreign(held: Any, run: str) -> str:
    """Where a checkpoint is not of this run: to which it belongs; empty where it is of this one."""
    own = held if isinstance(held, dict) else {}
    if own.get("run") == run:
        return ""
    if not isinstance(own.get("run"), str):
        return "does not say to which run it belongs"
    return f"belongs to another run ({str(own.get('name'))[:100]}, {own['run'][:32]}), not to this one ({run})"


def changed_settings(held: dict[str, Any], now: Binding, may_grow: bool) -> list[str]:
    """The settings that are not those with which a checkpoint was written, a text by key for each.

    ``may_grow``: whether the run was finished, so that its length may have been raised.
    """
    old = _read(held, "config")
    changed = []
    for key in [*now.config, *(key for key in old if key not in now.config)]:
        before, after = old.get(key), now.config.get(key)
        if json.dumps(before) == json.dumps(after):
            continue
        if not (may_grow and key in acquire.LENGTH and acquire.is_longer(before, after)):
            changed.append(f"{key}: the checkpoint was written with {show(before)}, not {show(after)}")
    return changed


def changed_data(held: dict[str, Any], now: Binding, since: float) -> list[str]:
    """In what the data are not those on which a checkpoint was trained, a text for each part."""
    old = _read(held, "data")
    try:
        return fingerprint.differences(old, json.loads(json.dumps(now.data)), since)
    except (TypeError, LookupError):  # a fingerprint that no run has written
        return ["the checkpoint's account of its data cannot be read"]


def _read(held: dict[str, Any], key: str) -> dict[str, Any]:
    try:
        value = json.loads(held[key])
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

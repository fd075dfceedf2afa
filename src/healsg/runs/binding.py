"""Binding: the run, the configuration and the data that a checkpoint belongs to, and how two bindings differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from healsg.config.check import show
from healsg.data import fingerprint
from healsg.runs import acquire

KEY = "belongs"
"""The key of a checkpoint that holds its binding."""


@dataclass(frozen=True)
class Binding:
    """The settings and data of this process, written into each checkpoint and compared with those of an older one.

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
        """The binding for a checkpoint: only texts, so that saves do not take longer."""
        return {"run": run, "name": name, "config": json.dumps(self.config), "data": json.dumps(self.data)}


def of_run(config: dict[str, Any], data: fingerprint.Fingerprint, split_digest: str | None) -> Binding:
    """The binding of a run whose data have been read.

    Args:
        config: all settings of the run.
        data: the fingerprint of the files or tensors that the samples come from.
        split_digest: the digest of which samples each split contains; None if the data set does not provide it.
    """
    parts = dict(data)
    if split_digest:
        parts["split"] = split_digest
    return Binding(acquire.counting(config), parts)


def foreign(held: Any, run: str) -> str:
    """A message that a checkpoint with the binding ``held`` belongs to another run; empty if it belongs to ``run``."""
    saved = held if isinstance(held, dict) else {}
    if saved.get("run") == run:
        return ""
    if not isinstance(saved.get("run"), str):
        return "does not say to which run it belongs"
    return f"belongs to another run ({str(saved.get('name'))[:100]}, {saved['run'][:32]}), not to this one ({run})"


def changed_settings(held: dict[str, Any], now: Binding, may_grow: bool) -> list[str]:
    """The settings that differ from those a checkpoint was written with, one text for each.

    ``may_grow``: whether the run was finished before, so that its length may be increased.
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
    """How the data differ from those a checkpoint was trained on, one text for each part."""
    old = _read(held, "data")
    try:
        return fingerprint.differences(old, json.loads(json.dumps(now.data)), since)
    except (TypeError, LookupError):  # the fingerprint in the checkpoint is malformed
        return ["the checkpoint's account of its data cannot be read"]


def _read(held: dict[str, Any], key: str) -> dict[str, Any]:
    try:
        value = json.loads(held[key])
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

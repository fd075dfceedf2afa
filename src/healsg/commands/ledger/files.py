"""The files of a run's ledger; they are untrusted input, since a run's folder may come from anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from healsg.errors import RunError
from healsg.runs.folder import RunFolder
from healsg.safefiles import open_to_read, read_bytes

LARGEST = 1 << 30
"""Largest size of a file, in bytes."""

Array = np.ndarray[Any, Any]


def described(folder: RunFolder) -> dict[str, Any]:
    """The content of ``ledger.json`` of a run. Raises RunError if it is missing or damaged."""
    path = folder.path / "ledger/ledger.json"
    if not path.is_file():
        raise RunError(f"{folder.shown}: has no ledger; train with runner.ledger=true")
    try:
        facts = json.loads(read_bytes(path, LARGEST))
        known = type(facts["samples"]) is int and 0 < facts["samples"] < 1 << 31
        if known and isinstance(facts.get("classes", []), list):
            return dict(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise RunError(f"{path}: is damaged; it does not say how many samples there are, and of which classes")


def epochs_of(folder: Path, size: int) -> Iterator[bytes]:
    """The content of ``ledger/epochs.bin``, epoch by epoch, of ``size`` bytes each. An incomplete last epoch, which
    is being written or was truncated by a kill, is left out. Raises RunError if there is no complete epoch."""
    path = folder / "epochs.bin"
    found = False
    if path.is_file():
        with open_to_read(path) as file:
            while len(content := file.read(size)) == size:
                found = True
                yield content
    if not found:
        raise RunError(f"{folder}: no epoch was completed yet")


def targets_of(folder: Path, count: int) -> Array:
    """(N,) the classes of the samples, -1 if unknown. Raises RunError."""
    return np.frombuffer(_content(folder / "targets.bin", 4 * count), "<i4", count)


def names_of(folder: Path, count: int) -> list[str]:
    """The files of the N samples; their numbers if they are not files."""
    names = folder / "names.txt"
    listed = read_bytes(names, LARGEST).decode(errors="replace").split("\n") if names.is_file() else []
    return listed[:count] if len(listed) > count else [f"sample {number}" for number in range(count)]


def _content(path: Path, size: int) -> bytes:
    content = read_bytes(path, LARGEST)
    if len(content) != size:
        raise RunError(f"{path}: is damaged, {len(content)} bytes where {size} belong")
    return content

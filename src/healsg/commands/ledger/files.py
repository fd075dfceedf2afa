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
    """What ``ledger.json`` of a run says. Raises RunError where there is none, or it is damaged."""
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
    """What ``ledger/epochs.bin`` holds of each epoch, of ``size`` bytes. A last one that is not whole is left out: the
    run writes it at this moment, or did as it was killed. Raises RunError where there is none."""
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
    """(N,) the classes of the samples, -1 where they are not known. Raises RunError."""
    return np.frombuffer(_content(folder / "targets.bin", 4 * count), "<i4", count)


def names_of(folder: Path, count: int) -> list[str]:
    """The N samples' files; their numbers where they are none."""
    names = folder / "names.txt"
    listed = read_bytes(names, LARGEST).decode(errors="replace").split("\n") if names.is_file() else []
    return listed[:count] if len(listed) > count else [f"sample {number}" for number in range(count)]


def _content(path: Path, size: int) -> bytes:
    content = read_bytes(path, LARGEST)
    if len(content) != size:
        raise RunError(f"{path}: is damaged, {len(content)} bytes where {size} belong")
    return content

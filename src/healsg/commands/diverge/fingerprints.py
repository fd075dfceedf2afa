"""Fingerprints of a state's values, by which two runs are compared step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SECTIONS = ("model", "optimizer", "scheduler", "method", "runner")
"""The order in which the parts of a state are compared, so that the first reported difference is the earliest."""


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and plain values of a state by dotted name, in its own order; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, (dict, list, tuple, Tensor)) for inner in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{index}")
    else:
        yield key, value


def in_order(state: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a task's state by name: network, optimizer, schedule, method, runner, and what a task adds."""
    known = {name: state[name] for name in SECTIONS if name in state}
    return dict(leaves(known | {name: value for name, value in state.items() if name not in known}))


def fingerprint(value: Any) -> tuple[str, float | None]:
    """Twelve digits of the SHA-256 of a tensor or plain value, and its size: a tensor's norm, a number's own value."""
    if not isinstance(value, Tensor):
        number = value if isinstance(value, (int, float)) else None
        return hashlib.sha256(repr(value).encode()).hexdigest()[:12], number
    bare = value.detach().cpu().contiguous()
    total = hashlib.sha256(f"{bare.dtype}{tuple(bare.shape)}".encode())
    if bare.numel():
        total.update(bare.flatten().view(torch.uint8).numpy().data)
    norm = torch.linalg.vector_norm(bare if bare.is_complex() else bare.double())
    return total.hexdigest()[:12], float(f"{norm.item():.6g}")

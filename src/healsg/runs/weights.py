"""Initial weights from a file: a checkpoint of HEALSg, a state dict of PyTorch, or safetensors.

``init_from`` and local files of published weights are read here. A report says which tensors were loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo, differing_classes, differing_inputs, saved_info
from healsg.errors import ConfigError, HealsgError, RunError
from healsg.paths import shown
from healsg.runs import checkpoint

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Keys under which other programs save the weights, next to optimizer, epoch and so on."""

WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "encoder.")
"""Prefixes that wrappers such as DistributedDataParallel, Lightning and torch.compile add to the names of weights."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name and, where the file has it, the ``DataInfo`` they were trained with."""

    tensors: dict[str, Tensor]
    data_info: DataInfo | None = None


def read_weights(path: Path) -> Weights:
    """Read a file of weights onto the CPU. No code in it is executed.

    Raises:
        RunError: the file is missing or damaged, or holds no weights.
        ConfigError: it needs a library that is not installed.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    if checkpoint.is_checkpoint(path):
        state = checkpoint.load(path)
        try:
            return Weights(state["model"], saved_info(state))
        except RunError as error:
            raise RunError(f"{path}: {error}") from error
    safe = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    try:
        return Weights(_read_safetensors(path) if safe else _read_torch(path))
    except HealsgError:
        raise
    except Exception as error:  # the readers raise almost any exception for a malformed file
        kinds = "a checkpoint of HEALSg (or its end is missing), a state dict of PyTorch, or safetensors"
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(f"{path}: cannot be read as {kinds}: {reason[:200]}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading it needs safetensors, which is not installed: pip install safetensors"
        ) from error
    return dict(load_file(path))


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by ``torch.save``: a state dict, or a dict that holds one under a key of NESTED."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.save never compresses. A small compressed file may expand to more than the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise RunError(f"{path}: is a compressed archive, which torch.save does not write")
    value: Any = torch.load(path, map_location="cpu", weights_only=True)
    for _ in range(4):  # a fixed depth, since dicts in a hostile file may contain themselves
        inner = [value[key] for key in NESTED if isinstance(value, dict) and isinstance(value.get(key), dict)]
        value = inner[0] if inner else value
    tensors = value.items() if isinstance(value, dict) else ()
    found = {key: one for key, one in tensors if isinstance(key, str) and isinstance(one, Tensor)}
    found = {key: one for key, one in found.items() if not checkpoint.odd(one)}
    if not found:
        raise RunError(f"{path}: holds no weights; save them with torch.save(model.state_dict(), FILE)")
    return found


# --- names ----------------------------------------------------------------------------------------------------------


def renamed(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Rename tensors to the names of ``state``, a state dict, by removing or adding prefixes.

    Prefixes of wrappers are removed, and that of the network's main child (see ``_main_parts``) is added, if more
    tensors then match ``state`` by name and shape.

    Returns:
        The tensors under the names with the most matches; and a description of the change for the report, which is
        empty if there was none.
    """
    best, change = tensors, ""
    most = len(fitting(tensors, state))
    for removed in _prefixes(tensors):
        bare = {key.removeprefix(removed): one for key, one in tensors.items() if key.startswith(removed)}
        for added in ("", *_main_parts(state)):
            candidate = {added + key: one for key, one in bare.items()}
            if (count := len(fitting(candidate, state))) > most:
                best, most = candidate, count
                changes = [f"without {removed!r}"] * bool(removed) + [f"with {added!r} before them"] * bool(added)
                change = f"names {' and '.join(changes)}"
    return best, change


def bare_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without the wrappers' prefixes that all of their names share, and these prefixes."""
    removed = ""
    while wrapper := next((one for one in WRAPPERS if tensors and all(key.startswith(one) for key in tensors)), None):
        tensors = {key.removeprefix(wrapper): one for key, one in tensors.items()}
        removed += wrapper
    return tensors, removed


def fitting(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name and shape are in ``state``."""
    return {key: one for key, one in tensors.items() if key in state and state[key].shape == one.shape}


def _prefixes(tensors: Iterable[str]) -> list[str]:
    """The empty prefix, and every prefix in the names that consists of up to three of WRAPPERS."""
    found = [""]
    for _ in range(3):
        longer = [one + wrapper for one in found for wrapper in WRAPPERS]
        found += [one for one in longer if one not in found and any(key.startswith(one) for key in tensors)]
    return found


def _main_parts(state: dict[str, Tensor]) -> list[str]:
    """The child that holds at least half of a network's tensors, as a prefix such as ``body.``; at most two."""
    parts = {key.split(".")[0] for key in state if "." in key}
    return [f"{part}." for part in sorted(parts) if 2 * sum(key.startswith(f"{part}.") for key in state) >= len(state)]


def head_prefixes(model: nn.Module, outputs: int) -> tuple[str, ...]:
    """The name prefixes of the weights that depend on the classes: the ``heads`` that a network declares, its ``head``,
    or its last linear layer.

    Empty if the network has no ``head`` and its last linear layer does not have ``outputs`` outputs.
    """
    if isinstance(named := getattr(model, "heads", None), tuple):
        return named
    if isinstance(getattr(model, "head", None), nn.Module):
        return ("head.",)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else None
    return (f"{last}.",) if last is not None and model.get_submodule(last).out_features == outputs else ()


def other_channels(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapt the weights of the first convolutions to another number of input channels, if they differ only in that.

    The channels are repeated cyclically and scaled, so that the response to an input with equal channels is unchanged
    (as timm adapts published weights). The first convolutions are those with as many input channels as the first one
    in the order of the network.

    Args:
        tensors: with the names of ``state``.
        state: the network's state.
    """
    kernels = [key for key, one in state.items() if one.dim() >= 4]
    if not kernels:
        return {}
    channels = state[kernels[0]].shape[1]
    adapted = {}
    for key in kernels:
        kernel, target = tensors.get(key), state[key]
        if kernel is None or kernel.dim() != target.dim() or kernel[:, :1].shape != target[:, :1].shape:
            continue
        if target.shape[1] != channels or kernel.shape[1] == channels:
            continue
        times = -(-channels // kernel.shape[1])
        repeated = kernel.repeat(1, times, *[1] * (kernel.dim() - 2))[:, :channels]
        adapted[key] = repeated * (kernel.shape[1] / channels)
    return adapted


# --- init_from ------------------------------------------------------------------------------------------------------


def initialise(
    model: nn.Module, path: Path, info: DataInfo | None = None, key: str = "init_from"
) -> tuple[str, list[str]]:
    """Load the weights of a file that match ``model`` by name and shape, and those of the first convolutions with
    another number of input channels (``other_channels``).

    The head is not loaded if the file was trained on other classes, or on the same ones in another order. Files of
    other programs do not name their classes; their head is loaded if its shape matches.

    Args:
        model: the network.
        path: the file.
        info: the ``DataInfo`` of the task, if known.
        key: the setting that names the file, for messages.

    Returns:
        A report in one line, and a list of warnings about inputs that differ from those of the file.

    Raises:
        RunError: the file cannot be read, or nothing in it matches.
    """
    found = read_weights(path)
    own = model.state_dict()
    tensors, changed = renamed(found.tensors, own)
    taken = fitting(tensors, own)
    if not taken:
        held = ", ".join(list(tensors)[:3])
        raise RunError(f"{key}: nothing in {shown(path)} fits this model; it holds {held}, ...")
    adapted = other_channels(tensors, own)
    classes = ""
    heads: tuple[str, ...] = ()
    warnings: list[str] = []
    if info is not None and found.data_info is not None:
        classes = differing_classes(found.data_info, info)
        heads = head_prefixes(model, info.num_classes) if classes else ()
        if differing := list(differing_inputs(found.data_info, info)):
            warnings.append(f"{key} {shown(path)}: was trained on other inputs: {'; '.join(differing)}")
    left = [name for name in taken if heads and name.startswith(heads)]
    taken = {name: one for name, one in taken.items() if name not in left}
    model.load_state_dict(taken | adapted, strict=False)
    shapes = [name for name in tensors if name in own and own[name].shape != tensors[name].shape]
    parts = {
        "adapted to other input channels": list(adapted),
        f"not taken, since they are for {classes}": left,
        "of another shape": [name for name in shapes if name not in adapted],
        "not in it": [name for name in own if name not in tensors],
        "not used": [name for name in tensors if name not in own],
    }
    reported = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in parts.items() if keys]
    reported += [changed] * bool(changed)
    return f"{key} {shown(path)}: {len(taken)} of {len(own)} tensors loaded" + "".join(
        f"; {one}" for one in reported
    ), warnings


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + ", ..." * (len(keys) > 3)

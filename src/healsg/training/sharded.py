"""Weights that are sharded over processes by FSDP2 (Zhao et al. 2023, arXiv 2304.11277; torch's ``fully_shard``).

Each process keeps its rows of every parameter, of its gradient and of the optimizer's state. A block's parameters are
gathered while its forward or backward pass runs. A checkpoint holds full tensors, as that of a single process does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from healsg.errors import ConfigError


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, world: int) -> None:
    """Shard the parameters of a network in place: those of each block together, and then all others.

    Args:
        model: the network, the same in every process.
        blocks: its modules that are sharded separately; they are called one after the other.
        device: the network's device.
        world: the number of processes.

    Raises:
        ConfigError: the network cannot be sharded.
    """
    mesh = init_device_mesh(device.type, (world,))
    try:
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except (ValueError, NotImplementedError, AssertionError, TypeError) as error:
        raise ConfigError(f"runner.shard: {type(model).__name__} cannot be sharded: {error}") from error


def synchronise_gradients(model: nn.Module, enabled: bool) -> None:
    """Set whether backward passes from here on synchronise gradients, or accumulate them in each process."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(enabled)


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """A context in which all parameters of a network are gathered, so that forward passes need no communication: in an
    evaluation the processes have different numbers of batches. All processes must enter and leave it."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    inner = [module for module in sharded if module is not model]
    for module in inner:
        module.set_reshard_after_forward(False, recurse=False)
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in inner:
            module.set_reshard_after_forward(True, recurse=False)
        for module in sharded:
            module.reshard()


def gathered(state: Any, rank: int) -> Any:
    """A state with full tensors on the CPU of rank 0, and None instead on other ranks; all processes must call it."""
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if rank == 0 else None
    if isinstance(state, Mapping):
        result = copy.copy(state)  # keeps the attributes that torch adds to a module's state dict
        for key, value in state.items():
            result[key] = gathered(value, rank)  # type: ignore[index]
        return result
    if isinstance(state, (list, tuple)):
        return type(state)(gathered(value, rank) for value in state)
    return state


def shard_state(like: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Shard the full tensors of ``state`` as the tensors of the same names in ``like``; every process has ``state``, so
    that no communication is needed."""
    return {name: _sharded_like(like.get(name), value) for name, value in state.items()}


def shard_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Shard the full tensors in an optimizer's state as its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        number: {
            key: _sharded_like(parameters[number], value) if _fits(parameters[number], value) else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": sharded}


def _fits(parameter: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _sharded_like(like: Any, value: Any) -> Any:
    """``value`` with the device, type and sharding of ``like``; unchanged if ``like`` is not sharded."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or like.shape != value.shape:
        return value
    moved = value.to(like.device, like.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)

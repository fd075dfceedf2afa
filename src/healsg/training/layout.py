"""The memory format that ``runner.channels_last=auto`` gives a network: a rule without a clock.

In ``channels_last`` the channels of a pixel lie beside each other. The kernels of some layers are much faster with it,
those of others slower, so it is chosen by the layers. The same network with the same number of
threads on the same kind of device always gets the same format, so that the same command has the same digest. The rule
follows ``python -m benchmarks.layouts`` (``benchmarks/results/layouts.txt``, one thread); for GPUs, where that was not
run, PyTorch's own advice.
"""

from __future__ import annotations

from torch import nn

FEWEST = 2
"""Convolutions from which on the format matters: a vision transformer has one, which cuts the picture into patches."""


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    """The convolutions over pictures and volumes."""
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]


def image_dims(network: nn.Module) -> tuple[int, ...]:
    """The number of dimensions of the batches that the convolutions take: 4 for pictures, 5 for volumes."""
    return tuple(sorted({module.weight.dim() for module in convolutions(network)}))


def prefers_channels_last(network: nn.Module, device: str, reduced: bool, threads: int = 1) -> bool:
    """Whether a training step of ``network`` is expected to be faster in ``channels_last``.

    Args:
        network: the network.
        device: the type of the device: ``cpu``, ``cuda``, ``mps``.
        reduced: whether products are computed in bf16, fp16 or TF32.
        threads: CPU threads. With several, small pictures are far slower in ``channels_last`` (the default run on two
            threads: 47 s after 11), so that it is for one alone.
    """
    found = convolutions(network)
    if len(found) < FEWEST:
        return False
    flat = all(isinstance(module, nn.Conv2d) for module in found)
    if device == "cuda":
        return flat and reduced  # tensor cores read channels_last; in fp32 there is no such reason
    if device != "cpu" or threads > 1:
        return False
    if flat and any(isinstance(module, nn.InstanceNorm2d) for module in network.modules()):
        return False  # its kernel for channels_last is slow, that for volumes is not
    by_channel = any(module.groups == module.in_channels > 1 for module in found)
    return not (reduced and by_channel)  # depthwise convolutions in bf16: 1.2 to 1.3 x

"""The memory format that ``runner.channels_last=auto`` gives a network: a fixed rule, without measurements at run time.

In ``channels_last`` the channels of a pixel are contiguous. Some layers have much faster kernels for it, others slower
ones, so the format is chosen by the layers. The same network with the same number of threads on the same kind of device
always gets the same format, so that the same command has the same digest. The rule follows the results of
``python -m benchmarks.layouts`` (``benchmarks/results/layouts.txt``, one thread); for GPUs, where that was not run, it
follows PyTorch's documentation.
"""

from __future__ import annotations

from torch import nn

FEWEST = 2
"""The fewest convolutions for which the format matters: a vision transformer has one, which embeds the patches."""


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    """The convolutions over images and volumes."""
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]


def image_dims(network: nn.Module) -> tuple[int, ...]:
    """The number of dimensions of the batches that the convolutions take: 4 for images, 5 for volumes."""
    return tuple(sorted({module.weight.dim() for module in convolutions(network)}))


def prefers_channels_last(network: nn.Module, device: str, reduced: bool, threads: int = 1) -> bool:
    """Whether a training step of ``network`` is expected to be faster in ``channels_last``.

    Args:
        network: the network.
        device: the type of the device: ``cpu``, ``cuda``, ``mps``.
        reduced: whether products are computed in bf16, fp16 or TF32.
        threads: CPU threads. With several threads, small images are far slower in ``channels_last`` (the default run
            on two threads: 47 s instead of 11 s), so that it is chosen for a single thread only.
    """
    modules = convolutions(network)
    if len(modules) < FEWEST:
        return False
    flat = all(isinstance(module, nn.Conv2d) for module in modules)
    if device == "cuda":
        return flat and reduced  # tensor cores, which fp32 does not use, read channels_last
    if device != "cpu" or threads > 1:
        return False
    if flat and any(isinstance(module, nn.InstanceNorm2d) for module in network.modules()):
        return False  # its channels_last kernel is slow, unlike that of InstanceNorm3d
    depthwise = any(module.groups == module.in_channels > 1 for module in modules)
    return not (reduced and depthwise)  # depthwise convolutions in bf16 take 1.2 to 1.3 times as long

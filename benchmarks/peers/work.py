"""What all peers share: the work, which was laid out beforehand, its parts in plain torch, and the clock.

A piece of work is one file: samples, the order of every epoch, each sample's crop and flip, the weights to begin with.
HEALSg makes all of it by itself from its seed; ``prepare`` asks it once and writes it down for the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

MARKED = ["task._target_=benchmarks.peers.healsg.Marked", "trusted=[benchmarks]"]
CONSTANT = ["method/scheduler=constant"]
SMALL_RESNET = ["model=resnet8x4", "model.width_factor=1", "model.stem_width=16"]
CIFAR = ["data=cifar", "data.verify=false", "data.download=false"]

SETTINGS: dict[str, tuple[int, int, list[str]]] = {
    "W1": (40, 64, ["data=digits", "model=mlp", "method=adamw", *CONSTANT]),
    "W2": (12, 128, ["data=digits", "model=cnn", "model.width=16", "method=adamw", *CONSTANT]),
    "W3": (4, 128, [*CIFAR, *SMALL_RESNET, "method=sgd", "method.optimizer.lr=0.02", *CONSTANT]),
}
"""By workload: epochs, samples a batch, and what HEALSg is told."""


def overrides(name: str) -> list[str]:
    """The command line of a workload for HEALSg, but for where its data lie."""
    epochs, size, told = SETTINGS[name]
    return [*told, f"runner.epochs={epochs}", f"data.batch_size={size}"]


@dataclass
class Work:
    """One workload.

    Args:
        name: W1, W2 or W3.
        epochs, batch_size: how long, how much at once; the last batch of an epoch may be smaller.
        train, val: inputs and targets; floats that are ready, or images as uint8.
        orders: (epochs, N), which sample comes when.
        draws: (epochs, N, 3), each sample's flip (0 or 1) and the corner of its crop (down, right); none for floats.
        weights: the network's state to begin with, in its order.
        factor, offset: (3, 1, 1), what makes an image of bytes: ``image * factor + offset``.
        overrides: HEALSg's command line.
    """

    name: str
    epochs: int
    batch_size: int
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    orders: Tensor
    draws: Tensor | None
    weights: list[Tensor]
    factor: Tensor | None
    offset: Tensor | None
    overrides: list[str]

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Work:
        return cls(**torch.load(Path(folder) / f"{name}.pt", weights_only=True))

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.train[1]) // self.batch_size)

    def network(self) -> nn.Module:
        network = {"W1": mlp, "W2": cnn, "W3": resnet}[self.name]()
        state = network.state_dict()
        network.load_state_dict(dict(zip(state, self.weights, strict=True)))
        return network

    def optimizer_class(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        if self.name == "W3":
            return torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True, "fused": True}
        return torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.01, "fused": True}

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        make, arguments = self.optimizer_class()
        return make(network.parameters(), **arguments)

    def datasets(self) -> tuple[Dataset[Any], Dataset[Any]]:
        """The training and the validation samples, as one writes them for a ``DataLoader``."""
        if self.draws is None:
            return Pairs(*self.train), Pairs(*self.val)
        return Images(self, training=True), Images(self, training=False)

    def sampler(self, clock: Clock) -> Sampler[int]:
        return Given(self, clock)

    def loaders(self, clock: Clock, **more: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """``DataLoader``s of the training samples in the given order and of the validation samples."""
        train, val = self.datasets()
        size = self.batch_size
        return DataLoader(train, size, sampler=self.sampler(clock), **more), DataLoader(val, size, **more)


class Clock:
    """Told when each epoch begins: CPU time by then or, counting, the calls of Python and C functions since.

    What is measured begins with the second epoch and ends with the beginning of the last, so that it holds whole
    epochs with their evaluation, and neither setting up nor the end.
    """

    def __init__(self, work: Work, counting: bool = False) -> None:
        self.epochs, self.steps, self.counting = work.epochs, work.steps, counting
        self.times: list[float] = []
        self.calls = 0

    def mark(self) -> None:
        """An epoch begins."""
        self.times.append(time.process_time())
        if self.counting and len(self.times) == 2:
            sys.setprofile(self._profile)
        elif self.counting and len(self.times) == self.epochs:
            sys.setprofile(None)

    def _profile(self, frame: object, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")

    def value(self) -> float:
        """Seconds of CPU time, or calls, a step."""
        if len(self.times) != self.epochs:
            raise RuntimeError(f"{len(self.times)} epochs began, not {self.epochs}")
        measured = self.calls if self.counting else self.times[-1] - self.times[1]
        return measured / (self.steps * (self.epochs - 2))


class Given(Sampler[int]):
    """The order of each epoch as it was laid out; images get ``epoch * N + index``, which says their crop too."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self.orders, self.clock, self.epoch = work.orders, clock, 0
        self.stride = 0 if work.draws is None else work.orders.shape[1]

    def __len__(self) -> int:
        return self.orders.shape[1]

    def __iter__(self) -> Iterator[int]:
        self.clock.mark()
        epoch, self.epoch = self.epoch, self.epoch + 1
        yield from (self.orders[epoch] + epoch * self.stride).tolist()


class Pairs(TensorDataset):
    """Samples that lie ready: a ``TensorDataset`` under another name, so that HEALSg reads it sample by sample too."""


class Images(Dataset[Any]):
    """Images of bytes, each flipped, padded, cropped and normalised by itself, as one writes it with torchvision."""

    def __init__(self, work: Work, training: bool) -> None:
        from torchvision.transforms.v2 import functional

        self.functional = functional
        self.input, self.target = work.train if training else work.val
        self.draws = work.draws.tolist() if training and work.draws is not None else None
        self.factor, self.offset, self.epoch = work.factor, work.offset, 0

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(place, len(self.target))
        image = self.input[index]
        if self.draws is not None:
            flip, down, right = self.draws[self.epoch + epoch][index]
            if flip:
                image = self.functional.horizontal_flip(image)
            image = self.functional.crop(self.functional.pad(image, [4, 4, 4, 4]), down, right, 32, 32)
        return image.float().mul_(self.factor).add_(self.offset), self.target[index]


def parameter_sum(network: nn.Module) -> float:
    """By which the peers are compared: the sum of all parameters."""
    return float(sum(parameter.detach().double().sum() for parameter in network.parameters()))


# --- the networks, with HEALSg's parameters in HEALSg's order ------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def convolution(before: int, after: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]


def cnn(width: int = 16) -> nn.Module:
    first = [*convolution(1, width), nn.ReLU(), *convolution(width, width), nn.ReLU(), nn.MaxPool2d(2)]
    second = [*convolution(width, 2 * width), nn.ReLU(), nn.MaxPool2d(2), *convolution(2 * width, 2 * width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.residual = nn.Sequential(*convolution(before, after, stride), relu, *convolution(after, after))
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(*convolution(before, after, stride, kernel=1))

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.residual(input) + self.shortcut(input))


class ResNet8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, 16), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(input)).mean((2, 3)))


def resnet() -> nn.Module:
    return ResNet8()

"""Collect the outputs of a network's inner modules, and choose those that a method uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.evaluation.evaluator import evaluating


@contextlib.contextmanager
def outputs_of(network: nn.Module, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Collect the outputs of these modules, or of all, by name, in the forward passes within the context; in the order
    in which the modules finish."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found.pop(name, None)
            found[name] = output

        return hook

    chosen = [name for name, _ in network.named_modules() if name] if names is None else names
    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in chosen]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Probe:
    """The output shapes (N, C, ...) of a network's modules for two samples, in the order in which they finish; and that
    of the network.
    """

    shapes: dict[str, tuple[int, ...]]
    output: tuple[int, ...]

    def choose(self, patterns: str, key: str) -> list[str]:
        """The modules whose names match patterns, several joined by ``|``. Raises ConfigError."""
        chosen: list[str] = []
        for pattern in patterns.split("|"):
            fitting = [name for name in self.shapes if fnmatchcase(name, pattern) and name not in chosen]
            if not fitting:
                known = ", ".join(list(self.shapes)[:12])
                raise ConfigError(f"{key}: {pattern!r} fits no module of this network, which has {known}")
            chosen += fitting
        return [name for name in self.shapes if name in chosen]

    def maps(self) -> list[str]:
        """The last module of each resolution that gives maps (N, C, H, W) or volumes, the largest first."""
        last = {shape[2:]: name for name, shape in self.shapes.items() if len(shape) > 3 and max(shape[2:]) > 1}
        return [name for name in self.shapes if name in last.values()]

    def features(self) -> list[str]:
        """The last module that gives vectors (N, F) before what gives the output."""
        names = [name for name, shape in self.shapes.items() if len(shape) == 2]
        before = [name for name in names if self.shapes[name] != self.output] or names[:-1]
        return before[-1:]


def probe(network: nn.Module, samples: Tensor) -> Probe:
    """The output shapes of the modules of a network on the CPU."""
    with evaluating(network), torch.no_grad(), outputs_of(network) as found:
        output = network(samples)
    shapes = {name: tuple(value.shape) for name, value in found.items() if isinstance(value, Tensor)}
    return Probe({name: shape for name, shape in shapes.items() if len(shape) >= 2}, tuple(output.shape))

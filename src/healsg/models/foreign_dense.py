"""Networks of other libraries with an output for each pixel, as the rest of the project sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.models.unet import CONVOLUTION, DenseNetwork


class ForeignDense(DenseNetwork):
    """Such a network. In training it gives a list of outputs, the finest first, if it has several; in evaluation the
    finest.

    Args:
        body: the library's network.
        called: what the library calls it, such as ``MONAI's UNet``, for messages.
        window: see ``DenseNetwork``.
        heads: prefixes of the weights in ``body`` that belong to the classes.
    """

    def __init__(self, body: nn.Module, called: str, window: Sequence[int], heads: Sequence[str]) -> None:
        super().__init__(window)
        self.body = body
        self.called = called
        self.heads = tuple(f"body.{prefix}" for prefix in heads)
        self.head = nn.Identity()
        self.num_features = 0

    def features(self, input: Tensor) -> Tensor:
        """Raises ConfigError: these networks do not separate body and head."""
        raise ConfigError(
            f"model.name: {self.called} does not tell its features for this method; model=unet and model=resnet do"
        )

    def forward(self, input: Tensor, features: bool = False) -> Tensor | list[Tensor]:  # type: ignore[override]
        if features:
            return self.features(input)
        output = self.body(input)
        if isinstance(output, Mapping):  # torchvision's "out" and "aux"
            output = list(output.values())
        if isinstance(output, Tensor):
            if output.dim() != input.dim() + 1:
                return output
            output = output.unbind(dim=1)  # MONAI's DynUNet stacks its resolutions, enlarged to the finest
        several = list(output)
        return several if self.training and len(several) > 1 else several[0]


def last_head(body: nn.Module, outputs: int) -> tuple[str, ...]:
    """The prefix of the last convolution with this many outputs; empty if there is none."""
    kinds = tuple(CONVOLUTION.values())
    found = [name for name, one in body.named_modules() if isinstance(one, kinds) and one.out_channels == outputs]
    return (f"{found[-1]}.",) if found else ()


def try_out(network: nn.Module, info: DataInfo) -> Any:
    """The output for one sample of zeros, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        output = network(torch.zeros(1, *info.input_shape))
    network.train()
    return output


def require_masks(network: ForeignDense, info: DataInfo) -> ForeignDense:
    """The network. Raises ConfigError if its output is no mask of the input's size."""
    made = try_out(network, info)
    expected = (1, info.num_classes, *info.input_shape[1:])
    if not isinstance(made, Tensor) or tuple(made.shape) != expected:
        shape = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ConfigError(f"model.name: {network.called} gives {shape}, and a mask has {list(expected)}")
    return network

"""Vision transformers for small images (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.model import Network, TaskModel, takes_any
from healsg.types import Count, Divides, Positive, Share

EPSILON = 1e-6
"""Of every LayerNorm, as in the authors' code."""


def drop_path(branch: Tensor, probability: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): each of the (N, ...) samples' branches is zero with
    probability ``probability``, the others are scaled so that the mean stays."""
    kept = torch.rand([len(branch)] + [1] * (branch.dim() - 1), device=branch.device) >= probability
    return branch * kept / (1 - probability)


class TransformerLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``, on (N, tokens, width).

    Args:
        width: the embedding dimension.
        heads: attention heads; must divide ``width``.
        hidden: units of the MLP's hidden layer.
        dropout: dropout probability of the outputs of attention and MLP, and of the hidden units.
        left_out: the probability of skipping a residual branch for a sample in training.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, left_out: float) -> None:
        super().__init__()
        self.heads, self.left_out = heads, left_out
        self.first_norm = nn.LayerNorm(width, EPSILON)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.second_norm = nn.LayerNorm(width, EPSILON)
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def attention(self, tokens: Tensor) -> Tensor:
        """Multi-head self-attention, (N, tokens, width) to the same shape."""
        split: Tensor = self.queries_keys_values(tokens).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, width / heads)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        made: Tensor = self.dropout(self.projection(mixed.transpose(1, 2).flatten(2)))
        return made

    def forward(self, tokens: Tensor) -> Tensor:
        dropping = self.left_out if self.training else 0.0
        made = self.attention(self.first_norm(tokens))
        tokens = tokens + (drop_path(made, dropping) if dropping else made)
        made = self.perceptron(self.second_norm(tokens))
        return tokens + (drop_path(made, dropping) if dropping else made)


class VisionTransformer(Network):
    """Patches as tokens with learned positions, transformer layers, a norm, the class token or the mean, a linear head.

    ``tokens`` and ``encode`` are the two halves of it, for methods that leave patches out.

    Args:
        shape: (channels, height, width) of the images.
        classes: the number of outputs.
        patch: the side of a patch, in pixels.
        depth, width, heads, hidden, dropout: see ``TransformerLayer``; ``depth`` counts the layers.
        stochastic_depth: ``left_out`` of the last layer; it rises evenly from 0 in the first.
        pooling: ``token`` or ``mean``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        stochastic_depth: float,
        pooling: str,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        count = (height // patch) * (across // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "token" else None
        self.position = nn.Parameter(torch.empty(1, count + (pooling == "token"), width))
        self.dropout = nn.Dropout(dropout)
        rates = [stochastic_depth * layer / max(depth - 1, 1) for layer in range(depth)]
        self.layers = nn.Sequential(*[TransformerLayer(width, heads, hidden, dropout, rate) for rate in rates])
        self.norm = nn.LayerNorm(width, EPSILON)
        self.num_features, self.head = width, nn.Linear(width, classes)
        self._initialise()

    def _initialise(self) -> None:
        """Weights and positions of deviation 0.02, biases zero (Touvron et al. 2021, arXiv 2012.12877)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.position, std=0.02)
        if self.token is not None:
            nn.init.trunc_normal_(self.token, std=0.02)

    def tokens(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) to the patches' (N, patches, width), with their positions, row by row."""
        hidden: Tensor = self.patches(input).flatten(2).mT
        return hidden + self.position[:, -hidden.shape[1] :]

    def encode(self, tokens: Tensor) -> Tensor:
        """(N, any number of patches, width) to the same after all layers; with a class token, that comes first."""
        if self.token is not None:
            # shape[0], not len(), which would fix the size of a batch where the network is exported
            first = (self.token + self.position[:, :1]).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        hidden: Tensor = self.norm(self.layers(self.dropout(tokens)))
        return hidden

    def features(self, input: Tensor) -> Tensor:
        """(N, channels, height, width) to (N, num_features)."""
        hidden = self.encode(self.tokens(input))
        return hidden.mean(1) if self.token is None else hidden[:, 0]


class ViT(TaskModel):
    """A vision transformer for images whose sides are multiples of the patch: ViT-Ti/4 by default.

    Args:
        patch: the side of a patch, in pixels.
        depth: the number of transformer layers.
        width: the embedding dimension.
        heads: attention heads; must divide ``width``.
        mlp_ratio: units of each MLP's hidden layer, in multiples of ``width``.
        dropout: dropout probability of the outputs of attention and MLP, hidden units and patch embeddings.
        stochastic_depth: the probability of skipping a residual branch of the last layer in training; it rises linearly
            from 0 in the first.
        pooling: what the features are after the last norm: the class ``token``, or the ``mean`` over the patches (Beyer
            et al. 2022, arXiv 2205.01580), without a class token.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        patch: Count = 4,
        depth: Count = 12,
        width: Count = 192,
        heads: Annotated[Count, Divides("width")] = 3,
        mlp_ratio: Positive = 4.0,
        dropout: Share = 0.0,
        stochastic_depth: Share = 0.0,
        pooling: Literal["token", "mean"] = "token",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if width % heads:
            raise ConfigError(f"model.heads: {heads} heads do not divide model.width={width}")
        self.patch = patch
        self.depth = depth
        self.width = width
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.pooling = pooling

    def check(self, info: DataInfo) -> None:
        super().check(info)
        shape = info.input_shape
        if len(shape) != 3:
            raise ConfigError(f"model: ViT takes images (channels, height, width), not {shape}; {takes_any(info)}")
        if shape[1] % self.patch or shape[2] % self.patch:
            fit = [side for side in range(1, min(shape[1:]) + 1) if shape[1] % side == shape[2] % side == 0]
            raise ConfigError(
                f"model.patch: patches of {self.patch} pixels do not fill images of {shape[1]}x{shape[2]}; "
                f"those of {', '.join(map(str, fit))} do"
            )

    def build(self, info: DataInfo) -> nn.Module:
        sizes = (self.patch, self.depth, self.width, self.heads, max(1, round(self.width * self.mlp_ratio)))
        return VisionTransformer(
            info.input_shape, info.num_classes, *sizes, self.dropout, self.stochastic_depth, self.pooling
        )

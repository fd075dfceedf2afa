"""MAE: reconstruct masked images from a quarter of their patches (He et al. 2022, arXiv 2111.06377)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from healsg.data.base import Needs
from healsg.errors import ConfigError
from healsg.losses.classification import wide
from healsg.losses.reconstruction import masked_error, normalised, patchify, random_order
from healsg.methods.selfsupervised import SelfSupervised
from healsg.models.vit import EPSILON, TransformerLayer, VisionTransformer, ViT
from healsg.training import draws
from healsg.types import Count, Divides, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class MaskedAutoencoder(nn.Module):
    """A vision transformer encodes the visible patches of an image, and a small one decodes all patches (section 3).

    Args:
        encoder: the network that is pretrained, without a head.
        mask: the share of the patches that are masked.
        width, depth, heads: of the decoder.
    """

    def __init__(self, encoder: VisionTransformer, mask: float, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch = encoder.patches.kernel_size[0]
        self.count = count = encoder.position.shape[1] - (encoder.token is not None)
        self.visible = min(count - 1, max(1, round(count * (1.0 - mask))))
        self.embedding = nn.Linear(encoder.num_features, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, count, width))
        self.layers = nn.Sequential(*[TransformerLayer(width, heads, 4 * width, 0.0, 0.0) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, EPSILON)
        self.values = nn.Linear(width, encoder.patches.in_channels * self.patch**2)
        for weight in (self.token, self.position):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, input: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) to (N, patches, values), the reconstructed patches, and (N, patches), 1 for the masked ones.

        Args:
            drawn: (N, patches) uniform numbers, which determine what is masked.
        """
        tokens = self.encoder.tokens(input)
        order, rank = random_order(drawn)
        shown = order[:, : self.visible, None].expand(-1, -1, tokens.shape[2])
        encoded = self.embedding(self.encoder.encode(tokens.gather(1, shown)))
        first, encoded = encoded[:, : -self.visible], encoded[:, -self.visible :]  # the class token, where there is one
        masked = self.token.to(encoded.dtype).expand(len(encoded), rank.shape[1] - self.visible, -1)
        patches = torch.cat([encoded, masked], dim=1).gather(1, rank[:, :, None].expand(-1, -1, encoded.shape[2]))
        decoded = self.layers(torch.cat([first, patches + self.position], dim=1))
        return self.values(self.norm(decoded[:, first.shape[1] :])), (rank >= self.visible).to(input.dtype)


class MAE(SelfSupervised):
    """Reconstruct the masked patches of weakly augmented images, with ``model=vit``; the encoder is evaluated and
    saved.

    The decoder's positions are learned; the paper's are sines.

    Args:
        mask: the share of the patches that are masked.
        normalise: the target is each patch normalised by its own mean and standard deviation.
        width, depth, heads: of the decoder; 512, 8 and 16 in the paper.
        common: the arguments of SelfSupervised.
    """

    needs = Needs(streams={"unlabelled": ("weak",)})
    mean_over_samples = True

    def __init__(
        self,
        mask: Share = 0.75,
        normalise: bool = True,
        width: Count = 64,
        depth: Count = 2,
        heads: Annotated[Count, Divides("width")] = 4,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if width % heads:
            raise ConfigError(f"method.heads: {heads} heads do not divide method.width={width}")
        self.mask = mask
        self.normalise = normalise
        self.width = width
        self.depth = depth
        self.heads = heads

    def check(self, task: Task) -> None:
        super().check(task)
        if not isinstance(task.task_model, ViT):
            raise ConfigError(
                f"method: mae hides patches from a transformer, not {type(task.task_model).__name__}; model=vit"
            )

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        if not isinstance(network, VisionTransformer) or network.position.shape[1] - (network.token is not None) < 2:
            raise ConfigError("method: mae hides some of a VisionTransformer's patches, two or more; set model.patch")
        self.evaluated(network)
        return MaskedAutoencoder(network, self.mask, self.width, self.depth, self.heads)

    def evaluated(self, network: nn.Module) -> nn.Module:
        """Remove the classifier."""
        network.head = nn.Identity()
        return network

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        input = views["weak"]
        drawn = draws.uniform(task, views, "mask", (len(input), task.model.count))  # type: ignore[arg-type]
        reconstructed, masked = task.net(input, drawn)
        patches = patchify(wide(input), task.model.patch)  # type: ignore[arg-type]
        target = normalised(patches) if self.normalise else patches
        return {"loss": masked_error(wide(reconstructed), target, wide(masked)).mean()}

    def trained_network(self, task: Task) -> nn.Module:
        return task.model.encoder if isinstance(task.model, MaskedAutoencoder) else task.model

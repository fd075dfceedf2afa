"""Reconstruction of images from some of their patches. Pure functions."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) images to (N, patches, C * patch * patch), row by row; ``patch`` divides both sides."""
    rows, channels, height, width = images.shape
    split = images.reshape(rows, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def normalised(patches: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Each patch minus its mean, divided by its standard deviation (He et al. 2022, arXiv 2111.06377, section 3)."""
    centred = patches - patches.mean(dim=2, keepdim=True)
    return centred / (patches.var(dim=2, keepdim=True) + epsilon).sqrt()


def masked_error(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """(N,) mean squared error over the patches that were hidden (arXiv 2111.06377, section 3).

    Args:
        prediction, target: (N, patches, values).
        hidden: (N, patches), 1 where a patch was hidden, else 0; the same number in every sample.
    """
    return ((prediction - target).square().mean(dim=2) * hidden).sum(dim=1) / hidden.sum(dim=1)


def random_order(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(N, patches) a random permutation of the patches for each sample, and its inverse: the rank of each patch.

    Args:
        drawn: (N, patches) uniform numbers.
    """
    order = drawn.argsort(dim=1)
    return order, order.argsort(dim=1)

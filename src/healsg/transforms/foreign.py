"""torchvision's augmentation policies, applied sample by sample, each seeded by the sample's draw, so that the result
does not depend on the number of workers."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from healsg.seeding import Draw

Policy = Literal["randaugment", "trivialaugment", "autoaugment"]


@cache
def policy_of(name: Policy, cifar: bool) -> Any:
    """torchvision's RandAugment (arXiv 1909.13719; 2 operations of magnitude 9), TrivialAugment Wide (arXiv 2103.10158)
    or AutoAugment (arXiv 1805.09501; the policy for CIFAR-10 with ``cifar``, else that for ImageNet)."""
    from torchvision import transforms
    from torchvision.transforms import AutoAugmentPolicy

    if name == "randaugment":
        return transforms.RandAugment()
    if name == "trivialaugment":
        return transforms.TrivialAugmentWide()
    return transforms.AutoAugment(AutoAugmentPolicy.CIFAR10 if cifar else AutoAugmentPolicy.IMAGENET)


def apply_policy(name: Policy, images: Tensor, draw: Draw, which: int = 0) -> Tensor:
    """Apply a policy to each image with random operations of its own.

    The policies draw from the CPU's default generator, whose state is restored afterwards.

    Args:
        name: the policy.
        images: (N, C, H, W) uint8 of 1 or 3 channels.
        draw: the samples' draws, of which ``which`` seeds each sample.
        which: number of the draw.
    """
    policy = policy_of(name, cifar=min(images.shape[2:]) <= 64)
    state, changed = torch.get_rng_state(), []
    try:
        for image, bits in zip(images, draw.bits(which).tolist(), strict=True):
            torch.default_generator.manual_seed(bits)
            changed.append(policy(image))
    finally:
        torch.set_rng_state(state)
    return torch.stack(changed)

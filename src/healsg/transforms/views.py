"""The augmentations of images: those that ``data.augment`` names, and the views that methods ask for (``weak``,
``strong``, ``view1``, ``view2``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from healsg.data.loader import Transform
from healsg.data.source import Batch
from healsg.errors import ConfigError
from healsg.seeding import Draw
from healsg.transforms import affine, colour, randaugment
from healsg.transforms.dense_targets import has_dense_target
from healsg.transforms.foreign import Policy, apply_policy
from healsg.transforms.image import ImageTransform, Padding, check_view
from healsg.transforms.nnunet import NnunetTransform
from healsg.transforms.numbers import bell, between, uniform
from healsg.transforms.volume import VolumeTransform
from healsg.types import Count, Natural, Positive

Augment = Literal[
    "none",
    "light",
    "standard",
    "alternating",
    "strong",
    "randaugment",
    "trivialaugment",
    "autoaugment",
    "crop",
    "nnunet",
]

SMALL = 28
"""Pixels of the shorter side from which images are large enough for crops, colour changes and cutout."""

BLURRED = 64
"""Pixels of the shorter side from which the self-supervised view is blurred: SimCLR blurs ImageNet, but not CIFAR."""


class ImageViews:
    """The views of a set of images by name, each a transform of whole batches.

    ============ ==============================================================================================
    ``input``    the augmentation ``augment`` on training samples; ``none`` in evaluation
    ``weak``     ``light``
    ``strong``   ``strong``
    ``view1/2``  two draws of the self-supervised augmentation; the strong one on images below 28 pixels
    ============ ==============================================================================================

    The augmentations: ``none`` only normalises. ``standard`` is the set's random flip and shift by whole pixels, and
    ``alternating`` the same with a flip in every other epoch (see ``random_flip``). ``light`` is ``standard``, but for
    images below 28 pixels a rotation by up to 5 degrees and a shift by up to 0.7 pixels. ``strong`` is FixMatch's
    RandAugment with cutout, but for images below 28 pixels a rotation, shift, scale, shear, contrast and noise.
    ``crop`` shows a window of 8 to 100 % of the area in full size, flipped where the set flips. ``nnunet`` is
    ``standard`` and then nnU-Net's rotation, scale, noise, blur, brightness, contrast, low resolution and gamma. The
    rest are torchvision's policies, applied sample by sample after ``standard``.

    With dense targets, such as masks, all views of a sample share one flip and one shift, those of ``standard``, which
    replace every other geometric change, and the target is moved alike. Colours, contrast, noise and cutout are drawn
    for each view. torchvision's policies and ``crop`` are refused in that case.

    Args:
        augment: the name of the augmentation of ``input``.
        flip: flip horizontally with probability 1/2, in every view.
        shift: the largest shift of ``standard``, in pixels.
        mean: each channel's mean, with ``maximum`` as 1.
        std: each channel's standard deviation, likewise.
        maximum: the stored value of full intensity, 255 for uint8.
        padding: fill of pixels outside the image, ``zero`` or ``reflect``.
        size: the images' shorter side in pixels.
        outside: the label of a mask's pixels that come from outside, with ``zero`` padding.
        files: the images are decoded from files of any size, so that ``crop`` cuts its window out before resizing.
    """

    def __init__(
        self,
        augment: Augment,
        flip: bool,
        shift: Natural,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: Count,
        maximum: Positive = 255.0,
        padding: Padding = "zero",
        outside: int = 0,
        files: bool = False,
    ) -> None:
        self.standard = ImageTransform(flip, shift, mean, std, padding, size, maximum, outside=outside)
        self.plain = ImageTransform(False, 0, mean, std, padding, size, maximum)
        made: dict[str, Transform] = {
            "none": self.plain,
            "light": SmallLight(self.standard) if size < SMALL else self.standard,
            "standard": self.standard,
            "strong": (SmallStrong if size < SMALL else Strong)(self.standard),
        }
        if augment == "alternating":
            made[augment] = ImageTransform(flip, shift, mean, std, padding, size, maximum, True, outside)
        if augment == "nnunet":
            made[augment] = NnunetTransform(self.standard, outside)
        if augment in ("randaugment", "trivialaugment", "autoaugment"):
            if len(mean) not in (1, 3):
                raise ConfigError(
                    f"data.augment: {augment} takes images of 1 or 3 channels, and these have {len(mean)}"
                )
            made[augment] = PolicyTransform(augment, self.standard)
        if augment == "crop":
            standard = ImageTransform(flip, 0, mean, std, padding, size, maximum)
            made[augment] = FromWindow(flip, 0, mean, std, padding, size, maximum) if files else RandomWindow(standard)
        if augment not in made:
            raise ConfigError(f"data.augment: {augment!r} is not one of {', '.join(get_args(Augment))}")
        twin = made["strong"] if size < SMALL else SelfSupervised(self.standard)
        self.views = {"weak": made["light"], "strong": made["strong"], "view1": twin, "view2": twin}
        self.views["input"] = made[augment]

    def of(self, view: str, split: str = "train") -> Transform:
        """The transform of ``view`` in ``split``. Raises ConfigError for an unknown view."""
        check_view(view, "these images", self.views)
        return self.views[view] if split == "train" else self.plain


def image_views(
    augment: Augment, flip: bool, shift: int, mean: float, std: float, shape: Sequence[int], padding: Padding, what: str
) -> ImageViews | VolumeTransform:
    """The views of samples of ``shape``: images, or volumes, for which there is only ``none`` and ``standard``.

    Raises ConfigError for another ``augment`` of volumes; ``what`` is the subject of its message, such as "these are".
    """
    means = (mean,) * shape[0]
    stds = (std,) * shape[0]
    size = min(shape[1:])
    usual = augment == "standard"
    if len(shape) == 3:
        return ImageViews(augment, flip, shift, means, stds, size=size, padding=padding)
    if augment not in ("none", "standard"):
        raise ConfigError(f"data.augment: {augment} is for images, and {what} volumes; standard works")
    return VolumeTransform(flip and usual, shift * usual, means, stds, padding, size)


class FloatTransform:
    """A base class: images become floating point in 0..1, are changed if there is a draw, and are then normalised.

    Args:
        standard: the set's standard transform, from which flip, padding and normalisation are taken.
    """

    per_sample = True
    shares_geometry = True

    def __init__(self, standard: ImageTransform) -> None:
        self.usual = standard
        self.mean = standard.mean
        self.std = standard.std
        self.flip, self.padding = standard.flip, standard.padding
        self.unit = ImageTransform(False, 0, standard.mean, standard.std, maximum=1.0)

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        """The geometric change of (N, C, H, W) float32 images in 0..1."""
        return images

    def recolour(self, images: Tensor, draw: Draw) -> Tensor:
        """The change of the pixels' values, likewise."""
        return images

    def change(self, images: Tensor, draw: Draw) -> Tensor:
        """Both changes of (N, C, H, W) float32 images in 0..1."""
        return self.recolour(self.move(images, draw), draw)

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        if draw is None:
            return self.usual(batch, None)
        has_mask = draw.shared is not draw or has_dense_target(batch)
        batch = self.usual.moved(batch, draw) if has_mask else batch
        images = batch["input"].to(torch.float32) * (1 / self.usual.maximum)
        changed = self.recolour(images, draw) if has_mask else self.change(images, draw)
        return self.unit(batch | {"input": changed}, None)


class RandomWindow(FloatTransform):
    """A random window of each image in full size, 8 to 100 % of its area, flipped where the set flips."""

    per_sample = True

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        return affine.random_resized_crop(images, draw, flip=self.flip)

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        if draw is not None and (draw.shared is not draw or has_dense_target(batch)):
            raise ConfigError("data.augment: crop does not transform masks along with images; use standard")
        return super().__call__(batch, draw)


class FromWindow(ImageTransform):
    """The flip and the normalisation of images that are random windows of their pictures already.

    The loader asks for ``windows`` and hands them to the data set, which resizes only these parts of its pictures.
    """

    per_sample = True

    def windows(self, draw: Draw) -> list[list[float]]:
        """By sample the four numbers of ``healsg.datasets.images.resizing.window_box``."""
        return uniform(draw, 4, which=2).tolist()


class SmallLight(FloatTransform):
    """A rotation by up to 5 degrees and a shift by up to 0.7 pixels: for digits of 8x8 pixels."""

    per_sample = True

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        return affine.random_affine(images, draw, rotation=5, shift=0.7, flip=self.flip, padding=self.padding)


class SmallStrong(FloatTransform):
    """A rotation by up to 25 degrees, a shift by up to a pixel, scale and shear 0.2, contrast, noise of 0 to 0.1."""

    per_sample = True

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        return affine.random_affine(
            images, draw, rotation=25, shift=1, scale=0.2, shear=0.2, flip=self.flip, padding=self.padding
        )

    def recolour(self, images: Tensor, draw: Draw) -> Tensor:
        u = uniform(draw, 2, which=2)
        images = colour.contrast(images, between(u[:, 0], 0.6, 1.4))
        noise = bell(draw, images[0].numel(), which=4)
        return colour.add_noise(images, noise, between(u[:, 1], 0.0, 0.1).view(-1, 1, 1, 1))


class Strong(FloatTransform):
    """The set's flip and shift, then FixMatch's RandAugment with cutout (see ``randaugment``).

    Where targets are masks, only flip and shift move pixels, alike in all views, and ``recolour`` takes the place of
    RandAugment: brightness, contrast, saturation and hue, and cutout of half the side with the mean colour.
    """

    per_sample = True

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        if draw is None or draw.shared is not draw or has_dense_target(batch):
            return super().__call__(batch, draw)
        images = self.usual.move(batch["input"], draw).to(torch.float32) * (1 / self.usual.maximum)
        u = uniform(draw.host, randaugment.NUMBERS, which=2)
        changed = randaugment.randaugment(images, u, self._fill(images))
        return self.unit(batch | {"input": changed}, None)

    def recolour(self, images: Tensor, draw: Draw) -> Tensor:
        u = uniform(draw, 6, which=2)
        images = colour.brightness(images, between(u[:, 0], 0.6, 1.4))
        images = colour.contrast(images, between(u[:, 1], 0.6, 1.4))
        images = colour.saturation(images, between(u[:, 2], 0.4, 1.6))
        images = colour.hue(images, between(u[:, 3], -0.1, 0.1))
        return colour.cutout(images, u[:, 4], u[:, 5], min(images.shape[2:]) / 2, self._fill(images))

    def _fill(self, images: Tensor) -> Tensor:
        """(C, 1, 1) the mean colour, made without a copy from the CPU."""
        return torch.stack([torch.full((1, 1), value, device=images.device) for value in self.mean])


class SelfSupervised(FloatTransform):
    """The augmentation of SimCLR (Chen et al. 2020, arXiv 2002.05709, appendix A), its strength 0.5 as on CIFAR-10.

    A crop of 8 to 100 % of the area; a flip if the set flips; with probability 0.8 a change of brightness, contrast and
    saturation (each by up to 0.4) and hue (by up to 0.1); with probability 0.2 conversion to grey; and, from 64 pixels
    on, with probability 0.5 a Gaussian blur with a standard deviation of 0.1 to 2 pixels.

    Args:
        standard: see ``FloatTransform``.
        smallest_crop: the smallest area of a crop, as a share of the image.
        saturation: the largest change of the saturation.
        solarise: the probability with which the upper half of the levels is inverted in the end.
    """

    per_sample = True

    def __init__(
        self, standard: ImageTransform, smallest_crop: float = 0.08, saturation: float = 0.4, solarise: float = 0.0
    ) -> None:
        super().__init__(standard)
        self.smallest_crop = smallest_crop
        self.saturation = saturation
        self.solarise = solarise

    def adjusted(self, **settings: float) -> SelfSupervised:
        """The same with other settings."""
        return SelfSupervised(self.usual, **settings)

    def move(self, images: Tensor, draw: Draw) -> Tensor:
        return affine.random_resized_crop(images, draw, smallest=self.smallest_crop, flip=self.flip)

    def recolour(self, images: Tensor, draw: Draw) -> Tensor:
        u = uniform(draw, 9, which=2)
        jitter = u[:, 4] < 0.8
        amounts = torch.stack(
            [
                between(u[:, 0], 0.6, 1.4),
                between(u[:, 1], 0.6, 1.4),
                between(u[:, 2], 1 - self.saturation, 1 + self.saturation),
            ],
            dim=1,
        )
        factor = torch.where(jitter.unsqueeze(1), amounts, 1.0)
        images = colour.brightness(images, factor[:, 0])
        images = colour.contrast(images, factor[:, 1])
        images = colour.saturation(images, torch.where(u[:, 5] < 0.2, 0.0, factor[:, 2]))
        images = colour.hue(images, torch.where(jitter, between(u[:, 3], -0.1, 0.1), 0.0))
        size = min(images.shape[2:])
        if size >= BLURRED:
            deviation = torch.where(u[:, 6] < 0.5, between(u[:, 7], 0.1, 2.0), 0.01)
            images = colour.blur(images, deviation, radius=max(1, min(size // 20, 6)))
        if not self.solarise:
            return images
        from_half = torch.where(u[:, 8] < self.solarise, 0.5, 2.0).to(images.dtype)
        return colour.solarise(images, from_half)


class PolicyTransform:
    """The set's flip and shift, then a policy of torchvision sample by sample, then the normalisation."""

    per_sample = True

    on_cpu = True
    """Samples held in memory stay on the CPU, since on a GPU each operation on a sample would wait for the device."""

    def __init__(self, policy: Policy, standard: ImageTransform) -> None:
        self.policy: Policy = policy
        self.usual = standard
        self.mean = standard.mean
        self.std = standard.std
        self.whole = ImageTransform(False, 0, standard.mean, standard.std)

    def __call__(self, batch: Batch, draw: Draw | None) -> Batch:
        if draw is None:
            return self.usual(batch, None)
        if draw.shared is not draw or has_dense_target(batch):
            raise ConfigError(f"data.augment: {self.policy} does not transform masks along with images; use standard")
        images = self.usual.move(batch["input"], draw)
        if self.usual.maximum != 255 or images.is_floating_point():  # the policies are for images of 8 bits
            images = (images * (255 / self.usual.maximum)).round().to(torch.uint8)
        return self.whole(batch | {"input": apply_policy(self.policy, images, draw, which=3)}, None)

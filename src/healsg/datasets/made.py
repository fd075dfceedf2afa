"""Synthetic segmentation sets, generated on the fly: shapes in 2D and 3D, vessels, digits. No download, seconds to
train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.data.loader import Transform
from healsg.data.source import About, DatasetSource, TensorSource
from healsg.data.splits import stratified_split
from healsg.datasets.digits import SAMPLES, TEST_SAMPLES, TEST_SEED, read_table
from healsg.datasets.drawn import digits as digits_seg
from healsg.datasets.drawn import shapes, tubes
from healsg.datasets.drawn.shapes import Drawn
from healsg.datasets.segmentation import Segmentation
from healsg.datasets.volumes.files import spacing_of
from healsg.seeding import mix
from healsg.transforms.views import Augment, ImageViews
from healsg.transforms.volume import VolumeTransform
from healsg.transforms.volume_views import VolumeAugment, VolumeViews
from healsg.types import Count, Fraction, Natural, NonNegative

MEAN, STD = 0.15, 0.4
"""About those of all these sets, whose objects are 1 brighter than the rest."""


class Made(Segmentation):
    """Base of the synthetic sets: each case is a pure function of (seed, part, index).

    A subclass has ``size``, the approximate number of pixels of a side, and ``views``, the transforms.

    Args:
        train, val, test: cases of each part; with ``val=0``, ``val_fraction`` applies.
        seed: of the generated data; independent of the run's seed.
        texture, bias, noise: strengths of the texture, the bias field and the noise, relative to the objects' contrast
            of 1.
        common: the arguments of Segmentation.
    """

    axes: ClassVar[int]
    """The spatial axes of a case."""

    size: int
    views: ImageViews | VolumeViews

    def __init__(
        self,
        train: Count = 100,
        val: Natural = 0,
        test: Natural = 50,
        seed: Natural = 0,
        texture: NonNegative = 0.15,
        bias: NonNegative = 0.3,
        noise: NonNegative = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.sizes, self.seed = {"train": train, "val": val, "test": test}, seed
        self.strengths: dict[str, Any] = {"texture": texture, "bias": bias, "noise": noise}

    def draw(self, part: str, seed: int, index: int) -> Drawn:
        """Case ``index`` of a part."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """The classes, the background first."""
        raise NotImplementedError

    def described(self) -> DataInfo:
        names = self.names()
        return DataInfo((1, *[self.size] * self.axes), len(names), class_names=names)

    def transform(self, view: str, split: str) -> Transform:
        return self.views.of(view, split)

    @property
    def has_val(self) -> bool:
        return self.sizes["val"] > 0

    @property
    def has_test(self) -> bool:
        return self.sizes["test"] > 0

    def drawn(self, part: str) -> list[Drawn]:
        """All cases of a part."""
        seed = mix(self.seed, part) >> 1
        return [self.draw(part, seed, index) for index in range(self.sizes.get(part, 0))]

    def read(self, part: str) -> TensorSource | DatasetSource | None:
        drawn = self.drawn(part)
        if not drawn:
            return None
        flat = drawn[0].labels.ndim == 2
        cases = [
            Case(
                f"{part}{index}",
                spacing=(1.0, 1.0) if flat else spacing_of(one.affine),
                shape=tuple(one.labels.shape),
            )
            for index, one in enumerate(drawn)
        ]
        pairs = [(torch.from_numpy(one.image), torch.from_numpy(one.labels)) for one in drawn]
        if flat:
            images, masks = (torch.stack(column) for column in zip(*pairs, strict=True))
            return TensorSource(images, masks, about=About(cases))
        return DatasetSource(pairs, about=About(cases))


class MadeImages(Made):
    """Synthetic images of one size.

    Args:
        size: height and width.
        augment: of training images, by name; see ``ImageViews``.
        flip: flip training images horizontally at random.
        shift: the largest random shift of ``augment=standard``, in pixels.
        common: the arguments of Made.
    """

    axes = 2

    def __init__(
        self,
        size: Count = 64,
        augment: Augment = "standard",
        flip: bool = True,
        shift: Natural = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.size = size
        self.views = ImageViews(augment, flip, shift, (MEAN,), (STD,), size=size, maximum=1.0, padding="reflect")


class Shapes2D(MadeImages):
    """Ellipses and rectangles among rods and small discs of the same brightness; see ``shapes``.

    Args:
        by_form: ellipsoids and boxes are two classes, which differ only in shape; otherwise they are one class.
        common: the arguments of MadeImages.
    """

    def __init__(self, by_form: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.by_form = by_form

    def names(self) -> tuple[str, ...]:
        return shapes.CLASSES if self.by_form else shapes.BODIES

    def draw(self, part: str, seed: int, index: int) -> Drawn:
        return shapes.shapes2d(seed, index, self.size, self.by_form, **self.strengths)


class DigitsSeg(MadeImages):
    """Handwritten digits on textured canvases; those of the test part were written by others. See ``digits_seg``.

    Args:
        by_digit: each digit is a class of its own; otherwise all ink is one class.
        most: digits on a canvas.
        common: the arguments of MadeImages.
    """

    def __init__(self, by_digit: bool = False, most: Count = 3, **common: Any) -> None:
        super().__init__(**common)
        self.by_digit, self.most = by_digit, most

    def names(self) -> tuple[str, ...]:
        return digits_seg.class_names(self.by_digit)

    @cached_property
    def _pictures(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and classes that a part may use: the split of ``data=digits``."""
        table = read_table()
        pictures, classes = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].long()
        train, test = stratified_split(classes, TEST_SAMPLES / SAMPLES, TEST_SEED)
        return {"train": (pictures[train], classes[train]), "test": (pictures[test], classes[test])}

    def draw(self, part: str, seed: int, index: int) -> Drawn:
        pictures, classes = self._pictures["test" if part == "test" else "train"]
        settings = (self.size, self.most, self.by_digit)
        return digits_seg.digits_seg(seed, index, pictures, classes, *settings, **self.strengths)


class MadeVolumes(Made):
    """Synthetic volumes of different sizes, trained on patches.

    Args:
        size: approximate number of voxels along the first two axes.
        patch: see ``Segmentation``.
        foreground: see ``Segmentation``.
        augment: ``standard`` flips training patches, ``nnunet`` also rotates, scales and changes intensities, ``none``
            does nothing.
        flip: flip training patches along each axis at random.
        batch_size: patches per batch, summed over all processes.
        eval_batch_size: volumes per evaluation batch; their sizes differ.
        common: the arguments of Made.
    """

    axes = 3

    def __init__(
        self,
        size: Count = 40,
        patch: Sequence[Count] | None = (32, 32, 16),
        foreground: Fraction = 0.5,
        augment: VolumeAugment = "standard",
        flip: bool = True,
        batch_size: Count = 2,
        eval_batch_size: Count | None = 1,
        **common: Any,
    ) -> None:
        usual: dict[str, Any] = {"patch": patch, "foreground": foreground if patch else 0.0}
        super().__init__(**usual, batch_size=batch_size, eval_batch_size=eval_batch_size, **common)
        self.size = size
        standard = VolumeTransform(flip and augment != "none", 0, (MEAN,), (STD,), maximum=1.0)
        self.views = VolumeViews(augment, standard, self.ignore or 0)


class Shapes3D(MadeVolumes):
    """Ellipsoids and boxes among rods and small balls of the same brightness; see ``shapes``.

    Args:
        by_form: ellipsoids and boxes are two classes, which differ only in shape; otherwise they are one class.
        common: the arguments of MadeVolumes.
    """

    def __init__(self, by_form: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.by_form = by_form

    def names(self) -> tuple[str, ...]:
        return shapes.CLASSES if self.by_form else shapes.BODIES

    def draw(self, part: str, seed: int, index: int) -> Drawn:
        return shapes.shapes3d(seed, index, self.size, self.by_form, **self.strengths)


class Tubes3D(MadeVolumes):
    """Branching thin vessels among bright balls; see ``tubes``.

    Args:
        depth: levels of branching of a vessel.
        thick: the radius of the trunk, in voxels.
        common: the arguments of MadeVolumes.
    """

    def __init__(self, depth: Count = 4, thick: NonNegative = 2.2, **common: Any) -> None:
        super().__init__(**common)
        self.depth, self.thick = depth, thick

    def names(self) -> tuple[str, ...]:
        return tubes.CLASSES

    def draw(self, part: str, seed: int, index: int) -> Drawn:
        return tubes.tubes3d(seed, index, self.size, self.depth, self.thick, **self.strengths)

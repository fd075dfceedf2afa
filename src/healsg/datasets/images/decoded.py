"""Images that are decoded when they are read, from files or memory."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

from torch import Tensor

from healsg.datasets.images.decoding import Decoder, Remark, choose_decoder, decode, unremarked
from healsg.datasets.images.resizing import Window


class DecodedPictures:
    """A map-style data set of pictures: ``(image, target)``, the image decoded by ``decode``. A subclass defines
    ``opened``.

    Args:
        targets: the class index of each, or a tensor of targets.
        size: height and width of the result: the shorter side is resized to it, then the centre is cropped.
        channels: 3 for colour, 1 for grey.
        remark: see ``decode``.
        decoder: see ``choose_decoder``.
    """

    def __init__(
        self, targets: Tensor, size: int, channels: int, remark: Remark = unremarked, decoder: Decoder = "auto"
    ) -> None:
        self.targets = targets
        self.size = size
        self.channels = channels
        self.remark = remark
        self.decoder: Literal["torchvision", "pil"] = choose_decoder(decoder, len(targets))

    def opened(self, index: int) -> str | BytesIO:
        """What ``decode`` reads: the path of a picture's file, or its bytes as a file."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._decoded(index, None), self.targets[index]

    def windowed(self, index: int, window: Window) -> tuple[Tensor, Tensor]:
        """The sample with a part of its image instead of the whole; see ``images/resizing.py``."""
        return self._decoded(index, window), self.targets[index]

    def _decoded(self, index: int, window: Window | None) -> Tensor:
        return decode(self.opened(index), self.size, self.channels, self.remark, self.decoder, window)

"""Segmenter: from the file of a volume or picture to its mask, in the file's own space and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.data.info import DataInfo, differing_classes, differing_inputs
from healsg.data.scratch import Scratch
from healsg.datasets.images.decoding import decode_whole
from healsg.datasets.new_samples.mask_files import Scan
from healsg.datasets.new_samples.prepared import transform_of
from healsg.datasets.segmentation import region_labels
from healsg.datasets.volumes.cases import needs, preparation_of, segmented
from healsg.datasets.volumes.files import Array, Volume, read_geometry, write_volume
from healsg.datasets.volumes.mapped import mapped_image
from healsg.errors import ConfigError, DataError
from healsg.evaluation.predictor import Predictor
from healsg.evaluation.sliding_window import Predict, Windows, ensemble, label_map, memory, slab_axis, slabs
from healsg.models.unet import DenseModel
from healsg.safefiles import replacing

if TYPE_CHECKING:
    from PIL import Image

Look = Callable[[Volume, Array], None]

ROWS = 64
"""Rows of a picture that are brought to its own size at once."""


class Segmenter:
    """Networks with the same classes and inputs as one, for files. Scores are averaged: over windows, mirror images and
    networks, as nnU-Net averages those of its folds.

    Args:
        members: the networks, with the names by which messages call them.
        mirror: whether predictions are averaged over mirror images along all axes.
        batch: windows of one forward pass.

    Raises:
        ConfigError: classes or inputs of the networks differ.
    """

    def __init__(self, members: Sequence[tuple[str, Predictor]], mirror: bool = False, batch: int = 1) -> None:
        name, first = members[0]
        for other, predictor in members[1:]:
            differences = [differing_classes(first.info, predictor.info)]
            differences += differing_inputs(first.info, predictor.info)
            if detail := "; ".join(filter(None, differences)):
                raise ConfigError(f"{other}: cannot be averaged with {name} (there): {detail}")
        self.info: DataInfo = first.info
        self.device = first.device_setup.device
        self.volumes = len(self.info.input_shape) == 4
        self.windows = _windows(first, mirror, batch)
        self.scores: Predict = ensemble([predictor.scores for _, predictor in members])
        written = region_labels(self.info.regions)
        self.regions = [label for _, label in written]
        self.order = torch.tensor([position for position, _ in written], dtype=torch.int64)
        self.colours = None if self.regions else self.info.preprocessing.get("colours")
        """Of the labels, where the training files had colours."""
        self.names = _names(self.info, written)
        """The class of each label that a mask of a picture may have."""

    def predicted(self, batch: Tensor) -> Tensor:
        """(N, K, ...) scores of windows, those of regions in the order in which they are written."""
        output = self.scores(batch)
        return output.index_select(1, self.order.to(output.device)) if self.regions else output

    def needs(self, scan: Scan) -> tuple[int, int]:
        """About the bytes of memory, beside the network's own, and of the disk that ``write`` takes for a volume; none
        for a picture. Raises DataError."""
        if not self.volumes:
            return 0, 0
        preparation = preparation_of(self.info)
        geometry = read_geometry(scan.files[0], preparation.trust)
        return needs(geometry, preparation, self.windows, self.info.num_classes)

    def write(self, scan: Scan, path: Path, look: Look | None = None) -> dict[str, Any]:
        """Predict the mask of a scan and write it, whole or not at all.

        Args:
            scan: the files.
            path: of the mask.
            look: is shown a volume and its mask (X, Y, Z), whose arrays are valid until it returns.

        Returns:
            ``shape``, ``spacing`` in mm of a volume, ``labels``, the number of voxels or pixels of each label that is
            predicted, and ``memory``, the bytes that averaging took.

        Raises:
            DataError: the scan cannot be read, or does not fit the network.
            OSError: the mask cannot be written.
        """
        return self._volume(scan, path, look) if self.volumes else self._picture(scan, path)

    def _fits(self, path: Path, channels: int) -> None:
        if channels != self.info.input_shape[0]:
            raise DataError(f"{path}: has {channels} channels; the network takes {self.info.input_shape[0]}")

    def _volume(self, scan: Scan, path: Path, look: Look | None) -> dict[str, Any]:
        preparation = preparation_of(self.info)
        scaled = transform_of(self.info)

        def predict(batch: Tensor) -> Tensor:
            return self.predicted(batch if scaled is None else scaled({"input": batch}, None)["input"])

        with Scratch(path.parent) as scratch:
            image = mapped_image(scan.files, scratch.empty, preparation.trust)
            self._fits(scan.files[0], len(image.array))
            made = segmented(predict, image, preparation, self.windows, self.device, self.regions, scratch.empty)
            write_volume(path, made, image)
            if look is not None:
                look(image, made[0])
            return _facts(made[0], self._memory(image.geometry.shape)) | {"spacing": _rounded(image)}

    def _picture(self, scan: Scan, path: Path) -> dict[str, Any]:
        try:
            stored, sides = self.decoded(str(scan.files[0]))
        except Exception as error:  # a damaged file makes decoders raise almost anything
            raise DataError(f"{scan.files[0]}: cannot be read as a picture ({error})") from error
        made = self.labelled(stored, sides)
        write_mask_picture(path, made, self.colours)
        return _facts(made, self._memory(stored.shape[1:]))

    def decoded(self, picture: str | BytesIO) -> tuple[Tensor, tuple[int, int]]:
        """A picture as it is stored for the network, (C, H, W), and its own (height, width).

        A broken file makes the decoder raise almost anything.
        """
        return decode_whole(picture, self.info.preprocessing.get("size"), self.info.input_shape[0])

    def labelled(self, stored: Tensor, sides: tuple[int, int]) -> Array:
        """(H, W) int32 of the picture's own size: the label of each pixel, as the training files have them.

        Args:
            stored, sides: what ``decoded`` gave.
        """
        scaled = transform_of(self.info)
        full = float(self.info.preprocessing.get("maximum", 255.0))
        input = stored if full == 255 else stored.float() * (full / 255)
        if scaled is not None:
            input = scaled({"input": input[None]}, None)["input"][0]
        made = self._labels_of_picture(input, sides)
        labels = self.info.preprocessing.get("labels")
        return np.asarray(labels, dtype=np.int32)[made] if labels and not self.regions else made

    def _labels_of_picture(self, input: Tensor, sides: tuple[int, int]) -> Array:
        """(H, W) of the picture's own size: scores interpolated, then compared, some rows at a time."""
        axis = slab_axis(input.shape[1:])
        parts = [part.cpu() for _, part in slabs(self.predicted, input, self.windows, self.device, axis)]
        scores = torch.cat(parts, dim=axis + 1)
        if tuple(scores.shape[1:]) == sides:
            return label_map(scores, self.regions).numpy().astype(np.int32)
        made = np.zeros(sides, dtype=np.int32)
        depth = scores.shape[1]
        for first in range(0, sides[0], ROWS):
            position = (torch.arange(first, min(first + ROWS, sides[0]), dtype=torch.float64) + 0.5) * depth / sides[0]
            position = (position - 0.5).clamp(0, depth - 1)
            low = position.floor().long()
            high = (low + 1).clamp(max=depth - 1)
            share = (position - low).float().view(1, -1, 1)
            rows = scores[:, low] * (1 - share) + scores[:, high] * share
            wide = F.interpolate(rows, sides[1], mode="linear", align_corners=False)
            made[first : first + len(low)] = label_map(wide, self.regions).numpy()
        return made

    def _memory(self, sides: Sequence[int]) -> int:
        return memory(sides, self.windows, self.info.num_classes)


def _names(info: DataInfo, regions: Sequence[tuple[int, int]]) -> dict[int, str]:
    names = info.class_names or tuple(map(str, range(info.num_classes)))
    if regions:
        return {0: "background"} | {label: names[position] for position, label in regions}
    return dict(zip(info.preprocessing.get("labels") or range(len(names)), names, strict=False))


def _windows(predictor: Predictor, mirror: bool, batch: int) -> Windows:
    """Windows of a training sample's size, as the model has them in evaluation."""
    model, size = predictor.task_model, tuple(predictor.info.input_shape[1:])
    axes = tuple(range(len(size))) if mirror else ()
    if not isinstance(model, DenseModel):
        return Windows(size, batch=batch, mirror=axes)
    own = () if model.mirror else axes  # which ``predict`` mirrors by itself
    return Windows(size, model.windows, model.overlap, batch=batch, mirror=own)


def write_mask_picture(path: Path, labels: Array, colours: Sequence[Sequence[int]] | None = None) -> None:
    """Labels (H, W) as a PNG or TIFF file, whole or not at all: grey of 8 bits, or of 16 where they need these; or the
    colours of the labels."""
    kind = "TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG"
    with replacing(path) as file:
        mask_picture(labels, colours).save(file, format=kind)


def mask_picture(labels: Array, colours: Sequence[Sequence[int]] | None = None) -> Image.Image:
    """Labels (H, W) as ``write_mask_picture`` writes them."""
    from PIL import Image

    wide = labels.max(initial=0) > np.iinfo(np.uint8).max
    values = labels if colours is None else np.asarray(colours)[labels]
    return Image.fromarray(values.astype(np.uint16 if wide and colours is None else np.uint8))


def _facts(mask: Array, taken: int) -> dict[str, Any]:
    counted: Counter[int] = Counter()
    for row in mask:  # the whole of it would be sorted in memory
        found, counts = np.unique(row, return_counts=True)
        counted.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    labels = {str(label): counted[label] for label in sorted(counted)}
    return {"shape": list(mask.shape), "labels": labels, "memory": taken}


def _rounded(image: Volume) -> list[float]:
    return [round(side, 6) for side in image.geometry.spacing]

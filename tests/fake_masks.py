"""Invented pictures with masks in the published forms of VOC, Cityscapes and COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDES = (24, 30)


def picture(number: int, inside: Any) -> Image.Image:
    """Noise of SIDES, brighter where ``inside``."""
    values = np.random.default_rng(number).integers(0, 60, (*SIDES, 3)) + 120 * np.asarray(inside)[..., None]
    return Image.fromarray(values.astype(np.uint8))


def box(number: int) -> tuple[int, int, int, int]:
    """Row, column, height, width."""
    row, column = np.random.default_rng(number).integers(2, 9, 2).tolist()
    return row, column, 10, 12


def boxed(number: int, label: int, outside: int = 0, border: int | None = None) -> Any:
    """A mask of SIDES with one box, whose border of a pixel has a label of its own."""
    row, column, height, width = box(number)
    mask = np.full(SIDES, outside, np.uint8)
    if border is not None:
        mask[row - 1 : row + height + 1, column - 1 : column + width + 1] = border
    mask[row : row + height, column : column + width] = label
    return mask


def write_voc(folder: Path, cases: int = 8) -> Path:
    """``VOC2012/`` with palettes, borders of 255 and lists, the last two cases in ``val``."""
    place = folder / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (place / name).mkdir(parents=True, exist_ok=True)
    names = [f"2007_{number:06}" for number in range(cases)]
    for number, name in enumerate(names):
        mask = boxed(number, 1 + number % 20, border=255)
        picture(number, (mask > 0) & (mask < 255)).save(place / "JPEGImages" / f"{name}.jpg")
        shown = Image.fromarray(mask).convert("P")
        shown.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        shown.putdata(mask.ravel().tolist())
        shown.save(place / "SegmentationClass" / f"{name}.png")
    for part, own in (("train", names[:-2]), ("val", names[-2:])):
        (place / "ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(own) + "\n")
    return folder


def write_cityscapes(folder: Path, cases: int = 6) -> Path:
    """``leftImg8bit/`` and ``gtFine/`` of two cities and one for ``val``, with labels that are no classes."""
    for part, cities in (("train", ("aachen", "bremen")), ("val", ("ulm",))):
        for city in cities:
            for number in range(cases if part == "train" else 2):
                mask = boxed(number, 26, outside=7, border=4)
                name = f"{city}_{number:06}_000019"
                for kind, shown, end in (
                    ("leftImg8bit", picture(number, mask == 26), "leftImg8bit"),
                    ("gtFine", Image.fromarray(mask), "gtFine_labelIds"),
                ):
                    place = folder / kind / part / city
                    place.mkdir(parents=True, exist_ok=True)
                    shown.save(place / f"{name}_{end}.png")
    return folder


def write_coco_seg(folder: Path, cases: int = 6) -> Path:
    """``annotations/`` and pictures of two parts: a polygon of category 3, and run lengths of 18 with a hole."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    for part, count in (("train2017", cases), ("val2017", 2)):
        (folder / part).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            row, column, height, width = box(number)
            picture(number, boxed(number, 1)).save(folder / part / f"{number:012}.jpg")
            images.append({"id": number, "file_name": f"{number:012}.jpg", "height": SIDES[0], "width": SIDES[1]})
            right, low = column + width, row + height
            outline = [column, row, right, row, right, low, column, low]
            large = {"id": 2 * number, "category_id": 3, "iscrowd": 0, "area": height * width}
            annotations.append({**large, "image_id": number, "segmentation": [outline]})
            ring = np.zeros(SIDES, np.uint8)
            ring[row + 2 : row + 7, column + 2 : column + 7] = 1
            ring[row + 4, column + 4] = 0
            small = {"id": 2 * number + 1, "category_id": 18, "iscrowd": number % 2, "area": 24}
            runs = {"size": list(SIDES), "counts": runs_of(ring)}
            annotations.append({**small, "image_id": number, "segmentation": runs})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def runs_of(mask: Any) -> list[int]:
    """The run lengths of a mask, column by column, outside first."""
    flat = np.concatenate([[0], np.asarray(mask).T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], ends])).tolist()

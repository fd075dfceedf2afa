"""A folder of pictures as people have them, to try HEALSg as a new user would.

    python -m benchmarks.messy_folder DIR     (needs scikit-image)

Five classes, one of them empty, of crops of scikit-image's pictures, which differ in place, size and brightness.
Among them: RGBA and palette PNG, 8- and 16-bit grey, JPEG turned by EXIF, names in other alphabets and with spaces, the
same picture in two classes, a truncated JPEG, an empty file, a text file named .png, ``.DS_Store`` and ``Thumbs.db``.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {"Katze 猫": "chelsea.png", "café": "coffee.png", "fusée": "rocket.jpg", "Mensch": "astronaut.png"}
"""The folders, and the pictures of scikit-image that are cut up."""

EACH = 90
"""Pictures of a class."""

TURNED = 6
"""The EXIF orientation of a camera held upright."""


def crops(picture: np.ndarray[Any, Any], count: int, draw: np.random.Generator) -> list[Image.Image]:
    """Windows of unlike places and sizes, of unlike brightness, half of them mirrored."""
    found = []
    height, width = picture.shape[:2]
    for _ in range(count):
        side = int(draw.integers(min(height, width) // 3, min(height, width) * 3 // 4))
        top, left = draw.integers(0, height - side), draw.integers(0, width - side)
        window = picture[top : top + side, left : left + side, :3].astype(float) * draw.uniform(0.5, 1.3)
        window += draw.normal(0, 12, window.shape)
        levels = np.clip(window, 0, 255).astype(np.uint8)
        found.append(Image.fromarray(levels[:, ::-1].copy() if draw.random() < 0.5 else levels))
    return found


def save(picture: Image.Image, path: Path, kind: int) -> None:
    """Write a picture as one of ten kinds of file; most are JPEGs."""
    if kind == 1:
        picture.putalpha(Image.new("L", picture.size, 255))
        picture.save(path.with_suffix(".png"))
    elif kind == 2:
        picture.convert("L").save(path.with_suffix(".png"))
    elif kind == 3:
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(path.with_suffix(".tif"))
    elif kind == 4:
        exif = Image.Exif()
        exif[0x0112] = TURNED
        picture.rotate(90, expand=True).save(path.with_suffix(".JPG"), format="JPEG", exif=exif)
    elif kind == 5:
        picture.quantize(64).save(path.with_suffix(".png"))
    else:
        picture.save(path.with_suffix(".jpg"), quality=88)


def write(folder: Path, each: int = EACH, seed: int = 0) -> None:
    """Write the folder; what was there is removed."""
    pictures = Path(find_spec("skimage").submodule_search_locations[0], "data")
    shutil.rmtree(folder, ignore_errors=True)
    draw = np.random.default_rng(seed)
    for name, source in CLASSES.items():
        place = folder / name
        place.mkdir(parents=True)
        for number, picture in enumerate(crops(np.asarray(Image.open(pictures / source)), each, draw)):
            stem = f"照片 {number:03}" if number % 7 == 0 else f"IMG_{number:04}"
            save(picture, place / stem, number % 10)
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "leer").mkdir()
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    cat, coffee = folder / "Katze 猫", folder / "café"
    whole = (cat / "IMG_0006.jpg").read_bytes()
    (cat / "IMG_0900.jpg").write_bytes(whole[: len(whole) // 2])
    (cat / "IMG_0901.jpg").touch()
    (coffee / "notes.png").write_text("milk, sugar\n")
    (coffee / "copy of the cat.jpg").write_bytes(whole)
    (coffee / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

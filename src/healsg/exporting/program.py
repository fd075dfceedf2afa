"""Predicts new samples with the network next to this file, as CSV on standard output.

    python predict.py PATH [PATH ...] > predictions.csv

PATH is a picture, a folder of pictures, a table (.csv) or an array (.npy, .npz). numpy, pillow and onnxruntime are
needed. The exit status is 3 where a sample could not be read; the reason is on standard error.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
FOLDER = Path(__file__).resolve().parent
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
MISSING = ("", "na", "n/a", "nan", "-nan", "<na>", "#n/a", "null", "?", "none")
ORIENTATION = 0x0112


def network() -> Callable[[Array], Array]:
    """The network, from stored samples (N, ...) float32 to probabilities; normalisation and softmax are included."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"input": batch})[0]


def predictions(paths: Sequence[str], size: int = 64) -> Iterator[tuple[str, Array | str]]:
    """Each sample's name, and its predictions or the reason why it cannot be read; ``size`` samples per batch."""
    about, predict = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8")), network()
    waiting = (sample for path in paths for sample in samples(Path(path), about))
    while block := list(islice(waiting, size)):
        made: list[Array | str] = []
        for _, read in block:
            try:
                made.append(read())
            except Exception as error:  # a damaged picture makes decoders raise almost anything
                made.append(f"{type(error).__name__}: {error}")
        readable = [one for one in made if not isinstance(one, str)]
        found = iter(predict(np.stack(readable)) if readable else ())
        for (name, _), one in zip(block, made, strict=True):
            yield name, one if isinstance(one, str) else next(found)


def samples(path: Path, about: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Array]]]:
    """The name of each sample of a path, and a function that reads it."""
    kind = path.suffix.lower()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                yield str(file), partial(picture, file, about["shape"])
    elif kind in (".npy", ".npz"):
        held = np.load(path)
        for row, values in enumerate(held if kind == ".npy" else held[held.files[0]], 1):
            yield f"{path}:{row}", partial(np.asarray, values, np.float32)
    elif kind == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as table:
            for row, cells in enumerate(csv.DictReader(table), 1):
                yield f"{path}:{row}", partial(numbers_of, [cells[name] for name in about["columns"]])
    else:
        yield str(path), partial(picture, path, about["shape"])


def numbers_of(cells: Sequence[str]) -> Array:
    return np.array([number(text) for text in cells], np.float32)


def number(text: str) -> float:
    """The number in a cell of a table; nan if it is missing, which the network replaces by the mean of the column."""
    text = text.strip().lower()
    if text in ("true", "false"):
        return float(text == "true")
    return math.nan if text in MISSING else float(text)


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(path: Path, shape: Sequence[int]) -> Array:
    """An image as (channels, size, size) in 0..255: upright, on white, its shorter side resized, its centre cropped."""
    channels, size, _ = shape
    pixels, bytewise = pixels_of(path, channels)
    shorter = min(pixels.shape[:2])
    height, width = (size * side // shorter for side in pixels.shape[:2])
    pixels = shrunk(pixels, height, width, bytewise)
    top, left = round((height - size) / 2), round((width - size) / 2)
    cut = pixels[top : top + size, left : left + size].reshape(size, size, -1).transpose(2, 0, 1)
    return np.broadcast_to(cut, (channels, size, size)).astype(np.float32)


def pixels_of(path: Path, channels: int) -> tuple[Array, bool]:
    """An image (H, W) or (H, W, C) in 0..255, upright, on white, and whether it has 8 bits per channel."""
    with Image.open(path, formats=FORMATS) as opened:
        full = full_intensity(opened)
        fields: Any = getattr(opened, "tag_v2", {})
        turned = opened.format == "TIFF" and fields.get(ORIENTATION, 1) != 1  # which Pillow does by itself
        opened.load()
        if full is None:
            pixels = np.asarray(plain(opened, "RGB" if channels == 3 else "L"))
        else:
            pixels = np.asarray(opened).astype(np.float32) * np.float32(255 / full)
        return upright(pixels, 1 if turned else stored_orientation(opened)), full is None


def shrunk(pixels: Array, height: int, width: int, bytewise: bool) -> Array:
    """An image resized."""
    if bytewise:
        return along_rows(along_rows(pixels.swapaxes(0, 1), width).swapaxes(0, 1), height)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def full_intensity(opened: Any) -> float | None:
    """The largest value of a grey image of 9 to 16 bits; None for an image of at most 8 bits per channel."""
    kind, mode = opened.format, opened.mode
    bits: Any = 16 if ";16" in str(opened.tile) or (kind == "PPM" and mode == "I") else 8
    if kind == "TIFF":
        if getattr(opened, "n_frames", 1) > 1:
            raise ValueError("several pages in one file")
        bits = opened.tag_v2.get(258, 8)
        bits = max(bits) if isinstance(bits, tuple) else bits
    if bits <= 8 and not mode.startswith(("I", "F")):
        return None
    if bits > 16 or not (mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))):
        raise ValueError(f"{bits} bits a channel in mode {mode}: convert it to 8 bits, or to 16-bit grey")
    return float(2**bits - 1)


def plain(opened: Image.Image, mode: str) -> Image.Image:
    """An image of 8 bits per channel in a mode, composited on white if it is transparent."""
    if "transparency" in opened.info or opened.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        shown = opened.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown).convert(mode)
    return opened if opened.mode == mode else opened.convert(mode)


def stored_orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it is damaged."""
    try:
        return int(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # only the metadata are damaged, the pixels can be read
        return 1


def upright(pixels: Array, orientation: int) -> Array:
    """(H, W) or (H, W, C) rotated and flipped according to an EXIF orientation."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels


def along_rows(pixels: Array, size: int) -> Array:
    """Bytes (N, ...) resized to (size, ...) with a triangle filter of twice the scale's width, in integer
    arithmetic."""
    count = len(pixels)
    if count == size:
        return pixels
    scale = count / size
    distance = abs(np.arange(count) + 0.5 - scale * (np.arange(size)[:, None] + 0.5))
    weights = np.maximum(0.0, 1 - distance / max(scale, 1.0))
    weights /= weights.sum(axis=1, keepdims=True)
    bits = next(bits for bits in range(22) if int(0.5 + weights.max() * 2 ** (bits + 1)) >= 2**15)
    whole = np.trunc(weights * 2**bits + 0.5).astype(np.int32)
    first = (whole > 0).argmax(axis=1)
    summed = np.full((size, *pixels.shape[1:]), 2 ** (bits - 1), np.int32)
    for offset in range(int((whole > 0).sum(axis=1).max()) + 1):
        at = np.minimum(first + offset, count - 1)
        weight = np.where(first + offset < count, whole[np.arange(size), at], 0).astype(np.int32)
        summed += weight.reshape(-1, *[1] * (pixels.ndim - 1)) * pixels[at].astype(np.int32)
    return (summed >> bits).clip(0, 255).astype(np.uint8)


# --- the command ------------------------------------------------------------------------------------------------------


def main(paths: Sequence[str]) -> int:
    if not paths or paths[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if paths else 2
    about = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
    names, status = about["classes"], 0
    own = [] if about["kind"] == "regression" else ["class", "probability"]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", *own, *(f"p_{name}" if own else name for name in names)])
    for name, numbers in predictions(paths):
        if isinstance(numbers, str):
            print(f"{name}: {numbers}", file=sys.stderr)
            status = 3
            continue
        chosen = [names[numbers.argmax()]] if about["kind"] == "multiclass" else []
        if about["kind"] == "multilabel":
            chosen = ["|".join(label for label, value in zip(names, numbers, strict=True) if value > 0.5)]
        best = [*chosen, f"{numbers.max():.9g}"] if own else []
        table.writerow([name, *best, *(f"{value:.9g}" for value in numbers.reshape(-1))])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

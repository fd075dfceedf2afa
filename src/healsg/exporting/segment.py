"""Writes the masks of new pictures with the network next to this file, each in its picture's own size.

    python segment.py PATH [PATH ...] --out DIR

PATH is a picture, a folder of pictures, or an array of samples (.npy, .npz). numpy, pillow and onnxruntime are needed.
The exit status is 3 where a picture could not be read; the reason is on standard error.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))  # where python -I does not look

import predict  # type: ignore[import-not-found]  # noqa: E402 - the program beside this one

Array = np.ndarray[Any, Any]
SIGMA = 0.125


def masks(paths: Sequence[str]) -> Iterator[tuple[str, Array | str]]:
    """Each image's name, and its mask (H, W), or (H, W, 3) if classes are colours; or the reason why it cannot be
    read."""
    about = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
    network = predict.network()
    for name, read in (one for path in paths for one in samples(Path(path), about)):
        try:
            values, sides = read()
        except Exception as error:  # a damaged picture makes decoders raise almost anything
            yield name, f"{type(error).__name__}: {error}"
            continue
        yield name, labelled(resized(averaged(values, about, network), sides), about)


def samples(path: Path, about: dict[str, Any]) -> Iterator[tuple[str, Callable[[], tuple[Array, Sequence[int]]]]]:
    """The name of each sample of a path, and a function that returns its numbers (C, H, W) and the size of its mask."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in predict.SUFFIXES and not file.name.startswith("."):
                yield str(file), lambda file=file: read_image(file, about)  # type: ignore[misc]
    elif path.suffix.lower() in (".npy", ".npz"):
        held = np.load(path)
        for row, values in enumerate(held if path.suffix.lower() == ".npy" else held[held.files[0]], 1):
            yield f"{path}:{row}", lambda values=values: (values.astype(np.float32), values.shape[1:])  # type: ignore[misc]
    else:
        yield str(path), lambda: read_image(path, about)


def read_image(path: Path, about: dict[str, Any]) -> tuple[Array, Sequence[int]]:
    """An image (channels, H, W) in 0..255, upright, its shorter side resized; and the original height and width."""
    channels, size = about["shape"][0], about["preprocessing"].get("size")
    pixels, bytewise = predict.pixels_of(path, channels)
    sides = pixels.shape[:2]
    if size is not None:
        height, width = (size * side // min(sides) for side in sides)
        pixels = predict.shrunk(pixels, height, width, bytewise)
    cut = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    return np.broadcast_to(cut, (channels, *cut.shape[1:])).astype(np.float32), sides


# --- overlapping windows ----------------------------------------------------------------------------------------------


def averaged(values: Array, about: dict[str, Any], network: Callable[[Array], Array]) -> Array:
    """The scores (K, ...) of an image or volume by a sliding window, averaged with weights that decrease towards the
    edges."""
    windows, size = about["windows"], about["shape"][1:]
    how = about["preprocessing"]
    nothing = np.asarray(how.get("mean", [0.0]), np.float32) * np.float32(how.get("maximum", 255.0))
    padded = [max(side, window) for side, window in zip(values.shape[1:], size, strict=True)]
    before = [(wide - side) // 2 for wide, side in zip(padded, values.shape[1:], strict=True)]
    inside = tuple(slice(pad, pad + side) for pad, side in zip(before, values.shape[1:], strict=True))
    inputs = np.empty((len(values), *padded), np.float32)
    inputs[...] = nothing.reshape(-1, *[1] * len(size))  # what becomes 0 once it is normalised
    inputs[(slice(None), *inside)] = values
    weight = weights(size, windows["rule"])
    weight_sums = np.zeros(padded, np.float32)
    total: Array | None = None
    along = [starts(side, window, **windows) for side, window in zip(padded, size, strict=True)]
    for corner in itertools.product(*along):
        box = tuple(slice(first, first + window) for first, window in zip(corner, size, strict=True))
        scores = network(np.ascontiguousarray(inputs[(slice(None), *box)])[None])[0]
        total = np.zeros((len(scores), *padded), np.float32) if total is None else total
        total[(slice(None), *box)] += scores * weight
        weight_sums[box] += weight
    assert total is not None
    result: Array = (total / weight_sums)[(slice(None), *inside)]
    return result


def starts(side: int, window: int, rule: str, overlap: float) -> list[int]:
    """The first pixel of each window along one axis."""
    if side == window:
        return [0]
    if rule == "monai":
        step = max(1, int(window * (1 - overlap)))
        return [min(number * step, side - window) for number in range(math.ceil((side - window) / step) + 1)]
    number = math.ceil((side - window) / (window * (1 - overlap))) + 1
    return [round((side - window) / (number - 1) * index) for index in range(number)]


def weights(size: Sequence[int], rule: str) -> Array:
    """The weights of a window's pixels."""
    product = np.ones((), np.float32)
    for side in size:
        centre = (side - 1) / 2 if rule == "monai" else side // 2
        along = np.exp(-0.5 * ((np.arange(side, dtype=np.float32) - centre) / (SIGMA * side)) ** 2)
        product = product[..., None] * along.astype(np.float32)
    return product.clip(max(float(product.min()), 1e-3)) if rule == "monai" else product


def resized(scores: Array, sides: Sequence[int]) -> Array:
    """Scores (K, h, w) resized linearly along each axis."""
    for axis, size in enumerate(sides, start=1):
        if scores.shape[axis] != size:
            position = ((np.arange(size) + 0.5) * scores.shape[axis] / size - 0.5).clip(0, scores.shape[axis] - 1)
            low = np.floor(position).astype(int)
            high = (low + 1).clip(max=scores.shape[axis] - 1)
            share = (position - low).astype(np.float32).reshape([-1 if at == axis else 1 for at in range(3)])
            scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


def labelled(scores: Array, about: dict[str, Any]) -> Array:
    """The label of the largest score of each pixel, with the labels of the training files; or its colour."""
    how = about["preprocessing"]
    if about["written"]:  # overlapping regions, smaller ones over larger ones
        regions = np.zeros(scores.shape[1:], np.int32)
        for index, label in about["written"]:
            regions[scores[index] > 0] = label
        return regions
    found: Array = scores.argmax(axis=0).astype(np.int32)
    for table, kind in (("labels", np.int32), ("colours", np.uint8)):
        if how.get(table):
            found = np.asarray(how[table], kind)[found]
    return found


# --- the command ------------------------------------------------------------------------------------------------------


def file_of(name: str, number: int) -> str:
    """The file of the mask of a sample."""
    return f"{Path(name).stem}.png" if ":" not in Path(name).name else f"{number}.png"


def refused(names: Sequence[str], out: Path) -> str:
    """The path of a mask that would overwrite an image or another mask; empty if there is none."""
    own, taken = {Path(name).resolve() for name in names}, dict[Path, str]()
    for number, name in enumerate(names, 1):
        target = (out / file_of(name, number)).resolve()
        if target in own:
            return f"{target}: a mask would take the place of this picture; give another --out"
        if target in taken:
            return (
                f"{name}: its mask would have the name of that of {taken[target]}; write them to folders of their own"
            )
        taken[target] = name
    return ""


def main(arguments: Sequence[str]) -> int:
    if "--out" not in arguments[:-1] or arguments[0] == "--out":
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    index, status = list(arguments).index("--out"), 0
    out, paths = Path(arguments[index + 1]), [*arguments[:index], *arguments[index + 2 :]]
    about = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
    names = [name for path in paths for name, _ in samples(Path(path), about)]
    if problem := refused(names, out):
        print(problem, file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, mask) in enumerate(masks(paths), 1):
        if isinstance(mask, str):
            print(f"{name}: {mask}", file=sys.stderr)
            status = 3
            continue
        path = out / file_of(name, number)
        Image.fromarray(mask.astype(np.uint16 if mask.max(initial=0) > 255 else np.uint8)).save(path)
        print(path)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Writes the masks of new volumes with the network next to this file, each in its file's own space.

    python volumes.py PATH [PATH ...] --out DIR

PATH is a NIfTI file (.nii, .nii.gz) or a folder of such. numpy, nibabel, pillow and onnxruntime are needed, and memory
for some copies of a volume. The exit status is 3 where a file could not be read; the reason is on standard error.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
KINDS = (".nii", ".nii.gz")
AGREEING = 0.01
"""The largest distance, in voxels at the farthest corner, between an sform and a qform that are considered equal."""

Array = np.ndarray[Any, Any]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Scan:
    """A file's numbers (C, X, Y, Z) after scaling, its affine, and its header."""

    values: Array
    affine: Array
    header: Any


def masks(paths: Sequence[str]) -> Iterator[tuple[str, Array | str]]:
    """Each file's name, and its mask (X, Y, Z) or the reason why it cannot be read."""
    for path, _, mask in predictions(paths):
        yield str(path), mask


def predictions(paths: Sequence[str]) -> Iterator[tuple[Path, Scan | None, Array | str]]:
    """Each file, its scan, and its mask or the reason why it cannot be read."""
    sys.path.insert(0, str(FOLDER))  # where python -I does not look
    import predict  # type: ignore[import-not-found]  # the programs beside this one
    import segment  # type: ignore[import-not-found]

    about = json.loads((FOLDER / "classes.json").read_text(encoding="utf-8"))
    network = predict.network()
    for path in (file for one in paths for file in files(Path(one))):
        try:
            scan = read(path, about)
        except Exception as error:  # a damaged file makes readers raise almost anything
            yield path, None, f"{type(error).__name__}: {error}"
            continue
        yield (
            path,
            scan,
            mask_of(scan, about, lambda values: segment.averaged(values, about, network), segment.labelled),
        )


def files(path: Path) -> list[Path]:
    """The volumes of a path."""
    if not path.is_dir():
        return [path]
    return sorted(one for one in path.rglob("*") if one.name.lower().endswith(KINDS) and not one.name.startswith("."))


def mask_of(
    scan: Scan, about: dict[str, Any], scores_of: Callable[[Array], Array], labels_of: Callable[[Array, Any], Array]
) -> Array:
    """The labels (X, Y, Z) of a scan in its file's own space.

    Args:
        scan: of the file.
        about: the description of the network's inputs.
        scores_of: from an input (C, ...) in the common space to scores (K, ...).
        labels_of: from scores to labels.
    """
    how = about["preprocessing"]
    order, flips = turn(scan.affine) if how["orient"] else ((0, 1, 2), (1, 1, 1))
    shown = turned(scan.values, order, flips)
    box = inside(shown, how.get("crop"))
    cut = shown[(slice(None), *box)]
    spacing = np.sqrt((scan.affine[:3, :3] ** 2).sum(axis=0))[list(order)]
    aim = [new or own for new, own in zip(how.get("spacing") or (0, 0, 0), spacing, strict=True)]
    sides = cut.shape[1:]
    wanted = [max(1, round(side * own / new)) for side, own, new in zip(sides, spacing, aim, strict=True)]
    scores = scores_of(scaled(resampled(cut.astype(np.float32), wanted), how))
    if tuple(wanted) != sides:  # kept as halves, as healsg does
        scores = resampled(scores.astype(np.float16).astype(np.float32), sides)
    mask = np.empty(scan.values.shape[1:], np.int32)
    mask[...] = 0 if about["written"] else (how.get("labels") or [0])[0]
    turned(mask[None], order, flips)[0][box] = labels_of(scores, about)
    return mask


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, about: dict[str, Any]) -> Scan:
    """A volume. Raises ValueError if it does not fit the network, or its affine is ambiguous."""
    import nibabel

    if not path.name.lower().endswith(KINDS):
        raise ValueError(f"no NIfTI file ({', '.join(KINDS)})")
    image: Any = nibabel.load(path)
    stored = np.asanyarray(image.dataobj)
    shape = stored.shape[:3] + (stored.shape[4:] if stored.ndim == 5 and stored.shape[3] == 1 else stored.shape[3:])
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or channels != about["shape"][0]:
        raise ValueError(f"a volume of {stored.shape}; the network takes {about['shape'][0]} channels")
    values = np.moveaxis(stored.reshape(*shape[:3], channels), -1, 0)
    if not np.isfinite(values).all():
        raise ValueError("some of its numbers are NaN or infinite; replace them")
    return Scan(values, affine_of(image.header, shape[:3], about["preprocessing"].get("trust")), image.header)


def affine_of(header: Any, shape: Sequence[int], trust: str | None) -> Array:
    """The affine to use. Raises ValueError if sform and qform disagree and neither is trusted."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None or qform is None:
        return np.asarray(header.get_best_affine())
    corners = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)])
    corners[:, :3] *= np.asarray(shape) - 1
    apart = np.sqrt((((sform - qform) @ corners.T)[:3] ** 2).sum(axis=0)).max()
    if trust is None and not apart / np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).min() <= AGREEING:
        raise ValueError("its sform and its qform place it differently; mend the header")
    return np.asarray(qform if trust == "qform" else sform, np.float64)


# --- the common space, and back ---------------------------------------------------------------------------------------


def turn(affine: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The voxel axis for each axis of RAS, as nearly as possible for an oblique volume, and its step, 1 or -1."""
    directions = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    order = [0, 0, 0]
    left = [0, 1, 2]
    taken = set()
    for world, axis in sorted(np.ndindex(3, 3), key=lambda position: -abs(directions[position])):
        if world not in taken and axis in left:
            order[world] = axis
            taken.add(world)
            left.remove(axis)
    return tuple(order), tuple(-1 if directions[world, axis] < 0 else 1 for world, axis in enumerate(order))


def turned(values: Array, order: Sequence[int], steps: Sequence[int]) -> Array:
    """(C, X, Y, Z) reoriented: a view."""
    moved = values.transpose(0, *(axis + 1 for axis in order))
    return moved[(slice(None), *(slice(None, None, step) for step in steps))]


def inside(values: Array, above: float | None) -> Box:
    """The bounding box of all voxels above an intensity in any channel; everything if there are none."""
    found = None if above is None else np.argwhere((values > above).any(axis=0))
    if found is None or not len(found):
        return tuple(slice(0, side) for side in values.shape[1:])
    return tuple(slice(int(low), int(high) + 1) for low, high in zip(found.min(axis=0), found.max(axis=0), strict=True))


def resampled(values: Array, sides: Sequence[int]) -> Array:
    """(C, ...) float32 resampled linearly along each axis, between the centres of voxels."""
    for axis, size in enumerate(sides, start=1):
        count = values.shape[axis]
        if count == size:
            continue
        position = (
            np.float32(count / size) * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
        ).clip(0)
        low = np.floor(position).astype(int).clip(max=count - 1)
        share = (position - low).astype(np.float32).reshape([-1 if at == axis else 1 for at in range(values.ndim)])
        high = (low + 1).clip(max=count - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def scaled(values: Array, how: dict[str, Any]) -> Array:
    """Float32 intensities, normalised as in training."""
    if how["intensity"] == "window":
        low, high = how["window"]
        return (np.clip(values, low, high).astype(np.float32) - np.float32(low)) / np.float32(high - low)
    if how["intensity"] == "zscore":
        result = np.empty(values.shape, np.float32)
        for channel, given in enumerate(values):
            wide = given.astype(np.float64)
            result[channel] = (given - np.float32(wide.mean())) / np.float32(max(wide.std(), 1e-8))
        return result
    return values


# --- the command ------------------------------------------------------------------------------------------------------


def write(path: Path, mask: Array, scan: Scan) -> None:
    """A mask with the affine and the header of its volume."""
    import nibabel

    stored = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.int32)
    image: Any = nibabel.Nifti1Image(stored, scan.affine, scan.header.copy(), dtype=stored.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def refused(volumes: Sequence[Path], out: Path) -> str:
    """The path of a mask that would overwrite a volume or another mask; empty if there is none."""
    own, taken = {path.resolve() for path in volumes}, dict[Path, Path]()
    for path in volumes:
        target = (out / path.name).resolve()
        if target in own:
            return f"{target}: a mask would take the place of this volume; give another --out"
        if target in taken:
            return (
                f"{path}: its mask would have the name of that of {taken[target]}; write them to folders of their own"
            )
        taken[target] = path
    return ""


def main(arguments: Sequence[str]) -> int:
    if "--out" not in arguments[:-1] or arguments[0] == "--out":
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    index, status = list(arguments).index("--out"), 0
    out, paths = Path(arguments[index + 1]), [*arguments[:index], *arguments[index + 2 :]]
    if problem := refused([file for one in paths for file in files(Path(one))], out):
        print(problem, file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for path, scan, mask in predictions(paths):
        if scan is None or isinstance(mask, str):
            print(f"{path}: {mask}", file=sys.stderr)
            status = 3
            continue
        write(out / path.name, mask, scan)
        print(out / path.name)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

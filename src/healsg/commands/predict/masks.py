"""``healsg predict`` for segmentation: a mask file for each volume or picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg.commands.predict.request import UNREADABLE, Request
from healsg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from healsg.evaluation.predictor import Predictor


REPORTED = 1 << 28
"""The size of intermediate files, in bytes, from which the memory and disk space that a volume needs are printed before
its prediction."""


def predict_masks(request: Request, members: Sequence[tuple[str, Predictor]], runs: Sequence[dict[str, Any]]) -> int:
    """Write the mask of each file, one after the other; returns the exit status.

    Args:
        request: the arguments.
        members: the networks, with their names for messages.
        runs: the identification of the weights of each.

    Raises:
        HealsgError: the request is not possible for masks, or the folder holds those of other weights.
    """
    folder = _folder(request)
    from healsg.datasets.new_samples.mask_files import scans_of
    from healsg.datasets.new_samples.segmenter import Segmenter
    from healsg.evaluation.mask_record import MaskRecord

    segmenter = Segmenter(members, "flips" in request.tta, request.batch_size or 1)
    scans = scans_of(request.paths, segmenter.info.input_shape[0], segmenter.volumes, folder)
    about = {
        "runs": list(runs),
        "classes": list(segmenter.info.class_names),
        "tta": request.tta,
        "settings": request.overrides,
    }
    record = MaskRecord(folder, about)
    written = 0
    skipped = 0
    unreadable = 0
    for scan in scans:
        if (line := record.is_done(scan.files, scan.mask)) is not None:
            skipped += 1
            _show(request, {**line, "skipped": True})
            continue
        began = time.monotonic()
        path = folder / scan.mask
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            memory, disk = segmenter.needs(scan)
            if disk > REPORTED:
                detail = f"about {memory >> 20} MiB of memory besides the network's, and {disk >> 20} MiB of disk space"
                print(f"{scan.files[0]}: takes {detail}", file=sys.stderr, flush=True)
            facts = segmenter.write(scan, path)
        except DataError as error:
            unreadable += 1
            _show(request, {"files": [str(file) for file in scan.files], "error": str(error)})
            continue
        seconds = round(time.monotonic() - began, 3)
        line = record.add(scan.files, scan.mask, {**facts, "seconds": seconds})
        written += 1
        _show(request, {**line, "skipped": False})
    parts = [f"{written} masks"] + [f"{skipped} were there"] * bool(skipped)
    parts += [f"{unreadable} files cannot be read"] * bool(unreadable)
    print(f"{folder}: {', '.join(parts)}", file=sys.stderr)
    return UNREADABLE if unreadable else 0


def _folder(request: Request) -> Path:
    """The folder of the masks. Raises ConfigError for options that apply only to classification."""
    if request.out is None or request.given is None:
        raise ConfigError("--out: masks are files; name a folder for them: --out masks/")
    if request.out.parent != Path(request.given):
        raise ConfigError(f"--out: {request.given}; the masks of a segmentation go into a folder")
    if request.features:
        raise ConfigError("--features: those of a segmentation have a place, and no column can hold them")
    if "shifts" in request.tta:
        raise ConfigError("--tta: shifts is for classes of whole pictures; flips mirrors along all axes")
    return Path(request.given)


def _show(request: Request, line: dict[str, Any]) -> None:
    """Print a line: JSON, or a text about what was written."""
    if request.json:
        print(json.dumps(line, ensure_ascii=False), flush=True)
    elif "error" in line:
        print(f"cannot be read: {line['error']}", file=sys.stderr, flush=True)
    else:
        labels = ", ".join(f"{label}: {count}" for label, count in line["labels"].items())
        there = "  (was there)" if line["skipped"] else f"  {line['seconds']:.1f} s"
        print(f"{line['mask']}  {' x '.join(map(str, line['shape']))}  {labels}{there}", flush=True)

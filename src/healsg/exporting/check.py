"""Verification of an export: a new process, in which healsg cannot be imported, predicts the validation split."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from healsg.data.info import DataInfo
from healsg.data.loader import Loader
from healsg.data.source import DatasetSource, Source, TensorSource
from healsg.datasets.imagefolder import Pictures
from healsg.datasets.mask_shards import ShardMasks
from healsg.datasets.masks.pictures import Pictures as MaskedFiles
from healsg.datasets.new_samples.mask_files import Scan
from healsg.datasets.new_samples.segmenter import Segmenter
from healsg.datasets.volumes.cases import PreparedCases
from healsg.datasets.volumes.files import NIFTI, extension, read_volume
from healsg.errors import ConfigError, DataError, RunError
from healsg.evaluation.evaluator import evaluating, in_units
from healsg.evaluation.predictor import Predictor

TOLERANCE = 1e-5
"""Largest allowed error of a probability; for regression, in standard deviations of the targets."""

PIXELS = 1e-4
"""The largest share of a mask's pixels that may differ: pixels whose two largest scores are equal up to rounding."""

REFUSED = {"onnx": ("torch", "healsg"), "pt2": ("healsg",)}
"""Modules that the new process must not import, by format."""

PROCESS = """
import json, sys
sys.dont_write_bytecode = True
with open(sys.argv[1], encoding="utf-8") as file:
    request = json.load(file)
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in request["refused"]:
            raise ImportError(f"{name} must not be needed")
for name in request["refused"]:
    assert name not in sys.modules, name
sys.meta_path.insert(0, Refused())
sys.path.insert(0, request["folder"])
import numpy
import predict
if request["masks"]:
    found = list(__import__(request["masks"]).masks(request["paths"]))
else:
    found = [next(predict.predictions(request["paths"], 1)), *predict.predictions(request["paths"])]
for name, numbers in found:
    if isinstance(numbers, str):
        sys.exit(f"{name}: {numbers}")
numpy.savez(request["found"], *[numbers for _, numbers in found])
"""


@dataclass(frozen=True)
class Reference:
    """HEALSg's own predictions for the validation split.

    Args:
        outputs: (N, C) probabilities, or (N, ...) numbers of a regression in the unit of the targets.
        targets: (N, ...) the true labels or numbers.
        index: (N,) the indices of these samples in the split, without unreadable ones.
        source: of the split, as stored.
    """

    outputs: Tensor
    targets: Tensor
    index: Tensor
    source: Source


@dataclass(frozen=True)
class Agreement:
    """The agreement of the new process with the reference.

    Args:
        samples: their number.
        largest: the largest difference of a probability, or of a number in standard deviations of the targets.
    """

    samples: int
    largest: float


def reference(predictor: Predictor, loader: Loader) -> Reference:
    """Predict a split as in an evaluation, with the loader's own reading and preprocessing."""
    info = predictor.info
    outputs = []
    targets = []
    index = []
    with evaluating(predictor.network), torch.no_grad():
        for batch, _ in loader.batches(0):
            if not len(batch["index"]):
                continue  # none of its samples can be read
            outputs.append(predictor.task_model.predict(predictor.network, batch).float())
            targets.append(torch.as_tensor(batch["target"]))
            index.append(batch["index"])
    if not outputs:
        raise DataError("healsg export: no sample of the val split can be read, so that nothing can be checked")
    output = torch.cat(outputs)
    found = {"multiclass": lambda: output.softmax(dim=1), "multilabel": output.sigmoid}
    numbers = found[info.kind]() if info.kind in found else in_units(output, info)
    return Reference(numbers, torch.cat(targets), torch.cat(index), next(iter(loader.sources.values())))


def reproduce(folder: Path, to: str, reference: Reference, info: DataInfo) -> Agreement:
    """Let a new process predict the raw samples by ``predict.py`` in ``folder``, and compare.

    Args:
        folder: with ``predict.py``, ``classes.json`` and the network.
        to: the format.
        reference: the predictions to reproduce.
        info: of the network's data.

    Raises:
        RunError: the process fails, or its predictions differ.
    """
    with tempfile.TemporaryDirectory(prefix="healsg-export-") as temporary:
        numbers = _exported_outputs(folder, to, raw_samples(reference, Path(temporary)), Path(temporary))
    return compared(torch.from_numpy(np.stack(numbers)), reference.outputs, info)


def reproduce_masks(folder: Path, to: str, predictor: Predictor, loader: Loader) -> Agreement:
    """Let HEALSg and a fresh process write the masks of a split's images or volumes, and compare them pixel by pixel.

    Args:
        folder: with ``segment.py`` (and ``volumes.py``), ``predict.py``, ``classes.json`` and the network.
        to: the format.
        predictor: of the run.
        loader: of the split.

    Raises:
        RunError: the process fails, or its masks differ in more pixels than rounding explains.
    """
    program = "volumes" if len(predictor.info.input_shape) == 4 else "segment"
    with tempfile.TemporaryDirectory(prefix="healsg-export-") as temporary:
        reference_masks = _reference_masks_of_volumes if program == "volumes" else _reference_masks
        paths, expected = reference_masks(predictor, loader, Path(temporary))
        found = _exported_outputs(folder, to, paths, Path(temporary), program)
    if [one.shape for one in found] != [one.shape for one in expected]:
        raise RunError(f"healsg export: {program}.py gives masks of other sizes than the run")
    shares = [float((one != other).mean()) for one, other in zip(found, expected, strict=True)]
    off = sum(share > PIXELS for share in shares)
    if off:
        raise RunError(
            f"healsg export: the exported network is not the run's: {off} of {len(shares)} masks of the val split "
            f"differ in more than {PIXELS:.0e} of their pixels, in {max(shares):.2g} at most"
        )
    return Agreement(len(shares), max(shares))


def _reference_masks(predictor: Predictor, loader: Loader, folder: Path) -> tuple[list[str], list[Any]]:
    """The raw images of a split, as files, and the masks that HEALSg predicts for them."""
    source = next(iter(loader.sources.values()))
    if isinstance(source, DatasetSource) and isinstance(source.dataset, (MaskedFiles, ShardMasks)):
        numbers = source.numbers
        paths = [_picture_file(source.dataset, number, folder) for number in numbers]
        segmenter = Segmenter([("the run", predictor)])
        masks = []
        for path in paths:
            segmenter.write(Scan((path,), Path("mask.png")), folder / "mask.png")
            with Image.open(folder / "mask.png") as opened:
                masks.append(np.asarray(opened))
        return list(map(str, paths)), masks
    if not isinstance(source, TensorSource) or predictor.info.regions:
        raise ConfigError("healsg export: masks are proved on pictures in files, or on a set in memory without regions")
    stored = source.fetch(torch.arange(len(source)))["input"]
    np.savez(folder / "samples.npz", input=stored.float().cpu().numpy())
    labels = predictor(stored).masks
    assert labels is not None
    found = labels.cpu().numpy()
    for table in ("labels", "colours"):
        if known := predictor.info.preprocessing.get(table):
            found = np.asarray(known)[found]
    return [str(folder / "samples.npz")], list(found)


def _picture_file(dataset: MaskedFiles | ShardMasks, number: int, folder: Path) -> Path:
    """The file of an image; one in an archive is extracted to ``folder``."""
    if isinstance(dataset, MaskedFiles):
        return Path(dataset.paths[number]).absolute()
    stored = dataset.stored(number)
    path = folder / f"{number}{Path(stored.name).suffix}"
    path.write_bytes(stored.read())
    return path


def _reference_masks_of_volumes(predictor: Predictor, loader: Loader, folder: Path) -> tuple[list[str], list[Any]]:
    """The NIfTI files of a split, and the masks that HEALSg predicts for them. Raises ConfigError."""
    source = next(iter(loader.sources.values()))
    if not isinstance(source, DatasetSource) or not isinstance(source.dataset, PreparedCases):
        raise ConfigError(
            "healsg export: masks of volumes are proved on NIfTI files, read as they lie; this set is none, or held in "
            "memory or a cache: data.in_memory=false data.cache=false"
        )
    numbers = source.numbers
    paths = []
    for images in (source.dataset.cases[number].images for number in numbers):
        if len(images) > 1 or extension(images[0]) not in NIFTI:
            detail = "a file a channel" if len(images) > 1 else f"a {extension(images[0])} file"
            raise ConfigError(
                f"healsg export: {images[0]}: is {detail}; volumes.py reads one NIfTI file (.nii, .nii.gz) a case, "
                "with all its channels; healsg predict reads all kinds"
            )
        paths.append(images[0].absolute())
    segmenter = Segmenter([("the run", predictor)])
    masks = []
    for path in paths:
        segmenter.write(Scan((path,), Path("mask.nii")), folder / "mask.nii")
        masks.append(np.array(read_volume(folder / "mask.nii").array[0]))
    return list(map(str, paths)), masks


def _exported_outputs(folder: Path, to: str, paths: list[str], temporary: Path, masks: str = "") -> list[Any]:
    """The outputs of the exported program for raw samples, in a new process: of ``predict.py``, or of the program for
    masks named ``masks``. Raises RunError if it fails."""
    request, found = temporary / "request.json", temporary / "found.npz"
    content = {
        "folder": str(folder.absolute()),
        "refused": REFUSED[to],
        "paths": paths,
        "found": str(found),
        "masks": masks,
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    line = [sys.executable, "-I", "-c", PROCESS, str(request)]
    done = subprocess.run(line, cwd=temporary, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not found.is_file():
        problem = _error_of(done.stderr) or f"exit status {done.returncode}"
        raise RunError(f"healsg export: predict.py fails in a process of its own: {problem[:300]}")
    with np.load(found) as held:
        return [held[name] for name in held.files]


def _error_of(stderr: str) -> str:
    """The error message at the end of a traceback, on one line."""
    lines = stderr.rstrip().splitlines()
    last = max((index for index, text in enumerate(lines) if text.startswith("  ")), default=-1)
    return " ".join(" ".join(lines[last + 1 :]).split())


def compared(outputs: Tensor, expected: Tensor, info: DataInfo) -> Agreement:
    """The agreement of a fresh process's outputs, which start with the first sample predicted separately.

    Raises RunError with the largest error.
    """
    expected = torch.cat([expected[:1], expected])
    if outputs.shape != expected.shape:
        raise RunError(f"healsg export: predict.py gives {tuple(outputs.shape)} numbers, not {tuple(expected.shape)}")
    difference = (outputs.double() - expected.double()).abs()
    if info.kind == "regression" and "target_std" in info.preprocessing:
        difference = difference / torch.tensor(info.preprocessing["target_std"]).double().view(-1)
    elif info.kind == "regression":
        difference = difference / expected.double().abs().clamp(min=1)
    largest = difference.max().item()
    count = len(expected) - 1
    off = int((~(difference <= TOLERANCE)).flatten(1).any(dim=1)[1:].sum())
    if not largest <= TOLERANCE:
        raise RunError(
            f"healsg export: the exported network is not the run's: {off} of {count} predictions of the val split are "
            f"off by more than {TOLERANCE:.0e}, by {largest:.2g} at most"
        )
    if info.kind == "multiclass":
        other = int((outputs.argmax(dim=1) != expected.argmax(dim=1))[1:].sum())
    else:
        other = int(((outputs > 0.5) != (expected > 0.5)).any(dim=1)[1:].sum()) if info.kind == "multilabel" else 0
    if other:
        raise RunError(f"healsg export: {other} of {count} samples of the val split get another class")
    return Agreement(count, largest)


def raw_samples(reference: Reference, folder: Path) -> list[str]:
    """The paths of the raw samples: the image files, or an .npz that is written to ``folder``. Raises ConfigError."""
    source = reference.source
    if isinstance(source, DatasetSource) and type(source.dataset) is Pictures:
        numbers: Any = reference.index if source.indices is None else source.indices[reference.index]
        return [str(Path(source.dataset.paths[number]).absolute()) for number in numbers.tolist()]
    parts = []
    for index in torch.split(reference.index, 1024):
        stored = source.fetch(index)["input"]
        if not isinstance(stored, Tensor):
            raise ConfigError("healsg export: the samples of this data set are no tensors; no program reads them")
        parts.append(stored.float().cpu().numpy())
    np.savez(folder / "samples.npz", input=np.concatenate(parts))
    return [str(folder / "samples.npz")]

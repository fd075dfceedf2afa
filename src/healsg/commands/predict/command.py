"""``healsg predict RUN PATH...``: predict classes and probabilities, or masks, of new samples from a run's folder."""

from __future__ import annotations

import hashlib
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from healsg import safefiles
from healsg.commands.predict.explanations import Explanations
from healsg.commands.predict.masks import predict_masks
from healsg.commands.predict.request import UNREADABLE, Request
from healsg.commands.terminal.effect import require_effect
from healsg.commands.terminal.flags import Flags, require_writable
from healsg.config.names import did_you_mean
from healsg.errors import ConfigError, RunError, one_line
from healsg.paths import current_folder
from healsg.runs.folder import ROOT, RunFolder, find, is_run
from healsg.runs.saved_config import load_saved

if TYPE_CHECKING:
    from healsg.data.info import DataInfo
    from healsg.datasets.new_samples.samples import Sample
    from healsg.evaluation.ensemble import Ensemble
    from healsg.evaluation.predictor import Prediction
    from healsg.evaluation.writers import Form, Row, Writer

EXAMPLES = """\
  healsg predict exp1 pictures/ --out predictions.csv
  healsg predict fold1 fold2 fold3 pictures/ --out predictions.jsonl --tta flips
  healsg predict exp2 scans/ --out masks/              a segmentation run

RUN is a folder or a name under runs/; the probabilities of several runs, or of
all runs of a sweep, are averaged. PATH is an image, a folder of images with its
subfolders, a table (.csv, .tsv) or an array (.npz, .npy). A segmentation run
takes volumes (.nii, .nii.gz, .mha, .mhd, .nrrd) or images, and writes for each
a mask in its own space and file type; the scores of several runs are averaged.
Masks are written to a folder; existing ones are kept.

key=value changes a setting of the runs, such as runner.device=cpu. The exit
status is 0, or 3 if some samples cannot be read; their rows have the reason."""

IN_FOLDER = "predictions.csv"
"""The name of the file if ``--out`` is a folder."""

MOST_THREADS = 8


def run(arguments: list[str]) -> int:
    """``RUN [RUN ...] PATH [PATH ...] [flags] [overrides]``; 3 where some samples cannot be read."""
    return predict(_request(_read(arguments)))


def _read(arguments: list[str]) -> Namespace:
    flags = Flags(
        "predict",
        "Predict with the weights of one or several runs, from their folders; several are averaged.",
        EXAMPLES,
    )
    flags.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="RUN ... PATH ... key=value",
        help="runs, files or folders of new samples, and settings",
    )
    flags.add_argument(
        "--out",
        metavar="FILE|DIR",
        help="a .csv or .jsonl file, or a folder for predictions.csv; without it the most probable classes are shown. "
        "The same command continues an unfinished file",
    )
    flags.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="which weights (default: best); last needs the training data",
    )
    flags.add_argument(
        "--tta",
        type=_augmentations,
        default="",
        metavar="flips,shifts",
        help="test-time augmentation: average over flipped images or volumes, over shifted ones, or over both",
    )
    flags.add_argument(
        "--explain",
        action="store_true",
        help="also a saliency map of each image (Grad-CAM; occlusion for transformers), in a folder next to --out, "
        "named in its lines",
    )
    flags.add_argument("--features", action="store_true", help="also the features before the network's head")
    flags.add_argument(
        "--batch-size",
        type=_count,
        metavar="N",
        help="samples per forward pass (default: the run's data.batch_size); for segmentation, windows (default: 1)",
    )
    flags.add_argument(
        "--workers",
        type=_count,
        default=min(MOST_THREADS, os.cpu_count() or 1),
        metavar="N",
        help="threads that decode images",
    )
    flags.add_json("lines of JSON on standard output")
    return flags.read(arguments)


def _request(args: Namespace) -> Request:
    """The request on the command line. Raises ConfigError, RunError."""
    names: list[str] = []
    paths: list[str] = []
    overrides: list[str] = []
    if "" in args.words:
        raise ConfigError("healsg predict RUN PATH...: an argument is empty; is a variable of the shell not set?")
    for argument in args.words:
        if "=" in argument and not is_run(argument) and not Path(argument).exists():
            overrides.append(argument)
        elif not paths and (not names or _runs_in(argument)):
            names.append(argument)
        else:
            paths.append(argument)
    if not names or not paths:
        raise ConfigError("healsg predict RUN PATH...: name a run, and pictures, a folder, a table or an array")
    runs = [folder for name in names for folder in _runs_in(name) or [find(name)]]
    if args.explain and not args.out:
        raise ConfigError("--explain: writes pictures beside the predictions; say where these go: --out FILE.csv")
    return Request(
        runs=runs,
        paths=paths,
        overrides=overrides,
        out=_out(Path(args.out)) if args.out else None,
        given=args.out,
        checkpoint=args.checkpoint,
        tta=args.tta,
        features=args.features,
        batch_size=args.batch_size,
        workers=args.workers,
        json=args.json,
        explain=args.explain,
    )


def _runs_in(name: str) -> list[RunFolder]:
    """The run of this name, or those of the sweep of this name; none if it is neither. Raises RunError."""
    if is_run(name):
        return [find(name)]
    for folder in (current_folder() / name, current_folder() / ROOT / name):
        if folder.is_dir() and (folder / "sweep.csv").is_file():
            jobs = sorted(job for job in folder.iterdir() if job.is_dir() and is_run(str(job)))
            return [find(str(job)) for job in jobs]
    return []


def _out(path: Path) -> Path:
    """The file that ``--out`` means. Raises ConfigError."""
    if path.suffix.lower() in (".csv", ".jsonl"):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"--out: there is no folder {path.parent}")
        if path.is_dir():
            raise ConfigError(f"--out: {path} is a folder; name a file, or a folder without that ending")
        require_writable(path, "--out")
        return path
    if path.suffix and not path.is_dir():
        raise ConfigError(f"--out: {path} is neither a .csv or .jsonl file nor a folder")
    return path / IN_FOLDER


def _count(value: str) -> int:
    """A value of ``--batch-size`` or ``--workers``."""
    if not value.isdecimal() or not 1 <= int(value) <= 1 << 20:
        raise ArgumentTypeError(f"{value} is not a whole number, from 1 on")
    return int(value)


def _augmentations(value: str) -> list[str]:
    """The value of ``--tta``. Raises ConfigError."""
    names = [name for name in value.split(",") if name]
    if unknown := next((name for name in names if name not in ("flips", "shifts")), None):
        near = did_you_mean(unknown, ["flips", "shifts"]) or "; there are flips, shifts"
        raise ConfigError(f"--tta: {unknown} is none{near}")
    return names


def predict(request: Request) -> int:
    """Predict, and write as it goes; returns the exit status. Raises HealsgError."""
    composed = [load_saved(folder, request.overrides) for folder in request.runs]
    require_effect("predict", request.overrides)
    from healsg.datasets.new_samples.samples import samples_of
    from healsg.evaluation.ensemble import Ensemble
    from healsg.trainer import TaskTrainer

    members = []
    for folder, one in zip(request.runs, composed, strict=True):
        trainer = TaskTrainer(one, folder=folder)
        members.append((str(folder.shown), trainer.predictor(request.checkpoint)))
    if members[0][1].info.dense:
        if request.explain:
            members[0][1].explainer()  # which refuses a segmentation
        return predict_masks(request, members, [_identity(one, request.checkpoint) for one in request.runs])
    if request.out is not None and request.json:
        raise ConfigError("--json: is for standard output; a file gets JSON by its name: --out FILE.jsonl")
    ensemble = Ensemble(members, request.tta)
    data = composed[0].values["data"]
    samples = samples_of(request.paths, ensemble.info, data.get("image"))
    configured = data.get("batch_size")
    batch_size = request.batch_size or (configured if isinstance(configured, int) else 64)
    explanations = Explanations(ensemble, request.out) if request.explain and request.out else None
    writer = _writer(request, ensemble, batch_size)
    rows = PredictedRows(ensemble, request, batch_size, explanations)
    rows.write(samples, writer)
    return _end(writer, request, rows)


def _end(writer: Writer, request: Request, predicted: PredictedRows) -> int:
    """Finish the file and report it; returns the exit status."""
    from healsg.evaluation.writers import File

    samples, unreadable = predicted.samples, predicted.unreadable
    if isinstance(writer, File):
        writer.finish()
        samples, unreadable = len(writer.done), writer.unreadable
        left_out = f", {unreadable} of which cannot be read (see the column error)" if unreadable else ""
        print(f"{request.out}: {samples} samples{left_out}", file=sys.stderr)
    return UNREADABLE if unreadable else 0


def _writer(request: Request, ensemble: Ensemble, batch_size: int) -> Writer:
    from healsg.evaluation.writers import CsvForm, File, JsonForm, Lines, Screen

    regression = ensemble.info.kind == "regression"
    as_json = request.json or (request.out is not None and request.out.suffix.lower() == ".jsonl")
    features = _features_of(ensemble) if request.features else 0
    form: Form = JsonForm(ensemble.names, regression)
    if not as_json:
        form = CsvForm(ensemble.names, regression, features, request.explain)
    if request.out is None:
        return Lines(form) if request.json else Screen(ensemble.names, regression)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "runs": [_identity(folder, request.checkpoint) for folder in request.runs],
        "classes": list(ensemble.names),
        "kind": ensemble.info.kind,
        "tta": request.tta,
        "features": request.features,
        "settings": request.overrides,
        **({"explain": True} if request.explain else {}),
    }
    return File(request.out, form, about, batch_size)


def _features_of(ensemble: Ensemble) -> int:
    """The number of the network's features. Raises ConfigError if it has none, or for several networks."""
    from healsg.model import Network

    if len(ensemble.members) > 1:
        raise ConfigError("--features: those of several networks have nothing in common; name one run")
    network = ensemble.members[0].network
    if not isinstance(network, Network):
        raise ConfigError(f"--features: {type(network).__name__} has no features; a healsg.Network does")
    return network.num_features


def _identity(folder: RunFolder, which: str) -> dict[str, Any]:
    """What identifies a run's weights: the run, its id, which checkpoint, and the checkpoint's SHA-256."""
    path = folder.best if which == "best" else folder.last
    try:
        with safefiles.open_to_read(path) as file:
            digest = hashlib.file_digest(cast("Any", file), "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}") from error
    return {"run": str(folder.shown), "id": folder.record.get("id"), "checkpoint": which, "sha256": digest}


class PredictedRows:
    """The rows of the ensemble's predictions, batch by batch; only one batch is in memory at a time.

    Args:
        ensemble: the networks.
        request: the arguments.
        batch_size: samples of a batch, readable or not.
        explanations: draws the saliency maps; None without ``--explain``.
    """

    def __init__(
        self, ensemble: Ensemble, request: Request, batch_size: int, explanations: Explanations | None = None
    ) -> None:
        self.explanations = explanations
        self.ensemble = ensemble
        self.request = request
        self.batch_size = batch_size
        infos = [member.info for member in ensemble.members]
        self.inputs: list[DataInfo] = []
        """The distinct ways in which the networks read samples."""
        self.of_member: list[int] = []
        """For each network, the index in ``inputs`` of how it reads samples."""
        for info in infos:
            same = [index for index, other in enumerate(self.inputs) if _reads_alike(info, other)]
            if not same:
                self.inputs.append(info)
            self.of_member.append(same[0] if same else len(self.inputs) - 1)
        self.samples = 0
        """Rows written so far."""
        self.unreadable = 0
        """Those of them that have an error instead of a prediction."""

    def write(self, samples: Iterator[Sample], writer: Writer) -> None:
        """Write a row for each sample for which the writer has none yet. Raises ConfigError."""
        from healsg.evaluation.writers import key_of, printable

        done: set[int] = getattr(writer, "done", set())

        def fresh() -> Iterator[Sample]:
            for sample in samples:
                if key_of(printable(sample.file), sample.row) not in done:
                    yield sample

        waiting = fresh()
        with ThreadPoolExecutor(self.request.workers) as pool:
            while batch := list(islice(waiting, self.batch_size)):
                rows = self._rows(batch, list(pool.map(self._read, batch)))
                writer.write(rows)
                self.samples += len(rows)
                self.unreadable += sum(bool(row.error) for row in rows)

    def _read(self, sample: Sample) -> list[Any] | str:
        """The sample as read for each network; or why it cannot be read."""
        from healsg.data.source import line

        try:
            return [sample.read(info) for info in self.inputs]
        except Exception as error:  # a damaged file makes decoders raise almost anything
            return line(error) or type(error).__name__

    def _rows(self, batch: Sequence[Sample], read: Sequence[list[Any] | str]) -> list[Row]:
        """The rows of a batch; ``read`` is the result of ``_read`` for each of its samples."""
        import torch

        whole = [tensors for tensors in read if not isinstance(tensors, str)]
        stacked = [
            torch.stack([tensors[index] for tensors in whole]) for index in range(len(self.inputs) * bool(whole))
        ]
        found: Prediction | None = None
        pictures = [""] * len(whole)
        if whole:
            batches = [stacked[index] for index in self.of_member]
            found = self.ensemble(batches, self.request.features)
            if self.explanations is not None:
                readable = [one for one, tensors in zip(batch, read, strict=True) if not isinstance(tensors, str)]
                pictures = self.explanations.draw(readable, batches, found)
        rows = []
        index = 0  # among the samples that could be read
        for sample, tensors in zip(batch, read, strict=True):
            if isinstance(tensors, str) or found is None:
                rows.append(_row_of_error(sample, str(tensors)))
            else:
                rows.append(_row_of_prediction(sample, found, index, pictures[index]))
                index += 1
        return rows


def _row_of_error(sample: Sample, error: str) -> Row:
    from healsg.evaluation.writers import Row, printable

    return Row(printable(sample.file), sample.row, error=printable(error))


def _row_of_prediction(sample: Sample, found: Prediction, index: int, picture: str) -> Row:
    """The row of a sample: its prediction is at ``index`` of ``found``, its saliency map in the file ``picture``."""
    from healsg.evaluation.writers import Row, printable

    numbers = (found.outputs if found.probabilities is None else found.probabilities)[index]
    if not numbers.isfinite().all():
        return _row_of_error(sample, "the network's outputs are no finite numbers; is the input?")
    classes = None if found.classes is None else found.classes[index]
    features = () if found.features is None else found.features[index].tolist()
    return Row(printable(sample.file), sample.row, classes, numbers.tolist(), features, explained=picture)


def _reads_alike(one: DataInfo, other: DataInfo) -> bool:
    return one.input_shape == other.input_shape and one.input_names == other.input_names

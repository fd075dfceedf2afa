"""``healsg export RUN --to FORMAT --out DIR``: export the network of a run for use without HEALSg, verified before the
folder appears."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg import safefiles
from healsg.commands.terminal.effect import require_effect
from healsg.commands.terminal.flags import Flags
from healsg.config.schema import Composed
from healsg.errors import ConfigError, DataError, RunError, one_line
from healsg.runs.folder import RunFolder, find, finite
from healsg.runs.saved_config import load_saved

if TYPE_CHECKING:
    from healsg.evaluation.predictor import Predictor
    from healsg.exporting.check import Agreement
    from healsg.task import BasicTask

FORMATS = ("onnx", "pt2", "safetensors")

PLAIN = ["runner.device=cpu", "runner.precision=fp32", "runner.channels_last=false", "runner.compile=false"]
"""How the reference network is run that the export has to reproduce."""


def run(arguments: list[str]) -> int:
    """Write the archive, verify it, and only then move it to ``--out``."""
    flags = Flags(
        "export",
        "Write the network of a run as a folder that works without HEALSg: the network with normalisation and softmax "
        "inside, predict.py, classes.json and a model card (README.md). It appears only after a fresh process without "
        "torch and healsg has reproduced every prediction of the validation split from the raw samples. "
        "key=value changes a setting of the run, such as data.folder=DIR if the images have moved.",
    )
    flags.add_run()
    flags.add_settings("changes to settings of the run")
    flags.add_argument("--to", choices=FORMATS, default="onnx", help="the format (default: onnx)")
    flags.add_argument("--out", required=True, metavar="DIR", help="the folder to create; it must not exist yet")
    flags.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")
    flags.add_json()
    args = flags.read(arguments)
    folder = find(args.run)
    out = Path(args.out)
    if safefiles.kind_of(out):
        raise ConfigError(f"--out: {out} is there already; name a folder that is not, or remove it")
    composed = load_saved(folder, [*PLAIN, *args.settings])
    require_effect("export", args.settings)
    facts = export(folder, composed, args.to, out, args.checkpoint)
    print(json.dumps(finite(facts), ensure_ascii=False) if args.json else _summary(facts))
    return 0


def export(folder: RunFolder, composed: Composed, to: str, out: Path, checkpoint: str) -> dict[str, Any]:
    """Make the archive; returns its contents as plain values. If an error is raised, no files are left behind.

    Args:
        folder: of the run.
        composed: its configuration.
        to: the format.
        out: the folder to be made.
        checkpoint: ``best`` or ``last``.

    Raises:
        HealsgError: a package is missing, the network cannot be written, or the proof fails.
    """
    from healsg.exporting.network import Exported, about, check_packages, write_network
    from healsg.trainer import TaskTrainer

    check_packages(to)
    predictor = TaskTrainer(composed, folder=folder).predictor(checkpoint)
    Exported(predictor)  # refuses kinds of tasks that cannot be exported, before data are read
    proves = to != "safetensors"
    task = _task_of(composed, predictor, proves)
    with _becoming(out) as made:
        write_network(predictor, to, made)
        meaning = json.dumps(about(predictor.info, predictor.task_model), indent=1, ensure_ascii=False)
        (made / "classes.json").write_text(meaning + "\n", encoding="utf-8")
        agreement, accuracy = _proved(made, to, predictor, task) if proves else (None, None)
        text = _card(folder, task, checkpoint, predictor, to, agreement, accuracy)
        (made / "README.md").write_text(text, encoding="utf-8")
        files = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
    return {
        "run": str(folder.shown),
        "checkpoint": checkpoint,
        "to": to,
        "out": str(out),
        "files": files,
        "kind": predictor.info.kind,
        "classes": list(predictor.info.class_names),
        "samples": None if agreement is None else agreement.samples,
        "largest_difference": None if agreement is None else agreement.largest,
        "accuracy": accuracy,
    }


def _task_of(composed: Composed, predictor: Predictor, proves: bool) -> BasicTask:
    """The task with the data set as the weights expect it. Without a proof the data may be gone. Raises RunError if the
    task overrides evaluation."""
    from healsg.build import build_task

    try:
        task = build_task(composed, predictor.info)
    except (ConfigError, DataError):
        if proves:
            raise
        task = build_task(composed, predictor.info, samples=False)
    if task.task_method.evaluates_itself:
        name = type(task.task_method).__name__
        raise RunError(f"healsg export: {name} has an evaluation of its own and trains no classifier; train one on it")
    return task


@contextmanager
def _becoming(out: Path) -> Iterator[Path]:
    """A context with a new folder next to ``out``, which is renamed to ``out`` at the end, or removed if an error is
    raised."""
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ConfigError(f"--out: there is no folder {parent}")
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=parent))
    try:
        yield made
        mask = _umask()
        made.chmod(0o777 & ~mask)
        for file in made.iterdir():
            file.chmod(0o666 & ~mask)  # some formats are written for their owner alone
        if safefiles.kind_of(out):
            raise RunError(f"{out}: has come into being meanwhile; name another folder")
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    """The process's umask; there is no other way to read it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _proved(folder: Path, to: str, predictor: Predictor, task: BasicTask) -> tuple[Agreement, float | None]:
    """Add ``predict.py`` and let it predict the validation split; also returns the accuracy.

    Raises RunError if the predictions are not those of the run's network.
    """
    from healsg.exporting.archive import mask_program, program
    from healsg.exporting.check import reference, reproduce, reproduce_masks

    (folder / "predict.py").write_text(program(to), encoding="utf-8")
    loader = task.task_data.evaluation_loader("val")
    print(f"{loader.samples} samples of the val split are predicted by the run and by predict.py", file=sys.stderr)
    if predictor.info.dense:
        for name in ("segment.py", "volumes.py")[: len(predictor.info.input_shape) - 2]:
            (folder / name).write_text(mask_program(to, name), encoding="utf-8")
        return reproduce_masks(folder, to, predictor, loader), None
    expected = reference(predictor, loader)
    agreement = reproduce(folder, to, expected, predictor.info)
    if predictor.info.kind != "multiclass":
        return agreement, None
    return agreement, float((expected.outputs.argmax(dim=1) == expected.targets).double().mean())


def _test_samples(task: BasicTask, folder: RunFolder) -> int | None:
    """How many samples the accuracy on the test part was measured on, for its interval."""
    if "test/acc" not in (folder.record.get("test") or {}):
        return None
    try:
        return task.task_data.evaluation_loader("test").samples
    except (ConfigError, DataError):  # the test part no longer exists
        return None


def _card(
    folder: RunFolder,
    task: BasicTask,
    checkpoint: str,
    predictor: Predictor,
    to: str,
    agreement: Agreement | None,
    accuracy: float | None,
) -> str:
    from omegaconf import OmegaConf

    from healsg.exporting.card import Facts, card, licences
    from healsg.exporting.network import PACKAGES
    from healsg.runs import redact

    path = folder.best if checkpoint == "best" else folder.last
    try:
        with safefiles.open_to_read(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {one_line(error)}") from error
    values = redact.config(OmegaConf.to_container(task.config))
    return card(
        Facts(
            run=folder.path.name,
            record=folder.record,
            values=values,
            checkpoint=checkpoint,
            digest=digest,
            info=predictor.info,
            to=to,
            versions={name: found for name in ("healsg", "torch", *PACKAGES[to]) if (found := _version(name))},
            agreement=agreement,
            accuracy=accuracy,
            test_samples=_test_samples(task, folder),
            licences=licences(values, predictor, task.task_method.starts_from_weights),
        )
    )


def _version(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return ""


def _summary(facts: dict[str, Any]) -> str:
    files = ", ".join(facts["files"])
    if facts["samples"] is None:
        return f"{facts['out']}: {files}; the weights were read back bit for bit"
    alone = "without torch and healsg" if facts["to"] == "onnx" else "without healsg"
    if facts["kind"] == "segmentation":
        return (
            f"{facts['out']}: {files}; a fresh process {alone} reproduced {facts['samples']} of {facts['samples']} "
            f"masks of the val split, with another label at most at {facts['largest_difference']:.1e} of the pixels"
        )
    return (
        f"{facts['out']}: {files}; a fresh process {alone} reproduced {facts['samples']} of {facts['samples']} "
        f"predictions of the val split, at most {facts['largest_difference']:.1e} off"
    )

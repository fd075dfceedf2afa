"""``healsg ledger errors RUN...``: candidates for label errors, from runs that each held out another fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from healsg.commands.terminal.tables import show
from healsg.errors import RunError
from healsg.runs.folder import ROOT, RunFolder, find, is_run
from healsg.runs.registry import FINISHED, listed, named
from healsg.runs.saved_config import load_saved

if TYPE_CHECKING:
    from healsg.runs.media import MediaLog
    from healsg.task import BasicTask

Array = np.ndarray[Any, Any]


class HeldOut:
    """Records an evaluation of the samples that a run held out: their probabilities, labels and positions in the
    split."""

    def __init__(self) -> None:
        self.probabilities: list[Array] = []
        self.labels: list[Array] = []
        self.indices: list[Array] = []

    def see(self, output: Any, batch: Mapping[str, Any]) -> None:
        """A batch, and the network's output for it."""
        self.probabilities.append(output.detach().float().softmax(dim=1).cpu().numpy())
        self.labels.append(batch["target"].cpu().numpy())
        self.indices.append(batch["index"].cpu().numpy())

    def write(self, folder: Path, split: str, loader: Any) -> None:
        """Nothing is written."""

    def log_media(self, media_log: MediaLog, epoch: int, step: int) -> None:
        """Nothing is logged."""


class OutOfFold:
    """The probabilities of samples by networks that were not trained on them: the mean over the runs that held them
    out.

    Raises RunError if the runs have different data, or one held out no samples.
    """

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        self.classes: list[str] = []
        self.names: list[str] = []
        self.labels = np.zeros(0, int)
        self.sums = np.zeros((0, 0))
        self.counts = np.zeros(0, int)
        for folder in runs:
            self._add(folder)

    def _add(self, folder: RunFolder) -> None:
        """Evaluate the held-out samples of a run with its best weights."""
        from healsg.evaluation.evaluator import EvalEpoch
        from healsg.evaluation.predictor import best_of, network_of_run

        info, state = best_of(folder)
        if info is None or info.kind != "multiclass" or info.dense:
            raise RunError(f"{folder.shown}: has not one class a sample, by which label errors are found")
        task, network = network_of_run(load_saved(folder, ()), info, state, samples=True)
        if task.task_data.val_is_test:
            raise RunError(f"{folder.shown}: held nothing out but the test part; train with data.fold=1/5, 2/5, ...")
        task.build_evaluation(network, "val", info)
        seen = HeldOut()
        EvalEpoch(task, "val", network, seen).by_case()
        places, names, total = _held_out(task, folder)
        if not self.classes:
            self.classes = info.names
            self.names = names
            self.labels = np.full(total, -1)
            self.sums = np.zeros((total, info.num_classes))
            self.counts = np.zeros(total, int)
        index = places[np.concatenate(seen.indices)]
        labels = np.concatenate(seen.labels)
        alike = total == len(self.labels) and info.num_classes == len(self.classes)
        known = self.labels[index] if alike else labels
        if not alike or ((known >= 0) & (known != labels)).any():
            raise RunError(f"{folder.shown}: is of other samples or labels than the first of these runs")
        self.labels[index] = labels
        self.sums[index] += np.concatenate(seen.probabilities)
        self.counts[index] += 1

    @property
    def judged(self) -> Array:
        """(M,) the indices of the samples that some run has held out."""
        return np.flatnonzero(self.counts)

    @property
    def probabilities(self) -> Array:
        """(M, C) of the samples that are judged."""
        judged = self.judged
        found: Array = self.sums[judged] / self.counts[judged][:, None]
        return found


def _held_out(task: BasicTask, folder: RunFolder) -> tuple[Array, list[str], int]:
    """Which samples of the training part a run held out, the names of all samples, and their number."""
    import torch

    from healsg.data.source import UNKNOWN, DatasetSource, TensorSource

    data = task.task_data
    whole = data.read("train")
    if whole is None or whole.targets is None:
        raise RunError(f"{folder.shown}: its data set does not say which samples were held out")
    numbered = TensorSource(torch.arange(len(whole)), whole.targets.cpu(), about=getattr(whole, "about", UNKNOWN))
    held = data.hold_out(numbered)[1]
    if not isinstance(held, TensorSource):
        raise RunError(f"{folder.shown}: held no samples out; train with data.fold=1/5, 2/5, ...")
    count = len(whole)
    named = whole.name if isinstance(whole, DatasetSource) else (lambda number: f"sample {number}")
    return held.input.numpy(), [named(number) for number in range(count)], count


def runs_of(names: Sequence[str]) -> list[RunFolder]:
    """The runs of these names, and the finished jobs of the sweeps of these names. Raises RunError."""
    everything = listed(ROOT) if ROOT.is_dir() else []
    found: list[RunFolder] = []
    for name in names:
        jobs = [] if is_run(name) else [job for job in named(everything, name, ROOT) if job.status == FINISHED]
        found += [RunFolder(job.path) for job in jobs] if jobs else [find(name)]
    return found


def errors_of(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """The candidates for label errors, as plain values. Raises RunError."""
    from healsg.evaluation.label_errors import candidates

    found = OutOfFold(runs)
    judged, probabilities = found.judged, found.probabilities
    labels = found.labels[judged]
    rows = candidates(labels, probabilities)
    errors = []
    for row in rows.tolist():
        likely = int(probabilities[row].argmax())
        errors.append(
            {
                "index": int(judged[row]),
                "name": found.names[judged[row]],
                "label": found.classes[labels[row]],
                "probability": float(probabilities[row, labels[row]]),
                "likely": found.classes[likely],
                "likely_probability": float(probabilities[row, likely]),
            }
        )
    return {
        "schema": 1,
        "runs": [str(folder.shown) for folder in runs],
        "samples": len(found.labels),
        "judged": len(judged),
        "errors": errors,
    }


def show_errors(facts: dict[str, Any], top: int) -> None:
    """Print the first ``top`` candidates."""
    judged = f"{facts['judged']} of {facts['samples']} samples were held out by one of {len(facts['runs'])} runs"
    print(f"{judged}; {len(facts['errors'])} labels are likely wrong\n")
    keys = ("name", "label", "probability", "likely", "likely_probability")
    show(["sample", *keys[1:]], [[one[key] for key in keys] for one in facts["errors"][:top]])
    if len(facts["errors"]) > top:
        print(f"... and {len(facts['errors']) - top} more: --top N, or all of them with --json")

"""Data of single samples for a run's report: collected in the evaluation of the best weights, written as
``media/samples.json``: counts by class, calibration, the most confident mistakes and the largest losses."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from healsg import distributed, safefiles
from healsg.data.info import DataInfo
from healsg.data.source import files_of, line
from healsg.datasets.segmentation import region_labels
from healsg.loggers.mask_panels import CAPTION, PLANES, panel
from healsg.loggers.thumbnails import contact_sheet, shown_levels, thumbnail
from healsg.metrics.segmentation import mask_pairs
from healsg.runs.folder import finite, write_text
from healsg.runs.media import MediaLog

FILE = "media/samples.json"

KEPT = 16
"""Samples that are shown of each kind."""

SHEETS = {
    "predictions": "the first samples",
    "mistakes": "the most confident mistakes",
    "losses": "the largest losses",
    "masks": f"the worst masks: {CAPTION}",
}

BINS = 15
"""Of the reliability diagram, as in Guo et al. 2017 (arXiv 1706.04599)."""

MOST_CLASSES = 100
"""Classes up to which the confusion matrix is written."""

Array = np.ndarray[Any, Any]


class _Worst:
    """The ``KEPT`` samples with the largest values so far, with what shows them."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, dict[str, Any]]] = []

    def add(self, values: Array, show: Any) -> None:
        """``values``: (N,), -inf for samples that do not count; ``show(row)`` gives what is kept of one."""
        for row in np.argsort(-values, kind="stable")[:KEPT]:
            value = float(values[row])
            if value == -np.inf or (len(self.kept) == KEPT and value <= self.kept[-1][0]):
                break
            self.kept.append((value, show(int(row))))
            self.kept.sort(key=lambda pair: -pair[0])
            del self.kept[KEPT:]


class SampleCollector:
    """Sees every batch of one evaluation: classes of (N, C) scores, or masks of (N, C, *spatial) scores.

    Other outputs, such as regression, are ignored.

    Args:
        info: what the outputs mean; None if the task has loaders of its own.
    """

    def __init__(self, info: DataInfo | None) -> None:
        self.info = info
        self.targets: list[Array] = []
        self.predicted: list[Array] = []
        self.confidence: list[Array] = []
        self.losses: list[Array] = []
        self.first = _Worst()
        self.mistakes = _Worst()
        self.largest = _Worst()
        self.masks = _Worst()
        self.found: dict[str, Any] = {}
        """The collected data, as plain values, on rank 0."""

    def see(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Add a batch and the network's output for it."""
        target = batch.get("target")
        if not isinstance(output, Tensor) or not isinstance(target, Tensor) or target.is_floating_point():
            return
        kind = self.info.kind if self.info is not None else "multiclass"
        scores = output.dim() == 2 and output.shape[1] > 1  # or embeddings, which are not as many as the classes
        if self.info is not None:
            scores = scores and output.shape[1] == self.info.num_classes
        if scores and target.dim() == 1 and kind == "multiclass":
            self._see_classes(output.detach().float(), target.long(), batch)
        elif self.info is not None and self.info.dense and output.dim() == target.dim() + 1:
            self._see_masks(output.detach(), target, batch)

    def _see_classes(self, output: Tensor, target: Tensor, batch: Mapping[str, Any]) -> None:
        known = (target >= 0) & (target < output.shape[1])
        if not bool(known.all()):
            return
        confidence, predicted = output.softmax(dim=1).max(dim=1)
        losses = F.cross_entropy(output, target, reduction="none")
        columns = [value.cpu().numpy() for value in (target, predicted, confidence, losses)]
        for column, kept in zip(columns, (self.targets, self.predicted, self.confidence, self.losses), strict=True):
            kept.append(column)

        def show(row: int) -> dict[str, Any]:
            facts: dict[str, Any] = {"target": int(columns[0][row]), "predicted": int(columns[1][row])}
            facts |= {"confidence": float(columns[2][row]), "loss": float(columns[3][row])}
            return facts | self._picture(batch, row)

        self.first.add(-np.arange(len(target)) - float(sum(map(len, self.targets))), show)
        wrong = columns[0] != columns[1]
        self.mistakes.add(np.where(wrong, columns[2], -np.inf), show)
        self.largest.add(np.nan_to_num(columns[3], nan=-np.inf), show)

    def _see_masks(self, output: Tensor, target: Tensor, batch: Mapping[str, Any]) -> None:
        assert self.info is not None
        info = self.info
        predicted = self._labels(output).cpu().numpy()
        mask = target.cpu().numpy()
        regions = list(info.regions.values()) or None
        pairs = mask_pairs(output, target, info.ignore, regions)
        scores = np.array([_dice(one if regions else one[1:]) for one in pairs])

        def show(row: int) -> dict[str, Any]:
            # draw the panel at once: keeping the worst volumes would take too much memory
            return {"dice": float(scores[row])} | self._panel(batch, row, mask[row], predicted[row])

        self.masks.add(np.where(np.isnan(scores), -np.inf, -scores), show)

    def _labels(self, output: Tensor) -> Tensor:
        """(N, *spatial) the labels of scores (N, C, *spatial); of regions those that predictions are written with."""
        assert self.info is not None
        if not self.info.regions:
            return output.argmax(dim=1)
        made = torch.zeros_like(output[:, 0], dtype=torch.int64)
        for region_index, label in region_labels(self.info.regions):
            made = torch.where(output[:, region_index] > 0, label, made)
        return made

    def _panel(self, batch: Mapping[str, Any], row: int, mask: Array, predicted: Array) -> dict[str, Any]:
        """A sample's facts with its image, its mask, the predicted one and the errors as a picture."""
        assert self.info is not None
        facts = self._picture(batch, row)
        input = facts.pop("input", None)
        if input is None:
            return facts
        how = self.info.preprocessing
        cases = batch.get("case")
        spacing = cases[row].spacing if isinstance(cases, (list, tuple)) else ()
        made = panel(input, mask, predicted, self.info.ignore, spacing, (how.get("mean"), how.get("std")))
        return facts if made is None else facts | {"panel": made}

    def _picture(self, batch: Mapping[str, Any], row: int) -> dict[str, Any]:
        """A sample's index, its case and its input."""
        facts: dict[str, Any] = {}
        index = batch.get("index")
        cases = batch.get("case")
        input = batch.get("input")
        if isinstance(index, Tensor):
            facts["index"] = int(index[row])
        if isinstance(cases, (list, tuple)):
            facts["name"] = line(str(cases[row].name))
        if isinstance(input, Tensor) and input.dim() in (4, 5):
            facts["input"] = input[row].detach().cpu().numpy()
        return facts

    # --- the end of the evaluation -----------------------------------------------------------------------------------

    def write(self, folder: Path, split: str, loader: Any) -> None:
        """Write the collected data, if any, into the run's folder; every process must call it. See ``finish``.

        Raises OSError if it cannot be written.
        """
        self.finish(split, loader)
        if self.found:
            safefiles.make_folder(folder / "media")
            write_text(folder / FILE, json.dumps(finite(self.found)) + "\n")

    def finish(self, split: str, loader: Any) -> None:
        """Put together what was seen, as ``found``; every process must call it.

        Args:
            split: that was evaluated.
            loader: of it, whose data set may know the samples' files.
        """
        columns = [np.concatenate(kept) if kept else np.zeros(0) for kept in self._columns]
        if distributed.processes().several:
            parts = distributed.processes().gather([column.tolist() for column in columns])
            columns = [np.concatenate([np.array(part[index]) for part in parts]) for index in range(len(columns))]
        shown = {"predictions": self.first, "mistakes": self.mistakes, "losses": self.largest, "masks": self.masks}
        kept = {
            kind: [(value, self._shown(facts, loader)) for value, facts in worst.kept] for kind, worst in shown.items()
        }
        shares = distributed.processes().gather(kept)
        named = {kind: _largest([pair for share in shares for pair in share[kind]]) for kind in shown}
        if distributed.processes().rank != 0 or not (len(columns[0]) or named["masks"]):
            return
        found: dict[str, Any] = {"split": split, **named}
        found["classes"] = list(self.info.class_names) if self.info is not None else []
        self.found = found
        if len(columns[0]):
            classes = self.info.num_classes if self.info is not None else int(max(map(np.max, columns[:2]))) + 1
            found |= measured(columns[0].astype(int), columns[1].astype(int), columns[2], classes)

    def log_media(self, media_log: MediaLog, epoch: int, step: int) -> None:
        """Log what was written: the confusion matrix, and sheets of the first and the worst samples with their facts.

        Args:
            media_log: of the run.
            epoch, step: at which the evaluated run stands.
        """
        found = self.found
        if not found:
            return
        split, classes = found["split"], found["classes"]
        if found.get("confusion"):
            names = classes or [str(label) for label in range(len(found["confusion"]))]
            rows = [[name, *counts] for name, counts in zip(names, found["confusion"], strict=True)]
            columns = ["true, below: predicted", *names]
            media_log.table(f"{split}/confusion", epoch, columns, rows, "samples by true and predicted class", step)
        for kind in ("predictions", "mistakes", "losses", "masks"):
            if shown := found[kind]:
                keys = [key for key in shown[0] if key != "jpeg"]
                rows = [[_class_name(key, one.get(key), classes) for key in keys] for one in shown]
                media_log.table(f"{split}/{kind}", epoch, keys, rows, step=step)
                pictures = [base64.b64decode(one["jpeg"]) for one in shown if "jpeg" in one]
                if pictures:
                    volumes = kind == "masks" and self.info is not None and len(self.info.input_shape) == 4
                    planes = f"; {PLANES}" if volumes else ""
                    caption = f"{SHEETS[kind]}{planes}, from left to right as in the table {split}/{kind}"
                    media_log.image(f"{split}/{kind}", epoch, contact_sheet(pictures), caption, step)

    @property
    def _columns(self) -> list[list[Array]]:
        return [self.targets, self.predicted, self.confidence, self.losses]

    def _shown(self, facts: dict[str, Any], loader: Any) -> dict[str, Any]:
        """What is written of a sample: numbers, a name, a small picture."""
        input = facts.get("input")
        index = facts.get("index")
        plain = {key: value for key, value in facts.items() if key not in ("input", "panel")}
        if "name" not in plain and index is not None:
            plain["name"] = _name(loader, index)
        scale = self.info.preprocessing if self.info is not None else {}
        levels = None if input is None else shown_levels(input, scale.get("mean"), scale.get("std"))
        if "panel" in facts:
            plain["jpeg"] = base64.b64encode(thumbnail(facts["panel"], max(facts["panel"].shape))).decode()
        elif levels is not None:
            plain["jpeg"] = base64.b64encode(thumbnail(levels)).decode()
        return plain


def _largest(pairs: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The samples with the largest values, of those that each process has kept."""
    return [facts for _, facts in sorted(pairs, key=lambda pair: -pair[0])[:KEPT]]


def _dice(pairs: list[tuple[Array, Array]]) -> float:
    """The mean Dice of the foreground classes (or regions) that either mask holds; nan where neither holds any."""
    scores = []
    for made, true in pairs:
        if total := int(made.sum()) + int(true.sum()):
            scores.append(2 * int((made & true).sum()) / total)
    return float(np.mean(scores)) if scores else float("nan")


def _class_name(key: str, value: Any, classes: list[str]) -> Any:
    """A value of a sample as a table shows it: the name of a class, not its index."""
    is_class = key in ("target", "predicted") and isinstance(value, int) and 0 <= value < len(classes)
    return classes[value] if is_class else value


def _name(loader: Any, index: int) -> str:
    """The file of a sample where its data set knows it, else its index."""
    sources = getattr(loader, "sources", None)
    source = next(iter(sources.values())) if isinstance(sources, Mapping) and sources else None
    files = None if source is None else files_of(source)
    return f"sample {index}" if files is None else files[index]


def measured(targets: Array, predicted: Array, confidence: Array, classes: int) -> dict[str, Any]:
    """Counts by class, the confusion matrix of a few classes, and the bins of the reliability diagram.

    Args:
        targets, predicted: (N,) class indices.
        confidence: (N,) the probability of the predicted class.
        classes: how many there are.
    """
    hits = targets == predicted
    bin_index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = [np.bincount(bin_index, weights, BINS) for weights in (None, confidence, hits.astype(float))]
    counts = sums[0].astype(int)
    gaps = np.abs(sums[1] - sums[2]).sum() / max(1, len(targets))
    confusion = np.bincount(targets * classes + predicted, minlength=classes**2) if classes <= MOST_CLASSES else None
    return {
        "count": len(targets),
        "hits": int(hits.sum()),
        "true": np.bincount(targets, minlength=classes).tolist(),
        "predicted": np.bincount(predicted, minlength=classes).tolist(),
        "correct": np.bincount(targets[hits], minlength=classes).tolist(),
        "confusion": None if confusion is None else confusion.reshape(classes, classes).tolist(),
        "ece": float(gaps),
        "bins": [
            {"count": int(n), "confidence": float(c / n), "accuracy": float(a / n)}
            for n, c, a in zip(counts, sums[1], sums[2], strict=True)
            if n
        ],
    }

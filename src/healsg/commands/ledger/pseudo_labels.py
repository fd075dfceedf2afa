"""``healsg ledger RUN`` of a semi-supervised run: how many pseudo-labels were right, by epoch and by difficulty."""

from __future__ import annotations

from typing import Any

import numpy as np

from healsg.commands.ledger.files import Array, described, epochs_of, names_of, targets_of
from healsg.commands.terminal.tables import show
from healsg.runs.folder import RunFolder

GROUPS = 5
"""Number of groups of equal size into which the samples are divided by difficulty."""

SHOWN = 7
"""Epochs shown in a table."""


class PseudoLabels:
    """The pseudo-labels of a semi-supervised run; see ``training.pseudo_labels.PseudoLabelLedger``.

    ``confidence`` and ``weight`` are (E, N), nan if a sample did not occur in an epoch, and ``label`` (E, N), -1 in
    that case; ``targets`` (N,) the true classes, -1 if unknown; ``difficulty`` (N,) is 1 minus the mean confidence over
    the epochs, which needs no true class, and nan for a sample that never occurred.

    Raises RunError if the ledger is missing or damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        ledger_folder = folder.path / "ledger"
        facts = described(folder)
        count = facts["samples"]
        self.classes = [str(name) for name in facts.get("classes") or ()]
        contents = list(epochs_of(ledger_folder, 8 * count))
        halves = np.stack([np.frombuffer(content, "<f2", 2 * count) for content in contents]).astype(np.float32)
        self.label = np.stack([np.frombuffer(content, "<i4", count, 4 * count) for content in contents])
        occurred = self.label >= 0
        self.confidence = np.where(occurred, halves[:, :count], np.nan)
        self.weight = np.where(occurred, halves[:, count:], np.nan)
        self.targets = targets_of(ledger_folder, count)
        self.names = names_of(ledger_folder, count)
        times = occurred.sum(axis=0)
        sums = np.where(occurred, 1 - halves[:, :count], 0).sum(axis=0)
        self.difficulty = np.where(times > 0, sums / np.maximum(times, 1), np.nan)
        self.judged = occurred & (self.targets >= 0)
        """(E, N) whether it is known if a pseudo-label is right."""
        self.right = self.judged & (self.label == self.targets)

    def named(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)


def ratio(numerator: Array, denominator: Array) -> float | None:
    """The ratio of two sums; None if the second one is 0."""
    total = float(np.nansum(denominator))
    return float(np.nansum(numerator)) / total if total else None


def facts_of_pseudo_labels(folder: RunFolder, top: int) -> dict[str, Any]:
    """The analysis of such a ledger, as plain values."""
    read = PseudoLabels(folder)
    occurred = read.label >= 0
    epochs: list[dict[str, Any]] = [
        {
            "epoch": number,
            "seen": int(there.sum()),
            "confidence": ratio(confidence, there),
            "learned": ratio(weight, there),
            "right": ratio(right, judged),
            "right_of_learned": ratio(weight * right, weight * judged),
        }
        for number, (there, confidence, weight, right, judged) in enumerate(
            zip(occurred, read.confidence, read.weight, read.right, read.judged, strict=True), 1
        )
        if there.any()
    ]
    seen = np.flatnonzero(~np.isnan(read.difficulty))
    bins = np.histogram(read.difficulty[seen], bins=10, range=(0.0, 1.0))[0]
    return {
        "schema": 1,
        "kind": "guesses",
        "run": str(folder.shown),
        "samples": len(seen),
        "known": int((read.targets[seen] >= 0).sum()),
        "epochs": epochs,
        "difficulty": [
            {"from": index / 10, "to": (index + 1) / 10, "samples": int(count)} for index, count in enumerate(bins)
        ],
        "by_difficulty": _by_difficulty(read, seen, [row["epoch"] for row in epochs]),
        "wrong": [_sample(read, int(number)) for number in _most_confidently_wrong(read)[:top]],
    }


def _by_difficulty(read: PseudoLabels, seen: Array, epochs: list[int]) -> list[dict[str, Any]]:
    """For each group of samples, easiest first, the share of correct pseudo-labels in each epoch."""
    order = seen[np.argsort(read.difficulty[seen], kind="stable")]
    return [
        {
            "from": float(read.difficulty[group[0]]),
            "to": float(read.difficulty[group[-1]]),
            "samples": len(group),
            "right": [ratio(read.right[epoch - 1, group], read.judged[epoch - 1, group]) for epoch in epochs],
        }
        for group in np.array_split(order, min(GROUPS, len(order)))
        if len(group)
    ]


def _last(read: PseudoLabels) -> Array:
    """(N,) the last epoch, from 0, in which each sample occurred; 0 if it never did."""
    occurred = read.label >= 0
    index: Array = len(occurred) - 1 - occurred[::-1].argmax(axis=0)
    return np.where(occurred.any(axis=0), index, 0)


def _most_confidently_wrong(read: PseudoLabels) -> Array:
    """The samples whose last pseudo-label is wrong, the most confident first."""
    last, every = _last(read), np.arange(read.label.shape[1])
    wrong = read.judged[last, every] & ~read.right[last, every]
    confidence = np.where(wrong, read.confidence[last, every], -1.0)
    return np.argsort(-confidence, kind="stable")[: int(wrong.sum())]


def _sample(read: PseudoLabels, number: int) -> dict[str, Any]:
    last = int(_last(read)[number])
    return {
        "index": number,
        "name": read.names[number],
        "class": read.named(int(read.targets[number])),
        "guess": read.named(int(read.label[last, number])),
        "confidence": float(read.confidence[last, number]),
        "weight": float(read.weight[last, number]),
        "difficulty": float(read.difficulty[number]),
    }


def show_pseudo_labels(facts: dict[str, Any]) -> None:
    """Print the result of ``facts_of_pseudo_labels``."""
    epochs = facts["epochs"]
    print(f"{facts['run']}: {facts['samples']} unlabelled samples, {len(epochs)} epochs")
    if facts["known"] < facts["samples"]:
        rest = f"what is right is counted of the {facts['known']} others" if facts["known"] else "none is called right"
        print(f"the true class of {facts['samples'] - facts['known']} samples is not known; {rest}")
    chosen = sorted({round(at) for at in np.linspace(0, len(epochs) - 1, min(len(epochs), SHOWN))})
    print("\npseudo-labels by epoch (learned: the mean weight in the loss)")
    names = ["epoch", "seen", "confidence", "learned", "right", "right of learned"]
    show(names, [list(epochs[index].values()) for index in chosen])
    print("\ndifficulty (1 - mean confidence): samples, easy ones first")
    most = max(one["samples"] for one in facts["difficulty"]) or 1
    for one in facts["difficulty"]:
        bar = "#" * -(-40 * one["samples"] // most)
        print(f"{one['from']:.1f}-{one['to']:.1f} {one['samples']:7} {bar}".rstrip())
    if not facts["known"]:
        return
    print("\nright pseudo-labels by difficulty, in epoch")
    rows = [
        [f"{one['from']:.3f}-{one['to']:.3f}", one["samples"], *(one["right"][index] for index in chosen)]
        for one in facts["by_difficulty"]
    ]
    show(["difficulty", "samples", *(str(epochs[index]["epoch"]) for index in chosen)], rows)
    print("\nwrong at last, the most confident first")
    keys = ("class", "guess", "confidence", "weight", "difficulty")
    show(["sample", *keys], [[one["name"], *(one[key] for key in keys)] for one in facts["wrong"]])

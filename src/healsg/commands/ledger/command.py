"""``healsg ledger RUN``: which training samples a run forgot, never learned, or found hard."""

from __future__ import annotations

from typing import Any

import numpy as np

from healsg.commands.ledger.errors import errors_of, runs_of, show_errors
from healsg.commands.ledger.files import Array, described, epochs_of, names_of, targets_of
from healsg.commands.ledger.pseudo_labels import facts_of_pseudo_labels, show_pseudo_labels
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show, show_json
from healsg.errors import ConfigError
from healsg.runs.folder import RunFolder, find

EXAMPLES = """\
errors lists labels that are likely wrong, by confident learning (Northcutt et
al. 2021, arXiv 1911.00068) on the probabilities of runs that held the samples
out. It needs no ledger; name the runs of all folds, or their sweep:

  healsg train -m data=imagefolder data.folder=DIR data.fold=1/2,2/2 name=folds
  healsg ledger errors folds"""


def run(arguments: list[str]) -> int:
    """``RUN [--top N] [--json]``."""
    flags = Flags(
        "ledger",
        "For a run with runner.ledger=true: how often each training sample was forgotten (correct in one epoch, wrong "
        "in the next in which it was used; Toneva et al. 2019, arXiv 1812.05159), which samples were never learned, "
        "the hardest by mean loss, and the distribution of the mean confidence. For a semi-supervised method: how many "
        "pseudo-labels were correct in each epoch, by difficulty of the samples, and the most confident wrong ones.",
        EXAMPLES,
    )
    flags.add_argument("runs", nargs="+", metavar="RUN", help="one run, or: errors RUN...")
    flags.add_argument("--top", type=_samples, default=20, metavar="N", help="number of samples to show (default: 20)")
    flags.add_json()
    args = flags.read(arguments)
    errors = len(args.runs) > 1 and args.runs[0] == "errors"
    if len(args.runs) != 1 and not errors:
        raise ConfigError("healsg ledger RUN: name one run, as a folder or a name under runs/; or: errors RUN...")
    if errors:
        suspects = errors_of(runs_of(args.runs[1:]))
        show_json(suspects) if args.json else show_errors(suspects, args.top)
        return 0
    folder = find(args.runs[0])
    of_pseudo_labels = described(folder).get("kind") == "guesses"
    facts = facts_of_pseudo_labels(folder, args.top) if of_pseudo_labels else facts_of(folder, args.top)
    if args.json:
        show_json(facts)
    elif of_pseudo_labels:
        show_pseudo_labels(facts)
    else:
        _print(facts)
    return 0


def _samples(text: str) -> int:
    """The value of ``--top``. Raises ConfigError."""
    if not (text.isdecimal() and 0 < len(text) < 8):
        raise ConfigError(f"--top: {text} is no number of samples; --top 50 shows fifty")
    return int(text)


class Read:
    """The ledger of a run, by epoch and sample. Raises RunError if it is missing or damaged.

    ``losses`` and ``confidence`` are (E, N) float, nan for a sample that did not occur in an epoch; ``correct`` is (E,
    N) uint8, 255 in that case; ``targets`` (N,) the class indices, -1 if unknown; ``names`` of the N samples.
    """

    def __init__(self, folder: RunFolder) -> None:
        ledger_folder = folder.path / "ledger"
        facts = described(folder)
        count = facts["samples"]
        self.classes = [str(name) for name in facts.get("classes") or ()]
        rows: dict[str, list[Array]] = {"losses": [], "confidence": [], "correct": []}
        for content in epochs_of(ledger_folder, 5 * count):
            values = np.frombuffer(content, "<f2", 2 * count).astype(np.float32)
            rows["losses"].append(values[:count])
            rows["confidence"].append(values[count:])
            rows["correct"].append(np.frombuffer(content, np.uint8, count, 4 * count))
        self.correct = np.stack(rows["correct"])
        unseen = self.correct == 255
        self.losses, self.confidence = (
            np.where(unseen, np.nan, np.stack(rows[key])) for key in ("losses", "confidence")
        )
        self.targets = targets_of(ledger_folder, count)
        self.names = names_of(ledger_folder, count)


def forgotten(correct: Array) -> Array:
    """(N,) how often each sample was right and, the next time that it occurred, wrong; from (E, N) with 255: not."""
    counts = np.zeros(correct.shape[1], int)
    last = np.full(correct.shape[1], 255)
    for row in correct:
        counts += (last == 1) & (row == 0)
        last = np.where(row == 255, last, row)
    return counts


def forgotten_by_epoch(correct: Array) -> Array:
    """(E,) how many samples were wrong in each epoch that had been right when they last occurred; see
    ``forgotten``."""
    found = [forgotten(correct[: epoch + 1]).sum() for epoch in range(len(correct))]
    return np.diff(found, prepend=0)


def facts_of(folder: RunFolder, top: int) -> dict[str, Any]:
    """The analysis of a ledger, as plain values."""
    read = Read(folder)
    trained = (read.correct != 255).any(axis=0)
    counts = forgotten(read.correct)
    learned = (read.correct == 1).any(axis=0)
    seen = (read.correct != 255).sum(axis=0)
    means = np.where(np.isnan(read.losses), 0, read.losses).sum(axis=0) / np.maximum(seen, 1)
    order = np.argsort(np.where(trained, -means, np.inf), kind="stable")[: min(top, int(trained.sum()))]
    histogram = {str(times): int((counts[learned] == times).sum()) for times in range(4)}
    histogram["4 and more"] = int((counts[learned] >= 4).sum())
    epochs = [
        {
            "epoch": number,
            "loss": float(np.nanmean(losses)),
            "correct": float((right[right != 255] == 1).mean()),
            "forgotten": int(lost),
        }
        for number, (losses, right, lost) in enumerate(
            zip(read.losses, read.correct, forgotten_by_epoch(read.correct), strict=True), 1
        )
        if (right != 255).any()
    ]
    sure = np.where(np.isnan(read.confidence), 0, read.confidence).sum(axis=0) / np.maximum(seen, 1)
    bins = np.histogram(sure[trained], bins=10, range=(0.0, 1.0))[0]
    return {
        "schema": 1,
        "run": str(folder.shown),
        "samples": int(trained.sum()),
        "epochs": epochs,
        "forgotten": histogram,
        "never_learned": int((trained & ~learned).sum()),
        "confidence": [
            {"from": index / 10, "to": (index + 1) / 10, "samples": int(count)} for index, count in enumerate(bins)
        ],
        "hardest": [_sample(read, int(number), means, counts, learned) for number in order],
    }


def _sample(read: Read, number: int, means: Array, counts: Array, learned: Array) -> dict[str, Any]:
    label = int(read.targets[number])
    confident = read.confidence[:, number]
    trained = confident[~np.isnan(confident)]
    return {
        "index": number,
        "name": read.names[number],
        "class": read.classes[label] if 0 <= label < len(read.classes) else str(label),
        "loss": float(means[number]),
        "confidence": float(trained[-1]),
        "forgotten": int(counts[number]),
        "learned_in": int((read.correct[:, number] == 1).argmax()) + 1 if learned[number] else None,
    }


def _print(facts: dict[str, Any]) -> None:
    last = facts["epochs"][-1]
    samples = f"{facts['samples']} training samples, {last['epoch']} epochs"
    print(f"{facts['run']}: {samples}, right at last {last['correct']:.4f}\n")
    rows = [[times, count] for times, count in facts["forgotten"].items()]
    show(["forgotten, times", "samples"], [*rows, ["never learned", facts["never_learned"]]])
    print("\nmean confidence in the own class: samples, hard ones first")
    most = max(one["samples"] for one in facts["confidence"]) or 1
    for one in facts["confidence"]:
        bar = "#" * -(-40 * one["samples"] // most)
        print(f"{one['from']:.1f}-{one['to']:.1f} {one['samples']:7} {bar}".rstrip())
    print("\nforgotten by epoch")
    many = facts["epochs"]
    shown = [many[round(at)] for at in np.linspace(0, len(many) - 1, min(len(many), 10))]
    show(list(many[0]), [list(one.values()) for one in shown])
    print("\nhardest, by mean loss (labels worth a look)")
    keys = ("name", "class", "loss", "confidence", "forgotten", "learned_in")
    show(["sample", *keys[1:]], [[one[key] for key in keys] for one in facts["hardest"]])

"""What an evaluation measured as a file of the run: ``eval-<split>-<checkpoint>.json``."""

from __future__ import annotations

import json

from healsg.evaluation.evaluator import Evaluation
from healsg.runs.folder import RunFolder, finite, write_text


def write_evaluation(folder: RunFolder, split: str, which: str, found: Evaluation) -> str:
    """Write the numbers, and those of each case where there are cases; returns the line of JSON that the file holds.

    Args:
        folder: of the run.
        split: that was evaluated.
        which: the weights: ``best`` or ``last``.
        found: what was measured.

    Raises:
        OSError: the file cannot be written.
    """
    cases = {"cases": found.cases} if found.cases else {}
    text = json.dumps(finite({"split": split, "checkpoint": which, "metrics": found.numbers, **cases}))
    write_text(folder.path / f"eval-{split}-{which}.json", text + "\n")
    return text

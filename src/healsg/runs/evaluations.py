"""What an evaluation measured as a file of the run: ``eval-<split>-<checkpoint>.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from healsg.evaluation.evaluator import Evaluation, worst_first
from healsg.runs.folder import RunFolder, finite, write_text
from healsg.runs.media import MediaLog


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


def log_cases(media_log: MediaLog, split: str, cases: Mapping[str, Mapping[str, float]], epoch: int, step: int) -> None:
    """Log the table by case, the worst first, as ``<split>/cases``; nothing where there are no cases.

    Args:
        media_log: of the run.
        split: that was evaluated.
        cases: by name their numbers by name.
        epoch, step: at which the evaluated run stands.

    Raises:
        OSError: it cannot be written.
    """
    if not cases:
        return
    columns = list(dict.fromkeys(key for numbers in cases.values() for key in numbers))
    rows = [[name, *(cases[name].get(key) for key in columns)] for name in worst_first(cases)]
    media_log.table(f"{split}/cases", epoch, ["case", *columns], rows, "cases, the worst first", step)

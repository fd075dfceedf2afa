"""The results of an evaluation as a file of the run: ``eval-<split>-<checkpoint>.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from healsg.evaluation.evaluator import Evaluation, worst_first
from healsg.runs.folder import RunFolder, finite, write_text
from healsg.runs.media import MediaLog


def write_evaluation(folder: RunFolder, split: str, which: str, evaluation: Evaluation) -> str:
    """Write the numbers, and those of each case if there are cases; returns the file's line of JSON.

    Args:
        folder: the run's folder.
        split: the evaluated split.
        which: the weights: ``best`` or ``last``.
        evaluation: the results.

    Raises:
        OSError: the file cannot be written.
    """
    cases = {"cases": evaluation.cases} if evaluation.cases else {}
    text = json.dumps(finite({"split": split, "checkpoint": which, "metrics": evaluation.numbers, **cases}))
    write_text(folder.path / f"eval-{split}-{which}.json", text + "\n")
    return text


def log_cases(media_log: MediaLog, split: str, cases: Mapping[str, Mapping[str, float]], epoch: int, step: int) -> None:
    """Log the table by case, the worst first, as ``<split>/cases``; does nothing if there are no cases.

    Args:
        media_log: the run's.
        split: the evaluated split.
        cases: the metrics of each case, by name.
        epoch, step: the position of the evaluated run.

    Raises:
        OSError: the table cannot be written.
    """
    if not cases:
        return
    columns = list(dict.fromkeys(key for numbers in cases.values() for key in numbers))
    rows = [[name, *(cases[name].get(key) for key in columns)] for name in worst_first(cases)]
    media_log.table(f"{split}/cases", epoch, ["case", *columns], rows, "cases, the worst first", step)

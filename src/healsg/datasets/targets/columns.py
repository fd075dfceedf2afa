"""Columns of tables as tensors: numbers, and labels as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan
from typing import Any

import torch
from torch import Tensor

from healsg.data.info import listed, order_classes
from healsg.errors import DataError

NO_LABEL = ("", "na", "n/a", "nan", "-nan", "<na>", "#n/a", "null", "?")
"""Lower-case markers of a missing label in a table. ``none`` may be a class."""

MISSING = (*NO_LABEL, "none")
"""The same for a number."""

MANY = 20
"""Most distinct integers that are accepted as class labels without question, however few rows there are."""


def numbers(name: str, values: Sequence[Any]) -> Tensor:
    """A column as (N,) float64, nan where a value is missing.

    Raises DataError that names the column ``name`` and the row of a value that is no number.
    """
    made = []
    for row, value in enumerate(values):
        try:
            made.append(number(value))
        except (TypeError, ValueError, OverflowError):
            shown = repr(value)[:40]
            raise DataError(f"data: column {name!r} is {shown} in row {row + 1}, which is no number") from None
    return torch.tensor(made, dtype=torch.float64)


def number(value: Any) -> float:
    """A value as a number; true and false are 1 and 0. Raises ValueError or TypeError if it is none."""
    if value is None:
        return float("nan")
    text = value.strip().lower() if isinstance(value, str) else value
    if text in ("true", "false"):
        return float(text == "true")
    made = float("nan") if text in MISSING else float(text)
    if made in (float("inf"), float("-inf")):
        raise ValueError
    return made


def is_number(value: Any) -> bool:
    """Whether a value of a numeric column is present."""
    return not isnan(number(value))


def classes_of(values: Sequence[Any]) -> tuple[str, ...]:
    """The different values of a column as text, ordered as ``order_classes`` does."""
    found = {str(value).strip() for value in values if value is not None} - {""}
    if not found:
        raise DataError("data.target: no row has a label")
    return order_classes(found)[0]


def has_label(value: Any, words: bool = True) -> bool:
    """Whether a value is a label, not one that is missing.

    Args:
        value: of the column.
        words: whether ``NA``, ``nan`` and the like say that it is missing; else they are labels.
    """
    if value is None or (isinstance(value, float) and isnan(value)):
        return False
    text = str(value).strip()
    return text.lower() not in NO_LABEL if words else bool(text)


def ask_about_numbers(name: str, classes: Sequence[str], rows: int) -> None:
    """Refuse classes that look like regression targets: with fractions, or nearly one for each row.

    Raises DataError with the column ``name`` and the settings for both kinds.
    """
    try:
        values = [float(text) for text in classes]
    except ValueError:
        return
    fractions = any(value != round(value) for value in values if isfinite(value))
    if fractions or len(values) > max(MANY, rows / 2):
        ways = "data.kind=regression predicts them, data.kind=multiclass takes each for a class"
        raise DataError(f"data.target: {name!r} holds {len(values)} different numbers in {rows} rows; {ways}")


def indices(name: str, values: Sequence[Any], classes: Sequence[str], rows: Sequence[int] | None = None) -> Tensor:
    """Labels of a column as (N,) int64 indices of ``classes``; ``rows`` are their rows, where these are not all.

    Raises DataError that names the column ``name`` and the row of a label that the training part does not have.
    """
    index = {label: code for code, label in enumerate(classes)}
    made = []
    for row, value in zip(range(len(values)) if rows is None else rows, values, strict=True):
        label = "" if value is None else str(value).strip()
        if label not in index:
            known = listed(classes)
            raise DataError(f"data.target: {name!r} is {label[:40]!r} in row {row + 1}; the classes are {known}")
        made.append(index[label])
    return torch.tensor(made, dtype=torch.int64)

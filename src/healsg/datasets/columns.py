"""Columns of tables as tensors: numbers, and labels as class indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from healsg.errors import DataError

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""What stands in a table, in small letters, for a number that is not known."""


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
    """A value as a number; true and false are 1 and 0. Raises ValueError or TypeError where it is none."""
    if value is None:
        return float("nan")
    text = value.strip().lower() if isinstance(value, str) else value
    if text in ("true", "false"):
        return float(text == "true")
    made = float("nan") if text in MISSING else float(text)
    if made in (float("inf"), float("-inf")):
        raise ValueError
    return made


def classes_of(values: Sequence[Any]) -> tuple[str, ...]:
    """The different values of a column as text: whole numbers in their order, else in that of letters."""
    found = {str(value).strip() for value in values if value is not None} - {""}
    if not found:
        raise DataError("data.target: no row has a label")
    whole = all(text.removeprefix("-").isdecimal() for text in found)
    if not whole and len(found) > len(values) / 2 and all(_is_number(text) for text in found):
        raise DataError(
            f"data.target: {len(found)} different numbers in {len(values)} rows are no classes; data.kind=regression?"
        )
    return tuple(sorted(found, key=(lambda text: (int(text), text)) if whole else None))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def indices(name: str, values: Sequence[Any], classes: Sequence[str]) -> Tensor:
    """A column of labels as (N,) int64 indices of ``classes``.

    Raises DataError that names the column ``name`` and the row of a label that the training part does not have.
    """
    index = {label: place for place, label in enumerate(classes)}
    made = []
    for row, value in enumerate(values):
        label = "" if value is None else str(value).strip()
        if label not in index:
            known = ", ".join(map(repr, classes[:5]))
            raise DataError(f"data.target: {name!r} is {label[:40]!r} in row {row + 1}; the classes are {known}, ...")
        made.append(index[label])
    return torch.tensor(made, dtype=torch.int64)

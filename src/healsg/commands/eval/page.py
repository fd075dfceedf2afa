"""``healsg eval --page``: one HTML file with the metrics, the table by case, worst first, and images of the worst
cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from healsg.evaluation.evaluator import Evaluation, worst_first
from healsg.loggers.report import write_html
from healsg.loggers.report_samples import worst
from healsg.runs.folder import finite


def write_page(path: Path, title: str, evaluation: Evaluation) -> None:
    """Write the page of an evaluation that collected its samples. Raises OSError."""
    numbers = {name: value for name, value in evaluation.numbers.items() if isinstance(value, (int, float))}
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{_number(value)}</td></tr>" for name, value in numbers.items())
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<table class="facts">{facts}</table>',
        *worst(finite(evaluation.samples)),
        _cases(evaluation.cases),
    ]
    write_html(path, escape(title), sections)


def _cases(cases: Mapping[str, Mapping[str, float]]) -> str:
    """All cases, the worst first."""
    if not cases:
        return ""
    columns = list(dict.fromkeys(key for numbers in cases.values() for key in numbers))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["case", *columns])
    rows = ""
    for name in worst_first(cases):
        cells = "".join(f"<td>{_number(cases[name].get(column))}</td>" for column in columns)
        rows += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Cases, the worst first</h2><div class="scroll matrix">{table}</div>'


def _number(value: Any) -> str:
    """A number as text; empty if it is not defined, such as for a class that is neither in the truth nor predicted."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)

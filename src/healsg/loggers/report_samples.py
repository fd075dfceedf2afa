"""The sections of a report on classes and single samples, from ``media/samples.json``; treated as untrusted input,
since a run's folder may come from anybody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from healsg.loggers.mask_panels import CAPTION, PLANES
from healsg.loggers.plots import reliability
from healsg.metrics.interval import wilson

MOST_ROWS = 200
"""Most classes in the table."""

LARGEST_PICTURE = 120_000
"""Characters of a picture in base64; a larger one was not written by this program."""


def whole_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def numbers(value: Any, count: int) -> list[int] | None:
    """``value`` if it is a list of ``count`` natural numbers."""
    return value if isinstance(value, list) and len(value) == count and all(map(whole_number, value)) else None


def names_of(samples: dict[str, Any]) -> list[str]:
    """The names of the classes; their indices if they have none."""
    names = samples.get("classes")
    count = len(samples["true"]) if isinstance(samples.get("true"), list) else 0
    if isinstance(names, list) and (len(names) == count or not count) and all(isinstance(name, str) for name in names):
        return list(names)
    return [str(label) for label in range(count)]


def class_table(samples: dict[str, Any]) -> str:
    """Precision, recall with its interval, F1 and the number of samples of each class."""
    names = names_of(samples)
    true_counts, predicted_counts, hits = (
        numbers(samples.get(key), len(names)) for key in ("true", "predicted", "correct")
    )
    if not names or true_counts is None or predicted_counts is None or hits is None:
        return ""
    rows = []
    for name, true, predicted, correct in list(zip(names, true_counts, predicted_counts, hits, strict=True))[
        :MOST_ROWS
    ]:
        low, high = wilson(correct, true)
        recall = f"{correct / true:.3f}" if true else ""
        interval = f"{low:.3f} to {high:.3f}" if true else ""
        precision = f"{correct / predicted:.3f}" if predicted else ""
        f1 = f"{2 * correct / (true + predicted):.3f}" if true + predicted else ""
        cells = "".join(f"<td>{cell}</td>" for cell in (true, precision, recall, interval, f1))
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("class", "samples", "precision", "recall", "95 % interval", "F1"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Classes</h2><div class="scroll matrix">{table}</div>'


def calibration(samples: dict[str, Any]) -> str:
    """The reliability diagram, and the expected calibration error."""
    bins = []
    for one in samples["bins"] if isinstance(samples.get("bins"), list) else ():
        values = [one.get(key) for key in ("confidence", "accuracy", "count")] if isinstance(one, dict) else [None]
        if all(isinstance(value, (int, float)) and 0 <= value < 1e15 for value in values):
            bins.append((float(values[0]), float(values[1]), int(values[2])))  # type: ignore[arg-type]
    if not bins or not all(confidence <= 1 and accuracy <= 1 for confidence, accuracy, _ in bins):
        return ""
    ece = samples.get("ece")
    detail = f"expected calibration error {ece:.3f}, " if isinstance(ece, (int, float)) and 0 <= ece <= 1 else ""
    text = f"<p>{detail}{len(bins)} bins of confidence. On the line, predictions are right as often as they claim.</p>"
    return f'<h2>Calibration</h2><div class="plots">{reliability(bins)}</div>{text}'


def worst(samples: dict[str, Any]) -> Iterator[str]:
    """The most confident mistakes, the largest losses, the masks with the lowest Dice, as cards with pictures."""
    names = names_of(samples)
    headings = {
        "mistakes": ("Most confident mistakes", ""),
        "losses": ("Largest losses", ""),
        "masks": ("Masks with the lowest Dice", f"<p>{CAPTION}; of volumes {PLANES}</p>"),
    }
    for kind, (heading, text) in headings.items():
        entries = (
            [one for one in samples.get(kind) or () if isinstance(one, dict)] if _is_list(samples.get(kind)) else []
        )
        cards = "".join(_card(one, names) for one in entries[:64])
        if cards:
            wide = " wide" if kind == "masks" else ""
            yield f'<h2>{heading}</h2>{text}<div class="cards{wide}">{cards}</div>'


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _card(one: dict[str, Any], names: Sequence[str]) -> str:
    jpeg = one.get("jpeg")
    is_picture = isinstance(jpeg, str) and len(jpeg) <= LARGEST_PICTURE and re.fullmatch(r"[A-Za-z0-9+/]+=*", jpeg)
    picture = f'<img alt="" src="data:image/jpeg;base64,{jpeg}">' if is_picture else ""
    detail = []
    target, predicted = (_named(one.get(key), names) for key in ("target", "predicted"))
    if predicted:
        detail.append(f"{predicted}, not {target}" if predicted != target else f"{predicted}, rightly")
    for key in ("confidence", "loss", "dice"):
        if isinstance(one.get(key), (int, float)):
            detail.append(f"{key} {one[key]:.3f}")
    name = str(one.get("name") or "")[:200]
    text = "<br>".join(map(escape, detail))
    return f"<figure>{picture}<figcaption>{text}</figcaption><small>{escape(name)}</small></figure>"


def _named(label: Any, names: Sequence[str]) -> str:
    if not whole_number(label):
        return ""
    return names[label] if label < len(names) else str(label)

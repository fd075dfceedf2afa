"""``healsg check --page``: one HTML file with the samples that cannot be read, and some of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from healsg.commands.check.samples import Bad, Seen
from healsg.data.source import line
from healsg.loggers.report import write_html
from healsg.loggers.thumbnails import address, shown_levels, thumbnail
from healsg.paths import current_folder

LARGEST = 800_000
"""Bytes of pictures in the page."""

MOST_BAD = 200
"""Bad samples that the page lists."""


def write_page(path: Path, answer: dict[str, Any], seen: Mapping[str, Seen]) -> None:
    """Write the page of what ``checked`` gave. Raises OSError."""
    budget = [LARGEST]
    verdict = "something would stop training" if answer["fatal"] else "nothing would stop training"
    findings = "".join(
        f"<tr><th>{one['level']}</th><td>{escape(one['subject'])}: {escape(one['message'])}</td></tr>"
        for one in answer["findings"]
    )
    sections = [
        f"<h1>Check: {verdict}</h1>",
        f'<table class="facts">{findings}</table>' if findings else "",
        _counts(answer),
        _volumes(answer.get("volumes", [])),
        _bad(seen, budget),
        *(_samples(split, one, answer["classes"], budget) for split, one in seen.items()),
        f"<h2>Train</h2><pre>{escape(answer['command'])}</pre>",
    ]
    write_html(path, "healsg check", sections)


def _counts(answer: dict[str, Any]) -> str:
    splits: dict[str, dict[str, Any]] = answer["splits"]
    key = "pixels" if answer["kind"] == "segmentation" else "classes"
    head = "".join(f"<th>{escape(split)}</th>" for split in splits)
    rows = [("samples", [one["samples"] for one in splits.values()])]
    rows += [("unreadable", [one["unreadable"] for one in splits.values()])]
    names = list(next(iter(splits.values())).get(key) or {})[:1000]
    rows += [(name, [one.get(key, {}).get(name, 0) for one in splits.values()]) for name in names]
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>" for name, values in rows
    )
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>Samples</h2><div class="scroll matrix">{table}</div>'


def _volumes(volumes: Sequence[Mapping[str, Any]]) -> str:
    """The table of volumes by case: position, size and intensities."""
    if not volumes:
        return ""
    head = "<th>case</th><th>split</th><th>voxels</th><th>spacing, mm</th><th>orientation</th><th>0.5, 50, 99.5 %</th>"
    rows = []
    for one in volumes[:1000]:
        numbers = (" x ".join(f"{value:g}" for value in one[key]) for key in ("shape", "spacing"))
        levels = ", ".join(f"{value:g}" for value in one["intensity"])
        cells = [line(one["case"]), one["split"], *numbers, one["orientation"], levels]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Volumes</h2><div class="scroll">{table}</div>'


def _bad(seen: Mapping[str, Seen], budget: list[int]) -> str:
    every = [one for each in seen.values() for one in each.bad]
    if not every:
        return ""
    cards = "".join(
        _card(f"{one.split}: {_short(one.name)}", one.reason, _whatever(one), budget) for one in every[:MOST_BAD]
    )
    more = f"<p>and {len(every) - MOST_BAD} more</p>" if len(every) > MOST_BAD else ""
    return f'<h2>Unreadable</h2><div class="cards">{cards}</div>{more}'


def _whatever(bad: Bad) -> bytes | None:
    """The image that a viewer would show for a file that cannot be read; None if there is none."""
    import numpy as np
    from PIL import Image

    from healsg.datasets.images.decoding import FORMATS, PIXELS

    if bad.path is None or not Path(bad.path).is_file():
        return None
    try:
        with Image.open(bad.path, formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                return None
            opened.draft("RGB", (256, 256))
            levels = shown_levels(np.asarray(opened.convert("RGB")).transpose(2, 0, 1))
    except Exception:  # broken files make Pillow raise almost anything; the reason is shown in any case
        return None
    return None if levels is None else thumbnail(levels)


def _samples(split: str, seen: Seen, classes: list[str], budget: list[int]) -> str:
    cards = []
    ordered = sorted(seen.samples, key=lambda one: -1 if one[0] is None else one[0])
    for label, name, jpeg in ordered:
        named = classes[label] if label is not None and label < len(classes) else ""
        cards.append(_card(named or split, _short(name), jpeg, budget))
    return f'<h2>{escape(split)}</h2><div class="cards">{"".join(cards)}</div>' if cards else ""


def _short(name: str) -> str:
    """A path relative to the current directory; of one outside of it, its last parts."""
    path = Path(name)
    if not path.is_absolute():
        return name
    if path.is_relative_to(current_folder()):
        return str(path.relative_to(current_folder()))
    return str(Path("…", *path.parts[-3:])) if len(path.parts) > 4 else name


def _card(title: str, text: str, jpeg: bytes | None, budget: list[int]) -> str:
    picture = ""
    if jpeg is not None and budget[0] > (size := len(jpeg) * 4 // 3):
        budget[0] -= size
        picture = f'<img alt="" src="{address(jpeg)}">'
    return (
        f"<figure>{picture}<figcaption>{escape(line(title))}</figcaption><small>{escape(line(text))}</small></figure>"
    )

"""Convert a run's tables and plots to text and images that loggers show."""

from __future__ import annotations

import json
from html import escape
from io import BytesIO
from typing import Any

import numpy as np

from healsg.loggers.plots import ticks

WIDTH = 640
HEIGHT = 400
"""Pixels of a plot."""

LEFT = 70
BOTTOM = 50
TOP = 30
"""Pixels of its margins."""

COLOURS = ((9, 105, 218), (188, 76, 0), (26, 127, 55), (130, 80, 223), (191, 57, 137), (87, 96, 106))
"""Of the curves, in turn."""

MOST_ROWS = 200
"""Rows of a table that are shown."""


def key_of(entry: dict[str, Any]) -> str:
    """The name of a medium at a service that allows one kind per name: a table and an image may share a name."""
    return f"{entry['name']}_table" if entry["kind"] == "table" else str(entry["name"])


def markdown(content: bytes) -> str:
    """A table's file as Markdown."""
    table = json.loads(content)
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"][:MOST_ROWS]]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def html(content: bytes) -> str:
    """A table's file as HTML."""
    table = json.loads(content)
    lines = [("th", table["columns"]), *(("td", row) for row in table["rows"][:MOST_ROWS])]
    rows = ("".join(f"<{tag}>{escape(_text(value))}</{tag}>" for value in line) for tag, line in lines)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _cell(value: Any) -> str:
    return _text(value).replace("|", "\\|").replace("\n", " ")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def levels_of(content: bytes) -> np.ndarray[Any, Any]:
    """The (H, W, 3) uint8 levels of a PNG or JPEG file."""
    from PIL import Image

    with Image.open(BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def drawn(content: bytes) -> bytes:
    """A plot's file as a PNG: axes, curves and their names."""
    from PIL import Image, ImageDraw

    plot = json.loads(content)
    points = [point for curve in plot["curves"].values() for point in curve if None not in point]
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (0, 1))

    def at(point: list[float]) -> tuple[float, float]:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - 20)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    for value in ticks(low, high):
        y = at([left, value])[1]
        draw.line([(LEFT, y), (WIDTH - 20, y)], "lightgray")
        draw.text((LEFT - 6, y), f"{value:g}", "black", anchor="rm")
    for value in ticks(left, right):
        draw.text((at([value, low])[0], HEIGHT - BOTTOM + 8), f"{value:g}", "black", anchor="mt")
    draw.text(((LEFT + WIDTH) / 2, HEIGHT - 14), plot["x"], "black", anchor="mm")
    for number, (name, curve) in enumerate(plot["curves"].items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([at(point) for point in curve if None not in point], colour, 2)
        draw.text((LEFT + 8, TOP + 14 * number), name, colour, anchor="lm")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _range(values: list[float]) -> tuple[float, float]:
    """The ends of an axis; a constant, and nothing, get room on both sides."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    room = 0.0 if high > low else abs(low) * 0.1 or 1.0
    return low - room, high + room

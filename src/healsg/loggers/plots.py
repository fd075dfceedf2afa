"""Plots as inline SVG, for the report."""

from __future__ import annotations

import math
from html import escape

Points = list[tuple[float, float]]
Band = list[tuple[float, float, float]]
"""Places on the horizontal axis, each with the lower and the upper end of what is shaded there."""

WIDTH = 460
HEIGHT = 260
LEFT = 58
BOTTOM = 40
TOP = 12
MOST_POINTS = 1000


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points that keep the curve's shape: the least and the greatest of each piece."""
    if len(points) <= most:
        return points
    size = -(-len(points) // (most // 2))
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    ends = [(min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])) for piece in pieces]
    return [point for pair in ends for point in sorted(set(pair))]


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """About five round numbers in [low, high], no closer than ``least``."""
    rough = max((high - low) / 5, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999))
    first = math.ceil(low / step - 1e-9)
    return [
        round((first + k) * step, 12) if step > 1e-9 else (first + k) * step
        for k in range(12)
        if (first + k) * step <= high + step * 1e-9
    ]


def _range(values: list[float]) -> tuple[float, float]:
    """The ends of an axis; a constant gets room on both sides."""
    low, high = min(values), max(values)
    room = (abs(low) * 0.1 or 1.0) if high - low <= 1e-9 * max(abs(low), abs(high)) else 0.0
    return low - room, high + room


def figure(
    title: str,
    curves: dict[str, dict[str, Points]],
    unit: str,
    marked: float | None = None,
    bands: dict[str, Band] | None = None,
) -> str:
    """One plot with its axes, its key and its title.

    Args:
        title: above it.
        curves: by name the points of its epochs and of its steps.
        unit: of the horizontal axis.
        marked: where on that axis the best epoch lies.
        bands: by name of a curve what is shaded around it.
    """
    bands = bands or {}
    finite = {
        name: {kind: thin([p for p in points if abs(p[1]) < 1e100]) for kind, points in kinds.items()}
        for name, kinds in curves.items()
    }
    everything = [p for kinds in finite.values() for points in kinds.values() for p in points]
    everything += [(x, y) for band in bands.values() for x, *ends in band for y in ends]
    out_of_range = sum(not abs(p[1]) < 1e100 for kinds in curves.values() for points in kinds.values() for p in points)
    keys = "".join(f'<span class="key" style="--c:var(--c{i})">{escape(name)}</span>' for i, name in enumerate(curves))
    keys += f"<small>{out_of_range} values are not finite</small>" * bool(out_of_range)
    drawing = _drawing(finite, everything, unit, marked, bands) if everything else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}<div>{keys}</div></figure>"


def _drawing(
    curves: dict[str, dict[str, Points]], everything: Points, unit: str, marked: float | None, bands: dict[str, Band]
) -> str:
    (left, right), (low, high) = (_range([p[i] for p in everything]) for i in (0, 1))

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - 12)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{unit}</text>']
    for value in ticks(low, high):
        y = at((left, value))[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(left, right, 1.0):
        parts.append(f'<text x="{at((value, low))[0]:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{value:g}</text>')
    if marked is not None and left <= marked <= right:
        x = at((marked, low))[0]
        hint = f"<title>best, epoch {marked:g}</title>"
        parts.append(f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">{hint}</line>')
    for i, (name, kinds) in enumerate(curves.items()):
        parts.append(f'<g style="--c:var(--c{i})">')
        if band := bands.get(name):
            outline = [*((x, high_end) for x, _, high_end in band), *((x, low_end) for x, low_end, _ in reversed(band))]
            path = "L".join("{:.1f} {:.1f}".format(*at(p)) for p in outline)
            parts.append(f'<path class="band" d="M{path}Z"/>')
        for kind, points in kinds.items():
            path = "L".join("{:.1f} {:.1f}".format(*at(p)) for p in points)
            parts.append(f'<path class="{"thin" if kind == "step" else ""}" d="M{path}"/>' if len(points) > 1 else "")
        for p in kinds["epoch"] * (len(kinds["epoch"]) <= 40):
            x, y = at(p)
            hint = f"{escape(name)} {p[1]:.5g}, epoch {p[0]:g}"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{hint}</title></circle>')
        parts.append("</g>")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def scatter(title: str, points: Points, ends: tuple[float, float], ticks_at: list[tuple[float, str]]) -> str:
    """Points without an order, of which the first one is marked.

    Args:
        title: above the plot.
        points: horizontal place and value.
        ends: of the horizontal axis.
        ticks_at: on that axis, with what is written there.
    """
    low, high = _range([value for _, value in points])

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - ends[0]) / (ends[1] - ends[0]) * (WIDTH - LEFT - 24)
        return x, HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = []
    for value in ticks(low, high):
        y = at((ends[0], value))[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for position, text in ticks_at:
        x = at((position, low))[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{escape(text[:16])}</text>')
    for number, point in reversed(list(enumerate(points))):  # the first one lies on top
        x, y = at(point)
        colour, size = ("--c2", 5) if number == 0 else ("--c0", 3)
        hint = f"<title>{point[1]:.5g}</title>"
        parts.append(f'<g style="--c:var({colour})"><circle cx="{x:.1f}" cy="{y:.1f}" r="{size}">{hint}</circle></g>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def reliability(bins: list[tuple[float, float, int]]) -> str:
    """The reliability diagram: by bin the mean confidence, the accuracy and the number of samples, all in 0..1."""
    side = HEIGHT - BOTTOM - TOP
    most = max(count for _, _, count in bins) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * (WIDTH - LEFT - 12), HEIGHT - BOTTOM - y * side

    middle = f'x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle"'
    parts = [f"<text {middle}>confidence; circles: accuracy, by area the samples</text>"]
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = at(value, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{value:g}</text>')
    (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
    parts.append(f'<line class="best" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    points = [at(confidence, accuracy) for confidence, accuracy, _ in bins]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts.append(f'<g style="--c:var(--c0)"><path d="M{path}"/>' if len(points) > 1 else '<g style="--c:var(--c0)">')
    for (x, y), (confidence, accuracy, count) in zip(points, bins, strict=True):
        hint = f"<title>{count} samples, confidence {confidence:.3f}, accuracy {accuracy:.3f}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 6 * math.sqrt(count / most):.1f}">{hint}</circle>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</g></svg>'
    return f"<figure><figcaption>confidence and accuracy</figcaption>{drawing}</figure>"

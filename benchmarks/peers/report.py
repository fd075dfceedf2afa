"""Figures, tables and the picture of what was measured."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from benchmarks.bars import Bar, bar_of

NAMES = {
    "bare": "bare loop over a `DataLoader`",
    "tight": "tight loop over tensors",
    "healsg": "**HEALSg**, in memory",
    "healsg_loader": "**HEALSg**, over a `DataLoader`",
    "accelerate": "Accelerate",
    "ignite": "PyTorch-Ignite",
    "mmengine": "MMEngine",
    "skorch": "skorch",
    "transformers": "transformers Trainer",
    "fastai": "fastai",
    "lightning_barebones": "Lightning, barebones",
    "lightning": "Lightning, as it comes",
    "composer": "Composer",
}
KINDS = {"samples": "samples", "epochs": "epochs", "lines": "log lines", "runs": "other runs in the folder"}


def ratios(rows: dict[str, Any], peer: str, other: str, key: str) -> list[float]:
    """Of two peers, within each round."""
    return [own / theirs for own, theirs in zip(rows[peer][key], rows[other][key], strict=False)]


def figures(kept: dict[str, Any]) -> list[Bar]:
    """All figures that have bars, of the workloads that were measured."""
    found: list[Bar] = []
    for name, result in kept["workloads"].items():
        found += {"W4": of_startup, "W5": of_memory, "W6": of_sweep, "W7": of_saving, "W8": of_growth}.get(
            name, lambda result, name=name: of_steps(name, result)
        )(result)
    return found


def of_steps(name: str, result: dict[str, Any]) -> list[Bar]:
    rows, found = result["rows"], []
    memory, loader = "CPU time per step, in memory, x ", "CPU time per step, over a DataLoader, x "
    bars = [("healsg", memory, "bare", 0.65 if name == "W1" else 1.0), ("healsg_loader", loader, "bare", None)]
    bars.insert(1, ("healsg", memory, "tight", 1.2 if name == "W1" else None))
    for peer, told, other, bar in bars:
        if peer in rows and other in rows:
            bar = 1.1 if (name, peer) == ("W1", "healsg_loader") else bar
            found.append(bar_of(name, told + other, ratios(rows, peer, other, "step"), bar))
    if name == "W1" and "healsg" in rows:
        found.append(bar_of(name, "Python and C calls per step, in memory", rows["healsg"]["calls"], 400, "calls"))
    if path := result.get("data_path"):
        found.append(bar_of(name, "data path: crop, flip, normalise", path["healsg"], 20, "us per image"))
        found += [bar_of(name, f"the same, {way}", path[way], unit="us per image") for way in ("bare", "tight")]
    if name == "W3" and "healsg" in rows:
        found.append(bar_of(name, "images per second, in memory", rows["healsg"]["images_per_second"], unit="images/s"))
        step = [1e6 / speed for speed in rows["healsg"]["images_per_second"]]
        share = [100 * median(result["data_path"]["healsg"]) / value for value in step]
        found.append(bar_of(name, "share of the data path in a step, in memory", share, unit="%"))
    return found


def of_startup(result: dict[str, Any]) -> list[Bar]:
    rows = result["rows"]
    same, usual = (ratios(rows, "healsg", other, "seconds") for other in ("bare", "bare as usual"))
    return [
        bar_of("W4", "CPU time to the first step, x a bare script that imports torch, NumPy and PyYAML", same, 1.15),
        bar_of("W4", "the same, x a bare script that also calls scikit-learn's load_digits", usual),
        bar_of("W4", "the same, in seconds", rows["healsg"]["seconds"], unit="s"),
    ]


def of_memory(result: dict[str, Any]) -> list[Bar]:
    rows, found = result["rows"], []
    for kind, size in result["data set, MiB"].items():
        own, bare = rows[f"healsg {kind}"]["peak"], rows[f"bare {kind}"]["peak"]
        values = [(mine - size) / theirs for mine, theirs in zip(own, bare, strict=True)]
        found.append(bar_of("W5", f"peak memory without the data set ({size:.1f} MiB), {kind}, x bare", values, 1.03))
        found.append(bar_of("W5", f"the same in MiB, with the data set; bare: {median(bare):.0f} MiB", own, unit="MiB"))
    return found


def of_sweep(result: dict[str, Any]) -> list[Bar]:
    rows = result["rows"]
    values = ratios(rows, "sweep", "processes", "seconds")
    return [bar_of("W6", "CPU time of a sweep of 32 MLP runs of 10 epochs, x 32 single commands", values, 0.2)]


def of_saving(result: dict[str, Any]) -> list[Bar]:
    found = []
    for name, kinds in result["rows"].items():
        values = [own / theirs for own, theirs in zip(kinds["blocked"], kinds["torch.save"], strict=True)]
        found.append(bar_of("W7", f"time that a save blocks training, {name}, x torch.save", values, 0.1))
    return found


def exponent(costs: list[float]) -> float:
    """p of ``cost = fixed + c * size**p`` at three sizes of which each is ten times the one before; at least 0."""
    first, second = costs[1] - costs[0], costs[2] - costs[0]
    return math.log10(max(second / first - 1, 1.0)) if first > 0 and second > 0 else 0.0


def of_growth(result: dict[str, Any]) -> list[Bar]:
    """Exponents: 1 is linear. What hardly grows at all, a fifth in time or 4 MiB over 100 times the size, is 0.

    Of the rounds the least counts, to which the machine's other work has added nothing.
    """
    found = []
    for kind, rows in result["kinds"].items():
        sizes = [float(size) for size in rows]
        seconds, peaks = ([min(row[column]) for row in rows.values()] for column in ("seconds", "peak"))
        power = exponent(seconds) if seconds[2] > 1.2 * seconds[0] else 0.0
        each = 1e6 * (seconds[2] - seconds[0]) / (sizes[2] - sizes[0])
        name = f"{KINDS[kind]}, {sizes[0]:.0f} to {sizes[2]:.0f}"
        found.append(Bar("W8", f"growth of time with {name}: exponent ({each:.0f} us each)", power, power, power, 1.15))
        power = exponent(peaks) if peaks[2] > 4 + peaks[0] else 0.0
        each = 1024 * (peaks[2] - peaks[0]) / (sizes[2] - sizes[0])
        found.append(
            Bar("W8", f"growth of memory with {name}: exponent ({each:.2f} KiB each)", power, power, power, 1.15)
        )
    return found


def peers_table(kept: dict[str, Any]) -> list[list[str]]:
    """By peer: W1, W2, W3 against the bare loop, and calls."""
    works = {name: kept["workloads"][name]["rows"] for name in ("W1", "W2", "W3") if name in kept["workloads"]}
    order = sorted({peer for rows in works.values() for peer in rows}, key=lambda peer: speed(works, peer))
    table = [["", *(f"{name}, x bare" for name in works), "W1, us per step", "W1, calls per step"]]
    for peer in order:
        line = [NAMES[peer]]
        for rows in works.values():
            told = bar_of("", "", ratios(rows, peer, "bare", "step")) if peer in rows and "bare" in rows else None
            line.append(f"{told.value:.2f} ({told.least:.2f} to {told.most:.2f})" if told else "")
        first = works.get("W1", {}).get(peer)
        line += [f"{1e6 * median(first['step']):.0f}", f"{first['calls'][0]:,.0f}"] if first else ["", ""]
        table.append(line)
    return table


def speed(works: dict[str, Any], peer: str) -> float:
    rows = next(iter(works.values()))
    return median(ratios(rows, peer, "bare", "step")) if peer in rows and "bare" in rows else math.inf


def text(kept: dict[str, Any]) -> str:
    """What the screen shows."""
    tables = [peers_table(kept)] if {"W1", "W2", "W3"} & set(kept["workloads"]) else []
    tables.append([["", "figure", "median", "range", "bar", ""], *(figure.row() for figure in figures(kept))])
    blocks = []
    for table in tables:
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        blocks.append("\n".join(lines))
    blocks += [f"{peer} did not run: {why}" for peer, why in kept["failed"].items()]
    blocks += [f"{name}: {', '.join(odd)} trained something else" for name, odd in disagreeing(kept).items()]
    return "\n\n".join(blocks)


def disagreeing(kept: dict[str, Any]) -> dict[str, list[str]]:
    return {name: odd for name, result in kept["workloads"].items() if (odd := result.get("different"))}


def markdown(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

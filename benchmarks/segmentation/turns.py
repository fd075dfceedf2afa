"""Two sides in one process, ours and another program's, measured in turns."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

SIDES = ("ours", "theirs")

Times = dict[str, dict[str, list[float]]]
"""CPU seconds by what was measured and by side, one number a round."""


def seconds(act: Callable[[], object]) -> float:
    """The CPU seconds of the process that ``act`` takes."""
    began = time.process_time()
    act()
    return time.process_time() - began


def measured(acts: Mapping[str, Callable[[str], object]], rounds: int) -> Times:
    """Measure each act, called with the name of a side, on both sides in each round. The order changes from round to
    round, and a first round is left out."""
    found: Times = {}
    for number in range(rounds + 1):
        for what, act in acts.items():
            for name in sorted(SIDES, reverse=bool(number % 2)):
                taken = seconds(lambda act=act, name=name: act(name))  # type: ignore[misc]
                if number:
                    found.setdefault(what, {}).setdefault(name, []).append(taken)
                print(number, what, name, f"{taken:.2f} s", flush=True)
    return found


def line_of(what: str, found: Mapping[str, list[float]], parts: int, other: str, bar: float | None = None) -> str:
    """Milliseconds of both sides, and their ratio within a round.

    Args:
        what: what was measured.
        found: the seconds of each side.
        parts: how many of it a measurement has.
        other: the name of the other program.
        bar: the largest ratio that is meant; None where there is none.
    """
    ours, theirs = ([1000 * taken / parts for taken in found[name]] for name in SIDES)
    ratios = [one / beside for one, beside in zip(ours, theirs, strict=True)]
    middle = statistics.median(ratios)
    verdict = "" if bar is None else f"; bar {bar}: {'passed' if middle <= bar else 'missed'}"
    numbers = f"HEALSg {statistics.median(ours):.1f} ms, {other} {statistics.median(theirs):.1f} ms"
    return f"{what}: {numbers}, ratio {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}){verdict}"


def conditions(packages: Sequence[str]) -> str:
    """The versions and the machine of a measurement."""
    head = f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}"
    return f"{head}; {platform.machine()}, {os.cpu_count()} cores that other work shared, one thread, no GPU"

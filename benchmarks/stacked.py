"""A sweep of small runs three ways: ``python benchmarks/stacked.py [rounds] [epochs] [jobs]``

An MLP 64-128-10 on scikit-learn's digits, AdamW, one job a seed, on one thread: a process each (reckoned from four of
them), one process with one job after the other (``sweep=serial``), and one process with all jobs as one stack
(``sweep=vectorised``). CPU seconds from the command to its end, children included; rounds are interleaved, ratios taken
within a round. Prints medians and ranges, and writes ``benchmarks/results/stacked.json``.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from default_run import report

HERE = Path(__file__).parent
ALONE = 4
"""Processes of which the cost of all is reckoned."""


def seconds(*overrides: str) -> float:
    """CPU seconds of ``train.py`` with these overrides, in a folder of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(HERE.parent / "train.py"), "model=mlp", "quiet=true", *overrides]
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(line, cwd=folder, env=settings, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rounds, epochs, jobs = (int(given) for given in [*sys.argv[1:4], *["3", "60", "32"][len(sys.argv) - 1 :]])
    results: dict[str, list[float]] = {}
    for number in range(rounds):
        length = f"runner.epochs={epochs}"
        alone = sum(seconds(length, f"seed={number * ALONE + place}") for place in range(ALONE)) * jobs / ALONE
        row = {"processes": alone}
        row |= {
            kind: seconds(length, f"sweep={kind}", "-m", f"seed=range(0,{jobs})") for kind in ("serial", "vectorised")
        }
        row |= {f"{kind} / processes": row[kind] / alone for kind in ("serial", "vectorised")}
        for name, value in (row | {"serial / vectorised": row["serial"] / row["vectorised"]}).items():
            results.setdefault(name, []).append(value)
    print(f"{jobs} jobs of {epochs} epochs, CPU seconds on one thread, {rounds} rounds")
    report("stacked.json", results, rounds, jobs=jobs, epochs=epochs, unit="CPU seconds, one thread")


if __name__ == "__main__":
    main()

"""What successive halving that goes on with its runs saves on digits: python -m benchmarks.halving [seeds] [epochs]

A random search over learning rate and label smoothing, 9 trials a seed, 5 seeds: trained in full; halved by thirds,
where what is promoted goes on from its checkpoint; and halved in the usual way, which begins a promoted trial anew (its
updates are counted from the same ranking). Updates are read from the runs' own records, CPU time is that of this
process. Nothing is chosen by what is reported: it is the search's own objective, the best val/acc, and the test
accuracy of its winner. The table goes to benchmarks/results/halving_EPOCHS.txt.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from healsg.cli import main as healsg

SPACE = ["method.optimizer.lr=tag(log,interval(1e-4,1e-1))", "method.label_smoothing=interval(0,0.2)"]
TRIALS, FACTOR, RUNGS = 9, 3, 3
RESULTS = Path(__file__).parent / "results"


def search(name: str, seed: int, epochs: int, *more: str) -> dict[str, Any]:
    """One search: its updates, its CPU seconds, and its winner."""
    line = ["train", "-m", "data=digits", "model=mlp", "method=adamw", f"runner.epochs={epochs}", "search=random"]
    line += [f"search.trials={TRIALS}", f"search.batch={TRIALS}", f"search.seed={seed}", f"seed={seed}", *SPACE]
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        status = healsg([*line, "quiet=true", f"name={name}", *more])
    seconds = time.process_time() - began
    assert status == 0
    records = {path.parent.name: json.loads(path.read_text()) for path in Path(f"runs/{name}").glob("*/run.json")}
    assert len(records) == TRIALS
    steps = {trial: int((record.get("last") or record["best"])["step"]) for trial, record in records.items()}
    whole = {trial: record for trial, record in records.items() if record["status"] == "finished"}
    best = max(whole.values(), key=lambda record: record["best"]["value"])
    winner = {"val": best["best"]["value"], "test": best["test"]["test/acc"], "digest": best["digest"]}
    digests = {trial: record["digest"] for trial, record in whole.items()}
    return {"updates": sum(steps.values()), "seconds": seconds, "digests": digests, **winner}


def main() -> None:
    seeds, epochs = (int(argument) for argument in [*sys.argv[1:], *["5", "9"][len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(seeds):
            full = search(f"full{seed}", seed, epochs)
            halved = search(f"halved{seed}", seed, epochs, f"search.rungs={RUNGS}", f"search.factor={FACTOR}")
            same = all(full["digests"][trial] == digest for trial, digest in halved["digests"].items())
            rows.append((seed, full, halved, same))
            print(seed, full, halved, same, flush=True)
    table = "\n".join(report(rows, epochs)) + "\n"
    (RESULTS / f"halving_{epochs}.txt").write_text(table)
    print(table)


def report(rows: list[tuple[int, dict[str, Any], dict[str, Any], bool]], epochs: int) -> list[str]:
    """The table."""
    each = rows[0][1]["updates"] // (TRIALS * epochs)
    reached = [epochs // FACTOR ** (RUNGS - 1 - rung) for rung in range(RUNGS)]
    count = [TRIALS // FACTOR**rung for rung in range(RUNGS)]
    anew = sum(number * epoch for number, epoch in zip(count, reached, strict=True)) * each
    least = sum(number * (epoch - before) for number, epoch, before in zip(count, reached, [0, *reached], strict=False))
    lines = [f"python -m benchmarks.halving {len(rows)} {epochs}", ""]
    lines += [f"{platform.machine()}, {os.cpu_count()} shared cores, no GPU, one thread, torch {torch.__version__}"]
    lines += [
        f"{TRIALS} trials to epoch {reached[0]}, then {count[1]} to {reached[1]}, then {count[2]} to {reached[2]}"
    ]
    lines += [f"updates by theory: full {TRIALS * epochs * each}, anew {anew}, going on {least * each}", ""]
    lines += [
        "seed  updates full  anew  going on  CPU s full  going on  best val/acc full  halved  test/acc full  halved"
    ]
    for seed, full, halved, same in rows:
        numbers = [f"{full['updates']:12}", f"{anew:5}", f"{halved['updates']:9}", f"{full['seconds']:11.1f}"]
        numbers += [f"{halved['seconds']:9.1f}", f"{full['val']:18.4f}", f"{halved['val']:7.4f}"]
        numbers += [f"{full['test']:14.4f}", f"{halved['test']:7.4f}"]
        lines.append(f"{seed:4} {' '.join(numbers)}{'' if same else '  other digests'}")
    val = [halved["val"] - full["val"] for _, full, halved, _ in rows]
    test = [halved["test"] - full["test"] for _, full, halved, _ in rows]
    cpu = [halved["seconds"] / full["seconds"] for _, full, halved, _ in rows]
    for name, values in (("val/acc", val), ("test/acc", test)):
        lines.append(f"{name} halved - full: {statistics.mean(values):+.4f} +- {statistics.stdev(values):.4f}")
    lines.append(f"CPU time going on / full: {statistics.mean(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})")
    agreeing = sum(same for *_, same in rows)
    lines.append(f"searches whose finished trials have the digests of runs never paused: {agreeing} of {len(rows)}")
    return lines


if __name__ == "__main__":
    main()

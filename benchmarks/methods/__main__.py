"""The effect of every method on real data, as paired gains over the fair baseline.

    python -m benchmarks.methods [names] [--seeds 5] [--first 100]
    python -m benchmarks.methods --docs

A name is an experiment or a family (a file of this folder); none is all. Runs in one process on one thread, each in a
folder of its own; runs that experiments share are run once. Prints a table by family. With the seeds that are reported
(100 to 104) it also writes ``benchmarks/results/methods.json``, where other experiments stay as they are; ``--docs``
makes ``docs/methods.md`` of that file. Exit status 1 where a run failed or a gate was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.methods.experiment import Bench, Experiment

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "methods.json"
DOCUMENT = HERE.parents[1] / "docs" / "methods.md"
REPORTED = (100, 5)
HEAD = ("method", "setting", "baseline", "method's", "paired gain", "gate", "verdict", "seconds a run")
FORMS = {"baseline": "{0:.1f} ± {1:.1f}", "method": "{0:.1f} ± {1:.1f}", "gains": "{0:+.1f} ± {1:.1f}"}

Record = dict[str, Any]


def families(names: list[str]) -> tuple[dict[str, list[Experiment]], list[str]]:
    """The experiments that are asked for by family, and what could not be imported."""
    found: dict[str, list[Experiment]] = {}
    broken, known = [], set()
    for path in sorted(HERE.glob("*.py")):
        if path.stem.startswith("_") or path.stem == "experiment":
            continue
        try:
            experiments = importlib.import_module(f"benchmarks.methods.{path.stem}").EXPERIMENTS
        except Exception:
            broken.append(f"{path.name}: {traceback.format_exc().splitlines()[-1]}")
            continue
        known |= {path.stem, *(experiment.name for experiment in experiments)}
        chosen = [each for each in experiments if not names or path.stem in names or each.name in names]
        if chosen:
            found[path.stem] = chosen
    unknown = [f"{name}: no such experiment or family; known: {', '.join(sorted(known))}" for name in names]
    return found, broken + [line for name, line in zip(names, unknown, strict=True) if name not in known]


def measure(bench: Bench, experiment: Experiment, seeds: range, told: bool) -> Record:
    """Both sides of an experiment over the seeds, in points."""
    record: Record = {"baseline": [], "method": [], "seconds": {"baseline": [], "method": []}, "failed": []}
    for seed in seeds:
        for side in ("baseline", "method"):
            stages = getattr(experiment, side)
            if not stages:
                continue
            value, seconds, failed = bench.stages(stages, seed, experiment.measure)
            record[side].append(value)
            record["seconds"][side].append(round(seconds, 2))
            record["failed"] += [f"{side}: {failed}"] * bool(failed)
            if told:
                print(f"    {experiment.name} {side} seed {seed}: {failed or f'{value:.2f}'}", flush=True)
    pairs = zip(record["baseline"], record["method"], strict=False)
    whole = not record["failed"] and experiment.baseline
    return record | {"gains": [method - baseline for baseline, method in pairs] if whole else []}


def verdict(record: Record) -> str:
    """Whether the gates were reached, to the hundredth of a point."""
    if record["failed"]:
        return "failed"
    pairs = ((record["gain"], record["gains"]), (record["least"], record["method"]))
    asked = [(gate, values) for gate, values in pairs if gate is not None]
    reached = [round(statistics.mean(values), 2) >= gate for gate, values in asked]
    return ("passed" if all(reached) else "missed") if asked else "no gate"


def row(name: str, record: Record) -> list[str]:
    """The cells of an experiment."""
    cells = [name, record["setting"]]
    for side, form in FORMS.items():
        values = record[side]
        if any(value is None for value in values):
            cells.append("failed")
        elif values:
            cells.append(form.format(statistics.mean(values), statistics.stdev(values) if values[1:] else 0.0))
        else:
            cells.append("")
    gates = {"gain >= {:+g}": record["gain"], ">= {:g}": record["least"]}
    cells.append(", ".join(form.format(gate) for form, gate in gates.items() if gate is not None))
    means = [f"{statistics.mean(each):.1f}" for each in record["seconds"].values() if each]
    return [*cells, verdict(record), " / ".join(means)]


def facts(seeds: range) -> Record:
    """What a figure depends on beside the code."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1, "device": "cpu"}
    return {"seeds": list(seeds), "versions": versions, **machine, "date": datetime.date.today().isoformat()}


def keep(name: str, record: Record) -> None:
    """Write an experiment into the results; the others stay as they are."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = record
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    partial.replace(RESULTS)


def document() -> str:
    """``docs/methods.md`` from the results."""
    results: dict[str, Record] = json.loads(RESULTS.read_text())
    lines = ["# The effect of each method", ""]
    lines += [
        "Test accuracy in per cent, or what the note names, on scikit-learn's handwritten digits (1,297 images to",
        "train with, 500 to test; 8x8 pixels): mean and standard deviation over seeds that set the split, the weights",
        "and the order. The gain is paired by seed. Settings were chosen on seeds 0 to 2; what stands here was",
        "measured once, on seeds 100 to 104. Both sides have the same data, augmentation and number of updates, but",
        "where the setting says otherwise. The test images are the same for all seeds. Seconds are CPU seconds, of the",
        "baseline / of the method, with all their stages.",
        "",
        "`python -m benchmarks.methods` measures it anew, `python -m benchmarks.methods NAME` one row or family, and",
        "`python -m benchmarks.methods --docs` makes this page of `benchmarks/results/methods.json`.",
        "",
        "What stacks: `method.ema`, `method.swa`, `method.layer_decay`, `method.freeze` and",
        "`method.unfreeze_every` under every method (`method=simclr method.ema=0.99`; DINO evaluates its teacher,",
        "so that it takes no further average); `method.label_smoothing` and `method.random_erasing` on labelled",
        "samples; `method.mixup` and `method.cutmix` where all samples are labelled and the method does not need",
        "each as it is. What does not fit is refused in one line.",
    ]
    for family in sorted({record["family"] for record in results.values()}):
        members = {name: record for name, record in results.items() if record["family"] == family}
        lines += ["", f"## {family}", "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        for name, record in members.items():
            cells = row(f"`{name}`", record)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        notes = [f"* `{name}`: {record['note']}" for name, record in members.items() if record["note"]]
        commands = [f"* `{name}`: {difference(record)}" for name, record in members.items()]
        lines += ["", *notes, *([""] if notes else []), "What the method's last run has beside the baseline's:", ""]
        lines += commands
    lines += ["", "## Measured with", ""]
    for told in sorted({f"* {described(record)}" for record in results.values()}):
        lines.append(told)
    return "\n".join(lines) + "\n"


def difference(record: Record) -> str:
    """The settings of the method's last stage that the baseline's last stage does not have."""
    before = set(record["stages"]["baseline"][-1]) if record["stages"]["baseline"] else set()
    return " ".join(f"`{override}`" for override in record["stages"]["method"][-1] if override not in before)


def described(record: Record) -> str:
    """Versions, machine and date in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    told = f"{versions}; {record['machine']}, {record['cores']} cores, {record['threads']} thread, {record['device']}"
    return f"{told}; seeds {record['seeds'][0]} to {record['seeds'][-1]}; {record['date']}"


def show(rows: list[list[str]]) -> None:
    """A table in plain text."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="the effect of every method")
    parser.add_argument("names", nargs="*", help="experiments or families; none is all")
    parser.add_argument("--seeds", type=int, default=REPORTED[1], help="how many seeds")
    parser.add_argument("--first", type=int, default=REPORTED[0], help="the first of them; 0 to 2 are for tuning")
    parser.add_argument("--each", action="store_true", help="print every run")
    parser.add_argument("--docs", action="store_true", help="make docs/methods.md of the results, and run nothing")
    asked = parser.parse_args()
    if asked.seeds < 1:
        parser.error("--seeds: at least one")
    if asked.docs:
        DOCUMENT.write_text(document())
        return 0
    import torch

    torch.set_num_threads(1)
    chosen, problems = families(asked.names)
    seeds = range(asked.first, asked.first + asked.seeds)
    bench, verdicts, tables = Bench(), [], {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for family, experiments in chosen.items():
            tables[family] = [list(HEAD)]
            for experiment in experiments:
                record = measure(bench, experiment, seeds, asked.each)
                told = ("setting", "measure", "gain", "least", "note")
                record |= {"family": family, **{name: getattr(experiment, name) for name in told}}
                record |= {"stages": {"baseline": experiment.baseline, "method": experiment.method}, **facts(seeds)}
                if (asked.first, asked.seeds) == REPORTED:
                    keep(experiment.name, record)
                tables[family].append(row(experiment.name, record))
                print("  ".join(tables[family][-1]), flush=True)
                problems += [f"{experiment.name}: {failed}" for failed in record["failed"]]
                verdicts.append(verdict(record))
    for family, rows in tables.items():
        print(f"\n{family}")
        show(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems) or "missed" in verdicts)


if __name__ == "__main__":
    sys.exit(main())

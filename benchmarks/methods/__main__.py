"""The effect of every method on real data, as paired gains over a baseline that is tuned as much.

    python -m benchmarks.methods [names] [--missing]
    python -m benchmarks.methods --docs

A name is an experiment or a family (a file of this folder); none is all. Runs in one process on one thread, each in a
folder of its own; runs that experiments share are run once. Both sides of an experiment choose one of equally many
settings on one half of the digits, and are then measured on the other half. Each row is written to
``benchmarks/results/methods.json`` as soon as it is measured, where the others stay as they are: ``--missing`` goes on
after a break. ``--docs`` makes ``docs/methods.md`` of that file. Exit status 1 where a run failed.
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
import textwrap
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks.methods.experiment import Bench, Experiment, FailedRunError, Side

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "methods.json"
DOCUMENT = HERE.parents[1] / "docs" / "methods.md"
FAMILIES = ("noisy", "semi", "distill", "unequal", "transfer", "supervised", "robust", "selfsup")
HEAD = ("method", "setting", "baseline", "method's", "paired gain", "verdict", "seconds a run")

Record = dict[str, Any]


def families(names: list[str]) -> tuple[dict[str, list[Experiment]], list[str]]:
    """The experiments that are asked for by family, and a line for each name that is neither."""
    modules = {family: importlib.import_module(f"benchmarks.methods.{family}") for family in FAMILIES}
    found: dict[str, list[Experiment]] = {}
    known = set(FAMILIES)
    for family, module in modules.items():
        known |= {experiment.name for experiment in module.EXPERIMENTS}
        chosen = [each for each in module.EXPERIMENTS if not names or family in names or each.name in names]
        if chosen:
            found[family] = chosen
    unknown = [name for name in names if name not in known]
    return found, [f"{name}: no such experiment or family; known: {', '.join(sorted(known))}" for name in unknown]


def measure(bench: Bench, experiment: Experiment) -> Record:
    """Both sides of an experiment: the settings that were tried, and in points what the chosen ones reach."""
    record: Record = {name: getattr(experiment, name) for name in ("setting", "measure", "note")}
    for side in get_args(Side):
        chosen = bench.choose(experiment, side)
        record[side] = chosen | {"stages": getattr(experiment, side)} | bench.report(experiment, side, chosen)
    pairs = zip(record["baseline"]["values"], record["method"]["values"], strict=True)
    return record | {"gains": [method - baseline for baseline, method in pairs]}


def verdict(gains: list[float]) -> str:
    """What the 95 % t interval of the paired gains says."""
    from healsg.commands.compare.statistics import interval

    mean, half = interval(gains)
    if mean - half > 0:
        return "shown to work"
    return "worse" if mean + half < 0 else "no gain shown"


def row(name: str, record: Record) -> list[str]:
    """The cells of an experiment."""
    from healsg.commands.compare.statistics import interval

    mean, half = interval(record["gains"])
    sides = [record["baseline"], record["method"]]
    values = [f"{statistics.mean(side['values']):.1f} ± {statistics.stdev(side['values']):.1f}" for side in sides]
    seconds = " / ".join(f"{statistics.mean(side['seconds']):.1f}" for side in sides)
    gain = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    return [name, record["setting"], *values, gain, verdict(record["gains"]), seconds]


def facts() -> Record:
    """What a figure depends on beside the code."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": 1, "device": "cpu"}
    return {"versions": versions, **machine, "date": datetime.date.today().isoformat()}


def results() -> dict[str, Record]:
    """The rows measured so far, by name."""
    found: dict[str, Record] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def keep(name: str, record: Record) -> None:
    """Write an experiment into the results; the others stay as they are."""
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(dict(sorted((results() | {name: record}).items())), indent=1) + "\n")
    partial.replace(RESULTS)


PROTOCOL = """\
Test accuracy in per cent, unless a note names another metric, on scikit-learn's handwritten digits (1,797 images of 8x8
pixels).

**Protocol.** The images are divided once into two disjoint halves. On the first half, baseline and method each choose
their settings from a grid of the same size (learning rate, number of updates or a setting of the method; all are listed
below), by the mean over three folds. On the second half the chosen settings are trained five times, each time with
another seed and another fifth held out for testing. No test image was used for choosing settings. Settings outside the
grid are defaults, or sizes that suit 718 training images of 64 pixels. Some of these (heads of the self-supervised
methods, `method.eps`, `unlabelled_ratio=3`) come from an earlier benchmark, whose test images were digits too, some of
them now in the second half.

**Columns.** "baseline" and "method's" are mean and standard deviation over the five folds. "paired gain" has the 95 % t
interval over the folds; note that their training sets overlap. The verdict is "shown to work" if this interval lies
above 0, "worse" if it lies below 0, and "no gain shown" otherwise; by chance alone, about one row in forty would fall
on either side. "seconds a run" are the CPU seconds of the baseline / of the method, summed over their training stages.

`python -m benchmarks.methods` measures all rows, `python -m benchmarks.methods NAME` one row or family, and
`python -m benchmarks.methods --docs` writes this page from `benchmarks/results/methods.json`.

**Combining methods.** Some techniques are arguments of the methods:

* `method.ema`, `method.swa`, `method.layer_decay`, `method.freeze` and `method.unfreeze_every`: of every method
  (`method=simclr method.ema=0.99`), except that DINO, which evaluates its teacher, takes no further average of the
  weights;
* `method.label_smoothing` and `method.random_erasing`: on labelled samples;
* `method.mixup` and `method.cutmix`: if all samples are labelled and the method does not need each sample unmixed.

A combination that is not possible is refused in one line."""


SPLIT = """\
## What depends on how a batch is split

In float64 and without BatchNorm, the weights after 20 updates agree to 1e-10 for 1, 2, 3 and 4 processes, and for 1 and
4 accumulated micro-batches of a quarter of the size. This holds for every method, except for what this table lists.
Each sample draws its own noise (starting points of attacks, masked patches, negatives), whatever its process and
micro-batch. The entries of the table are also logged when such a run starts."""

NORMS = """\
BatchNorm computes its statistics in each process, or with `runner.sync_batchnorm=true` over all processes, in both
cases for each micro-batch. Mixup and cutmix mix the samples of a micro-batch (of all processes). Dropout masks are
drawn for each process and micro-batch."""


def declared() -> dict[str, Any]:
    """The class of each ``method=...``, by the option's name."""
    import yaml

    found = {}
    folder = HERE.parents[1] / "conf" / "method"
    for path in sorted(folder.glob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        while "_target_" not in node:  # it is that of the first option in its defaults
            first = next(entry for entry in node["defaults"] if isinstance(entry, str) and entry != "_self_")
            node = yaml.safe_load((folder / f"{first}.yaml").read_text())
        module, _, name = node["_target_"].rpartition(".")
        found[path.stem] = getattr(importlib.import_module(module), name)
    return found


def document() -> str:
    """``docs/methods.md`` from the results; an experiment without any is listed as not measured."""
    from healsg.training.split import table

    measured = results()
    lines = ["# The effect of each method", "", PROTOCOL]
    missing = []
    for family, experiments in families([])[0].items():
        there = [each.name for each in experiments if each.name in measured]
        missing += [f"`{each.name}`" for each in experiments if each.name not in measured]
        if not there:
            continue
        told = (importlib.import_module(f"benchmarks.methods.{family}").__doc__ or "").strip()
        lines += ["", f"## {family}", "", told, "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        for name in there:
            cells = row(f"`{name}`", measured[name])
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        notes = [f"* `{name}`: {measured[name]['note']}" for name in there if measured[name]["note"]]
        lines += ["", *(textwrap.fill(note, 120, subsequent_indent="  ", break_on_hyphens=False) for note in notes)]
        lines += (
            ["", "Chosen, of the settings that were tried:", ""] if lines[-1] else ["Chosen, of what was tried:", ""]
        )
        lines += [f"* `{name}`: {settings(measured[name])}" for name in there]
    if missing:
        lines += [
            "",
            "## Not measured",
            "",
            f"These rows have not been measured in this way yet: {', '.join(missing)}.",
        ]
    lines += ["", SPLIT, "", *table(declared()), "", NORMS, "", "## Measured with", ""]
    lines += sorted({f"* {described(measured[name])}" for name in measured})
    return "\n".join(lines) + "\n"


def settings(record: Record) -> str:
    """What each side chose, the choices it had, and what else the method's last stage sets."""
    told = []
    for side in get_args(Side):
        tried, best = record[side]["tried"], record[side]["best"]
        others = "; ".join(" ".join(setting) for place, setting in enumerate(tried) if place != best)
        told.append(f"{side} `{' '.join(tried[best])}` (not: {others})")
    before = set(record["baseline"]["stages"][-1])
    own = " ".join(f"`{override}`" for override in record["method"]["stages"][-1] if override not in before)
    return f"{'; '.join(told)}; the method has {own}"


def described(record: Record) -> str:
    """Versions, machine and date in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    told = f"{versions}; {record['machine']}, {record['cores']} cores, {record['threads']} thread, {record['device']}"
    return f"{told}; {record['date']}"


def write_noise() -> None:
    """``next.csv``: 35 % of each class are labelled as the next one."""
    rows = [
        [0.65 if other == label else 0.35 * (other == (label + 1) % 10) for other in range(10)] for label in range(10)
    ]
    Path("next.csv").write_text("".join(",".join(map(str, cells)) + "\n" for cells in rows))


def run(names: list[str], only_missing: bool) -> list[str]:
    """Measure, and print each row; returns what went wrong."""
    chosen, problems = families(names)
    bench, there = Bench(), results()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_noise()
        for family, experiments in chosen.items():
            for experiment in experiments:
                if only_missing and experiment.name in there:
                    continue
                began = time.process_time()
                try:
                    record = measure(bench, experiment)
                except FailedRunError as failed:
                    problems.append(f"{experiment.name}: {failed}")
                    print(problems[-1], flush=True)
                    continue
                keep(experiment.name, record | {"family": family} | facts())
                told = f"{time.process_time() - began:.0f} CPU seconds"
                print("  ".join([*row(experiment.name, record), told]), flush=True)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="the effect of every method")
    parser.add_argument("names", nargs="*", help="experiments or families; none is all")
    parser.add_argument("--missing", action="store_true", help="leave out the rows that the results have")
    parser.add_argument("--docs", action="store_true", help="make docs/methods.md of the results, and run nothing")
    asked = parser.parse_args()
    if asked.docs:
        DOCUMENT.write_text(document())
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    problems = run(asked.names, asked.missing)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

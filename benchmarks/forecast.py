"""How good ``healsg forecast`` is: forecasts beside what runs then took, in CPU time of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.forecast calibrate    the runs by which the model's error was set
    OMP_NUM_THREADS=1 python -m benchmarks.forecast              30 runs of other combinations: results/forecast.txt

Each run is forecast in a process of its own; then ``healsg train`` is started anew, and the CPU time of that whole
process, imports included, is what ``wait4`` says. The interval is that of ``forecast_model``; its errors were set by
``calibrate`` alone.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PROGRAM = [sys.executable, "-c", "from healsg.cli import main; raise SystemExit(main())"]
AMOUNTS = ("cpu_seconds", "wall_seconds", "peak_memory", "disk")

CALIBRATION = (
    "data=digits model=cnn method=adamw runner.epochs=20",
    "data=digits model=mlp method=sgd runner.epochs=600",
    "data=digits model=mlp method=fixmatch runner.epochs=20",
    "data=digits model=vit method=adamw runner.epochs=8",
    "data=synthetic model=mlp method=adamw runner.epochs=150",
    "data=digits_seg model=unet method=adamw runner.epochs=2",
)
"""By which the errors in ``forecast_model`` were set; none of these is tested."""

TESTED = (
    "data=digits model=cnn method=sgd runner.epochs=25",
    "data=digits model=cnn method=mean_teacher runner.epochs=6",
    "data=digits model=mlp method=adamw runner.epochs=500 data.batch_size=32",
    "data=digits model=resnet method=adamw runner.epochs=1",
    "data=digits model=cnn method=muon runner.epochs=15",
    "data=digits model=cnn method=simclr runner.epochs=6",
    "data=digits model=mlp method=flexmatch runner.epochs=25",
    "data=digits model=vit method=sgd runner.epochs=10",
    "data=digits model=cnn method=pgd runner.epochs=3",
    "data=synthetic model=mlp method=sgd runner.epochs=200 data.batch_size=128",
    "data=shapes2d model=unet method=adamw runner.epochs=2",
    "data=digits model=cnn method=focal data.batch_size=128 runner.epochs=20",
)
"""Ten combinations and more; each is run with several seeds until there are 30 runs."""

RUNS = 30


def forecast_and_truth(settings: str, seed: int) -> dict[str, Any]:
    """Forecast a run, train it, and put both beside each other."""
    given = [*settings.split(), f"seed={seed}", "quiet=true"]
    with tempfile.TemporaryDirectory() as place:
        made = subprocess.run([*PROGRAM, "forecast", "--json", *given], cwd=place, stdout=subprocess.PIPE, check=True)
        left = sorted(path.name for path in Path(place).iterdir())
        forecast = json.loads(made.stdout)
        began = time.perf_counter()
        child = subprocess.Popen([*PROGRAM, "train", "name=run", *given], cwd=place, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        if status:
            raise RuntimeError(f"{settings}: ended with {status}")
        run = json.loads(Path(place, "runs/run/run.json").read_text())
    truth = {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": wall,
        "peak_memory": run["usage"]["peak_memory"],
        "disk": run["usage"]["disk"],
    }
    return {"settings": settings, "seed": seed, "left": left, "forecast": forecast, "truth": truth}


def line_of(row: dict[str, Any]) -> str:
    """One run of the table."""
    parts = []
    for key in AMOUNTS:
        amount, truth = row["forecast"][key], row["truth"][key]
        held = amount["low"] <= truth <= amount["high"]
        scale = 1.0 if key.endswith("_seconds") else 1e6
        error = amount["value"] / truth - 1
        parts.append(f"{amount['value'] / scale:8.2f} {truth / scale:8.2f} {error:+7.1%}{' ' if held else '*'}")
    return f"{row['settings']:<74} {row['seed']:>2} " + "  ".join(parts)


def summary_of(rows: list[dict[str, Any]]) -> list[str]:
    """Median error and how often the interval held, by amount."""
    lines = []
    for key in AMOUNTS:
        errors = [abs(row["forecast"][key]["value"] / row["truth"][key] - 1) for row in rows]
        held = sum(row["forecast"][key]["low"] <= row["truth"][key] <= row["forecast"][key]["high"] for row in rows)
        most = sorted(errors)[min(len(errors) - 1, int(0.9 * len(errors)))]
        lines.append(
            f"{key:13} median error {statistics.median(errors):6.1%}, 90 % of errors below {most:6.1%}, "
            f"the 90 % interval held {held} of {len(rows)} times"
        )
    return lines


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    calibrating = arguments == ["calibrate"]
    settings = CALIBRATION if calibrating else TESTED
    count = 2 * len(CALIBRATION) if calibrating else RUNS
    head = [
        f"python -m benchmarks.forecast{' calibrate' * calibrating}",
        f"torch {torch.__version__}, Python {platform.python_version()}, 2 shared x86-64 cores, no GPU, one thread",
        f"{'settings':<74} seed "
        + "  ".join(f"{name + ', truth, error':<27}" for name in ("CPU s: forecast", "wall s", "memory MB", "disk MB")),
    ]
    print(*head, sep="\n", flush=True)
    rows = []
    for number in range(count):
        row = forecast_and_truth(settings[number % len(settings)], seed=number // len(settings))
        rows.append(row)
        print(line_of(row), flush=True)
        if row["left"]:
            print(f"  the forecast left {row['left']}")
    lines = [*head, *map(line_of, rows), "* outside of its interval", *summary_of(rows)]
    print(*summary_of(rows), sep="\n")
    name = "forecast_calibration.txt" if calibrating else "forecast.txt"
    (HERE / "results" / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

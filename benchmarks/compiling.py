"""What ``runner.compile`` costs and gives: CPU seconds of the first step, milliseconds of a later one.

    python benchmarks/compiling.py [rounds] ['a model and its settings' ...]

Fresh processes with an empty compile cache, one thread, interleaved rounds, two epochs of digits in whole batches of
64; compilers that the process starts count. Prints medians and ranges, and writes
``benchmarks/results/compiling.json``.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
MODELS = ("vit", "vit model.depth=24", "resnet32x4")
STEPS = """
import json, os, sys, time
from healsg.placement import repeated
from healsg.runner import TaskRunner

times, tick, begin = [], TaskRunner.tick, TaskRunner.train_batches
now = lambda: time.process_time() + sum(os.times()[2:4])

def watched(self, task):
    times.append(now())
    return tick(self, task)

def begun(self, task):
    times.append(now())
    return begin(self, task)

TaskRunner.tick, TaskRunner.train_batches = watched, begun
from healsg.trainer import TaskTrainer

trainer = TaskTrainer.compose(*sys.argv[1:], "quiet=true")
trainer.train()
half = len(times) // 2  # where the second epoch begins
later = sorted(after - before for before, after in zip(times[half:], times[half + 1 :]))
blocks = len(repeated(trainer.task.model))
print(json.dumps({"first": times[1] - times[0], "later": 1000 * later[len(later) // 2], "blocks": blocks}))
"""


def run(model: str, compile: str) -> dict[str, float]:
    """One run in a folder of its own; the last line it prints."""
    options = [*f"model={model}".split(), "method=sgd", "data=digits", "data.batch_size=64", "data.drop_last=true"]
    options += ["runner.epochs=2", "runner.device=cpu", f"runner.compile={compile}"]
    with tempfile.TemporaryDirectory() as folder:
        settings = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        settings["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/cache"
        line = [sys.executable, "-c", STEPS, *options]
        done = subprocess.run(line, cwd=folder, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for model in sys.argv[2:] or MODELS:
            for compile in ("false", "regional", "true"):
                row = run(model, compile)
                name = f"{model} ({row['blocks']} blocks) compile={compile}"
                results.setdefault(f"{name}: first step, CPU s", []).append(row["first"])
                results.setdefault(f"{name}: later step, CPU ms", []).append(row["later"])
    for name, values in results.items():
        print(f"{name:60} median {statistics.median(values):7.1f}  range {min(values):.1f} to {max(values):.1f}")
    record = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "rounds": rounds}
    record |= {"python": platform.python_version()}
    (HERE / "results" / "compiling.json").write_text(json.dumps({**record, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Test accuracy and CPU seconds of the default run over several seeds.

    python benchmarks/seeds.py [first] [count] [overrides ...]

One process and one thread a seed. Prints each accuracy, the mean and the standard deviation, and writes
``benchmarks/results/default_seeds_<first>.json`` where no overrides are given.
"""

import json
import os
import platform
import statistics
import sys
from pathlib import Path

import torch

from default_run import run

PROGRAM = """
import json, sys, time
from healsg import TaskTrainer
from healsg.trainer import TaskTrainer
import sklearn.datasets
import torch; torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
imports = time.process_time()
result = TaskTrainer.compose(*sys.argv[1:]).train()
print(json.dumps({"acc": result["test"]["test/acc"], "seconds": time.process_time() - imports}))
"""


def main() -> None:
    first, count = (int(text) for text in (sys.argv[1:3] + ["0", "5"][len(sys.argv[1:3]) :]))
    overrides = sys.argv[3:]
    rows = [run([sys.executable, "-c", PROGRAM, f"seed={seed}", *overrides]) for seed in range(first, first + count)]
    accuracies = [row["acc"] for row in rows]
    seconds = [row["seconds"] for row in rows]
    print("test accuracy", accuracies, f"mean {statistics.mean(accuracies):.4f} std {statistics.stdev(accuracies):.4f}")
    told = f"median {statistics.median(seconds):.1f}, {min(seconds):.1f} to {max(seconds):.1f}"
    print(f"CPU seconds beyond imports: {told}")
    if not overrides:
        record = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        record |= {"cores": os.cpu_count(), "seeds": list(range(first, first + count)), "test/acc": accuracies}
        record |= {"cpu_seconds_beyond_imports": seconds}
        target = Path(__file__).parent / "results" / f"default_seeds_{first}.json"
        target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The default run against the bare script: CPU seconds to the first step and to the end.

    python benchmarks/default_run.py [rounds]

Fresh processes, one thread, interleaved rounds; ratios are taken within a round. Prints medians and ranges, and writes
``benchmarks/results/default_run.json``.
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
OURS = """
import json, sys, time
from healsg.runner import TaskRunner

first, tick = [], TaskRunner.tick

def watched(self, task):
    first.append(time.process_time()) if not first else None
    return tick(self, task)

TaskRunner.tick = watched
from healsg.trainer import TaskTrainer

result = TaskTrainer.compose(*sys.argv[1:]).train()
print(json.dumps({"first": first[0], "end": time.process_time(), "test/acc": result["test"]["test/acc"]}))
"""


def run(line: list[str]) -> dict[str, float]:
    """One fresh process in a folder of its own; the last line it prints."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=folder, env=settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(file: str, results: dict[str, list[float]], rounds: int, **more: object) -> None:
    """Print medians and ranges, and write them to ``results/`` with the machine and the versions."""
    for name, values in results.items():
        print(f"{name:58} median {statistics.median(values):7.2f}  range {min(values):.2f} to {max(values):.2f}")
    record = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "rounds": rounds}
    record |= {"python": platform.python_version(), **more, "results": results}
    (HERE / "results" / file).write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind in ("cnn", "mlp"):
            bare = run([sys.executable, str(HERE / "bare.py"), kind])
            ours = run([sys.executable, "-c", OURS, f"model={kind}"])
            for name in ("first", "end"):
                results.setdefault(f"{kind} bare {name}", []).append(bare[name])
                results.setdefault(f"{kind} healsg {name}", []).append(ours[name])
                results.setdefault(f"{kind} ratio {name}", []).append(ours[name] / bare[name])
            loops = [row["end"] - row["first"] for row in (ours, bare)]
            results.setdefault(f"{kind} ratio of the training alone", []).append(loops[0] / loops[1])
    report("default_run.json", results, rounds, unit="CPU seconds, one thread")


if __name__ == "__main__":
    main()

"""What ``runner.compile`` costs and gives: CPU seconds of the first step, milliseconds of a later one.

    python benchmarks/compiling.py [rounds] ['a model and its settings' ...]

Fresh processes with an empty compile cache, one thread, interleaved rounds, two epochs of digits in whole batches of
64; compilers that the process starts count. Prints medians and ranges, and writes
``benchmarks/results/compiling.json``.
"""

import sys

from default_run import report, run

MODELS = ("vit", "vit model.depth=24", "resnet32x4")
STEPS = """
import json, os, sys, time

os.environ |= {"TORCHINDUCTOR_CACHE_DIR": os.path.abspath("cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
from healsg.training.device import repeated
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


def measure(model: str, compile: str) -> dict[str, float]:
    """One run: seconds of its first step, milliseconds of a later one, blocks that repeat."""
    options = [*f"model={model}".split(), "method=sgd", "data=digits", "data.batch_size=64", "data.drop_last=true"]
    options += ["runner.epochs=2", "runner.device=cpu", f"runner.compile={compile}"]
    return run([sys.executable, "-c", STEPS, *options])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        for model in sys.argv[2:] or MODELS:
            for compile in ("false", "regional", "true"):
                row = measure(model, compile)
                name = f"{model} ({row['blocks']} blocks) compile={compile}"
                results.setdefault(f"{name}: first step, CPU s", []).append(row["first"])
                results.setdefault(f"{name}: later step, CPU ms", []).append(row["later"])
    report("compiling.json", results, rounds)


if __name__ == "__main__":
    main()

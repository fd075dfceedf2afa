"""What ``runner=fast`` chooses, measured a second time: python -m benchmarks.fast [rounds] [seconds to measure]

For six networks of the catalogue: what ``commands.tune`` chose, and then, in a fresh process that knows nothing of the
first measurement, steps in the plain setting and in the chosen one in turns; the ratio within each round, its mean and
95 % interval. Then the test accuracy on digits of the default network in its chosen setting against fp32, paired by
seed. One thread; the second measurement is CPU time. Writes ``benchmarks/results/fast.txt``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import machine
from healsg.commands.statistics import interval
from healsg.commands.tune import Choice, measured, with_choice
from healsg.config.compose import Composer

PICTURES = ["data=synthetic", "data.train=256", "data.test=32", "method=sgd"]
NETWORKS: dict[str, list[str]] = {
    "mlp": ["data=digits", "model=mlp", "method=sgd"],
    "cnn (default)": ["data=digits", "model=cnn", "method=sgd"],
    "resnet8x4, 32 px": [*PICTURES, "model=resnet8x4", "data.batch_size=32"],
    "torchvision resnet18, 96 px": [*PICTURES, "data.shape=[3,96,96]", "model=torchvision", "data.batch_size=8"],
    "vit": ["data=digits", "model=vit", "method=sgd"],
    "unet": ["data=digits_seg", "model=unet", "model.width=8", "method=sgd"],
}
COMMON = ["runner.threads=1", "quiet=true", "runner.epochs=40"]
SEEDS = range(5)

AGAIN = """
import json, sys, time
from healsg.commands.tune import Bench, with_choice, _steps_of
from healsg.config.compose import Composer

told = json.loads(sys.argv[1])
composed = Composer().compose(told["overrides"])
kept = {}
settings = [with_choice(composed, choice) for choice in ({}, told["choice"])]
with _steps_of(settings[0], kept) as (_, plain), _steps_of(settings[1], kept) as (_, fast):
    for step in (plain, fast, plain, fast):
        step()
    ratios = []
    for number in range(told["rounds"]):
        spent = {}
        for name, step in (("plain", plain), ("fast", fast))[:: 1 if number % 2 else -1]:
            began, count = time.process_time(), 0
            while count < 2 or time.process_time() < began + 0.3:
                step()
                count += 1
            spent[name] = (time.process_time() - began) / count
        ratios.append(spent["fast"] / spent["plain"])
print(json.dumps(ratios))
"""


def again(overrides: list[str], choice: Choice, rounds: int) -> list[float]:
    """The time of a step in the chosen setting over that in the plain one, by round, in a fresh process."""
    told = json.dumps({"overrides": overrides, "choice": choice, "rounds": rounds})
    done = subprocess.run([sys.executable, "-c", AGAIN, told], capture_output=True, text=True, check=True)
    ratios: list[float] = json.loads(done.stdout.splitlines()[-1])
    return ratios


def accuracies(choice: Choice) -> list[float]:
    """By seed, test accuracy on digits in the chosen setting minus that in the plain one."""
    from healsg import TaskTrainer

    found = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for seed in SEEDS:
            options = ["data=digits", "quiet=true", "runner.threads=1", f"seed={seed}"]
            composed = Composer().compose(options)
            plain = TaskTrainer(with_choice(composed, {})).train()["test"]["test/acc"]
            fast = TaskTrainer(with_choice(composed, choice)).train()["test"]["test/acc"]
            found.append(float(fast - plain))
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    facts: dict[str, Any] = machine()
    torch = facts["versions"]["torch"]
    lines = [f"{facts['processor']}, one thread, torch {torch}, {rounds} rounds, {seconds:g} s to choose"]
    lines.append(f"{'network':30}{'chosen':44}{'a step, x plain (95 %)':>26}")
    default: Choice = {}
    for name, options in NETWORKS.items():
        overrides = [*options, *COMMON]
        composed = Composer().compose(overrides)
        rows, steps = measured(composed, seconds)
        best = min(rows, key=lambda row: row.total(steps))
        choice = best.choice if best.total(steps) < 0.97 * rows[0].total(steps) else {}
        if name.startswith("cnn"):
            default = choice
        ratios = again(overrides, choice, rounds)
        mean, half = interval(ratios)
        shown = " ".join(f"{key}={value}" for key, value in choice.items()) or "as configured"
        lines.append(f"{name:30}{shown:44}{mean:9.3f} ({mean - half:.3f} to {mean + half:.3f})")
        print(lines[-1], flush=True)
    gains = accuracies(default)
    mean, half = interval(gains)
    shown = f"{100 * mean:+.2f} ({100 * (mean - half):+.2f} to {100 * (mean + half):+.2f})"
    lines.append(f"digits, test accuracy in points, chosen minus plain, {len(gains)} seeds: {shown}")
    print(lines[-1])
    Path(__file__).with_name("results").joinpath("fast.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""CPU seconds of commands that need no torch, and of everything up to the first training step.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.start [rounds]

``healsg runs`` over six runs, ``healsg explain`` and a mistyped key run in new processes, each of which reports whether
torch was imported. The first step is measured for ``healsg train data=digits model=mlp``, from the command to the end
of the first update, and for a script that imports torch, NumPy and PyYAML and takes one step (W4 of
``benchmarks.peers``). Both run from bytecode: the first commands write it, and their times are not counted.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.bars import Bar, bar_of, keep
from benchmarks.peers.__main__ import machine
from benchmarks.peers.measure import Bench, startup

MOST = 0.5
"""CPU seconds of a command without torch."""
SHARE = 0.8
"""Of the bare script's time to the first step."""
RUNS = 6
FIRST_STEP = "CPU time to the first step, x a bare script that imports torch, NumPy and PyYAML"

COMMANDS = {
    "healsg runs": ["runs"],
    "healsg explain data=cifar": ["explain", "data=cifar"],
    "healsg explain runner.channels_last": ["explain", "runner.channels_last"],
    "healsg train data=digit (a typo)": ["train", "data=digit"],
    "healsg train method.lrr=1 (a typo)": ["train", "method.lrr=1"],
}

CALL = """
import os, sys
os.chdir(sys.argv.pop(1))
from healsg.cli import main
try:
    status = main()
except SystemExit as end:
    status = end.code
print(f"torch imported: {'torch' in sys.modules}, status {status}")
"""


def of_commands(bench: Bench, project: Path) -> list[Bar]:
    """The figures of the commands that need no torch."""
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(bench.rounds + 1):
        for name, arguments in COMMANDS.items():
            done = bench.spawn("-c", CALL, str(project), *arguments)
            if "torch imported: False" not in done.said:
                raise SystemExit(f"{name}: {done.said[-300:]}")
            if number:
                spent[name].append(done.seconds)
    return [bar_of("W14", f"{name}, without torch", values, MOST, "s") for name, values in spent.items()]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rounds, [])
        project = Path(folder) / "project"
        project.mkdir()
        for number in range(RUNS):
            done = bench.spawn("-c", CALL, str(project), "train", "runner=debug", "model=mlp", f"name=run{number}")
            if "status 0" not in done.said:
                raise SystemExit(done.said[-300:])
        bars = of_commands(bench, project)
        rows = startup(bench)["rows"]
        ratios = [own / base for own, base in zip(rows["healsg"]["seconds"], rows["bare"]["seconds"], strict=True)]
        bars.append(bar_of("W14", FIRST_STEP, ratios, SHARE))
    for bar in bars:
        print(f"{bar.name:60}{bar.value:.3f} ({bar.least:.3f} to {bar.most:.3f}) {bar.unit}, {bar.verdict}")
    facts = machine()
    conditions = f"{facts['processor']}, one thread, torch {facts['versions']['torch']}, {rounds} rounds"
    keep("python -m benchmarks.start", conditions, bars)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)

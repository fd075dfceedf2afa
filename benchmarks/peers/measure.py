"""The workloads as fresh processes on one thread, one after the other, and what each cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
STEPS = ("W1", "W2", "W3")
BESIDE_W3 = ("bare", "tight", "healsg", "healsg_loader", "accelerate", "lightning")
"""The peers that also train the residual network, where what a framework costs hardly shows."""

JOBS, PROCESSES = 32, 4
"""Runs of the sweep; processes of which the cost of 32 is reckoned."""

CIFAR_IMAGES = 20_000


@dataclass
class Spent:
    """A process: its CPU seconds, the peak of its memory in MiB, what it printed, its last complaint if it failed."""

    seconds: float
    peak: float
    said: str
    failed: str = ""


@dataclass
class Bench:
    """Where the processes run, and what failed.

    Args:
        folder: a temporary folder of which each process gets one of its own.
        rounds: how often everything is measured.
        peers: the frameworks of W1 to W3.
    """

    folder: Path
    rounds: int
    peers: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    def spawn(self, *command: str, peer: str = "") -> Spent:
        """Run one process to its end. Raises RuntimeError if it fails and is not a peer's.

        The process may write bytecode even if ``PYTHONDONTWRITEBYTECODE`` is set here: otherwise each of our processes
        would compile our modules again, while torch was installed with its bytecode.
        """
        place = Path(tempfile.mkdtemp(dir=self.folder))
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)])
        settings = {**os.environ, **threads, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        settings.pop("PYTHONDONTWRITEBYTECODE", None)
        with (place / "out.txt").open("w") as out, (place / "err.txt").open("w") as err:
            process = subprocess.Popen([sys.executable, *command], cwd=place, env=settings, stdout=out, stderr=err)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        said = (place / "out.txt").read_text()
        spent = Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said)
        if process.returncode:
            lines = [line for line in re.split(r"[\r\n]", (place / "err.txt").read_text()) if line.strip()]
            spent.failed = lines[-1].strip()[:300] if lines else f"exit status {process.returncode}"
            if not peer:
                raise RuntimeError(f"{' '.join(command)}: {spent.failed}")
            self.failed[peer] = spent.failed
        return spent

    def module(self, name: str, *arguments: str, peer: str = "") -> Spent:
        return self.spawn("-m", f"benchmarks.peers.{name}", *arguments, peer=peer)

    def healsg(self, *overrides: str) -> Spent:
        """The command ``healsg train``, as a user gives it."""
        return self.spawn("-c", "from healsg.cli import main; raise SystemExit(main())", "train", *overrides)

    def asked(self, name: str, *arguments: str) -> Any:
        """What a module of ours wrote as JSON to the file that is its last argument."""
        out = self.folder / f"{name}.json"
        self.module(name, *arguments, str(out))
        return json.loads(out.read_text())


Rows = dict[str, dict[str, list[float]]]
"""By peer and by what was measured, one number a round."""


def add(rows: Rows, peer: str, **numbers: float) -> None:
    for name, value in numbers.items():
        rows.setdefault(peer, {}).setdefault(name, []).append(value)


def steps(bench: Bench, names: list[str]) -> dict[str, Any]:
    """W1 to W3: CPU seconds a step. Every peer trains the same; the sums of the parameters are compared."""
    bench.module("prepare", str(bench.folder), *names)
    results: dict[str, Any] = {name: {"rows": {}} for name in names}
    for number in range(bench.rounds):
        for peer in bench.peers:
            wanted = [name for name in names if name != "W3" or peer in BESIDE_W3]
            if not wanted or peer in bench.failed:
                continue
            out = bench.folder / f"{peer}.json"
            counting = ["--calls"] if number == 0 else []
            say(f"round {number + 1}: {peer}")
            if bench.module("run", peer, str(bench.folder), str(out), ",".join(wanted), *counting, peer=peer).failed:
                say(f"  {bench.failed[peer]}")
                continue
            for name, numbers in json.loads(out.read_text()).items():
                if name in results:
                    add(results[name]["rows"], peer, **numbers)
    if "W3" in names:
        results["W3"]["data_path"] = bench.asked("data_path", str(bench.folder))
    for name, result in results.items():
        result["different"] = different(result["rows"])
        say(
            f"{name}: the parameters differ for {', '.join(odd)}" if (odd := result["different"]) else f"{name}: agreed"
        )
    return results


def different(rows: Rows) -> list[str]:
    """The peers whose sum of all parameters does not agree with the bare loop's to three decimals."""
    if "bare" not in rows:
        return []
    wanted = rows["bare"]["sum"][0]
    return [peer for peer, row in rows.items() if any(abs(value - wanted) >= 5e-4 for value in row.get("sum", [inf]))]


def startup(bench: Bench) -> dict[str, Any]:
    """W4: CPU seconds from the command to the end of the first step; the first round warms up and is not counted."""
    rows: Rows = {}
    first = ["task._target_=benchmarks.peers.first_step.FirstStep", "trusted=[benchmarks]"]
    out = bench.folder / "first"
    for number in range(bench.rounds + 1):
        say(f"round {number}: start-up" if number else "warm-up: start-up")
        seconds = {}
        bench.healsg("data=digits", "model=mlp", *first, f"+args.out={out}")
        seconds["healsg"] = float(out.read_text())
        for role, name in (("direct", "bare"), ("usual", "bare as usual")):
            bench.module("bare_start", role, "digits", str(out))
            seconds[name] = float(out.read_text())
        if number:
            for name, value in seconds.items():
                add(rows, name, seconds=value)
    return {"rows": rows}


def memory(bench: Bench) -> dict[str, Any]:
    """W5: the peak of memory of a whole run, in MiB."""
    rows: Rows = {}
    root = bench.folder / "large"
    bench.module("cifar_files", str(root), str(CIFAR_IMAGES))
    cifar = ["data=cifar", f"data.root={root}", "data.verify=false", "data.download=false", "model=resnet8x4"]
    cifar += ["model.width_factor=1", "model.stem_width=16", "runner.epochs=1", "runner.limit_batches=3"]
    told = {"digits": ["data=digits", "model=mlp", "runner.epochs=3"], "cifar": cifar}
    for number in range(min(bench.rounds, 2)):
        say(f"round {number + 1}: memory")
        for kind, overrides in told.items():
            add(rows, f"healsg {kind}", peak=bench.healsg(*overrides).peak)
            bare = bench.module("bare_start", "direct", kind, "-", *([str(root)] if kind == "cifar" else []))
            add(rows, f"bare {kind}", peak=bare.peak)
    sizes = {"digits": 1797 * 64 * 4 / 2**20, "cifar": CIFAR_IMAGES * 1.1 * 3072 / 2**20}
    return {"rows": rows, "data set, MiB": sizes}


def sweep(bench: Bench) -> dict[str, Any]:
    """W6: CPU seconds of a sweep of 32 runs, and of 32 processes, reckoned from four of them."""
    rows: Rows = {}
    told = ["data=digits", "model=mlp", "runner.epochs=10"]
    for number in range(min(bench.rounds, 2)):
        say(f"round {number + 1}: sweep")
        add(rows, "sweep", seconds=bench.healsg("-m", *told, f"seed=range(0,{JOBS})").seconds)
        alone = [bench.healsg(*told, f"seed={seed}").seconds for seed in range(number, number + PROCESSES)]
        add(rows, "processes", seconds=sum(alone) * JOBS / PROCESSES)
    return {"rows": rows}


def saving(bench: Bench) -> dict[str, Any]:
    """W7: what ``benchmarks/saving.py`` prints: milliseconds that a save keeps the loop, and of ``torch.save``."""
    rows: Rows = {}
    for number in range(bench.rounds):
        say(f"round {number + 1}: saving")
        printed = bench.spawn(str(REPOSITORY / "benchmarks" / "saving.py")).said
        for name, medians in parsed(printed).items():
            add(rows, name, **medians)
    return {"rows": rows}


def parsed(text: str) -> dict[str, dict[str, float]]:
    """By workload of ``saving.py`` and by kind: the median over the saves, in milliseconds."""
    line = re.compile(r"^(.+?) +(blocked|torch\.save|with fsync) +([\d.]+) \(", re.MULTILINE)
    rows: dict[str, dict[str, float]] = {}
    for name, kind, number in line.findall(text):
        rows.setdefault(name, {})[kind] = float(number)
    if not rows:
        raise RuntimeError("benchmarks/saving.py printed no figures that could be read")
    return rows


def growth(bench: Bench) -> dict[str, Any]:
    """W8: by kind and size, CPU seconds of a run and the peak of memory by its end."""
    kinds: dict[str, Rows] = {}
    for number in range(bench.rounds):
        for kind in ("samples", "epochs", "lines", "runs"):
            say(f"round {number + 1}: growth over {kind}")
            for size, (seconds, peak) in bench.asked("growth", kind).items():
                add(kinds.setdefault(kind, {}), size, seconds=seconds, peak=peak)
    return {"kinds": kinds}


ALONE = {"W4": startup, "W5": memory, "W6": sweep, "W7": saving, "W8": growth}
WORKLOADS = [*STEPS, *ALONE]


def measured(names: list[str], rounds: int, peers: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """By workload what was measured; by peer, or by workload, why it did not run."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rounds, peers)
        for name in names:
            began = time.monotonic()
            try:
                if name in ALONE:
                    results[name] = ALONE[name](bench)
                elif name not in results:
                    results |= steps(bench, [name for name in names if name in STEPS])
            except RuntimeError as error:
                bench.failed[name] = str(error)
            say(f"{name}: {bench.failed.get(name, '')} {time.monotonic() - began:.0f} s")
        return results, bench.failed


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

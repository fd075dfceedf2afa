"""What a training step costs: no value is read, few functions are called; and losses that must stay the same bits.

The losses lie in ``golden.json``. After a change of numbers that is meant, write them anew:

    cd tests && OMP_NUM_THREADS=1 python -c "import test_cost; test_cost.write_golden()"
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from healsg import BasicTask, TaskMethod, TaskTrainer
from healsg.methods.supervised import Supervised
from healsg.runner import TaskRunner
from healsg.training.epoch import TrainEpoch
from healsg.training.meter import Meter
from helpers import Program

OPTIMIZERS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf/method/optimizer").glob("*.yaml"))


def train(*options: str) -> dict[str, Any]:
    return TaskTrainer.compose("model=mlp", "quiet=true", *options, "name=run", "fresh=true").train()


# --- no value is read ------------------------------------------------------------------------------------------------

READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}
ALLOWED: dict[str, set[str]] = {}
"""By optimizer, what its own step reads; none of those in ``conf/method/optimizer`` reads anything."""


class Reads(TorchDispatchMode):
    """Counts the operations that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in READS:
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


def counted(seen: Counter[str], door: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A door of Tensor's to Python that counts who goes through it, but for the thread that writes checkpoints."""

    def read(*arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            seen[door] += 1
        return original(*arguments)

    return read


def watch(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let what the loop calls for each step run under ``Reads``, also Tensor's own doors to Python."""
    seen: Counter[str] = Counter()

    def watched(whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with Reads() as reads, pytest.MonkeyPatch.context() as patch:
                for door in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
                    patch.setattr(Tensor, door, counted(reads.seen, door, getattr(Tensor, door)))
                value = whole(*arguments)
            seen.update(reads.seen)
            return value

        return call

    for home, name in ((TaskRunner, "step"), (TaskRunner, "tick"), (Meter, "add"), (TaskMethod, "after_update")):
        monkeypatch.setattr(home, name, watched(getattr(home, name)))
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_reads_no_value(optimizer: str, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    options = [f"method/optimizer={optimizer}", f"method.label_smoothing={smoothing}", "runner.log_every=1000"]
    train(*options, "model=cnn", "runner.epochs=1", "runner.accumulate=2", "runner.clip_norm=1", "model.dropout=0.1")
    assert set(seen) <= ALLOWED.get(optimizer, set()), dict(seen)


def test_the_count_of_reads_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Supervised.train_step

    def reading(self: Supervised, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        logs = whole(self, task, batch)
        if float(logs["loss"].detach()) > 0 and logs["loss"].isnan():
            raise AssertionError
        return logs

    monkeypatch.setattr(Supervised, "train_step", reading)
    seen = watch(monkeypatch)
    train("runner.steps=2", "runner.log_every=1000")
    assert seen["_local_scalar_dense"] >= 4


# --- calls -----------------------------------------------------------------------------------------------------------


def calls_per_step(epochs: int = 12) -> tuple[float, float]:
    """Python and C calls a step of a default run but for its model: (the training pass alone, all between two epochs'
    ends: evaluation, lines, the order of the next epoch). Saves go by the clock and are left out."""
    calls = {"pass": 0, "all": 0, "steps": 0}
    end_epoch, run = TaskRunner.end_epoch, TrainEpoch.run

    def profile(frame: Any, event: str, argument: Any) -> None:
        calls["all"] += event in ("call", "c_call")

    def ended(self: TaskRunner, *arguments: Any) -> None:
        end_epoch(self, *arguments)
        if self.epoch == 1:
            calls["steps"] = -self.step_count
            sys.setprofile(profile)
        elif self.epoch == epochs - 1:
            sys.setprofile(None)
            calls["steps"] += self.step_count

    def passed(self: TrainEpoch) -> dict[str, float]:
        before = calls["all"]
        means = run(self)
        calls["pass"] += calls["all"] - before
        return means

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskRunner, "end_epoch", ended)
        patch.setattr(TrainEpoch, "run", passed)
        patch.setattr("healsg.runs.checkpointer.SAVE_INTERVAL", float("inf"))
        train("data=digits", "data.batch_size=64", f"runner.epochs={epochs}")
    return calls["pass"] / calls["steps"], calls["all"] / calls["steps"]


def test_calls_per_step(program: Program) -> None:
    """In a process of its own, since what other tests import adds calls."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = program([sys.executable, "-c", "import test_cost; print(*test_cost.calls_per_step())"], env=environment)
    alone, everything = map(float, done.stdout.split())
    print(f"\ncalls a step: {alone:.1f} in the training pass, {everything:.1f} with evaluation and lines")
    assert alone <= 250
    assert everything <= 400


# --- the same losses -------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).with_name("golden.json")
RUNS = {
    "default": [],
    "resnet sgd": ["method=sgd", "model=resnet", "model.width=8"],
    "resnet muon": ["method=muon", "model=resnet", "model.width=8", "method.optimizer.dtype=float32"],
}


def machine() -> dict[str, str]:
    """What the bits of a CPU's sums depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "capability": capability, "processor": names[0] if names else ""}


def losses(options: list[str]) -> list[float]:
    """The loss of each of the first 20 steps, on one thread."""
    options = [*options, "runner.steps=20", "runner.log_every=1", "runner.threads=1", "runner.device=cpu"]
    result = TaskTrainer.compose(*options, "quiet=true", "name=run", "fresh=true").train()
    rows = [json.loads(line) for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if row["event"] == "step"]


def write_golden() -> None:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        kept = {"machine": machine(), "losses": {name: losses(options) for name, options in RUNS.items()}}
    GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")


@pytest.mark.parametrize("name", RUNS)
def test_golden_losses(name: str) -> None:
    kept = json.loads(GOLDEN.read_text())
    found, wanted = losses(RUNS[name]), kept["losses"][name]
    assert len(wanted) == 20
    assert wanted[-1] < wanted[0]
    if machine() == kept["machine"]:
        assert found == wanted
    else:  # Muon computes in bfloat16, whose rounding errors on another processor grow within 20 steps
        assert found == pytest.approx(wanted, rel=5e-3 if "muon" in name else 1e-3)

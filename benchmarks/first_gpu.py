"""The first twelve minutes on a GPU: python benchmarks/first_gpu.py [--seconds 660] [--tiny]

What is known only there, from short runs on the digits, the most telling first:

* ``resume``: whether a deterministic run that is stopped and continued ends with the digest of one that was not;
* ``losses``: the training loss of the first updates on this device beside that of the CPU, and how far they are apart;
* ``step``: by method and precision whether a run finishes, and the milliseconds of an update (the mean after the first
  ones); on CUDA torch raises where an update waits for the device (``set_sync_debug_mode``).

Each result is printed as a line of JSON; a part that fails says why and the next one begins. No part begins after
``--seconds``. ``--tiny`` takes few updates of small networks, and is what runs through on a CPU in a minute. The exit
status is 1 where any part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from healsg import TaskTrainer
from healsg.runner import TaskRunner
from healsg.task import BasicTask
from healsg.training.step import MicroBatch, TrainBatch

METHODS = [
    "adamw",
    "sgd",
    "muon",
    "schedule_free",
    "sam",
    "mean_teacher",
    "fixmatch",
    "simclr",
    "byol",
    "dino",
    "mixup",
]
PRECISIONS = ["fp32", "bf16", "fp16"]
WARM = 4
"""Updates before the clock starts: memory is claimed and kernels are chosen."""

Answer = dict[str, Any]


def settings(method: str) -> list[str]:
    """The overrides of a method, or of what is set beside one."""
    return ["method=adamw", "method.mixup=0.2"] if method == "mixup" else [f"method={method}"]


def train(*overrides: str) -> Answer:
    """A quiet run of its own; its result."""
    common = ["quiet=true", "runner.log_every=1000", "runner.eval_every=1000"]
    return TaskTrainer.compose(*common, *overrides).train()


@contextlib.contextmanager
def ticking(act: Callable[[TaskRunner, BasicTask], None]) -> Iterator[None]:
    """Call ``act`` after each update."""
    usual = TaskRunner.tick

    def tick(self: TaskRunner, task: BasicTask) -> None:
        usual(self, task)
        act(self, task)

    with mock.patch.object(TaskRunner, "tick", tick):
        yield


@contextlib.contextmanager
def waiting_refused(device: str) -> Iterator[None]:
    """On CUDA, let an update raise that waits for the device, once memory has been claimed."""
    usual = TaskRunner.step

    def step(self: TaskRunner, task: BasicTask, batch: TrainBatch, micro: MicroBatch) -> Any:
        if self.step_count < WARM or device != "cuda":
            return usual(self, task, batch, micro)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return usual(self, task, batch, micro)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with mock.patch.object(TaskRunner, "step", step):
        yield


def now(device: str) -> float:
    """Seconds, when the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def step_time(device: str, method: str, precision: str, model: list[str], steps: int) -> Answer:
    """Milliseconds of an update."""
    at: dict[int, float] = {}

    def clock(runner: TaskRunner, task: BasicTask) -> None:
        if runner.step_count in (WARM, steps):
            at[runner.step_count] = now(device)

    options = [*settings(method), *model, f"runner.device={device}", f"runner.precision={precision}"]
    with ticking(clock), waiting_refused(device):
        result = train(*options, f"runner.steps={steps}", f"name=step-{method}-{precision}")
    milliseconds = (at[steps] - at[WARM]) / (steps - WARM) * 1000
    return {"status": result["status"], "milliseconds": round(milliseconds, 3)}


def resume(device: str, method: str, model: list[str], steps: int) -> Answer:
    """Whether a run that is stopped halfway and continued ends as one that is not."""
    options = [*settings(method), *model, f"runner.device={device}", f"runner.steps={steps}"]
    options += ["runner.deterministic=true"]
    whole = train(*options, f"name=whole-{method}")

    def stop(runner: TaskRunner, task: BasicTask) -> None:
        if runner.step_count == steps // 2:
            runner.checkpointer.stop(task)  # type: ignore[attr-defined]

    with ticking(stop):
        cut = train(*options, f"name=cut-{method}")
    if cut["status"] != "stopped":
        raise AssertionError(f"the run was to stop halfway, and is {cut['status']}")
    continued = train(*options, f"name=cut-{method}")
    if continued["digest"] != whole["digest"]:
        raise AssertionError(f"digest {continued['digest']} after a resume, {whole['digest']} without one")
    return {"digest": whole["digest"]}


def losses(device: str, model: list[str], steps: int) -> Answer:
    """The mean training loss of the first updates, in fp32, here and on the CPU."""
    found = {}
    for home in dict.fromkeys([device, "cpu"]):
        options = [*model, f"runner.device={home}", f"runner.steps={steps}", f"name=losses-{home}"]
        train("method=sgd", *options, "runner.log_every=1")
        lines = [json.loads(line) for line in Path(f"runs/losses-{home}/metrics.jsonl").read_text().splitlines()]
        found[home] = [line["train/loss"] for line in lines if line["event"] == "step"]
    apart = max(abs(one - other) / abs(other) for one, other in zip(found[device], found["cpu"], strict=True))
    return {"last": {home: values[-1] for home, values in found.items()}, "largest_relative_difference": apart}


def parts(device: str, tiny: bool) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """What is to be found out, by name."""
    model = ["model=cnn", "model.width=4"] if tiny else ["model=resnet"]
    steps = 6 if tiny else 60
    methods, precisions = (METHODS[:3], PRECISIONS[:2]) if tiny else (METHODS, PRECISIONS)
    for method in methods[:2] if tiny else methods[:6]:
        yield f"resume {method}", lambda method=method: resume(device, method, model, steps)  # type: ignore[misc]
    yield "losses", lambda: losses(device, model, steps)
    for precision in precisions:
        for method in methods:
            yield (
                f"step {method} {precision}",
                lambda method=method, precision=precision: step_time(device, method, precision, model, steps),  # type: ignore[misc]
            )


def main(arguments: list[str] | None = None) -> int:
    """0 where every part that began went well."""
    parser = argparse.ArgumentParser(description="The first twelve minutes on a GPU.")
    parser.add_argument("--seconds", type=float, default=660.0, help="no part begins after so many seconds")
    parser.add_argument("--tiny", action="store_true", help="few updates of small networks")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(json.dumps({"device": name, "torch": torch.__version__}), flush=True)
    began, failed = time.monotonic(), 0
    for part, act in parts(device, chosen.tiny):
        if time.monotonic() - began > chosen.seconds:
            print(json.dumps({"part": part, "left_out": "no time"}), flush=True)
            continue
        since = time.monotonic()
        try:
            answer = act()
        except Exception as error:  # what fails on a new device is what is asked
            answer = {"failed": f"{type(error).__name__}: {error}"}
            failed += 1
        print(json.dumps({"part": part, **answer, "seconds": round(time.monotonic() - since, 1)}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        status = main()
        os.chdir("/")
    sys.exit(status)

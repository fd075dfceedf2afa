"""What only a GPU shows; skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import BasicTask, TaskTrainer
from healsg.runner import TaskRunner
from healsg.training.device import DeviceSetup
from healsg.training.step import MicroBatch, TrainBatch
from helpers import stopping_at

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

SHORT = ["runner.epochs=2", "quiet=true", "runner.device=cuda"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["adamw", "sgd", "muon", "fixmatch", "simclr"])
def test_a_step_does_not_wait_for_the_device(method: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch, forward, backward and update; only ``tick`` may wait, every ``log_every`` updates."""
    step = TaskRunner.step

    def watched(self: TaskRunner, task: BasicTask, batch: TrainBatch, micro: MicroBatch) -> Any:
        torch.cuda.set_sync_debug_mode("error" if self.step_count > 1 else "default")  # the first ones claim memory
        try:
            return step(self, task, batch, micro)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TaskRunner, "step", watched)
    run = TaskTrainer.compose(*SHORT, f"method={method}", f"runner.precision={precision}")
    assert run.train()["status"] == "finished"


def test_cuda_graphs_learn_what_plain_steps_learn() -> None:
    losses = []
    for graph in ("false", "true"):
        trainer = TaskTrainer.compose(
            *SHORT, f"runner.cuda_graph={graph}", "runner.deterministic=true", f"name={graph}"
        )
        trainer.train()
        lines = Path(f"runs/{graph}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_batches_arrive_whole_while_the_device_works() -> None:
    """Copies on a stream of their own: what comes after them waits for them, and their memory is not taken early."""
    place = DeviceSetup("cuda", "fp32", False, False)
    work, found, expected = torch.eye(4096, device="cuda"), [], []
    for number in range(60):
        images = torch.full((64, 3, 64, 64), float(number)).pin_memory()
        batch = place.move({"weak": {"input": images}, "strong": {"input": images + 1, "names": ["a"]}})
        for _ in range(5):
            work = work @ work
        found.append(batch["weak"]["input"].mean() + batch["strong"]["input"].mean())
        expected.append(2.0 * number + 1)
    assert torch.stack(found).tolist() == expected


def test_the_samples_lie_on_the_device() -> None:
    trainer = TaskTrainer.compose(*SHORT)
    trainer.train()
    assert trainer.task is not None
    batch = next(iter(trainer.task.train_loader))
    assert {value.device.type for value in batch.values()} == {"cuda"}


def test_a_deterministic_run_goes_on_bit_for_bit() -> None:
    whole = TaskTrainer.compose(*SHORT, "runner.deterministic=true", "name=whole").train()
    with stopping_at(7):
        assert TaskTrainer.compose(*SHORT, "runner.deterministic=true", "name=cut").train()["status"] == "stopped"
    again = TaskTrainer.compose(*SHORT, "runner.deterministic=true", "name=cut").train()
    assert again["digest"] == whole["digest"]

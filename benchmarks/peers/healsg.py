"""HEALSg as a user has it: metrics, saving, logging and resume switched on.

``healsg`` holds the samples in memory; ``healsg_loader`` is a task of one's own that returns plain ``DataLoader``s.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.work import Clock, Work
from healsg import BasicTask, TaskTrainer


class Marked(BasicTask):
    """Tells the clock when an epoch begins."""

    clock: Clock
    work: Work

    def run_epoch(self) -> Any:
        self.clock.mark()
        return super().run_epoch()


class WithLoaders(Marked):
    """The same samples out of ``DataLoader``s, image by image; HEALSg deals them in its own order."""

    def build_dataloader(self) -> Any:
        self.samples, val = self.work.datasets()
        size = self.work.batch_size
        return DataLoader(self.samples, size, shuffle=True), DataLoader(val, size)

    def run_epoch(self) -> Any:
        self.samples.epoch = self.runner.epoch  # type: ignore[attr-defined]
        return super().run_epoch()


def train(work: Work, clock: Clock) -> nn.Module:
    return run(work, clock, "Marked")


def train_with_loaders(work: Work, clock: Clock) -> nn.Module:
    return run(work, clock, "WithLoaders")


def run(work: Work, clock: Clock, task: str) -> nn.Module:
    Marked.clock, Marked.work = clock, work
    told = [*work.overrides, f"task._target_={__name__}.{task}", f"name={work.name}", "fresh=true"]
    trainer = TaskTrainer.compose(*told)
    trainer.train()
    assert trainer.task is not None
    return trainer.task.model

"""Lightning as it comes (logger, progress bar, checkpoints, summary), and with ``barebones=True``, without them."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn

from benchmarks.peers.work import Clock, Work


class Module(lightning.LightningModule):
    def __init__(self, work: Work, logs: bool) -> None:
        super().__init__()
        self.work, self.logs, self.network, self.criterion = work, logs, work.network(), nn.CrossEntropyLoss()
        self.rows: list[Tensor] = []

    def keep(self, **numbers: Tensor) -> None:
        if self.logs:
            self.log_dict(numbers, on_epoch=True, on_step=False)
        else:
            self.rows.append(torch.stack([value.detach() for value in numbers.values()]))

    def training_step(self, batch: Any, index: int) -> Tensor:
        input, target = batch
        loss = self.criterion(self.network(input), target)
        self.keep(train=loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        input, target = batch
        output = self.network(input)
        self.keep(loss=self.criterion(output, target), acc=(output.argmax(1) == target).float().mean())

    def on_train_epoch_end(self) -> None:
        if self.rows:
            torch.cat(self.rows).mean().item()
            self.rows.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.work.optimizer(self.network)


def run(work: Work, clock: Clock, **settings: Any) -> nn.Module:
    module = Module(work, logs="barebones" not in settings)
    trainer = lightning.Trainer(max_epochs=work.epochs, accelerator="cpu", **settings)
    trainer.fit(module, *work.loaders(clock))
    return module.network


def train(work: Work, clock: Clock) -> nn.Module:
    return run(work, clock)


def train_barebones(work: Work, clock: Clock) -> nn.Module:
    return run(work, clock, barebones=True)

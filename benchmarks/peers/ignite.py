"""PyTorch-Ignite: a supervised trainer with the mean loss, an evaluator with loss and accuracy each epoch."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Average, Loss
from torch import nn

from benchmarks.peers.work import Clock, Work


def train(work: Work, clock: Clock) -> nn.Module:
    train_loader, val_loader = work.loaders(clock)
    network, criterion = work.network(), nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(network, work.optimizer(network), criterion)
    Average().attach(trainer, "loss")
    evaluator = create_supervised_evaluator(network, {"loss": Loss(criterion), "acc": Accuracy()})
    history: list[dict[str, Any]] = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate() -> None:
        evaluator.run(val_loader)
        history.append({**trainer.state.metrics, **evaluator.state.metrics})

    trainer.run(train_loader, max_epochs=work.epochs)
    return network

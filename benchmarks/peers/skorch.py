"""skorch's NeuralNetClassifier with its default callbacks: timer, losses, accuracy, a printed line."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNetClassifier
from skorch.helper import predefined_split
from torch import nn

from benchmarks.peers.work import Clock, Work


def train(work: Work, clock: Clock) -> nn.Module:
    train_set, val_set = work.datasets()
    make, arguments = work.optimizer_class()
    settings: dict[str, Any] = {f"optimizer__{key}": value for key, value in arguments.items() if key != "lr"}
    net = NeuralNetClassifier(
        work.network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=make,
        lr=arguments["lr"],
        max_epochs=work.epochs,
        batch_size=work.batch_size,
        iterator_train__sampler=work.sampler(clock),
        train_split=predefined_split(val_set),
        classes=list(range(10)),
        **settings,
    )
    net.fit(train_set, y=None)
    return net.module_

"""Composer's Trainer as it comes, with its progress bar."""

from __future__ import annotations

from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.peers.work import Clock, Work


def train(work: Work, clock: Clock) -> nn.Module:
    train_loader, val_loader = work.loaders(clock)

    accuracy = MulticlassAccuracy(num_classes=10, average="micro")
    loss = nn.functional.cross_entropy
    model = ComposerClassifier(work.network(), num_classes=10, loss_fn=loss, val_metrics=accuracy)
    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=val_loader,
        optimizers=work.optimizer(model),
        max_duration=f"{work.epochs}ep",
        device="cpu",
    )
    trainer.fit()
    trainer.close()
    return model.module

"""The loop that everybody writes: a ``DataLoader``, forward, backward, update, an evaluation each epoch."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.work import Clock, Work


@torch.no_grad()
def evaluate(network: nn.Module, loader: object, criterion: nn.Module) -> dict[str, float]:
    network.eval()
    loss, hits, rows = torch.zeros(()), torch.zeros(()), 0
    for input, target in loader:  # type: ignore[attr-defined]
        output = network(input)
        loss += criterion(output, target) * len(target)
        hits += (output.argmax(1) == target).sum()
        rows += len(target)
    return {"loss": float(loss) / rows, "acc": float(hits) / rows}


def train(work: Work, clock: Clock) -> nn.Module:
    train_loader, val_loader = work.loaders(clock)
    network, criterion = work.network(), nn.CrossEntropyLoss()
    optimizer = work.optimizer(network)
    history = []
    for _ in range(work.epochs):
        network.train()
        losses = []
        for input, target in train_loader:
            loss = criterion(network(input), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        numbers = {"train": float(torch.stack(losses).mean()), **evaluate(network, val_loader, criterion)}
        history.append(numbers)
    return network

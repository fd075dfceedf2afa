"""Hugging Face Accelerate: the bare loop with its parts prepared and its ``backward``."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.peers.bare import evaluate
from benchmarks.peers.work import Clock, Work


def train(work: Work, clock: Clock) -> nn.Module:
    accelerator = Accelerator(cpu=True)
    network, criterion = work.network(), nn.CrossEntropyLoss()
    parts = accelerator.prepare(network, work.optimizer(network), *work.loaders(clock))
    network, optimizer, train_loader, val_loader = parts
    history = []
    for _ in range(work.epochs):
        network.train()
        losses = []
        for input, target in train_loader:
            loss = criterion(network(input), target)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        history.append({"train": float(torch.stack(losses).mean()), **evaluate(network, val_loader, criterion)})
    return accelerator.unwrap_model(network)

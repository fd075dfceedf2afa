"""The tightest loop that one writes by hand: samples as tensors, a batch by one gather, crops of whole batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.bare import evaluate
from benchmarks.peers.work import Clock, Work


def batches(work: Work, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch; images are gathered as their own windows, mirrored or not."""
    input, target = work.train
    if work.draws is None:
        for part in work.orders[epoch].split(work.batch_size):
            yield input[part], target[part]
        return
    padded, pixels = F.pad(input, (4, 4, 4, 4)).flatten(2), torch.arange(32)
    flip, down, right = work.draws[epoch].unbind(1)
    across = torch.where(flip.bool()[:, None], 39 - right[:, None] - pixels, right[:, None] + pixels)
    place = ((down[:, None] + pixels)[:, :, None] * 40 + across[:, None, :]).flatten(1)
    for part in work.orders[epoch].split(work.batch_size):
        images = padded[part].gather(2, place[part][:, None].expand(-1, 3, -1)).view(-1, 3, 32, 32)
        yield images.float().mul_(work.factor).add_(work.offset), target[part]


def still(work: Work) -> Iterator[tuple[Tensor, Tensor]]:
    """The validation samples."""
    for input, target in zip(*(tensor.split(work.batch_size) for tensor in work.val), strict=True):
        yield input if work.factor is None else input.float().mul_(work.factor).add_(work.offset), target


def train(work: Work, clock: Clock) -> nn.Module:
    network, criterion = work.network(), nn.CrossEntropyLoss()
    optimizer = work.optimizer(network)
    history = []
    for epoch in range(work.epochs):
        clock.mark()
        network.train()
        losses = []
        for input, target in batches(work, epoch):
            loss = criterion(network(input), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        numbers = {"train": float(torch.stack(losses).mean()), **evaluate(network, still(work), criterion)}
        history.append(numbers)
    return network

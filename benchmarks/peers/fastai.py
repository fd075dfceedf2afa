"""fastai's Learner over plain ``DataLoader``s, with its recorder and its progress bar."""

from __future__ import annotations

from functools import partial

from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from torch import nn

from benchmarks.peers.work import Clock, Work


def train(work: Work, clock: Clock) -> nn.Module:
    network = work.network()
    make, arguments = work.optimizer_class()
    optimizer = partial(OptimWrapper, opt=make, **{key: value for key, value in arguments.items() if key != "lr"})
    parts = DataLoaders(*work.loaders(clock), device="cpu")
    learner = Learner(parts, network, nn.CrossEntropyLoss(), opt_func=optimizer, metrics=accuracy, train_bn=True)
    learner.fit(work.epochs, lr=arguments["lr"])
    return network

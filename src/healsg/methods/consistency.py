"""What semi-supervised methods share: labelled and unlabelled samples, and one call of the network on both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from healsg import distributed
from healsg.data.base import Needs, TaskData
from healsg.data.loader import Loader
from healsg.data.source import Source
from healsg.errors import ConfigError
from healsg.losses.classification import log_softmax
from healsg.methods.averaging import optimizer_averages
from healsg.methods.supervised import Supervised
from healsg.metric import precise
from healsg.training.step import Loss, Mean, samples_of
from healsg.types import Count, NonNegative, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class SemiSupervised(Supervised):
    """The loss of labelled samples and a term that views of unlabelled ones bring: a subclass gives ``term``.

    The labelled samples come as ``data.augment`` makes them. All that the network sees in a step, it sees in one call,
    BatchNorm included.

    Args:
        unlabelled_ratio: unlabelled samples of a batch for each labelled one; the papers' mu.
        unlabelled_weight: of the unlabelled samples' loss; the papers' lambda_u.
        ema: the decay of the moving average of the weights, which is evaluated. An optimizer that averages the weights
            by itself takes its place.
        common: the arguments of Supervised.
    """

    counts_classes = True
    mean_over_samples = False

    views: ClassVar[tuple[str, ...]] = ("weak", "strong")
    """Of the unlabelled samples, in the order in which ``term`` gets the network's outputs."""

    def __init__(
        self,
        unlabelled_ratio: Count = 7,
        unlabelled_weight: NonNegative = 1.0,
        ema: Share = 0.999,
        **common: Any,
    ) -> None:
        super().__init__(ema=ema, **common)
        self.needs = Needs({"labelled": ("input",), "unlabelled": self.views}, {"unlabelled": unlabelled_ratio})
        self.unlabelled_weight = unlabelled_weight

    def check(self, task: BasicTask) -> None:
        self.ema = 0.0 if optimizer_averages(self) else self.ema
        super().check(task)
        name, data = type(self).__name__, type(task.task_data)
        if task.info and data.streams is TaskData.streams:
            raise ConfigError(f"data: {data.__name__} gives no unlabelled samples, which {name} needs; data=cifar does")
        if key := next((key for key in ("mixup", "cutmix") if getattr(self, key)), None):
            raise ConfigError(f"method.{key}: {name} learns from unlabelled samples, which have no target; set it to 0")

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        unlabelled(task)

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, *outputs = self.outputs(task, batch, self.views)
        supervised = self.supervised(task, batch["labelled"], labelled)
        term, logs = self.term(task, batch["unlabelled"], *outputs)
        return {"loss": supervised + term, "supervised": supervised, **logs}

    def term(self, task: BasicTask, batch: dict[str, Any], *outputs: Tensor) -> tuple[Loss, dict[str, Any]]:
        """What is added to the labelled samples' loss, a mean over the unlabelled ones, and what is logged of it.

        Args:
            batch: the unlabelled samples', with their ``index``.
            outputs: (N, C) scores of each view.
        """
        raise NotImplementedError

    def outputs(self, task: BasicTask, batch: dict[str, Any], views: tuple[str, ...]) -> list[Tensor]:
        """The network's scores of the labelled samples and of these views of the unlabelled ones."""
        parts = [self.prepare(task, batch["labelled"])[0], *(batch["unlabelled"][view] for view in views)]
        return list(task.net(torch.cat(parts)).split([len(part) for part in parts]))

    def supervised(self, task: BasicTask, batch: dict[str, Any], output: Tensor) -> Tensor | Loss:
        """The loss of the labelled samples."""
        return self.loss(task, batch, output, self.soften(task, batch["target"], output, None))

    def selected(self, batch: dict[str, Any], losses: Tensor, share: Tensor) -> tuple[Loss, dict[str, Any]]:
        """The term of samples' losses (N,) that count with these weights (N,), 0 to 1 or bool, over all N samples of
        ``batch``, the unlabelled one."""
        share = share.to(losses.dtype)
        samples = samples_of(batch)
        loss = Mean((losses * share).mean(), samples)
        return self.unlabelled_weight * loss, {"unlabelled": loss.detach(), "selected": Mean(share.mean(), samples)}


def unlabelled(task: BasicTask) -> Source | None:
    """The unlabelled samples; None where the task brings a loader that cannot be looked into.

    Raises ConfigError where there are none.
    """
    loader = task.train_loader
    if isinstance(loader, Loader) and "unlabelled" not in loader.sources:
        name = type(task.task_method).__name__
        raise ConfigError(f"build_dataloader: {name} needs batches of `labelled` and `unlabelled` samples")
    return loader.sources["unlabelled"] if isinstance(loader, Loader) else None


def classes(task: BasicTask) -> int:
    """The number of classes. Raises ConfigError where a task's own loaders do not tell it."""
    if task.info is None:
        raise ConfigError(f"method: {type(task.task_method).__name__} needs to know the classes; give the task a data")
    return task.info.num_classes


def probabilities(output: Tensor) -> Tensor:
    """Predictions (N, C) that nothing learns from, in at least float32."""
    return log_softmax(output.detach()).exp()


def sum_over_all(values: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """The sum over samples of all processes, in double precision, and their number, a scalar; every process must call
    it.

    Args:
        values: (N, ...).
        rows: how many of them count, the first ones; all by default.
    """
    rows = len(values) if rows is None else rows
    total = precise(values[:rows]).sum(dim=0)
    summed = distributed.sum_tensor(torch.cat([total.flatten(), total.new_full((1,), rows)]))
    return summed[:-1].view(values.shape[1:]), summed[-1]


def mean_over_all(values: Tensor, rows: int | None = None) -> Tensor:
    """The mean over samples of all processes; see ``sum_over_all``."""
    total, count = sum_over_all(values, rows)
    return total / count

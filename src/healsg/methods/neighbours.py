"""Evaluation by a weighted k-nearest-neighbour classifier on features (Wu et al. 2018, arXiv 1805.01978)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from healsg.evaluation.evaluator import collect, evaluating
from healsg.losses.classification import wide
from healsg.methods.gathered import gather
from healsg.metric import Accuracy

if TYPE_CHECKING:
    from healsg.protocols import Task

BANK = "bank"
"""The loader of the labelled training samples, each once and as in evaluation."""


def vote(query: Tensor, bank: Tensor, targets: Tensor, classes: int, neighbours: int, temperature: float) -> Tensor:
    """(N, classes) sums of ``exp(cos / temperature)`` over the nearest of the bank, by class (arXiv 1805.01978,
    section 3.4).

    Args:
        query: (N, D), of length 1.
        bank: (M, D), of length 1, the features of labelled samples.
        targets: (M,) their classes.
        classes: the number of classes.
        neighbours: the number of samples that vote; all where the bank has fewer.
        temperature: divides the cosine similarities.
    """
    near, nearest = (query @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    weights = ((near - 1.0) / temperature).exp()  # relative to the largest possible value, so that none overflows
    return weights.new_zeros(len(query), classes).scatter_add_(1, targets[nearest], weights)


def measure(task: Task, split: str, neighbours: int, temperature: float) -> dict[str, float]:
    """``{"acc": ...}`` of the split's samples by the vote of the bank's; empty if samples do not have exactly one
    class."""
    if task.info is None or task.info.kind != "multiclass":
        return {}
    model: Any = task.task_method.eval_model(task)
    metric = Accuracy()
    task.runner.parallel.align(model)
    with evaluating(model), torch.no_grad():
        seen = [(directions(task, model, batch), batch["target"]) for batch in task.runner.eval_batches(task, BANK)]
        empty = torch.zeros(0, model.num_features, device=task.device)  # a process may have no batches
        bank = gather(torch.cat([each for each, _ in seen] or [empty]))
        targets = gather(torch.cat([target for _, target in seen] or [empty[:, 0].long()]))
        for batch in task.runner.eval_batches(task, split):
            query = directions(task, model, batch)
            metric.update(vote(query, bank, targets, task.info.num_classes, neighbours, temperature), batch["target"])
    return collect({"acc": metric})


def directions(task: Task, model: Any, batch: dict[str, Any]) -> Tensor:
    """(N, D) features of a batch, scaled to length 1."""
    with task.runner.device_setup.autocast():
        features: Tensor = model(batch["input"], features=True)
    return F.normalize(wide(features).flatten(1), dim=1)

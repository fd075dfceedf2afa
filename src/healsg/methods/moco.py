"""MoCo v2: contrast with a queue of keys from a momentum encoder (arXiv 1911.05722, 2003.04297)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.losses.classification import wide
from healsg.losses.contrastive import queue_contrast
from healsg.methods.gathered import gather
from healsg.methods.selfsupervised import SelfSupervised, follow, full_precision, perceptron
from healsg.training.step import rows_of
from healsg.types import Count, Kept, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class MoCo(SelfSupervised):
    """A query of the first view is matched with the key of the second, against a queue of the keys of earlier batches
    (He et al. 2020, Algorithm 1; projector and temperature as in Chen et al. 2020).

    The queue is the same in all processes. Keys are not shuffled between processes for BatchNorm, as the paper does.

    Args:
        temperature: divides the similarities.
        momentum: decay of the key encoder's moving average.
        queue: the number of keys in the queue; 65,536 in the paper.
        hidden, size: units of the projector's hidden layer, and of its output; 2,048 and 128 in the paper.
        common: the arguments of SelfSupervised.
    """

    keys: Tensor
    """(queue, size), the keys of earlier batches."""
    queue_ptr: Tensor
    """The index in ``keys`` where the next key is stored."""

    def __init__(
        self,
        temperature: Positive = 0.2,
        momentum: Kept = 0.99,
        queue: Count = 4096,
        hidden: Count = 512,
        size: Count = 128,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature = temperature
        self.momentum = momentum
        self.queue = queue
        self.hidden = hidden
        self.size = size
        self.target: nn.Module = nn.Identity()
        self.new_keys: list[Tensor] = []
        """Those of the update, of all processes."""

    def head(self, features: int) -> nn.Module:
        return perceptron(features, self.hidden, self.size, norm=False)

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.target = self.momentum_encoder(task)
        self.register_buffer("keys", F.normalize(torch.randn(self.queue, self.size), dim=1))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = batch["unlabelled"]
        with torch.no_grad():
            key = wide(self.target(views["view2"]))
        query = wide(task.net(views["view1"]))
        with full_precision(task):
            losses = queue_contrast(query, key, self.keys.clone(), self.temperature)
            self.new_keys.append(F.normalize(gather(key, rows_of(views, key)), dim=1))
        return {"loss": losses.mean()}

    def after_update(self, task: Task) -> None:
        super().after_update(task)
        self.enqueue(torch.cat(self.new_keys))  # here, so that all micro-batches of an update see the same queue
        self.new_keys.clear()
        follow(self.target, task.model, self.momentum)

    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by (N, size) new ones."""
        keys = keys[-self.queue :].to(self.keys.dtype)
        slots = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.queue
        self.keys.index_copy_(0, slots, keys)
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.queue)

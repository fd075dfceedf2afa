"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg import distributed
from healsg.errors import ConfigError
from healsg.losses.distillation import noise_contrastive
from healsg.methods.counts import class_counts, labelled_targets, remember
from healsg.methods.teacher import Distilled, ForwardOutput, Student
from healsg.methods.within import Probe
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative, Positive, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask


class Embedding(nn.Linear):
    """A linear map of vectors (N, F), or of the means of maps (N, F, ...), to vectors of length 1."""

    def forward(self, input: Tensor) -> Tensor:
        return F.normalize(super().forward(input.flatten(2).mean(2) if input.dim() > 2 else input), dim=1)


class CRD(Distilled):
    """Tell, of the embeddings of both networks, those of the same sample from those of samples of other classes.

    Both networks' embeddings of all training samples are remembered by the samples' index: 2 x samples x ``dim``
    numbers. Without ``layers`` the features before the head are embedded, or the last maps where they are not found.

    Args:
        weight: of the contrastive loss beside that of the labels; the paper takes 0.8.
        dim: of the embeddings.
        negatives: samples of other classes that are drawn for each sample, with replacement; at most as many as there
            are samples.
        temperature: what cosines are divided by.
        momentum: how much of what is remembered of a sample stays when it is seen again.
        layers, teacher_layers: the modules of both networks that are looked at: names with ``*`` and ``?``, several
            joined by ``|``.
        common: the arguments of Distilled.
    """

    whole_samples = True
    mean_over_samples = False  # what is remembered moves with the forward pass, so that no batch is tried twice
    memory: Tensor
    constants: Tensor
    order: Tensor
    counts: Tensor

    def __init__(
        self,
        weight: NonNegative = 0.8,
        dim: Count = 128,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        layers: str | None = None,
        teacher_layers: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.weight, self.dim, self.negatives = weight, dim, negatives
        self.temperature, self.momentum = temperature, momentum
        self.layers, self.teacher_layers = layers, teacher_layers

    def wrap(self, task: BasicTask, student: Probe, teacher: Probe) -> Student:
        kind = "features" if student.features() and teacher.features() else "maps"
        layers, self.places = self.layers_of(student, teacher, kind, last=True)
        targets = labelled_targets(task)
        begin = torch.rand(2, len(targets), self.dim)
        self.register_buffer("memory", F.normalize(2 * begin - 1, dim=2))
        self.register_buffer("constants", torch.zeros(2))
        self.register_buffer("order", targets.argsort(stable=True), persistent=False)
        self.register_buffer("counts", class_counts(task), persistent=False)
        if len(layers) > 1:
            raise ConfigError(f"method.layers: {', '.join(layers)} are several; name one module")
        sizes = student.shapes[layers[0]][1], teacher.shapes[self.places[0]][1]
        return Student(task.model, layers, [Embedding(sizes[0], self.dim)], Embedding(sizes[1], self.dim))

    def forward_output(self, task: BasicTask, input: Tensor, teacher: ForwardOutput) -> ForwardOutput:
        return ForwardOutput(*task.net(input, teacher.inner[0]))

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        index, memory = batch["index"], self.memory
        random = torch.rand(len(index), min(self.negatives, memory.shape[1]), device=memory.device)
        drawn = torch.cat([index.unsqueeze(1), others(random, batch["target"], self.order, self.counts)], dim=1)
        embedded = torch.stack(student.inner).to(memory.dtype)  # of the student, of the teacher
        with torch.autocast(memory.device.type, enabled=False):
            scores = embedded @ memory.flip(0).transpose(1, 2) / self.temperature  # each against the other's memory
        scores = scores.gather(2, drawn.expand(2, -1, -1))
        with torch.no_grad():
            estimate = scores.exp().mean(dim=(1, 2)) * memory.shape[1]
            estimate = distributed.sum_tensor(estimate) / distributed.world()
            self.constants.copy_(torch.where(self.constants > 0, self.constants, estimate))
        losses = [noise_contrastive(*pair, memory.shape[1]) for pair in zip(scores, self.constants, strict=True)]
        with torch.no_grad():
            after = F.normalize(torch.lerp(embedded, memory[:, index], self.momentum), dim=2)
            remember(memory, index, after, counts=rows_of(batch, index) > 0)
        return self.weight * (losses[0] + losses[1]).mean()


def others(random: Tensor, target: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(N, K) samples that are not of each row's class, from uniform numbers.

    Args:
        random: (N, K), in [0, 1).
        target: (N,) classes.
        order: (M,) samples, sorted by class.
        counts: (C,) samples of each class.
    """
    own, start = counts[target].unsqueeze(1), (counts.cumsum(0) - counts)[target].unsqueeze(1)
    left = (len(order) - own).clamp(min=1)
    places = torch.minimum((random * left).long(), left - 1)
    return order[(places + own * (places >= start)).clamp(max=len(order) - 1)]

"""Contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.losses.distillation import noise_contrastive
from healsg.methods.consistency import mean_over_all
from healsg.methods.counts import class_counts, labelled_targets, remember
from healsg.methods.teacher import Distilled, Student
from healsg.methods.within import Probe
from healsg.training import draws
from healsg.training.step import rows_of
from healsg.types import Count, NonNegative, Positive, Share

if TYPE_CHECKING:
    from healsg.protocols import Task


class Embedding(nn.Linear):
    """A linear map of vectors (N, F), or of the means of maps (N, F, ...), to vectors of length 1."""

    def forward(self, input: Tensor) -> Tensor:
        return F.normalize(super().forward(input.flatten(2).mean(2) if input.dim() > 2 else input), dim=1)


class CRD(Distilled):
    """Discriminate the embeddings that both networks give of the same sample from those of samples of other classes
    (section 3.1, equations 17 to 19).

    A memory bank holds both networks' embeddings of all training samples by index: 2 x samples x ``dim`` numbers.
    Without ``layers`` the features before the head are embedded, or the last maps if they are not found.

    Args:
        weight: of the contrastive loss, added to the labels' loss; 0.8 in the paper.
        dim: of the embeddings.
        negatives: samples of other classes that are drawn for each sample, with replacement; at most as many as there
            are samples.
        temperature: divides the cosines.
        momentum: decay of a stored embedding when its sample is seen again.
        layers, teacher_layers: the modules of both networks whose outputs are embedded: names with ``*`` and ``?``,
            several joined by ``|``.
        common: the arguments of Distilled.
    """

    whole_samples = True
    mean_over_samples = False  # the memory bank is updated in the forward pass, so that no batch may be retried
    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "constants": "the normalising constants are estimated from the run's first micro-batch (of all processes)"
    }
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
        self.weight = weight
        self.dim = dim
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.layers = layers
        self.teacher_layers = teacher_layers
        self.seen: list[tuple[Tensor, Tensor, bool]] = []
        """Of the update: the index and the embeddings of its samples, and whether they are this process's own."""

    def with_heads(self, task: Task, network: nn.Module, student: Probe, teacher: Probe) -> tuple[nn.Module, list[str]]:
        kind = "features" if student.features() and teacher.features() else "maps"
        layers, teacher_layers = self.layer_pairs(student, teacher, kind, last=True)
        targets = labelled_targets(task)
        begin = torch.rand(2, len(targets), self.dim)
        self.register_buffer("memory", F.normalize(2 * begin - 1, dim=2))
        self.register_buffer("constants", torch.zeros(2))
        self.register_buffer("order", targets.argsort(stable=True), persistent=False)
        self.register_buffer("counts", class_counts(task), persistent=False)
        if len(layers) > 1:
            raise ConfigError(f"method.layers: {', '.join(layers)} are several; name one module")
        sizes = student.shapes[layers[0]][1], teacher.shapes[teacher_layers[0]][1]
        heads = [Embedding(sizes[0], self.dim)]
        return Student(network, layers, heads, Embedding(sizes[1], self.dim)), teacher_layers

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, _ = self.labelled.inputs(task, batch)
        teacher = self.teach(input)
        output, embeddings = task.net(input, teacher.inner[0])
        embedded = torch.stack(embeddings).to(self.memory.dtype)  # (2, N, dim) of the student and of the teacher

        scores = self.scores(embedded, self.contrasted(task, batch))
        self.fix_constants(scores, rows_of(batch, output))
        samples = self.memory.shape[1]
        student = noise_contrastive(scores[0], self.constants[0], samples)
        teacher_side = noise_contrastive(scores[1], self.constants[1], samples)
        distillation = self.weight * (student + teacher_side).mean()
        self.seen.append((batch["index"], embedded.detach(), rows_of(batch, output) > 0))
        labels = self.labelled.loss(task.criterion, batch, output)
        return {"loss": labels + distillation, "distillation": distillation.detach()}

    def contrasted(self, task: Task, batch: dict[str, Any]) -> Tensor:
        """(N, 1 + negatives) the index of each sample itself, then of samples of other classes."""
        index = batch["index"]
        random = draws.uniform(task, batch, "negatives", (len(index), min(self.negatives, self.memory.shape[1])))
        return torch.cat([index.unsqueeze(1), others(random, batch["target"], self.order, self.counts)], dim=1)

    def scores(self, embedded: Tensor, contrasted: Tensor) -> Tensor:
        """(2, N, 1 + negatives) cosines over the temperature, of each network's embeddings with the other network's
        stored ones."""
        with torch.autocast(self.memory.device.type, enabled=False):
            scores = embedded @ self.memory.flip(0).transpose(1, 2) / self.temperature
        return scores.gather(2, contrasted.expand(2, -1, -1))

    @torch.no_grad()
    def fix_constants(self, scores: Tensor, rows: int) -> None:
        """Estimate the normalising constants from the first batch, of all processes; later batches change nothing.

        Args:
            scores: (2, N, 1 + negatives).
            rows: how many of the N samples count, the first ones.
        """
        estimate = mean_over_all(scores.exp().mean(dim=2).T, rows).to(self.constants.dtype) * self.memory.shape[1]
        self.constants.copy_(torch.where(self.constants > 0, self.constants, estimate))

    def after_update(self, task: Task) -> None:
        super().after_update(task)
        self.remember()

    @torch.no_grad()
    def remember(self) -> None:
        """Move the stored embeddings of the update's samples towards the current ones. This runs once per update, so
        that all of its micro-batches are contrasted with the same embeddings."""
        for index, embedded, counts in self.seen:
            moved = F.normalize(torch.lerp(embedded, self.memory[:, index], self.momentum), dim=2)
            remember(self.memory, index, moved, counts)
        self.seen.clear()


def others(random: Tensor, target: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """(N, K) indices of samples that are not of each row's class, drawn by uniform numbers.

    Args:
        random: (N, K), in [0, 1).
        target: (N,) classes.
        order: (M,) samples, sorted by class.
        counts: (C,) samples of each class.
    """
    own = counts[target].unsqueeze(1)
    start = (counts.cumsum(0) - counts)[target].unsqueeze(1)
    left = (len(order) - own).clamp(min=1)
    offsets = torch.minimum((random * left).long(), left - 1)
    return order[(offsets + own * (offsets >= start)).clamp(max=len(order) - 1)]

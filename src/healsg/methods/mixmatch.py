"""MixMatch: guessed labels, sharpened, and all samples mixed (Berthelot et al. 2019, arXiv 1905.02249)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from healsg.losses.classification import cross_entropy
from healsg.losses.semi import linear_ramp, sharpen, squared_distance
from healsg.methods.consistency import SemiSupervised, forward_together, probabilities
from healsg.methods.gathered import gather
from healsg.metric import precise
from healsg.training.step import Mean, Samples, samples_of
from healsg.types import Count, Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class MixMatch(SemiSupervised):
    """Guess each unlabelled sample's label from two views, sharpen it, and mix it with samples of both streams
    (Algorithm 1).

    The two views are the weak one and what ``data.augment`` makes: of one kind, as in the paper, with ``light``.

    Args:
        unlabelled_ratio: as for SemiSupervised.
        unlabelled_weight: the final weight of the squared distance; lambda_u.
        temperature: with which guesses are sharpened; T.
        alpha: the parameter of the Beta(alpha, alpha) distribution of the mixing coefficient.
        ramp: the share of the run over which the weight grows linearly; 16,000 of 1,048,576 updates in the authors'
            code.
        common: the arguments of SemiSupervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "partners": "a sample is mixed with those of its micro-batch (of all processes)"
    }

    replaces_criterion = True
    records_pseudo_labels = True
    views = ("weak", "input")

    def __init__(
        self,
        unlabelled_ratio: Count = 1,
        unlabelled_weight: NonNegative = 75.0,
        temperature: Positive = 0.5,
        alpha: Positive = 0.75,
        ramp: Fraction = 0.015,
        **common: Any,
    ) -> None:
        super().__init__(unlabelled_ratio=unlabelled_ratio, unlabelled_weight=unlabelled_weight, **common)
        self.temperature = temperature
        self.alpha = alpha
        self.ramp = ramp

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        input, _ = self.labelled.inputs(task, labelled)
        inputs = [input, unlabelled["weak"], unlabelled["input"]]
        with torch.no_grad():
            first, second = forward_together(task.net, *inputs[1:])
            guess = sharpen((probabilities(first) + probabilities(second)) / 2, self.temperature)
            target = self.labelled.class_probabilities(labelled["target"], guess[:1].expand(len(input), -1))

        task.runner.record_pseudo_labels(unlabelled, guess.log())

        with task.runner.drawn_together(batch) as together:
            samples = samples_of(unlabelled)
            mixing = draw(inputs, self.alpha, [together, samples, samples] if together and samples else None)
        output = task.net(mixing.of(inputs))
        mixed_target = mixing.of([target, guess, guess])

        rows = len(target)
        supervised = cross_entropy(output[:rows], mixed_target[:rows]).mean()
        distance = Mean(squared_distance(output[rows:], mixed_target[rows:]).mean(), samples)
        growth = linear_ramp(task.runner.step_count / task.runner.total_steps, 0.0, self.ramp)
        loss = supervised + growth * self.unlabelled_weight * distance
        return {"loss": loss, "supervised": supervised, "unlabelled": distance}


def partners(count: int, alpha: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """The partner of each of ``count`` samples, and the share of 1/2 to 1 that a sample keeps, (count,) each, on the
    device of ``like`` (equations 8 and 9)."""
    even = precise(like.new_full((count, 2), alpha))
    share = torch.distributions.Dirichlet(even, validate_args=False).sample()
    return torch.randperm(count, device=like.device), share.amax(dim=1)


class StreamMixing(NamedTuple):
    """How the samples of several streams, one after the other, were mixed with those of all streams and processes.

    ``partner`` and ``share``, (N,) each, are those of this process's samples; ``streams`` say which samples of each
    stream it has, None if there is one process.
    """

    partner: Tensor
    share: Tensor
    streams: list[Samples] | None = None

    def of(self, parts: list[Tensor]) -> Tensor:
        """``share * values + (1 - share) * values[partner]`` of the streams' inputs or class probabilities."""
        values = torch.cat(parts)
        if self.streams is None:
            everywhere = values
        else:
            everywhere = torch.cat([gather(part, own.rows) for part, own in zip(parts, self.streams, strict=True)])
        shares = self.share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
        return torch.lerp(everywhere[self.partner], values, shares)


def draw(parts: list[Tensor], alpha: float, streams: list[Samples] | None) -> StreamMixing:
    """Partners and shares of all streams' samples; each process draws those of all processes, and uses its own."""
    if streams is None:
        return StreamMixing(*partners(sum(map(len, parts)), alpha, parts[0]))
    starts = [0, *accumulate(own.batch or 0 for own in streams)]
    partner, share = partners(starts[-1], alpha, parts[0])
    rows = [
        torch.arange(start + own.first, start + own.first + len(part), device=partner.device)
        for start, own, part in zip(starts, streams, parts, strict=False)
    ]
    own_rows = torch.cat(rows)
    return StreamMixing(partner[own_rows], share[own_rows], streams)

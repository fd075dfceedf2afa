"""MixMatch: guessed labels, sharpened, and all samples mixed (Berthelot et al. 2019, arXiv 1905.02249)."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from healsg.losses.classification import cross_entropy, smooth
from healsg.losses.semi import linear_ramp, sharpen, squared_distance
from healsg.methods.consistency import SemiSupervised, probabilities
from healsg.methods.gathered import gather
from healsg.metric import precise
from healsg.training.step import Mean, Samples, samples_of
from healsg.types import Count, Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.task import BasicTask


class MixMatch(SemiSupervised):
    """Guess each unlabelled sample's label from two views, sharpen it, and mix it with samples of both kinds.

    The two views are the weak one and what ``data.augment`` makes: of one kind, as in the paper, with ``light``.

    Args:
        unlabelled_ratio, unlabelled_weight: as for SemiSupervised; the weight, which is of a squared distance, grows.
        temperature: with which guesses are sharpened; T.
        alpha: of Beta(alpha, alpha), from which the share of a mixed sample is drawn.
        ramp: the share of the run over which the weight grows in a straight line; 16,000 of 1,048,576 updates in the
            authors' code.
        common: the arguments of SemiSupervised and Supervised.
    """

    replaces_criterion = True
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
        self.temperature, self.alpha, self.ramp = temperature, alpha, ramp

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        labelled = batch["labelled"]
        parts = [self.prepare(task, labelled)[0], *(batch["unlabelled"][view] for view in self.views)]
        with torch.no_grad():
            first, second = task.net(torch.cat(parts[1:])).chunk(2)
            guess = sharpen((probabilities(first) + probabilities(second)) / 2, self.temperature)
            target = smooth(labelled["target"], guess[:1].expand(len(parts[0]), -1), self.label_smoothing)
        with task.runner.drawn_together(batch) as together:
            unlabelled = samples_of(batch["unlabelled"])
            streams = [together, unlabelled, unlabelled] if together and unlabelled else None
            mixing = draw(parts, self.alpha, streams)
        output, wanted = task.net(mixing.of(parts)), mixing.of([target, guess, guess])
        rows = len(target)
        supervised = cross_entropy(output[:rows], wanted[:rows]).mean()
        distances = squared_distance(output[rows:], wanted[rows:])
        distance = Mean(distances.mean(), samples_of(batch["unlabelled"]))
        grown = linear_ramp(task.runner.step_count / task.runner.total_steps, 0.0, self.ramp)
        loss = supervised + grown * self.unlabelled_weight * distance
        return {"loss": loss, "supervised": supervised, "unlabelled": distance}


def partners(count: int, alpha: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``count`` samples another's place, and the share of 1/2 to 1 that it keeps itself, (count,) each, on
    the device of ``like`` (equations 8 and 9)."""
    even = precise(like.new_full((count, 2), alpha))
    share = torch.distributions.Dirichlet(even, validate_args=False).sample()
    return torch.randperm(count, device=like.device), share.amax(dim=1)


class StreamMixing(NamedTuple):
    """How the samples of several streams, one after the other, were mixed with those of all streams and processes.

    ``partner`` and ``share``, (N,) each, are those of this process's samples; ``streams`` say which samples of each
    stream it has, None where there is one process.
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
    """Partners and shares of the samples of all streams; each process draws those of all, and takes its own."""
    if streams is None:
        return StreamMixing(*partners(sum(map(len, parts)), alpha, parts[0]))
    starts = [0, *accumulate(own.batch or 0 for own in streams)]
    partner, share = partners(starts[-1], alpha, parts[0])
    places = [
        torch.arange(start + own.first, start + own.first + len(part), device=partner.device)
        for start, own, part in zip(starts, streams, parts, strict=False)
    ]
    place = torch.cat(places)
    return StreamMixing(partner[place], share[place], streams)

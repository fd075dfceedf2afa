"""What a training step is made of: the samples of a micro-batch, the means that a loss consists of, and the sum of the
gradients of an update.

A step is split in two ways: over processes, and over accumulated micro-batches. Both give the gradient of the whole
batch when each mean is weighed by what it is a mean over: a loss term says so (``Mean``), and ``Accumulator`` weighs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from healsg.torch_private import foreach_mul_
from healsg.training.parallel import Parallel

LEAST = 1e-9
"""What an update divides by in which nothing counts: its gradients are zero, and so it moves nothing."""


class Samples(NamedTuple):
    """Which samples of a micro-batch this process has.

    A process that got none repeats some of another's, so that it takes part in every exchange; its ``rows`` are 0.
    """

    rows: int
    """Samples here that count."""
    first: int = 0
    """The place of the first of them in the micro-batch of all processes."""
    batch: int | None = None
    """Samples of the micro-batch over all processes; None where only they know together."""
    update: int | None = None
    """Samples of all micro-batches of the update, over all processes; None where that is not known beforehand."""


class TrainBatch(dict[str, Any]):
    """A batch as ``train_step`` gets it: tensors by name, or streams of them by name, each a batch of its own."""

    def __init__(self, values: Mapping[str, Any], samples: Samples) -> None:
        super().__init__(values)
        self.samples = samples


def samples_of(batch: Mapping[str, Any]) -> Samples | None:
    """What is known of the samples of a batch or stream; None for a plain dict, all of whose rows count."""
    return getattr(batch, "samples", None)


def joined_samples(first: Samples, second: Samples) -> Samples:
    """The samples of two streams taken together."""
    batch = first.batch + second.batch if first.batch is not None and second.batch is not None else None
    update = first.update + second.update if first.update is not None and second.update is not None else None
    return Samples(first.rows + second.rows, 0, batch, update)


def rows_of(batch: Mapping[str, Any], tensor: Tensor) -> int:
    """How many rows of a tensor of this batch count: all, or 0 where they are another process's."""
    samples = samples_of(batch)
    return len(tensor) if samples is None or samples.rows else 0


class MicroBatch(NamedTuple):
    """The facts of one forward and backward pass, handed to ``TaskMethod.step`` with the batch."""

    samples: Samples
    """Of its only stream, or of the first one."""
    closes: bool = True
    """Whether the update follows, since this is its last micro-batch."""
    parts: int = 1
    """Micro-batches of the update."""
    processes: int = 1
    """Processes whose gradients the update has."""

    @property
    def rows(self) -> int:
        """Samples of this process that count."""
        return self.samples.rows

    @property
    def weighted(self) -> bool:
        """Whether the update has further gradients beside this one, so that each is weighed."""
        return self.parts > 1 or self.processes > 1


# --- what a loss is made of ------------------------------------------------------------------------------------------

Over = Samples | Tensor | float | None


class Loss:
    """A sum of means, each over samples of its own: what ``+`` and ``*`` make of ``Mean``, numbers and scalar tensors.

    ``supervised + weight * Mean(distance, samples_of(batch["unlabelled"]))`` is one; a scalar tensor in such a sum
    counts as a mean over the batch's own samples.
    """

    __slots__ = ()

    @property
    def terms(self) -> tuple[Mean, ...]:
        """One or more; no two are over the same samples."""
        raise NotImplementedError

    @property
    def value(self) -> Tensor:
        """The sum of the terms' values: the loss of this micro-batch by itself."""
        first, *others = self.terms
        total: Tensor = first.value
        for other in others:
            total = total + other.value
        return total

    def __add__(self, other: Loss | Tensor | float) -> Loss:
        return joined([*self.terms, *loss_of(other).terms])

    def __radd__(self, other: Tensor | float) -> Loss:
        return joined([*loss_of(other).terms, *self.terms])

    def __mul__(self, factor: Tensor | float) -> Loss:
        return joined([Mean(term.value * factor, term.over) for term in self.terms])

    def __rmul__(self, factor: Tensor | float) -> Loss:
        return joined([Mean(factor * term.value, term.over) for term in self.terms])

    def __truediv__(self, factor: Tensor | float) -> Loss:
        return joined([Mean(term.value / factor, term.over) for term in self.terms])

    def detach(self) -> Loss:
        """The same without a gradient, as it is logged."""
        return joined([Mean(term.value.detach(), term.over) for term in self.terms])


class Mean(Loss):
    """A scalar that is a mean, and what it is a mean over.

    Args:
        value: 0-dimensional.
        over: the samples of a stream (``samples_of``); or a number or 0-dimensional tensor, such as a sum of class
            weights; or None for the batch's own samples, those of its first stream where there are several.
    """

    __slots__ = ("_value", "over")

    def __init__(self, value: Tensor | float, over: Over = None) -> None:
        self._value = value
        self.over = over

    @property
    def terms(self) -> tuple[Mean, ...]:
        return (self,)

    @property
    def value(self) -> Any:
        return self._value

    def counted(self, micro: MicroBatch) -> Any:
        """How many of them this process has in this micro-batch: a number, or a 0-dimensional tensor."""
        if self.over is None:
            return micro.samples.rows
        if isinstance(self.over, Samples):
            return self.over.rows
        return self.over if micro.samples.rows else 0

    def sampled(self, micro: MicroBatch) -> Samples | None:
        """The samples it is a mean over; None where it is one over something else."""
        if self.over is None:
            return micro.samples
        return self.over if isinstance(self.over, Samples) else None


class Sum(Loss):
    """Means over unlike samples."""

    __slots__ = ("_terms",)

    def __init__(self, terms: Iterable[Mean]) -> None:
        self._terms = tuple(terms)

    @property
    def terms(self) -> tuple[Mean, ...]:
        return self._terms


def loss_of(value: Any, over: Over = None) -> Loss:
    """A loss as it is; a scalar as a mean over ``over``."""
    return value if isinstance(value, Loss) else Mean(value, over)


def joined(terms: Iterable[Mean]) -> Loss:
    """The sum of means, in which those over the same samples are one."""
    kept: list[Mean] = []
    for term in terms:
        place = next((i for i, other in enumerate(kept) if other.over is term.over), None)
        if place is None:
            kept.append(term)
        else:
            kept[place] = Mean(kept[place].value + term.value, term.over)
    return kept[0] if len(kept) == 1 else Sum(kept)


# --- the gradients of an update --------------------------------------------------------------------------------------


class Accumulator:
    """Sums the gradients of an update's micro-batches, in the parameters' ``grad``, and weighs them.

    The gradient of a mean over ``count`` is added with the weight ``count / nominal``, and when the update is complete
    all are multiplied by ``nominal * processes / total``; the processes since DistributedDataParallel divides by them.
    Where a loss has several terms, ``total`` is that of the first, and the weights of the others are relative to it.
    Nothing here reads a value or waits for a device.

    Args:
        nominal: the samples of a full micro-batch, so that weights are near 1.
        parallel: the processes whose gradients the update has; one alone where it is None.
    """

    def __init__(self, nominal: float = 1.0, parallel: Parallel | None = None) -> None:
        self.nominal = nominal
        self.parallel = parallel or Parallel()
        self.total: Any = 0.0
        """What the first term is a mean over, in the update so far: of all processes or, if ``apart``, of this one."""
        self.apart = False
        """Whether the processes still have to add their totals up."""
        self.updating = False
        """Whether the weights are about to move: what fails from here on cannot be tried again."""

    def clear(self) -> None:
        """Begin another update."""
        self.total = 0.0
        self.apart = False
        self.updating = False

    def close(self, model: nn.Module, micro: MicroBatch) -> None:
        """The update's last micro-batch was passed backward: turn the gradients of ``model`` into the update's.

        From here on a step that fails cannot be tried again.
        """
        self.updating = True
        if micro.weighted:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            self.weigh(gradients, micro.processes)

    def weights(self, loss: Loss, micro: MicroBatch) -> list[Any]:
        """What the gradient of each term of this micro-batch is multiplied by; the total grows by it."""
        first, *others = loss.terms
        count = wide_count(first, micro)
        weights = [count / self.nominal]
        for other in others:
            weights.append(wide_count(other, micro) * self._proportion(first, other, micro) / self.nominal)
        samples = first.sampled(micro)
        if samples is not None and samples.batch is not None:
            self.total = self.total + samples.batch
        else:
            self.total = self.total + count
            self.apart = self.apart or micro.processes > 1
        return weights

    def _proportion(self, first: Mean, other: Mean, micro: MicroBatch) -> Any:
        """The total of the first term over that of another one, in the update over all processes.

        Exact where both count samples of which the update's number is known beforehand. Elsewhere (a loader of the
        task's own; a criterion that divides by class weights) it is that of this micro-batch, which is exact where the
        update has no other, or where all have the same proportion.
        """
        one, two = first.sampled(micro), other.sampled(micro)
        if one is not None and two is not None:
            if one.update is not None and two.update is not None:
                return one.update / two.update
            if one.batch is not None and two.batch is not None:
                return one.batch / two.batch
        counts = torch.stack([_scalar(wide_count(mean, micro), mean.value) for mean in (first, other)])
        if micro.processes > 1:
            counts = self.parallel.sum(counts)
        return counts[0] / counts[1].clamp(min=LEAST)

    def weigh(self, gradients: list[Tensor], processes: int) -> None:
        """Turn the sums of weighted gradients, in place, into the gradient of the update."""
        if not gradients:
            return
        total = self.total
        if self.apart:
            total = self.parallel.sum(_scalar(total, gradients[0]).clone())
        if not isinstance(total, Tensor):
            foreach_mul_(gradients, self.nominal * processes / max(total, LEAST))
            return
        factor = self.nominal * processes / total.clamp(min=LEAST)
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):  # of another type it is a kernel each
            foreach_mul_([gradient for gradient in gradients if gradient.dtype == dtype], factor.to(dtype))


def wide_count(mean: Mean, micro: MicroBatch) -> Any:
    """How many this process has of what a mean is over; a tensor in at least float32."""
    count = mean.counted(micro)
    if isinstance(count, Tensor):
        return count.detach().to(torch.promote_types(mean.value.dtype, torch.float32))
    return count


def weighted_sum(loss: Loss, weights: list[Any]) -> Tensor:
    """The sum of the terms' values, each times its weight."""
    total: Tensor | None = None
    for term, weight in zip(loss.terms, weights, strict=True):
        value: Tensor = term.value * weight
        total = value if total is None else total + value
    assert total is not None
    return total


def _scalar(count: Any, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (
        count.to(dtype) if isinstance(count, Tensor) else torch.full((), float(count), dtype=dtype, device=like.device)
    )


# --- what a step reports ---------------------------------------------------------------------------------------------


def reported(logs: Mapping[str, Any], micro: MicroBatch, weights: list[Any] | None = None) -> dict[str, Any]:
    """A step's scalars, each as one tensor, and what they count: ``count`` for those over the batch's own samples, and
    under the name and ``COUNT`` for any other.

    Args:
        weights: of the terms of the loss, where the update has further gradients.
    """
    scalars: dict[str, Any] = {}
    for name, value in logs.items():
        if not isinstance(value, Loss):
            scalars[name] = value
            continue
        first, *others = value.terms
        scalars[name] = first.value
        of_loss = name == "loss" and weights is not None and not (isinstance(weights[0], float) and weights[0] == 0)
        for place, other in enumerate(others, 1):
            share = weights[place] / weights[0] if weights is not None and of_loss else 1.0
            scalars[name] = scalars[name] + other.value * share
        if first.over is not None:
            scalars[name + COUNT] = first.counted(micro)
    rows = micro.samples.rows
    scalars["count"] = scalars.get("count", rows) if rows else 0
    return scalars


COUNT = " count"
"""Behind the name of a scalar: what it is a mean over."""


def counts_of(names: Collection[str]) -> dict[str, str]:
    """By scalar the name of its count: one of its own, or that of the batch."""
    scalars = [name for name in names if name != "count" and not name.endswith(COUNT)]
    return {name: name + COUNT if name + COUNT in names else "count" for name in scalars}

"""The values of one training step: which samples a micro-batch holds (``Samples``, ``MicroBatch``), a loss as a sum of
means (``Loss``, ``Mean``), and the accumulation of gradients over the micro-batches of an update (``Accumulator``).

The batch of an update is split over processes and over accumulated micro-batches. A mean over the whole batch is the
average of the parts' means, weighted by the number of samples (or pixels, or class weights) in each part. So every term
of a loss carries its denominator, and ``Accumulator`` computes the weights from it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from healsg.torch_private import foreach_mul_, times_written
from healsg.training.parallel import Parallel

LEAST = 1e-9
"""The least denominator. Where no sample of an update counts, the gradients are zero, and dividing by this keeps them
zero instead of making them NaN."""


class Samples(NamedTuple):
    """Which samples of a micro-batch this process has.

    If the last batch has fewer samples than there are processes, a process without samples computes on copies of those
    of another one, since every process must take part in the collectives; its ``rows`` is then 0.
    """

    rows: int
    """Number of samples of this process that count."""
    first: int = 0
    """Index of this process's first sample in the micro-batch of all processes."""
    batch: int | None = None
    """Samples of the micro-batch over all processes; None where no single process knows the sum."""
    update: int | None = None
    """Samples of all micro-batches of the update, over all processes; None where that is not known in advance."""
    nonnegative: bool = False
    """Whether this batch is a whole update of which no target is negative, as the loader gave them. Every sample then
    counts in a criterion that ignores only a negative class index, and its denominator is ``rows``."""


def indices_on_cpu(target: Any) -> list[int] | None:
    """Targets that are one class index a sample, as a list, which is faster than a kernel for those of a batch; None
    for others, and where they are not on the CPU, so that no device is waited for."""
    if type(target) is not Tensor or target.dtype != torch.int64 or target.ndim != 1 or not target.is_cpu:
        return None
    return target.tolist()


def none_negative(target: Any) -> bool:
    """Whether it is known of targets that none of their class indices is negative; see ``indices_on_cpu``."""
    classes = indices_on_cpu(target)
    return classes is not None and min(classes, default=0) >= 0


class TrainBatch(dict[str, Any]):
    """A batch as ``train_step`` gets it: tensors by name or, where there are several streams (``labelled``,
    ``unlabelled``), one ``TrainBatch`` for each stream by name."""

    def __init__(self, values: Mapping[str, Any], samples: Samples) -> None:
        super().__init__(values)
        self.samples = samples
        self._target = values.get("target")
        self._version = times_written(self._target)

    def __or__(self, changed: Mapping[str, Any]) -> TrainBatch:  # type: ignore[override]
        """A copy with other entries, of the same samples; a plain dict would not know these."""
        made = self.copy()
        made.update(changed)
        return made

    def copy(self) -> TrainBatch:
        return copy.copy(self)

    @property
    def target_is_unchanged(self) -> bool:
        """Whether ``target`` is what the loader gave: neither replaced nor written to, as a method does that masks some
        of the targets. What is known of the loader's targets, such as ``Samples.nonnegative``, holds only then."""
        return self.get("target") is self._target and times_written(self._target) == self._version


def samples_of(batch: Mapping[str, Any]) -> Samples | None:
    """The ``Samples`` of a batch or stream; None for a plain dict, all of whose rows count."""
    return getattr(batch, "samples", None)


def joined_samples(first: Samples, second: Samples) -> Samples:
    """The samples of two streams whose rows are concatenated."""
    batch = first.batch + second.batch if first.batch is not None and second.batch is not None else None
    update = first.update + second.update if first.update is not None and second.update is not None else None
    return Samples(first.rows + second.rows, 0, batch, update)


def rows_of(batch: Mapping[str, Any], tensor: Tensor) -> int:
    """How many rows of a tensor of this batch count: all of them, or 0 where they are copies of another process's."""
    samples = samples_of(batch)
    return len(tensor) if samples is None or samples.rows else 0


class MicroBatch(NamedTuple):
    """The facts of one forward and backward pass, handed to ``TaskMethod.step`` with the batch."""

    samples: Samples
    """The samples of its only stream, or of the first of several."""
    closes: bool = True
    """Whether this is the last micro-batch of its update, after which the optimizer steps."""
    parts: int = 1
    """Number of micro-batches in the update."""
    processes: int = 1
    """Number of processes whose gradients are averaged in the update."""

    @property
    def rows(self) -> int:
        """Number of samples of this process that count."""
        return self.samples.rows

    @property
    def weighted(self) -> bool:
        """Whether the update combines several gradients, of micro-batches or processes, so that each needs a weight."""
        return self.parts > 1 or self.processes > 1


# --- losses as sums of means -----------------------------------------------------------------------------------------

Over = Samples | Tensor | float | None


class Loss:
    """A sum of means, each with its own denominator; the result of ``+`` and ``*`` with ``Mean``, numbers and tensors.

    An example is ``supervised + weight * Mean(distance, samples_of(batch["unlabelled"]))``. A scalar tensor in such a
    sum counts as a mean over the samples of the batch (of its first stream, where there are several).
    """

    __slots__ = ()

    @property
    def terms(self) -> tuple[Mean, ...]:
        """The means of the sum, at least one; terms with the same denominator have been added up already."""
        raise NotImplementedError

    @property
    def value(self) -> Tensor:
        """The sum of the terms' values: the loss of this micro-batch on its own."""
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
        """The same loss without gradients, for logging."""
        return joined([Mean(term.value.detach(), term.over) for term in self.terms])


class Mean(Loss):
    """A scalar that is a mean, together with its denominator.

    Args:
        value: 0-dimensional.
        over: the denominator: the samples of a stream (``samples_of``); or a number or 0-dimensional tensor, such as
            the sum of the targets' class weights; or None for the samples of the batch, of its first stream where there
            are several.
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
        """This process's part of the denominator in this micro-batch: a number, or a 0-dimensional tensor."""
        if self.over is None:
            return micro.samples.rows
        if isinstance(self.over, Samples):
            return self.over.rows
        return self.over if micro.samples.rows else 0

    def sampled(self, micro: MicroBatch) -> Samples | None:
        """The samples that are the denominator; None where it is something else, such as a sum of class weights."""
        if self.over is None:
            return micro.samples
        return self.over if isinstance(self.over, Samples) else None


class Sum(Loss):
    """A sum of means with different denominators."""

    __slots__ = ("_terms",)

    def __init__(self, terms: Iterable[Mean]) -> None:
        self._terms = tuple(terms)

    @property
    def terms(self) -> tuple[Mean, ...]:
        return self._terms


def loss_of(value: Any, over: Over = None) -> Loss:
    """``value`` itself where it is a ``Loss``; a scalar becomes a mean over ``over``."""
    return value if isinstance(value, Loss) else Mean(value, over)


def joined(terms: Iterable[Mean]) -> Loss:
    """The sum of some means; those with the same denominator are added up to one."""
    kept: list[Mean] = []
    for term in terms:
        same = next((i for i, other in enumerate(kept) if other.over is term.over), None)
        if same is None:
            kept.append(term)
        else:
            kept[same] = Mean(kept[same].value + term.value, term.over)
    return kept[0] if len(kept) == 1 else Sum(kept)


# --- the gradients of an update --------------------------------------------------------------------------------------


class Accumulator:
    """Computes the weights with which the gradients of an update's micro-batches add up in the parameters' ``grad``.

    A term whose denominator is ``count`` in this micro-batch and process gets the weight ``count / nominal``. When the
    update is complete, the accumulated gradients are multiplied by ``nominal * processes / total``, where ``total`` is
    the denominator of the whole update; the factor ``processes`` undoes the average that DistributedDataParallel takes.
    With one term this is the gradient of the mean over the whole batch. Where a loss has several terms, ``total``
    belongs to the first, and the weights of the others contain the ratio of the two totals (see ``_proportion``).
    Nothing here reads a tensor's value or waits for a device.

    Args:
        nominal: samples of a full micro-batch; it cancels out, and keeps the weights near 1.
        parallel: the processes whose gradients are averaged; None is one process alone.
    """

    def __init__(self, nominal: float = 1.0, parallel: Parallel | None = None) -> None:
        self.nominal = nominal
        self.parallel = parallel or Parallel()
        self.total: Any = 0.0
        """The denominator of the first term so far: over all processes or, with ``apart``, of this one alone."""
        self.apart = False
        """Whether the totals of the processes still have to be summed."""
        self.even = False
        """Whether the gradients need no weights, since the average over processes is the gradient of the update."""
        self.updating = False
        """Whether the optimizer step has begun: an error after this cannot be recovered by computing the step again."""

    def clear(self) -> None:
        """Reset for the next update."""
        self.total = 0.0
        self.apart = False
        self.even = False
        self.updating = False

    def close(self, model: nn.Module, micro: MicroBatch) -> None:
        """Scale the gradients of ``model`` after the backward pass of the update's last micro-batch.

        From here on a step that fails cannot be computed again.
        """
        self.updating = True
        if micro.weighted and not self.even:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            self.weigh(gradients, micro.processes)

    def weights(self, loss: Loss, micro: MicroBatch) -> list[Any]:
        """The weight of each term of this micro-batch's loss; also adds the micro-batch to the total."""
        first, *others = loss.terms
        if not others and self._is_even(first, micro):
            self.even = True
            return [1.0]
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

    def _is_even(self, mean: Mean, micro: MicroBatch) -> bool:
        """Whether an update is one full micro-batch of which every process has the same number of samples.

        The weights of losses and gradients would then be powers of two that cancel out; leaving them out saves a pass
        over all gradients and changes no bit.
        """
        samples = mean.sampled(micro)
        if samples is None or micro.parts > 1 or micro.processes & (micro.processes - 1):
            return False
        return samples.rows * micro.processes == samples.batch == self.nominal

    def _proportion(self, first: Mean, other: Mean, micro: MicroBatch) -> Any:
        """The denominator of the first term divided by that of another one, for the update over all processes.

        It is exact where both denominators are numbers of samples that are known in advance. Otherwise (a task with a
        loader of its own, or a first term that divides by class weights) the ratio of this micro-batch stands in for
        that of the update, which is exact only if the update has one micro-batch or all have the same ratio. Exactness
        would need the class weights of micro-batches that are not loaded yet, or a second set of gradients.
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
        """Scale the weighted sums of gradients, in place, to the gradient of the update."""
        if not gradients:
            return
        total = self.total
        if self.apart:
            total = self.parallel.sum(_scalar(total, gradients[0]).clone())
        if not isinstance(total, Tensor):
            foreach_mul_(gradients, self.nominal * processes / max(total, LEAST))
            return
        factor = self.nominal * processes / total.clamp(min=LEAST)
        # By type, since a list of mixed types, or a factor of another one, costs a kernel for each tensor.
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            foreach_mul_([gradient for gradient in gradients if gradient.dtype == dtype], factor.to(dtype))


def wide_count(mean: Mean, micro: MicroBatch) -> Any:
    """``mean.counted``; a tensor is converted to at least float32, since half precision cannot count samples."""
    count = mean.counted(micro)
    if isinstance(count, Tensor):
        return count.detach().to(torch.promote_types(mean.value.dtype, torch.float32))
    return count


def weighted_sum(loss: Loss, weights: list[Any]) -> Tensor:
    """The sum of the terms' values, each multiplied by its weight."""
    total: Tensor | None = None
    for term, weight in zip(loss.terms, weights, strict=True):
        value: Tensor = term.value if type(weight) is float and weight == 1.0 else term.value * weight
        total = value if total is None else total + value
    assert total is not None
    return total


def _scalar(count: Any, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (
        count.to(dtype) if isinstance(count, Tensor) else torch.full((), float(count), dtype=dtype, device=like.device)
    )


# --- the scalars of a step -------------------------------------------------------------------------------------------


def reported(logs: Mapping[str, Any], micro: MicroBatch, weights: list[Any] | None = None) -> dict[str, Any]:
    """The scalars of a step as tensors, with the denominators by which they are averaged over steps and processes.

    The denominator of means over the batch's samples is named ``count``, that of any other scalar has its name followed
    by ``COUNT``.

    Args:
        logs: what ``train_step`` returned.
        micro: the micro-batch.
        weights: the weights of the loss's terms; None where the update has a single gradient.
    """
    scalars: dict[str, Any] = {}
    for name, value in logs.items():
        if not isinstance(value, Loss):
            scalars[name] = value
            continue
        first, *others = value.terms
        scalars[name] = first.value
        of_loss = name == "loss" and weights is not None and not (isinstance(weights[0], float) and weights[0] == 0)
        for number, other in enumerate(others, 1):
            relative = weights[number] / weights[0] if weights is not None and of_loss else 1.0
            scalars[name] = scalars[name] + other.value * relative
        if first.over is not None:
            scalars[name + COUNT] = first.counted(micro)
    rows = micro.samples.rows
    scalars["count"] = scalars.get("count", rows) if rows else 0
    return scalars


COUNT = " count"
"""The suffix of a scalar's name under which its denominator is reported."""


def counts_of(names: Collection[str]) -> dict[str, str]:
    """For each scalar the name of its denominator: a separate one where there is one, else ``count``."""
    scalars = [name for name in names if name != "count" and not name.endswith(COUNT)]
    return {name: name + COUNT if name + COUNT in names else "count" for name in scalars}

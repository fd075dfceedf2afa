"""Supervised learning: the loss of the model on labelled samples, and what stacks on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from healsg import distributed
from healsg.errors import ConfigError
from healsg.losses.classification import smooth
from healsg.method import Scheduler, TaskMethod
from healsg.methods import depth, mixing
from healsg.methods.averaging import Average, BatchNorm, ema_share, frozen, optimizer_averages
from healsg.methods.mixing import Mixing
from healsg.training.denominator import counts_alike, ignored, loss_over, mean_over_samples, weighs_classes
from healsg.training.step import Loss
from healsg.types import Fraction, Natural, NonNegative, Share

if TYPE_CHECKING:
    from healsg.task import BasicTask

log = logging.getLogger("healsg")


class Supervised(TaskMethod):
    """Minimise ``task.criterion`` on labelled samples, with any optimizer and any schedule.

    A method of a paper that has another loss on the same samples is a subclass with a ``loss`` of its own; all that
    stacks here stacks on it. What is 0 or None is off and costs nothing.

    Args:
        optimizer, scheduler, decay_norms_and_biases: see ``TaskMethod``.
        label_smoothing: the share of the target's probability that is spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567, section 7). The loss must take class probabilities, as for mixup and cutmix.
        mixup, cutmix: alpha of the Beta distribution of the shares in which two samples are mixed (see ``mixing``);
            with both, each batch takes one of them at even odds.
        random_erasing: the probability that a rectangle of an image is filled with noise (see ``mixing``).
        ema: the decay of an exponential moving average of the weights, which is evaluated (see ``ema_share``).
            BatchNorm's statistics are those of the network that learns.
        swa: the share of the updates after which the weights at the ends of epochs are averaged, which is evaluated
            (Izmailov et al. 2018, arXiv 1803.05407). BatchNorm's statistics are measured anew on the training batches.
        layer_decay: what the learning rate of a layer is multiplied by to give that of the one before it.
        freeze: what does not learn, ``body`` or patterns of names (see ``depth.freeze``). Its BatchNorm is held still.
        unfreeze_every: epochs after which one more layer learns, from the last one on (Howard and Ruder 2018, arXiv
            1801.06146, section 3.3).
    """

    mean_over_samples = leaves_weights = True

    replaces_criterion: ClassVar[bool] = False
    """Whether ``loss`` leaves ``task.criterion`` aside; it then gets class probabilities in any case."""

    counts_classes: ClassVar[bool] = False
    """Whether the method makes no sense but for one class a sample, whatever its loss."""

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Scheduler | None = None,
        decay_norms_and_biases: bool = True,
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        random_erasing: Fraction = 0.0,
        ema: Share = 0.0,
        swa: Share = 0.0,
        layer_decay: Share = 0.0,
        freeze: str | None = None,
        unfreeze_every: Natural = 0,
    ) -> None:
        super().__init__(optimizer, scheduler, decay_norms_and_biases)
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix
        self.random_erasing, self.ema, self.swa = random_erasing, ema, swa
        self.layer_decay, self.freeze, self.unfreeze_every = layer_decay, freeze, unfreeze_every
        self.average: Average | None = None
        self.frozen_modules: list[nn.Module] = []
        self.waiting: list[list[nn.Parameter]] = []
        self.stage = -1
        self.alike = True
        """Whether each sample counts alike in the criterion, so that nothing has to be counted."""
        self.plain = False
        """Whether the step is the criterion on the network's output and nothing else."""

    # --- what a subclass may bring ----------------------------------------------------------------------------------

    def loss(self, task: BasicTask, batch: dict[str, Any], output: Tensor, target: Tensor) -> Tensor | Loss:
        """The loss of a batch: ``target`` is as it came or, where something softens it, class probabilities.

        A tensor is a mean over the samples; what is a mean over something else is a ``step.Mean``.
        """
        if self.alike:
            value: Tensor = task.criterion(output, target)
            return value
        return loss_over(task.criterion, output, target, batch["target"])

    def learner(self, task: BasicTask) -> nn.Module:
        """The network that learns, where ``task.model`` holds more than that."""
        return task.model

    def weights(self, task: BasicTask) -> list[Tensor]:
        """What the evaluated network's parameters follow, in their order."""
        return self.trained(task, list(self.learner(task).parameters()))

    def trained(self, task: BasicTask, parameters: list[nn.Parameter]) -> list[Tensor]:
        """What was learned of these parameters: they themselves, or the optimizer's own averages of them."""
        if optimizer_averages(self):
            averaged: list[Tensor] = task.optimizer.averaged(parameters)  # type: ignore[attr-defined]
            return averaged
        return [*parameters]

    # --- the method -------------------------------------------------------------------------------------------------

    def check(self, task: BasicTask) -> None:
        averages = {"method.ema": self.ema, "method.swa": self.swa, "method/optimizer": optimizer_averages(self)}
        if len(given := [key for key, value in averages.items() if value]) > 1:
            raise ConfigError(f"{given[0]}: {given[1]} averages the weights already; leave one out")
        if self.unfreeze_every and distributed.launched():
            raise ConfigError(
                "method.unfreeze_every: works in one process; in several, method.freeze holds parts fixed"
            )
        shape = task.info.input_shape if task.info else (1, 1, 1)
        if self.cutmix and len(shape) < 3:
            raise ConfigError(f"method.cutmix: needs images or volumes, and a sample here is {shape}; set it to 0")
        if self.random_erasing and len(shape) != 3:
            raise ConfigError(f"method.random_erasing: needs images, and a sample here is {shape}; set it to 0")
        one_class = self.replaces_criterion or self.counts_classes
        if task.info and task.info.kind != "multiclass" and (one_class or self.label_smoothing):
            key = f"method: {type(self).__name__}" if one_class else "method.label_smoothing:"
            raise ConfigError(f"{key} needs one class a sample, and this task is {task.info.kind}")

    def setup(self, task: BasicTask) -> None:
        softened = {"label_smoothing": self.label_smoothing, "mixup": self.mixup, "cutmix": self.cutmix}
        key = next((key for key, value in softened.items() if value), None)
        if self.replaces_criterion and not is_plain(task.criterion):
            told = f"has a loss of its own for one class a sample, and the model brings {task.criterion}"
            raise ConfigError(f"method: {type(self).__name__} {told}; method=supervised uses that")
        if key and not takes_probabilities(task.criterion):
            raise ConfigError(
                f"method.{key}: {type(task.criterion).__name__} takes no class probabilities; set it to 0"
            )
        if self.freeze:
            depth.freeze(task.model, self.freeze)
        self.frozen_modules = frozen_norms(task.model)
        if self.average is None and (self.ema or self.swa or optimizer_averages(self)):
            self.average = Average(self.learner(task))
        if self.unfreeze_every:
            chosen = ([part for part in layer if part.requires_grad] for layer in depth.layers(self.learner(task)))
            self.waiting = [layer for layer in chosen if layer]
        self.alike = self.replaces_criterion or counts_alike(task.criterion, labelled_targets(task))
        if not (self.replaces_criterion or mean_over_samples(task.criterion)):
            self.take_apart(task)
        altered = self.random_erasing or self.freeze or self.unfreeze_every or self.frozen_modules
        self.plain = self.alike and not (key or altered or type(self).loss is not Supervised.loss)

    def take_apart(self, task: BasicTask) -> None:
        """Say what becomes of a criterion that is no mean over samples where a batch is taken apart. Raises ConfigError
        where that was left to the runner."""
        name, runner = type(task.criterion).__name__, task.runner
        if runner.auto_accumulate:
            raise ConfigError(f"runner.auto_accumulate: {name} is no mean over samples; set it to false")
        if runner.accumulate > 1 or distributed.launched():
            log.info("%s is no mean over samples: each accumulated batch and process has its own", name)

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        if self.plain:
            return {"loss": task.criterion(task.net(batch["input"]), batch["target"])}
        input, mixed = self.prepare(task, batch)
        output = task.net(input)
        return {"loss": self.loss(task, batch, output, self.soften(task, batch["target"], output, mixed))}

    def prepare(self, task: BasicTask, batch: dict[str, Any]) -> tuple[Tensor, Mixing | None]:
        """What the network sees of a batch, and how it was mixed."""
        if self.unfreeze_every and self.stage != (stage := task.runner.epoch // self.unfreeze_every):
            self.unfreeze(task, stage)
        for module in self.frozen_modules:
            module.eval()
        input: Tensor = batch["input"]
        if not (self.random_erasing or self.mixup or self.cutmix):
            return input, None
        with task.runner.drawn_together(batch) as samples:
            if self.random_erasing:
                input = mixing.random_erasing(input, self.random_erasing, samples)
            if not (self.mixup or self.cutmix):
                return input, None
            return mixing.mix(input, self.mixup, self.cutmix, samples)

    def soften(self, task: BasicTask, target: Tensor, output: Tensor, mixed: Mixing | None) -> Tensor:
        """Class probabilities (N, C, ...) where labels are smoothed or samples mixed, else ``target`` as it is."""
        if mixed is None and not self.label_smoothing and not self.replaces_criterion:
            return target
        left_out = None if self.alike else ignored(task.criterion, target)
        if left_out is None:
            soft = smooth(target, output, self.label_smoothing)
        else:
            soft = smooth(target.masked_fill(left_out, 0), output, self.label_smoothing)
            soft = soft.masked_fill(left_out.unsqueeze(1), 0.0)  # of no class, and so without a loss
        return soft if mixed is None else mixed.of(soft)

    def unfreeze(self, task: BasicTask, stage: int) -> None:
        """Let the last ``stage + 1`` layers learn, and those alone."""
        for height, layer in enumerate(reversed(self.waiting)):
            for parameter in layer:
                parameter.requires_grad_(height <= stage)
        held, self.frozen_modules, self.stage = self.frozen_modules, frozen_norms(task.model), stage
        for module in held:
            module.train()

    def after_update(self, task: BasicTask) -> None:
        if self.average is None:
            return
        runner, average = task.runner, self.average
        ended = runner.position == runner.length or runner.step_count == runner.total_steps
        begun = runner.step_count >= self.swa * runner.total_steps
        if self.swa and not ended:
            return
        share = average.next_share(begun) if self.swa else ema_share(self.ema, runner.step_count) if self.ema else 1.0
        average.follow(self.weights(task), self.learner(task).buffers(), share)
        if ended and begun and not self.ema:
            average.measure_statistics(task)

    def eval_model(self, task: BasicTask) -> nn.Module:
        return self.learner(task) if self.average is None else self.average.network

    def evaluated_weights(self, model: dict[str, Any], method: dict[str, Any]) -> dict[str, Any] | None:
        if type(self).eval_model is not Supervised.eval_model:
            return None
        prefix = "average.network."
        return {name.removeprefix(prefix): value for name, value in method.items() if name.startswith(prefix)} or model

    def build_optimizer(self, task: BasicTask) -> Optimizer:
        if not self.layer_decay:
            optimizer = super().build_optimizer(task)
        else:
            groups = depth.scaled_groups(task.model, self.layer_decay, self.decay_norms_and_biases)
            optimizer = depth.scale_rates(self.optimizer_over(groups))
        if self.unfreeze_every and isinstance(optimizer, torch.optim.SGD):
            for group in optimizer.param_groups:  # torch's fused SGD takes a momentum of all parameters or of none
                group["fused"] = False
        return optimizer


def labelled_targets(task: BasicTask) -> Tensor | None:
    """The targets of all labelled training samples, where they are known without reading samples."""
    sources = getattr(task.train_loader, "sources", {})
    source = sources.get("labelled")
    return None if source is None else source.targets


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms of a network that do not learn: their statistics are held still as well."""
    return [module for module in model.modules() if isinstance(module, BatchNorm) and frozen(module)]


def is_plain(criterion: nn.Module) -> bool:
    """Whether a criterion is the mean cross entropy of one class a sample, with nothing else asked of it."""
    if type(criterion) is not nn.CrossEntropyLoss or criterion.weight is not None:
        return False
    return (criterion.ignore_index, criterion.reduction, criterion.label_smoothing) == (-100, "mean", 0.0)


def takes_probabilities(criterion: nn.Module) -> bool:
    """Whether ``criterion(output, target)`` accepts class probabilities in the place of indices."""
    if weighs_classes(criterion):
        return isinstance(criterion, nn.CrossEntropyLoss)
    weight = getattr(criterion, "weight", None)
    classes = len(weight) if isinstance(weight, Tensor) and weight.dim() else 2
    scores = torch.zeros(2, classes)
    try:
        return bool(torch.isfinite(criterion(scores, torch.full_like(scores, 1 / classes))).all())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False

"""DivideMix: each of two networks separates clean from noisy samples for the other (Li et al. 2020, arXiv
2002.07394)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg import distributed
from healsg.data.base import Needs
from healsg.data.loader import Loader
from healsg.evaluation.evaluator import evaluating
from healsg.losses.classification import cross_entropy, log_softmax
from healsg.losses.mixture import share_of_smaller
from healsg.losses.semi import hard_cross_entropy, linear_ramp, sharpen, squared_distance
from healsg.methods.consistency import probabilities
from healsg.methods.counts import labelled_targets
from healsg.methods.gathered import gather
from healsg.methods.mixmatch import draw
from healsg.methods.pair import refuse_parts
from healsg.methods.supervised import Supervised
from healsg.training.step import rows_of
from healsg.types import Fraction, NonNegative, Positive

if TYPE_CHECKING:
    from healsg.protocols import Task


class Ensemble(nn.Module):
    """Two networks on the same input: in training the outputs of both, (2, N, C); in evaluation their mean, (N, C)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input: Tensor) -> Tensor:
        outputs = torch.stack([self.first(input), self.second(input)])
        return outputs if self.training else outputs.mean(dim=0)


class DivideMix(Supervised):
    """After a warm-up with plain cross entropy, each network learns from the samples as the other network divides them
    into clean and noisy ones (Algorithm 1).

    At the start of an epoch, each network computes its losses on all training samples, and a mixture of two normal
    distributions gives the probability that a label is clean. The label of a probably clean sample is refined with the
    network's own prediction (co-refinement), that of the others is guessed by both networks (co-guessing), and all
    samples are mixed as in MixMatch. The ensemble of both networks (the mean of their logits) is evaluated and saved.

    Unlike the authors' code, which trains the networks in turn on batches with equally many clean and noisy samples,
    both networks learn from the same batch, whatever its share of clean samples; mixing partners are drawn once for
    both networks, and each sample has its own mixing coefficient.

    Args:
        warmup: the share of the run that is plain cross entropy, rounded up to whole epochs; 10 of 300 epochs on
            CIFAR-10.
        threshold: the probability from which a label is taken to be clean; tau.
        temperature: with which targets are sharpened; T.
        alpha: the parameter of the Beta(alpha, alpha) distribution of the mixing coefficient.
        unlabelled_weight: the final weight of the squared distance of samples without a label; lambda_u, 0 to 150 by
            the noise.
        ramp: the share of the run, after the warm-up, over which that weight grows; 16 of 300 epochs.
        balance: the weight of the divergence of the batch's mean prediction from a uniform distribution; lambda_r.
        confidence_penalty: the weight of the negative entropy in the warm-up, for asymmetric noise; 1 in the paper.
        common: the arguments of Supervised.
    """

    local_to_micro_batch: ClassVar[Mapping[str, str]] = {
        "partners": "a sample is mixed with those of its micro-batch (of all processes)",
        "balance": "the mean prediction is that of a micro-batch (of all processes)",
    }

    needs = Needs({"labelled": ("weak", "input")})
    replaces_criterion = True
    mean_over_samples = False
    clean: Tensor

    def __init__(
        self,
        warmup: Fraction = 0.1,
        threshold: Fraction = 0.5,
        temperature: Positive = 0.5,
        alpha: Positive = 4.0,
        unlabelled_weight: NonNegative = 25.0,
        ramp: Fraction = 0.05,
        balance: NonNegative = 1.0,
        confidence_penalty: NonNegative = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.warmup = warmup
        self.threshold = threshold
        self.temperature = temperature
        self.alpha = alpha
        self.unlabelled_weight = unlabelled_weight
        self.ramp = ramp
        self.balance = balance
        self.confidence_penalty = confidence_penalty

    def check(self, task: Task) -> None:
        super().check(task)
        self.labelled.refuse_mixing("dividemix mixes the samples itself")
        refuse_parts(self, "DivideMix")

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        return Ensemble(network, task.build_model())

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.register_buffer("clean", torch.ones(2, len(labelled_targets(task))))

    def evaluated(self, network: nn.Module) -> nn.Module:
        return Ensemble(network, copy.deepcopy(network))

    def before_step(self, task: Task) -> None:
        super().before_step(task)
        if task.runner.batch_count == 1 and not self.warms_up(task):
            self.divide(task)

    def warms_up(self, task: Task) -> bool:
        """Whether this epoch started before the end of the warm-up."""
        runner = task.runner
        begun = runner.step_count // runner.steps_per_epoch * runner.steps_per_epoch
        return begun < self.warmup * runner.total_steps

    @torch.no_grad()
    def divide(self, task: Task) -> None:
        """The probability that each sample's label is right, by each network's losses (section 3.1)."""
        assert isinstance(task.train_loader, Loader)
        losses = torch.zeros_like(self.clean, dtype=torch.float32)
        with evaluating(task.model):
            for values, rows in task.train_loader.evaluation_view().batches(0):
                if not rows:  # copies of another process's samples
                    continue
                batch = task.runner.device_setup.move(values)
                with task.runner.device_setup.autocast():
                    outputs = [network(batch["input"]) for network in (task.model.first, task.model.second)]  # type: ignore[operator]
                own = torch.stack([hard_cross_entropy(output, batch["target"]) for output in outputs])
                losses.index_copy_(1, batch["index"], own.to(losses.dtype))
        losses = distributed.processes().sum(losses)
        for clean, of_network in zip(self.clean, losses, strict=True):
            clean.copy_(share_of_smaller(of_network))

    def train_step(self, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
        input, _ = self.labelled.inputs(task, batch)
        if self.warms_up(task):
            return self.warm_up(task, batch, input)
        views = [batch["weak"], input]
        with torch.no_grad():
            first, second = (self.of_views(output) for output in task.net(torch.cat(views)))
        given = self.labelled.class_probabilities(batch["target"], first)
        by_first, by_second = self.clean[:, batch["index"]].to(given.dtype).unsqueeze(2)
        both = (first + second) / 2
        # A network's targets use the other network's division, and its own predictions for co-refinement.
        targets = [self.targets(given, first, both, by_second), self.targets(given, second, both, by_first)]
        right = [by_second.squeeze(1) >= self.threshold, by_first.squeeze(1) >= self.threshold]

        with task.runner.drawn_together(batch) as samples:
            mixing = draw(views, self.alpha, [samples, samples] if samples else None)
        outputs = task.net(mixing.of(views))
        rows = rows_of(batch, torch.cat(views))
        runner = task.runner
        weight = self.unlabelled_weight * linear_ramp(
            runner.step_count / runner.total_steps, self.warmup, self.warmup + self.ramp
        )
        parts = []
        for output, target, labelled in zip(outputs, targets, right, strict=True):
            mixed_target = gather(mixing.of([target, target]), rows)
            chosen = gather(torch.cat([labelled, labelled]).to(target.dtype), rows)
            parts.append(divided_losses(gather(output, rows), mixed_target, chosen))
        supervised, unlabelled, balance = (sum(each) for each in zip(*parts, strict=True))
        loss = supervised + weight * unlabelled + self.balance * balance
        return {"loss": loss, "supervised": supervised, "unlabelled": unlabelled}

    def warm_up(self, task: Task, batch: dict[str, Any], input: Tensor) -> dict[str, Any]:
        """Plain cross entropy of both networks, with the penalty of confident predictions (section 3.1)."""
        loss = input.new_zeros(())
        for output in task.net(input):
            target = self.labelled.class_probabilities(batch["target"], output)
            loss = loss + cross_entropy(output, target).mean()
            if self.confidence_penalty:
                logs = log_softmax(output)
                loss = loss + self.confidence_penalty * (logs.exp() * logs).sum(dim=1).mean()
        return {"loss": loss}

    @staticmethod
    def of_views(output: Tensor) -> Tensor:
        """(N, C) a network's mean prediction over the two views of (2 N, C)."""
        first, second = probabilities(output).chunk(2)
        return (first + second) / 2

    def targets(self, labels: Tensor, prediction: Tensor, ensemble: Tensor, clean: Tensor) -> Tensor:
        """(N, C): the labels, refined with the network's own prediction (equation 4), or both networks' guess
        (equation 6), each sharpened.

        Args:
            labels: (N, C) the labels.
            prediction: (N, C) the predictions of the network that learns.
            ensemble: (N, C) those of both networks.
            clean: (N, 1) the probability that the label is right.
        """
        refined = torch.where(clean >= self.threshold, clean * labels + (1 - clean) * prediction, ensemble)
        return sharpen(refined, self.temperature)


def divided_losses(output: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cross entropy of the samples with a label, the squared distance of the others, each a mean over its own
    samples and 0 if it has none, and the divergence of the mean prediction from a uniform distribution (equations 9
    to 11).

    Args:
        output: (N, C).
        target: (N, C) class probabilities.
        labelled: (N,) 1 or 0.
    """
    others = 1 - labelled
    supervised = (cross_entropy(output, target) * labelled).sum() / labelled.sum().clamp(min=1)
    unlabelled = (squared_distance(output, target) * others).sum() / others.sum().clamp(min=1)
    mean = log_softmax(output).exp().mean(dim=0)
    return supervised, unlabelled, -(mean * len(mean)).log().mean()

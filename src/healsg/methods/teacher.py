"""What methods of distillation share: the network of a run as the teacher, and the step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from healsg import safefiles
from healsg.build import build_task
from healsg.data.base import DataInfo
from healsg.data.info import differing_classes
from healsg.data.loader import Loader
from healsg.errors import ConfigError, HealsgError, RunError, one_line
from healsg.evaluation.predictor import best_of, network_of_run
from healsg.methods.supervised import Supervised
from healsg.methods.within import Probe, outputs_of, probe
from healsg.paths import current_folder
from healsg.runs.checkpointer import restore_weights
from healsg.runs.folder import RunFolder, find
from healsg.runs.saved_config import load_saved
from healsg.training.step import Loss, Mean, Samples, joined_samples, samples_of

if TYPE_CHECKING:
    from healsg.task import BasicTask

log = logging.getLogger("healsg")

_student: ContextVar[bool] = ContextVar("student", default=True)
"""Whether a method's own teacher is asked for: not where only the network is wanted, which may teach in its turn."""


# --- the network of a run --------------------------------------------------------------------------------------------


def task_of(folder: RunFolder, like: BasicTask) -> BasicTask:
    """The task of a run as it was, on the CPU, without its own teacher; what holds for the process is as in ``like``.

    Its configuration passes the checks that ``healsg eval`` makes. Raises ConfigError, RunError.
    """
    runner = like.runner
    precision = "tf32" if runner.precision == "tf32" else "fp32"
    still = str(torch.are_deterministic_algorithms_enabled()).lower()
    place = [f"runner.precision={precision}", f"runner.deterministic={still}", "runner.device=cpu"]
    place += ["runner.compile=false", "runner.cuda_graph=false"]
    token = _student.set(False)
    try:
        return build_task(load_saved(folder, [*place, f"runner.threads={torch.get_num_threads()}"]))
    finally:
        _student.reset(token)


def network_of(folder: RunFolder, like: BasicTask) -> nn.Module:
    """The network of a run with its best weights, in evaluation mode, without gradients. Raises HealsgError.

    It is made of the run's own files. Only where the checkpoint does not say what its data were, as for a task with
    loaders of its own, or where a method of one's own made another network in ``setup``, is the whole task built, with
    its data. A teacher that was trained on inputs of another mean and deviation gets the student's brought to its own.
    """
    info, state = best_of(folder)
    if info is not None:
        with contextlib.suppress(RunError):
            _, network = network_of_run(load_saved(folder, []), info, state)
            if like.data_info is not None and (scale := rescaling(info, like.data_info)) is not None:
                log.info("method.teacher: %s gets inputs with the mean and deviation of its own training", folder.shown)
                rescale_inputs(network, *scale)
            return network
    task = task_of(folder, like)
    token = _student.set(False)
    try:
        with torch.random.fork_rng(devices=[]):
            task.build(fresh_weights=False, training=False)
    finally:
        _student.reset(token)
    restore_weights(task, state, "best")
    return task.task_method.eval_model(task).eval().requires_grad_(False)


def rescaling(taught: DataInfo, own: DataInfo) -> tuple[Tensor, Tensor] | None:
    """The factor and offset that make inputs normalised as ``own`` those normalised as ``taught``.

    They broadcast to a sample: (C, 1, ...) or (F,). None where both are the same, or one is not known.
    """
    numbers = [info.preprocessing.get(key) for info in (taught, own) for key in ("mean", "std")]
    if any(not isinstance(one, (list, tuple)) or len(one) != own.input_shape[0] for one in numbers):
        return None
    mean, std, own_mean, own_std = (torch.tensor(one, dtype=torch.float64) for one in numbers)
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return None
    shape = (-1, *[1] * (len(own.input_shape) - 1))
    return (own_std / std).float().view(shape), ((own_mean - mean) / std).float().view(shape)


def rescale_inputs(network: nn.Module, factor: Tensor, offset: Tensor) -> None:
    """Let a network's inputs be multiplied by ``factor`` and ``offset`` be added, wherever the network lies."""
    network.register_buffer("_input_factor", factor, persistent=False)
    network.register_buffer("_input_offset", offset, persistent=False)
    network.register_forward_pre_hook(_rescaled)


def _rescaled(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (torch.addcmul(network._input_offset, inputs[0], network._input_factor), *inputs[1:])  # type: ignore[arg-type]


@dataclass
class ForwardOutput:
    """What a network says of a batch: its output, and what it gives within."""

    output: Tensor
    inner: list[Tensor] = field(default_factory=list)


class Student(nn.Module):
    """A network and what learns beside it: in training its output and what ``heads`` make of inner ones, in evaluation
    the output alone.

    Args:
        network: what is evaluated and kept.
        layers: modules of it by name.
        heads: what learns on these modules' outputs, one each.
        beside: what else learns.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], heads: Sequence[nn.Module], beside: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.layers = network, list(layers)
        self.heads, self.beside = nn.ModuleList(heads), beside

    def forward(self, input: Tensor, shown: Tensor | None = None) -> Any:
        if not self.training:
            return self.network(input)
        with outputs_of(self.network, self.layers) as found:
            output = self.network(input)
        inner = [head(found[name]) for name, head in zip(self.layers, self.heads, strict=True)]
        return output, [*inner, *([self.beside(shown)] if self.beside is not None else [])]


class Distilled(Supervised):
    """Learn from labels and from the network of a run, which sees what the student sees.

    A subclass gives ``distillation_loss``.

    The teacher's run, without its data, must lie where it was whenever this run is trained or continued; the checkpoint
    holds the teacher's weights, so that a run goes on with the teacher with which it began.

    Args:
        teacher: the run, a folder or a name under ``runs/``; its best weights teach.
        common: the arguments of Supervised.
    """

    counts_classes = True

    whole_samples: ClassVar[bool] = False
    """Whether the distillation is about a sample's own class or identity, so that samples cannot be mixed."""

    layers: str | None = None
    teacher_layers: str | None = None

    def __init__(self, teacher: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.run, self.start = teacher, current_folder()
        self.places: list[str] = []

    # --- what a subclass brings -------------------------------------------------------------------------------------

    def distillation_loss(
        self, task: BasicTask, batch: dict[str, Any], student: ForwardOutput, teacher: ForwardOutput
    ) -> Tensor:
        """What the teacher says of a batch, as a scalar: a mean over all rows, the labelled ones first."""
        raise NotImplementedError

    def label_share(self, task: BasicTask) -> float:
        """The weight of the loss of the labels."""
        return 1.0

    def wrap(self, task: BasicTask, student: Probe, teacher: Probe) -> Student | None:
        """What learns, with inner outputs; sets ``places``, the teacher's modules. None for neither."""
        return None

    def layers_of(self, student: Probe, teacher: Probe, kind: str, last: bool = False) -> tuple[list[str], list[str]]:
        """The modules of both networks, in pairs: those named, else all or the last of a kind, paired from the last.

        Args:
            kind: ``maps`` or ``features``.
            last: whether the last pair alone is taken where none is named.

        Raises:
            ConfigError: there is none, or they make no pairs.
        """
        chosen, patterns_of = [], {"layers": self.layers, "teacher_layers": self.teacher_layers}
        for (key, patterns), found in zip(patterns_of.items(), (student, teacher), strict=True):
            names = found.choose(patterns, f"method.{key}") if patterns else getattr(found, kind)()
            if not names:
                whose = "the teacher" if found is teacher else "this network"
                raise ConfigError(f"method.{key}: {whose} has no {kind} that are found by themselves; name modules")
            chosen.append(names)
        named = [len(names) for names, patterns in zip(chosen, patterns_of.values(), strict=True) if patterns]
        pairs = named[0] if named else 1 if last else min(map(len, chosen))
        chosen = [
            names if patterns else names[-pairs:] for names, patterns in zip(chosen, patterns_of.values(), strict=True)
        ]
        if len(chosen[0]) != len(chosen[1]):
            raise ConfigError(f"method.layers: {chosen[0]} of the student and {chosen[1]} of the teacher make no pairs")
        return chosen[0], chosen[1]

    # --- the method -------------------------------------------------------------------------------------------------

    def check(self, task: BasicTask) -> None:
        super().check(task)
        name = type(self).__name__
        if key := next((key for key in ("mixup", "cutmix") if self.whole_samples and getattr(self, key)), None):
            raise ConfigError(f"method.{key}: {name} needs each sample as it is; set it to 0")
        if not _student.get():
            return
        if not self.run:
            raise ConfigError(f"method.teacher: is missing; {name} learns from a run: method.teacher=RUN")
        try:
            folder = find(self.run, self.start)
            load_saved(folder, [])
            if not safefiles.require(folder.best):
                raise RunError(f"{folder.shown} has no best weights yet; train it first")
            taught, _ = best_of(folder)
            taught = task_of(folder, task).info if taught is None else taught
        except (RunError, ConfigError) as error:
            raise ConfigError(f"method.teacher: {one_line(error)}") from error
        if task.info and taught:
            refuse_other_meaning(self.run, taught, task.info)
        if folder.record.get("status") != "finished":
            log.warning("method.teacher: %s is not finished; the best weights that it has teach", folder.shown)

    def setup(self, task: BasicTask) -> None:
        super().setup(task)
        if not self.run or not _student.get():
            return
        try:
            self.teacher = network_of(find(self.run, self.start), task)
        except HealsgError as error:
            raise ConfigError(f"method.teacher: {one_line(error)}") from error
        loader = task.train_loader
        samples = (
            next(iter(loader.evaluation_view() if isinstance(loader, Loader) else loader))["input"][:2].float().cpu()
        )
        try:
            taught = probe(self.teacher, samples)
        except RuntimeError as error:
            told = f"cannot take samples of {tuple(samples.shape[1:])}: {one_line(error)}"
            raise ConfigError(f"method.teacher: {self.run} {told}") from error
        student = probe(task.model, samples)
        refuse_other("outputs", self.run, taught.output[1:], student.output[1:])
        task.model = self.wrap(task, student, taught) or task.model

    def learner(self, task: BasicTask) -> nn.Module:
        return task.model.network if isinstance(task.model, Student) else task.model

    def train_step(self, task: BasicTask, batch: dict[str, Any]) -> dict[str, Any]:
        labelled = batch if self.needs.flat else batch["labelled"]
        input, mixed = self.prepare(task, labelled)
        rows = len(input)
        seen = input if self.needs.flat else torch.cat([input, batch["unlabelled"]["input"]])
        with torch.no_grad(), outputs_of(self.teacher, self.places) as found:
            taught = self.teacher(seen)
        teacher = ForwardOutput(taught, [found[name] for name in self.places])
        student = self.forward_output(task, seen, teacher)
        output = student.output[:rows]
        told = self.distillation_loss(task, labelled, student, teacher)
        distillation: Tensor | Loss = told if self.needs.flat else Mean(told, self.all_samples(batch))
        share = self.label_share(task)
        if not share:
            return {"loss": distillation, "distillation": distillation.detach()}
        labels = self.loss(task, labelled, output, self.soften(task, labelled["target"], output, mixed))
        return {"loss": share * labels + distillation, "distillation": distillation.detach()}

    def all_samples(self, batch: dict[str, Any]) -> Samples | None:
        """The labelled and the unlabelled samples of a batch together."""
        labelled, unlabelled = samples_of(batch["labelled"]), samples_of(batch["unlabelled"])
        return joined_samples(labelled, unlabelled) if labelled and unlabelled else None

    def forward_output(self, task: BasicTask, input: Tensor, teacher: ForwardOutput) -> ForwardOutput:
        """What the student says."""
        result = task.net(input)
        return ForwardOutput(*result) if isinstance(task.model, Student) else ForwardOutput(result)


def refuse_other_meaning(run: str, taught: DataInfo, own: DataInfo) -> None:
    """Raises ConfigError where a teacher and its student have other classes, or the same in another order, or inputs
    of another shape or other columns."""
    if differing := differing_classes(taught, own):
        raise ConfigError(f"method.teacher: {run} was trained on {differing}")
    refuse_other("input shape", run, taught.input_shape, own.input_shape)
    if taught.input_names and own.input_names:
        refuse_other("input columns", run, taught.input_names, own.input_names)


def refuse_other(what: str, run: str, taught: Any, own: Any) -> None:
    """Raises ConfigError where a teacher and its student differ."""
    if taught != own:
        raise ConfigError(f"method.teacher: {run} has {taught} as its {what}, and this task {own}")

"""Distillation: the network of a run as the teacher, and a student with heads on its inner outputs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
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
from healsg.method import TaskMethod
from healsg.methods.labelled import LabelledSamples
from healsg.methods.within import Probe, outputs_of, probe
from healsg.paths import current_folder
from healsg.runs.folder import RunFolder, find
from healsg.runs.restoring import restore_weights
from healsg.runs.saved_config import load_saved
from healsg.types import Fraction, NonNegative, Share

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.task import BasicTask

log = logging.getLogger("healsg")

_loads_teacher: ContextVar[bool] = ContextVar("loads_teacher", default=True)
"""Whether a distillation method loads its teacher; see ``without_teacher``."""


@contextlib.contextmanager
def without_teacher() -> Iterator[None]:
    """A context in which a task is built for its trained network alone. A network that was itself distilled does not
    need its teacher then."""
    token = _loads_teacher.set(False)
    try:
        yield
    finally:
        _loads_teacher.reset(token)


# --- the network of a run --------------------------------------------------------------------------------------------


def task_of(folder: RunFolder, like: Task) -> BasicTask:
    """The task of a run as it was, on the CPU, without its own teacher; settings of the process are those of ``like``.

    Its configuration passes the checks that ``healsg eval`` makes. Raises ConfigError, RunError.
    """
    runner = like.runner
    precision = "tf32" if runner.precision == "tf32" else "fp32"
    deterministic = str(torch.are_deterministic_algorithms_enabled()).lower()
    settings = [f"runner.precision={precision}", f"runner.deterministic={deterministic}", "runner.device=cpu"]
    settings += ["runner.compile=false", "runner.cuda_graph=false", f"runner.threads={torch.get_num_threads()}"]
    with without_teacher():
        return build_task(load_saved(folder, [*settings, *trusted(like)]))


def trusted(like: Task) -> list[str]:
    """The ``trusted`` packages of the student's command line, as an override; they hold for the teacher's parts too."""
    packages = list(like.config.trusted)
    return [f"trusted=[{','.join(packages)}]"] if packages else []


def network_of(folder: RunFolder, like: Task) -> nn.Module:
    """The network of a run with its best weights, in evaluation mode, without gradients. Raises HealsgError.

    It is built from the run's files. The whole task with its data is built only if the checkpoint does not describe its
    data (a task with its own loaders) or if a user's method replaced the network in ``setup``. If the teacher was
    trained with another normalisation, the student's inputs are converted to the teacher's.
    """
    info, state = best_of(folder)
    if info is not None:
        with contextlib.suppress(RunError):
            _, network = network_of_run(load_saved(folder, trusted(like)), info, state)
            if not like.runner.device_setup.double:
                network.float()  # also from an fp64 run: its inputs are the student's
            if like.data_info is not None and (scale := rescaling(info, like.data_info)) is not None:
                log.info("method.teacher: %s gets inputs with the mean and deviation of its own training", folder.shown)
                rescale_inputs(network, *scale)
            return network
    task = task_of(folder, like)
    with without_teacher(), torch.random.fork_rng(devices=[]):
        task.build(fresh_weights=False, training=False)
    restore_weights(task, state, "best")
    return task.task_method.eval_model(task).eval().requires_grad_(False)


def rescaling(teacher: DataInfo, student: DataInfo) -> tuple[Tensor, Tensor] | None:
    """The factor and offset that turn inputs normalised as ``student`` into inputs normalised as ``teacher``.

    They broadcast to a sample: (C, 1, ...) or (F,). None if both normalisations are the same, or one is not known.
    """
    numbers = [info.preprocessing.get(key) for info in (teacher, student) for key in ("mean", "std")]
    if any(not isinstance(one, (list, tuple)) or len(one) != student.input_shape[0] for one in numbers):
        return None
    mean, std, student_mean, student_std = (torch.tensor(one, dtype=torch.float64) for one in numbers)
    if torch.equal(mean, student_mean) and torch.equal(std, student_std):
        return None
    shape = (-1, *[1] * (len(student.input_shape) - 1))
    return (student_std / std).float().view(shape), ((student_mean - mean) / std).float().view(shape)


def rescale_inputs(network: nn.Module, factor: Tensor, offset: Tensor) -> None:
    """Multiply a network's inputs by ``factor`` and add ``offset``, on the network's device."""
    network.register_buffer("_input_factor", factor, persistent=False)
    network.register_buffer("_input_offset", offset, persistent=False)
    network.register_forward_pre_hook(_rescaled)


def _rescaled(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (torch.addcmul(network._input_offset, inputs[0], network._input_factor), *inputs[1:])  # type: ignore[arg-type]


@dataclass
class ForwardOutput:
    """A network's output for a batch, and the outputs of some of its modules."""

    output: Tensor
    inner: list[Tensor] = field(default_factory=list)


class Student(nn.Module):
    """A network with heads on some of its modules: in training it returns its output and a list of the outputs of
    ``heads`` and ``beside``, in evaluation only its output.

    Args:
        network: what is evaluated and saved.
        layers: modules of it by name.
        heads: trained modules on these modules' outputs, one each.
        beside: a trained module on an output of the teacher.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], heads: Sequence[nn.Module], beside: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = list(layers)
        self.heads = nn.ModuleList(heads)
        self.beside = beside

    def forward(self, input: Tensor, shown: Tensor | None = None) -> Any:
        if not self.training:
            return self.network(input)
        with outputs_of(self.network, self.layers) as found:
            output = self.network(input)
        inner = [head(found[name]) for name, head in zip(self.layers, self.heads, strict=True)]
        return output, [*inner, *([self.beside(shown)] if self.beside is not None else [])]


class Distilled(TaskMethod):
    """Learn from labels and from a teacher, the network of a run, which sees the same inputs as the student.

    The teacher's run, without its data, must stay in place while this run is trained or resumed; the checkpoint holds
    the teacher's weights, so that a resumed run keeps its teacher.

    Args:
        teacher: the run, a folder or a name under ``runs/``; the teacher has its best weights.
        label_smoothing, mixup, cutmix, random_erasing: see ``LabelledSamples``.
        common: the arguments of TaskMethod.
    """

    mean_over_samples = True
    leaves_weights = True

    whole_samples: ClassVar[bool] = False
    """Whether the distillation loss uses a sample's own class or index, so that samples cannot be mixed."""

    layers: str | None = None
    teacher_layers: str | None = None

    def __init__(
        self,
        teacher: str | None = None,
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        random_erasing: Fraction = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.teacher_run = teacher
        self.start = current_folder()
        """The folder that a relative path of the teacher's run refers to."""
        self.labelled = LabelledSamples(label_smoothing, mixup, cutmix, random_erasing)
        self.teacher: nn.Module = nn.Identity()
        self.teacher_modules: list[str] = []
        """The modules of the teacher whose outputs are used, by name, once the network is built (``with_heads``)."""

    def check(self, task: Task) -> None:
        super().check(task)
        name = type(self).__name__
        self.labelled.check(task, name)
        if self.whole_samples:
            self.labelled.refuse_mixing(f"{name} needs each sample as it is")
        if _loads_teacher.get():
            self.check_teacher(task)

    def check_teacher(self, task: Task) -> None:
        """Check that the run exists, has weights, and was trained on the same classes and inputs. Raises
        ConfigError."""
        if not self.teacher_run:
            raise ConfigError(
                f"method.teacher: is missing; {type(self).__name__} learns from a run: method.teacher=RUN"
            )
        try:
            folder = find(self.teacher_run, self.start)
            load_saved(folder, trusted(task))
            if not safefiles.require(folder.best):
                raise RunError(f"{folder.shown} has no best weights yet; train it first")
            info, _ = best_of(folder)
            info = task_of(folder, task).info if info is None else info
        except (RunError, ConfigError) as error:
            raise ConfigError(f"method.teacher: {one_line(error)}") from error
        if task.info and info:
            require_same_meaning(self.teacher_run, info, task.info)
        if folder.record.get("status") != "finished":
            log.warning("method.teacher: %s is not finished; the best weights that it has teach", folder.shown)

    def extend_network(self, task: Task, network: nn.Module) -> nn.Module:
        """Load the teacher, and put heads on the student's network where the method has some."""
        if not self.teacher_run or not _loads_teacher.get():
            return network
        try:
            self.teacher = network_of(find(self.teacher_run, self.start), task)
        except HealsgError as error:
            raise ConfigError(f"method.teacher: {one_line(error)}") from error
        samples = some_samples(task)
        try:
            teacher = probe(self.teacher, samples)
        except RuntimeError as error:
            reason = f"cannot take samples of {tuple(samples.shape[1:])}: {one_line(error)}"
            raise ConfigError(f"method.teacher: {self.teacher_run} {reason}") from error
        student = probe(network, samples)
        require_same("outputs", self.teacher_run, teacher.output[1:], student.output[1:])
        extended, self.teacher_modules = self.with_heads(task, network, student, teacher)
        return extended

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.labelled.setup(task)

    def with_heads(self, task: Task, network: nn.Module, student: Probe, teacher: Probe) -> tuple[nn.Module, list[str]]:
        """The student's network with trained heads on its inner outputs, and the names of the teacher's modules whose
        outputs they are compared with. By default the network itself, and none.

        Args:
            task: the student's task.
            network: the student's.
            student, teacher: the output shapes of both networks' modules.
        """
        return network, []

    def layer_pairs(self, student: Probe, teacher: Probe, kind: str, last: bool = False) -> tuple[list[str], list[str]]:
        """The modules of both networks, in pairs: those named, else all or the last of a kind, paired from the last.

        Args:
            kind: ``maps`` or ``features``.
            last: whether the last pair alone is taken if none is named.

        Raises:
            ConfigError: no module was found, or they cannot be paired.
        """
        chosen = []
        patterns_of = {"layers": self.layers, "teacher_layers": self.teacher_layers}
        for (key, patterns), found in zip(patterns_of.items(), (student, teacher), strict=True):
            names = found.choose(patterns, f"method.{key}") if patterns else getattr(found, kind)()
            if not names:
                whose = "the teacher" if found is teacher else "this network"
                raise ConfigError(f"method.{key}: {whose} has no {kind} that are found automatically; name modules")
            chosen.append(names)
        named = [len(names) for names, patterns in zip(chosen, patterns_of.values(), strict=True) if patterns]
        pairs = named[0] if named else 1 if last else min(map(len, chosen))
        chosen = [
            names if patterns else names[-pairs:] for names, patterns in zip(chosen, patterns_of.values(), strict=True)
        ]
        if len(chosen[0]) != len(chosen[1]):
            raise ConfigError(f"method.layers: {chosen[0]} of the student and {chosen[1]} of the teacher make no pairs")
        return chosen[0], chosen[1]

    def trained_network(self, task: Task) -> nn.Module:
        return task.model.network if isinstance(task.model, Student) else task.model

    def teach(self, input: Tensor) -> ForwardOutput:
        """The teacher's output and those of its modules ``teacher_modules``, without gradients."""
        with torch.no_grad(), outputs_of(self.teacher, self.teacher_modules) as found:
            output = self.teacher(input)
        return ForwardOutput(output, [found[name] for name in self.teacher_modules])


def some_samples(task: Task) -> Tensor:
    """Two training samples as in evaluation, (2, ...) on the CPU."""
    loader = task.train_loader
    batches = loader.evaluation_view() if isinstance(loader, Loader) else loader
    samples: Tensor = next(iter(batches))["input"][:2].float().cpu()
    return samples


def require_same_meaning(run: str, teacher: DataInfo, student: DataInfo) -> None:
    """Raise ConfigError if a teacher and its student differ in their classes, the order of the classes, or the shape or
    columns of their inputs."""
    if differing := differing_classes(teacher, student):
        raise ConfigError(f"method.teacher: {run} was trained on {differing}")
    require_same("input shape", run, teacher.input_shape, student.input_shape)
    if teacher.input_names and student.input_names:
        require_same("input columns", run, teacher.input_names, student.input_names)


def require_same(property_name: str, run: str, teacher: Any, student: Any) -> None:
    """Raise ConfigError if a property of a teacher and its student differs."""
    if teacher != student:
        raise ConfigError(f"method.teacher: {run} has {teacher} as its {property_name}, and this task {student}")

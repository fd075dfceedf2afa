"""Distillation: the losses against a second way to compute them, the teacher as a run, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from healsg import BasicTask, DataInfo, TaskTrainer
from healsg.errors import ConfigError
from healsg.losses import distillation
from healsg.methods.attention_transfer import AttentionTransfer
from healsg.methods.crd import CRD, others
from healsg.methods.dkd import DKD
from healsg.methods.fitnet import FitNet
from healsg.methods.kd import KD
from healsg.methods.teacher import Distilled
from healsg.methods.within import outputs_of, probe
from healsg.runs.checkpoint import load, save
from healsg.training import draws
from helpers import record

SMALL = ["model=cnn", "model.width=3", "quiet=true", "data.batch_size=64", "runner.limit_batches=2"]
SMALL += ["runner.epochs=2"]
METHODS = {
    "kd": [],
    "dkd": [],
    "fitnet": ["method.hints=0.5"],
    "attention_transfer": [],
    "crd": ["method.negatives=16", "method.dim=8"],
}


def trained(*options: str, name: str) -> BasicTask:
    trainer = TaskTrainer.compose(*SMALL, *options, f"name={name}")
    assert trainer.train()["status"] == "finished"
    assert trainer.task is not None
    return trainer.task


@pytest.fixture
def teacher() -> str:
    trained("model.width=4", name="teacher")
    return "method.teacher=teacher"


# --- the same mathematics, in float64 --------------------------------------------------------------------------------


def scores(rows: int = 6, classes: int = 5, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def kl(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * np.log(first / second)).sum())


def test_soft_targets() -> None:
    student, taught = scores(), scores(seed=1)
    wanted = 9 * F.kl_div((student / 3).log_softmax(1), (taught / 3).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(distillation.soft_targets(student, taught, 3.0), wanted, rtol=1e-12, atol=1e-12)


def test_decoupled() -> None:
    """The definitions of section 3.1, sample by sample; with both weights as in equation 6 it is the plain loss."""
    student, taught, target = scores(), scores(seed=1), torch.tensor([0, 4, 2, 2, 1, 3])
    wanted, plain = [], []
    for own, other, label in zip(student.numpy() / 4, taught.numpy() / 4, target.tolist(), strict=True):
        p, q = softmax(other), softmax(own)
        binary = [np.array([each[label], 1 - each[label]]) for each in (p, q)]
        rest = [np.delete(each, label) / (1 - each[label]) for each in (p, q)]
        wanted.append(16 * (1.5 * kl(*binary) + 8 * kl(*rest)))
        plain.append(16 * (kl(*binary) + (1 - p[label]) * kl(*rest)))
    found = distillation.decoupled(student, taught, target, 4.0, 1.5, 8.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    np.testing.assert_allclose(distillation.soft_targets(student, taught, 4.0), plain, rtol=1e-10)


def test_hint_and_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    student, taught = (torch.randn(3, channels, 4, 4, generator=generator, dtype=torch.float64) for channels in (6, 6))
    wanted = [0.5 * ((one - other) ** 2).mean() for one, other in zip(student.numpy(), taught.numpy(), strict=True)]
    np.testing.assert_allclose(distillation.hint(student, taught), wanted, rtol=1e-12)
    wanted = []
    for one, other in zip(student.numpy(), taught.numpy()[:, :4], strict=True):
        looks = [(each**2).sum(axis=0) for each in (one, other)]
        wanted.append((np.subtract(*(look / np.sqrt((look**2).sum()) for look in looks)) ** 2).mean())
    np.testing.assert_allclose(distillation.attention(student, taught[:, :4]), wanted, rtol=1e-12)
    halves = student.view(3, 6, 2, 2, 2, 2).mean(dim=(3, 5))
    torch.testing.assert_close(
        distillation.hint(student, taught[:, :, :2, :2]), distillation.hint(halves, taught[:, :, :2, :2])
    )


def test_noise_contrastive() -> None:
    """Plainly by equation 19: ``h = p / (p + N / M)``."""
    cosines = torch.rand(4, 1 + 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    p = np.exp(cosines.numpy() / 0.1) / 900.0
    h = p / (p + 7 / 50)
    wanted = -np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(axis=1)
    found = distillation.noise_contrastive(cosines / 0.1, torch.tensor(900.0, dtype=torch.float64), 50)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_negatives_are_all_samples_of_other_classes() -> None:
    targets = torch.tensor([2, 0, 1, 0, 2, 2, 0])
    order, counts = targets.argsort(stable=True), torch.bincount(targets)
    random = torch.linspace(0, 1, 1001)[:-1].expand(3, -1)
    drawn = others(random, torch.tensor([0, 1, 2]), order, counts)
    for label, row in enumerate(drawn):
        found, times = row.unique(return_counts=True)
        assert found.tolist() == (targets != label).nonzero().flatten().tolist()
        assert times.max() - times.min() <= 2


# --- the same in a step ----------------------------------------------------------------------------------------------


def test_a_step_is_its_formula_and_the_student_is_kept_alone(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of each method, in float64, from both networks' own outputs; the teacher stays as it is."""
    seen: list[tuple[dict[str, Any], BasicTask]] = []
    steps = {kind: kind.train_step for kind in (KD, DKD, FitNet, AttentionTransfer, CRD)}

    def train_step(self: Distilled, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        task.net.train()
        memory = getattr(self, "memory", torch.zeros(0)).clone()
        place = torch.random.get_rng_state()
        logs = steps[type(self)](self, task, batch)
        if isinstance(self, CRD):
            self.remember()
        torch.random.set_rng_state(place)
        student = self.trained_network(task)
        with outputs_of(student) as own, outputs_of(self.teacher) as shown:
            output, taught = student(batch["input"]), self.teacher(batch["input"])
        entropy, soft = F.cross_entropy(output, batch["target"]), distillation.soft_targets(output, taught, 4.0).mean()
        name = type(self).__name__
        if name == "KD":
            wanted = 0.1 * entropy + 0.9 * soft
        elif name == "DKD":
            wanted = entropy + distillation.decoupled(output, taught, batch["target"], 4.0, 1.0, 8.0).mean()
        elif name == "FitNet" and task.runner.step_count < 2:
            guess = F.conv2d(
                own["body.5"],
                *(each[..., None, None] if each.dim() > 1 else each for each in task.model.heads[0].parameters()),
            )
            wanted = 0.5 * F.mse_loss(guess, shown["body.5"])
        elif name == "FitNet":
            wanted = 0.1 * entropy + 0.9 * soft
        elif name == "AttentionTransfer":
            parts = [
                distillation.attention(own[place], shown[place]).mean() for place in ("body.1", "body.3", "body.5")
            ]
            wanted = entropy + 1000 * sum(parts)
        else:
            wanted = entropy + 0.8 * contrast(self, task, batch, memory, own["body"], shown["body"])
        torch.testing.assert_close(logs["loss"], wanted, rtol=1e-9, atol=1e-9)
        seen.append((batch, task))
        return logs

    for kind in steps:
        monkeypatch.setattr(kind, "train_step", train_step)
    given = load(Path("runs/teacher/checkpoints/best.pt"))["model"]
    for method, options in METHODS.items():
        more = ["method.warmup=0"] * (method == "dkd") + ["runner.precision=fp64", "method.ema=0.5"]
        task = trained(f"method={method}", teacher, *options, *more, name=method)
        taught: Any = task.task_method.teacher
        assert not taught.training
        assert not any(parameter.requires_grad for parameter in taught.parameters())
        assert all(torch.equal(value, given[name]) for name, value in taught.state_dict().items())
        assert not taught.body[0][0]._forward_hooks, "hooks are taken away"
        best = load(Path(f"runs/{method}/checkpoints/best.pt"))["model"]
        assert best.keys() == given.keys()
        assert best["head.weight"].shape == (10, 6)
        assert TaskTrainer.load(method).evaluate("test")["acc"] == record(method)["test"]["test/acc"]
    assert len(seen) == 4 * len(METHODS)


def contrast(method: Any, task: Any, batch: dict[str, Any], memory: Tensor, own: Tensor, shown: Tensor) -> Tensor:
    """CRD's loss pair by pair, with its memory before the step; and what it must remember after it."""
    index, target = batch["index"], batch["target"]
    embedded = [
        F.normalize(head(each), dim=1) for head, each in ((task.model.heads[0], own), (task.model.beside, shown))
    ]
    random = draws.uniform(task, batch, "negatives", (len(index), 16))
    drawn = torch.cat([index[:, None], others(random, target, method.order, method.counts)], dim=1)
    total = torch.zeros(2, dtype=torch.float64)
    for side in (0, 1):
        cosines = torch.einsum("nd,nkd->nk", embedded[side], memory[1 - side][drawn])
        p = (cosines / 0.07).exp() / method.constants[side]
        h = p / (p + 16 / memory.shape[1])
        total = total + (-h[:, 0].log() - (1 - h[:, 1:]).log().sum(dim=1)).mean()
        after = F.normalize(0.5 * memory[side][index] + 0.5 * embedded[side], dim=1)
        torch.testing.assert_close(method.memory[side][index], after.detach(), rtol=1e-9, atol=1e-9)
    return total[0]


# --- the teacher is a run --------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_teacher_it_began_with(teacher: str) -> None:
    """The checkpoint holds the teacher; its run is trained anew in between."""
    options = ["method=kd", teacher, "runner.save_every=1"]
    trained(*options, name="whole")
    assert TaskTrainer.compose(*SMALL, *options, "name=cut", "runner.max_time=0").train()["status"] == "stopped"
    trained("model.width=4", "seed=1", "fresh=true", name="teacher")
    trained(*options, name="cut")
    assert record("cut")["digest"] == record("whole")["digest"]


def test_a_student_teaches_without_its_own_teacher(teacher: str) -> None:
    trained("method=fitnet", teacher, name="first")
    shutil.rmtree("runs/teacher")
    trained("method=kd", "method.teacher=runs/first", name="second")
    config = Path("runs/first/config.yaml")
    config.write_text(config.read_text().replace("teacher: teacher", "teacher: first"))
    trained("method=kd", "method.teacher=first", name="third")


def test_a_teacher_with_a_head_of_its_own() -> None:
    """What a method made of the network that it was given is part of the teacher."""
    trained("model.width=4", "method=ldam_drw", name="teacher")
    task = trained("method=kd", "method.teacher=teacher", name="run")
    taught: Any = task.task_method.teacher
    assert taught.head.bias is None
    assert taught(torch.zeros(1, 1, 8, 8)).abs().max() <= 30


def table(path: str, seed: int, scale: float = 1.0, names: str = "abc") -> None:
    """Three columns of numbers, of rows of the classes of ``names`` in turn."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(90, 3, generator=generator) * scale + torch.arange(90).unsqueeze(1) % 3 * 3 * scale
    rows = [",".join([*(f"{value:.4f}" for value in row), names[i % 3]]) for i, row in enumerate(points.tolist())]
    Path(path).write_text("\n".join(["x,y,z,label", *rows]) + "\n")


TABLE = ["data=csv", "data.test_fraction=0.2", "model=mlp", "model.width=8", "runner.epochs=1", "quiet=true"]


def test_a_teacher_needs_no_data_set() -> None:
    table("teacher.csv", 0)
    table("student.csv", 1)
    TaskTrainer.compose(*TABLE, "data.file=teacher.csv", "name=teacher").train()
    Path("teacher.csv").unlink()
    student = TaskTrainer.compose(*TABLE, "data.file=student.csv", "method=kd", "method.teacher=teacher", "name=run")
    assert student.train()["status"] == "finished"


def test_a_teacher_sees_inputs_as_in_its_own_training() -> None:
    """The student's table is in other units, so that both standardise by other numbers: a row is the same row."""
    table("teacher.csv", 0)
    table("student.csv", 0, scale=100.0)
    TaskTrainer.compose(*TABLE, "data.file=teacher.csv", "name=teacher").train()
    student = TaskTrainer.compose(*TABLE, "data.file=student.csv", "method=kd", "method.teacher=teacher", "name=run")
    student.train()
    assert student.task is not None
    taught: Any = student.task.task_method.teacher
    seen = torch.tensor([[0.3, -1.0, 2.0]])
    files = (Path(f"runs/{name}/checkpoints/best.pt") for name in ("run", "teacher"))
    own, other = (load(file)["data_info"]["preprocessing"] for file in files)
    raw = seen * torch.tensor(own["std"]) + torch.tensor(own["mean"])
    wanted = (raw - torch.tensor(other["mean"])) / torch.tensor(other["std"])
    plain = taught.head(taught.features(wanted))
    torch.testing.assert_close(taught(seen), plain)
    assert not torch.allclose(taught(seen), taught.head(taught.features(seen)))


def test_all_classes_of_a_teacher_are_compared() -> None:
    table("teacher.csv", 0, names="abc")
    TaskTrainer.compose(*TABLE, "data.file=teacher.csv", "name=teacher").train()
    table("student.csv", 0, names="abd")
    with pytest.raises(ConfigError, match=r"other classes: 'c' there alone, 'd' here alone"):
        TaskTrainer.compose(*TABLE, "data.file=student.csv", "method=kd", "method.teacher=teacher").train()
    order = ["data.classes=[c,b,a]", "method=kd", "method.teacher=teacher"]
    with pytest.raises(ConfigError, match="the same classes in another order: 'a', 'b', 'c' there, 'c', 'b', 'a' here"):
        TaskTrainer.compose(*TABLE, "data.file=teacher.csv", *order).train()


def test_nothing_of_the_process_is_changed_by_the_teacher(teacher: str) -> None:
    """The teacher's run asked for other kernels and another precision; the student's seed is its own."""
    config = Path("runs/teacher/config.yaml")
    other = config.read_text().replace("deterministic: false", "deterministic: true")
    config.write_text(other.replace("precision: fp32", "precision: fp64"))
    task = trained("method=kd", teacher, name="run")
    assert not torch.are_deterministic_algorithms_enabled()
    assert next(task.task_method.get_submodule("teacher").parameters()).dtype == torch.float32


def test_the_unlabelled_pool_is_learned_from(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels are not there, its rows are in the teacher's part alone."""
    seen: list[dict[str, Any]] = []
    step = KD.train_step

    def train_step(self: KD, task: BasicTask, batch: dict[str, Any]) -> dict[str, Tensor]:
        seen.append(batch)
        logs = step(self, task, batch)
        whole = torch.cat([batch["labelled"]["input"], batch["unlabelled"]["input"]])
        output, taught = task.model(whole), self.teacher(whole)
        entropy = F.cross_entropy(output[: len(batch["labelled"]["target"])], batch["labelled"]["target"])
        soft = distillation.soft_targets(output, taught, 2.0).mean()
        torch.testing.assert_close(logs["loss"].value, 0.1 * entropy + 0.9 * soft)
        return logs

    monkeypatch.setattr(KD, "train_step", train_step)
    options = ["data.labels=40", "data.batch_size=40", "method.unlabelled_ratio=3", "method.temperature=2"]
    trained("method=kd", teacher, *options, name="run")
    assert all(len(batch["labelled"]["target"]) == 40 for batch in seen)
    assert all(len(batch["unlabelled"]["input"]) == 120 for batch in seen)
    assert not any("target" in batch["unlabelled"] for batch in seen)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_accumulation_and_what_stacks(teacher: str, precision: str) -> None:
    for method in ("fitnet", "crd") if precision == "bf16" else METHODS:
        more = [
            *METHODS[method],
            "runner.accumulate=2",
            "method.freeze=body.0",
            "method.layer_decay=0.7",
            "method.label_smoothing=0.1",
        ]
        mixed = [] if method in ("dkd", "crd") else ["method.mixup=0.2"]
        task = trained(f"method={method}", teacher, *more, *mixed, f"runner.precision={precision}", name=method)
        values = [value for value in task.state_dict()["model"].values() if value.is_floating_point()]
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values)


# --- within a network ------------------------------------------------------------------------------------------------

OWN = """
from torch import nn

from healsg import DataInfo, TaskModel


class Odd(TaskModel):
    def build(self, info):
        first = nn.Sequential(nn.Conv2d(1, 5, 3, stride=2, padding=1), nn.ReLU())
        return nn.Sequential(first, nn.Conv2d(5, 7, 3, padding=1), nn.Flatten(), nn.Linear(7 * 16, 10))
"""


def test_modules_of_ones_own_network_are_named_or_found(teacher: str) -> None:
    Path("own_odd.py").write_text(OWN)
    own = ["model._target_=own_odd.Odd", "~model.width", "~model.dropout", "~model.metrics"]
    pairs = ["method.layers=0|1", "method.teacher_layers=body.1|body.3"]
    task = trained(*own, "method=attention_transfer", teacher, *pairs, name="pairs")
    assert task.model.layers == ["0", "1"]  # type: ignore[comparison-overlap]
    for method in ("fitnet", "crd"):
        task = trained(*own, f"method={method}", teacher, *METHODS[method], name=method)
        assert task.model.layers == (["1"] if method == "fitnet" else ["2"])  # type: ignore[comparison-overlap]
        assert task.task_method.teacher_modules == (["body.5"] if method == "fitnet" else ["body"])


def test_what_a_probe_finds() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    found = probe(network, torch.zeros(2, 1, 8, 8))
    assert found.maps() == ["0", "1"]
    assert found.features() == ["2"]
    assert found.output == (2, 3)
    assert network.training


REFUSED = {
    "method=kd": r"method\.teacher: is missing; KD learns from a run: method\.teacher=RUN",
    "method=kd method.teacher=nobody": r"method\.teacher: nobody: is no run; give a folder or a name under runs/",
    "method=kd method.teacher=three": r"method\.teacher: three was trained on 3 classes there, 10 here",
    "method=kd method.teacher=large": r"method\.teacher: large has \(1, 16, 16\) as its input shape",
    "method=kd method.teacher=begun": r"method\.teacher: runs/begun has no best weights yet; train it first",
    "method=kd method.teacher=hostile": r"method\.teacher: model\._target_: ",
    "method=dkd method.teacher=teacher method.mixup=0.2": r"method\.mixup: DKD needs each sample as it is; set it to 0",
    "method=attention_transfer method.teacher=teacher model=mlp": r"method\.layers: this network has no maps",
    "method=attention_transfer method.teacher=flat": r"method\.teacher_layers: the teacher has no maps",
    "method=fitnet method.teacher=teacher method.layers=bdy*": r"method\.layers: 'bdy\*' fits no module",
    "method=fitnet method.teacher=teacher method.layers=body.1|body.3": r"method\.layers: .*; name one pair of maps",
    "method=attention_transfer method.teacher=teacher method.layers=body.1 method.teacher_layers=body.?": "no pairs",
    "method=attention_transfer method.teacher=teacher method.layers=body method.teacher_layers=head": r"no maps \(N",
    "method=crd method.teacher=teacher method.layers=body.1|body.3 method.teacher_layers=body.1|body.3": "are several",
    "method=kd method.teacher=teacher method.unlabelled_ratio=1 runner.auto_accumulate=true": "batches of several",
}


@pytest.fixture
def runs(teacher: str) -> None:
    """Other runs that are no teachers, made of one that is."""
    trained("model=mlp", "model.width=4", name="flat")
    for name in ("three", "large", "begun", "hostile"):
        shutil.copytree("runs/teacher", f"runs/{name}")
    Path("runs/begun/checkpoints/best.pt").unlink()
    for name, info in {"three": DataInfo((1, 8, 8), 3), "large": DataInfo((1, 16, 16), 10)}.items():
        path = Path("runs") / name / "checkpoints" / "best.pt"
        save(path, load(path) | {"data_info": info.state_dict()})
    path = Path("runs/hostile/config.yaml")
    config = yaml.safe_load(path.read_text())
    config["model"]["_target_"] = "os.system"
    path.write_text(yaml.safe_dump(config))


def test_what_cannot_teach_is_one_line(runs: None) -> None:
    for number, (options, told) in enumerate(REFUSED.items()):
        with pytest.raises(ConfigError, match=told) as caught:
            TaskTrainer.compose(*SMALL, *options.split(), f"name=run{number}").train()
        assert "\n" not in str(caught.value), options

"""Learning without labels: the losses against plain formulas, what is remembered, k-NN, several processes, probes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg import BasicTask, TaskTrainer
from healsg.data.base import DataInfo, Needs, TaskData
from healsg.data.source import Batch, TensorSource
from healsg.datasets.classification import Classification
from healsg.datasets.synthetic import Synthetic
from healsg.errors import ConfigError
from healsg.evaluation.evaluator import evaluating
from healsg.losses import agreement, contrastive, reconstruction, redundancy
from healsg.methods.dino import Prototypes
from healsg.methods.gathered import gather
from healsg.methods.mae import MaskedAutoencoder
from healsg.methods.neighbours import vote
from healsg.methods.selfsupervised import SelfSupervised, perceptron, rising
from healsg.models.vit import VisionTransformer
from healsg.runs.checkpoint import load
from healsg.seeding import Draw
from helpers import WITHOUT_LABELS, in_processes

ROWS, WIDTH = 6, 5
SMALL = ["data=digits", "model=mlp", "model.width=16", "data.batch_size=256", "quiet=true", "runner.epochs=2"]
OPTIONS = {**WITHOUT_LABELS, "mae": [*WITHOUT_LABELS["mae"], "model.patch=2"]}
VIT = [option for option in OPTIONS["mae"] if option.startswith("model")]
Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FIRST, SECOND = numbers(ROWS, WIDTH), numbers(ROWS, WIDTH, seed=1)


def trained(method: str, *options: str, name: str = "run") -> BasicTask:
    trainer = TaskTrainer.compose(*SMALL, f"method={method}", *OPTIONS.get(method, []), *options, f"name={name}")
    assert trainer.train()["status"] == "finished"
    assert trainer.task is not None
    return trainer.task


def record(name: str = "run") -> dict[str, Any]:
    return json.loads((Path("runs") / name / "run.json").read_text())


def near(found: Tensor, wanted: Any, tolerance: float = 1e-11) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=tolerance, atol=tolerance)


def cosine(one: Array, other: Array) -> float:
    return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))


# --- losses ----------------------------------------------------------------------------------------------------------


def test_nt_xent() -> None:
    """Equation 1 of SimCLR, sample by sample: views 2k and 2k + 1 are a pair there; here i and i + N are."""
    views, wanted = [*FIRST.numpy(), *SECOND.numpy()], []
    for i, view in enumerate(views):
        others = [math.exp(cosine(view, other) / 0.3) for k, other in enumerate(views) if k != i]
        own = math.exp(cosine(view, views[(i + ROWS) % (2 * ROWS)]) / 0.3)
        wanted.append(-math.log(own / sum(others)))
    near(contrastive.nt_xent(FIRST, SECOND, 0.3), wanted)


def test_queue_contrast() -> None:
    queue = F.normalize(numbers(9, WIDTH, seed=2), dim=1)
    key = SECOND.clone().requires_grad_()
    wanted = []
    for query, own in zip(FIRST.numpy(), SECOND.numpy(), strict=True):
        scores = [cosine(query, own), *(cosine(query, other) for other in queue.numpy())]
        wanted.append(-math.log(math.exp(scores[0] / 0.2) / sum(math.exp(score / 0.2) for score in scores)))
    losses = contrastive.queue_contrast(FIRST.clone().requires_grad_(), key, queue, 0.2)
    near(losses, wanted)
    losses.sum().backward()
    assert key.grad is None


def test_cosine_distance_is_byols_and_simsiams() -> None:
    first, second = FIRST.numpy(), SECOND.numpy()
    units = [view / np.linalg.norm(view, axis=1, keepdims=True) for view in (first, second)]
    byol = ((units[0] - units[1]) ** 2).sum(axis=1)
    simsiam = [-cosine(one, other) for one, other in zip(first, second, strict=True)]
    near(2 * agreement.cosine_distance(FIRST, SECOND), byol)
    near(agreement.cosine_distance(FIRST, SECOND) - 1, simsiam)
    wanted = SECOND.clone().requires_grad_()
    agreement.cosine_distance(FIRST.clone().requires_grad_(), wanted).sum().backward()
    assert wanted.grad is None


def test_self_distillation() -> None:
    center, found = numbers(WIDTH, seed=2), []
    for student, teacher in zip(FIRST.numpy(), SECOND.numpy(), strict=True):
        p = np.exp((teacher - center.numpy()) / 0.4)
        q = np.exp(student / 0.7)
        found.append(-float((p / p.sum() * np.log(q / q.sum())).sum()))
    near(agreement.self_distillation(FIRST, SECOND, center, 0.7, 0.4), found)


def test_vicreg() -> None:
    """Equations 1 to 6 of the paper, with its pseudo-code's means."""
    first, second = 0.3 * FIRST.numpy(), 1.5 * SECOND.numpy()
    invariance = sum((one - other) @ (one - other) for one, other in zip(first, second, strict=True)) / ROWS / WIDTH
    variances, covariances = [], []
    for view in (first, second):
        deviations = [math.sqrt(np.var(view[:, j], ddof=1) + 1e-4) for j in range(WIDTH)]
        variances.append(sum(max(0.0, 1.0 - deviation) for deviation in deviations) / WIDTH)
        matrix = np.cov(view.T)
        covariances.append(sum(matrix[i, j] ** 2 for i in range(WIDTH) for j in range(WIDTH) if i != j) / WIDTH)
    found = redundancy.vicreg(0.3 * FIRST, 1.5 * SECOND)
    for each, wanted in zip(found, (invariance, sum(variances) / 2, sum(covariances)), strict=True):
        near(each, wanted)


def test_barlow_twins() -> None:
    wanted = 0.0
    for i in range(WIDTH):
        for j in range(WIDTH):
            correlation = np.corrcoef(FIRST[:, i].numpy(), SECOND[:, j].numpy())[0, 1]
            wanted += (1 - correlation) ** 2 if i == j else 0.02 * correlation**2
    near(redundancy.barlow_twins(FIRST, SECOND, 0.02, epsilon=0.0), wanted)


def test_spread() -> None:
    torch.testing.assert_close(float(redundancy.spread(numbers(4000, 64))), 1.0, rtol=0.02, atol=0.0)
    assert float(redundancy.spread(FIRST[:1].expand(7, -1))) < 1e-7


def test_patches_and_the_masked_error() -> None:
    images, hidden = numbers(2, 3, 4, 6), torch.tensor([[1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 1]]).double()
    patches = reconstruction.patchify(images, 2)
    wanted = [
        [images[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten().tolist() for i in range(2) for j in range(3)]
        for n in range(2)
    ]
    near(patches, wanted)
    unit = reconstruction.normalised(patches, 0.0)
    near(unit.mean(dim=2), np.zeros((2, 6)))
    near(unit.var(dim=2), np.ones((2, 6)))
    made = numbers(2, 6, 12, seed=1)
    squares = (made - patches).square().mean(dim=2).tolist()
    errors = [(squares[0][0] + squares[0][2]) / 2, (squares[1][3] + squares[1][5]) / 2]
    near(reconstruction.masked_error(made, patches, hidden), errors)


def test_the_momentum_rises_to_one() -> None:
    assert [rising(0.9, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])


def test_the_vote() -> None:
    """Wu et al. 2018: the class with the largest sum of ``exp(s / T)`` over the k nearest."""
    bank, query = F.normalize(numbers(20, WIDTH), dim=1), F.normalize(numbers(7, WIDTH, seed=3), dim=1)
    targets = torch.arange(20) % 4
    for k in (1, 5, 50):
        sums = np.zeros((7, 4))
        for row, point in enumerate(query.numpy()):
            ranked = sorted(((cosine(point, other), int(y)) for other, y in zip(bank.numpy(), targets, strict=True)))
            for similarity, y in ranked[::-1][:k]:
                sums[row, y] += math.exp(similarity / 0.1)
        found = vote(query, bank, targets, 4, k, 0.1)
        near(found * math.exp(1 / 0.1), sums, 1e-9)


# --- networks --------------------------------------------------------------------------------------------------------


def test_perceptrons() -> None:
    kinds = [type(layer).__name__ for layer in perceptron(4, 8, 8, 3)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in perceptron(4, 8, 3, norm=False)] == ["Linear", "ReLU", "Linear"]
    assert [tuple(weight.shape) for weight in perceptron(4, 8, 3).parameters() if weight.dim() == 2] == [(8, 4), (3, 8)]


def test_prototypes_are_cosines() -> None:
    head = Prototypes(6, 8, 4, 10).double()
    found, embedded = head(numbers(3, 6)).detach(), head.perceptron(numbers(3, 6)).detach()
    weight = head.prototypes.detach()
    near(found, [[cosine(one.numpy(), other.numpy()) for other in weight] for one in embedded])


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_a_masked_autoencoder_sees_what_is_shown_alone(pooling: str) -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer((1, 8, 8), 10, 2, 1, 12, 2, 24, 0.0, 0.0, pooling)
    network, images = MaskedAutoencoder(encoder, 0.75, 8, 1, 2).double(), numbers(5, 1, 8, 8)
    drawn = numbers(5, 16)
    made, hidden = network(images, drawn)
    assert made.shape == (5, 16, 4)
    assert hidden.sum(dim=1).tolist() == [12.0] * 5
    assert len({tuple(row) for row in hidden.tolist()}) > 1, "each sample hides others"
    erase = hidden.view(5, 1, 8 // 2, 8 // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    near(network(torch.where(erase > 0, 7.0, images), drawn)[0], made.detach().numpy())
    other = network(torch.where(erase > 0, images, 7.0), drawn)[0]
    assert float((other - made).detach().abs().max()) > 1e-3


# --- methods at work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_features_get_better_and_a_probe_begins_with_them(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The loss falls; ``best.pt`` holds a body that a linear probe finds, and no classifier."""
    task = trained(method, "data.batch_size=128", "runner.epochs=4", name="pretrained")
    rows = [json.loads(line) for line in Path("runs/pretrained/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if row["event"] == "epoch"]
    assert losses[-1] < losses[0] or method in ("byol", "dino", "moco"), "these aim at what moves"
    assert np.isfinite(losses).all()
    assert record("pretrained")["test"]["test/acc"] > (0.25 if method == "mae" else 0.5)
    weights = load(Path("runs/pretrained/checkpoints/best.pt"))["model"]
    assert "head.weight" not in weights
    evaluated = TaskTrainer.load("pretrained").evaluate("test")
    assert evaluated == {"acc": record("pretrained")["test"]["test/acc"]}
    capfd.readouterr()
    model = [option for option in OPTIONS[method] if option.startswith("model")]
    probe = TaskTrainer.compose(
        *[*SMALL, *model, "method=linear_probe", "init_from=pretrained", "data.labels=100", "quiet=false", "name=probe"]
    )
    probe.train()
    told = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("init_from"))
    assert "2 not in it (head.weight, head.bias)" in told
    assert ("not used (head." in told) == (method != "mae")
    assert probe.task is not None
    network = task.task_method.eval_model(task)
    for name, value in probe.task.model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, weights[name])
    assert network.state_dict().keys() == weights.keys()


def test_the_evaluation_is_a_vote_of_the_labelled() -> None:
    """Against scikit-learn: 40 labels, 7 neighbours."""
    from sklearn.neighbors import KNeighborsClassifier

    options = ["data.labels=40", "method.neighbours=7", "runner.precision=fp64", "runner.epochs=1"]
    task = trained("vicreg", *options)
    features, targets = {}, {}
    with evaluating(task.model), torch.no_grad():
        for split in ("bank", "test"):
            batches = [batch for batch, _ in task.loaders[split].batches(0)]
            made = torch.cat([task.model(batch["input"].double(), features=True) for batch in batches])  # type: ignore[operator]
            features[split] = F.normalize(made, dim=1).numpy()
            targets[split] = torch.cat([batch["target"] for batch in batches]).numpy()
    assert len(targets["bank"]) == 40
    reference = KNeighborsClassifier(7, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07))
    reference.fit(features["bank"], targets["bank"])
    assert record()["test"]["test/acc"] == pytest.approx(reference.score(features["test"], targets["test"]))


def test_the_momentum_encoder_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    from healsg.methods.byol import BYOL
    from healsg.methods.moco import MoCo

    wanted: dict[str, Tensor] = {}
    setup = SelfSupervised.setup

    def begin(self: SelfSupervised, task: BasicTask) -> None:
        setup(self, task)
        wanted.update({name: value.detach().double() for name, value in task.model.named_parameters()})

    def following(after_update: Callable[..., None], rises: bool) -> Callable[..., None]:
        def follow(self: SelfSupervised, task: BasicTask) -> None:
            after_update(self, task)
            step, total = task.runner.step_count, task.runner.total_steps
            kept = 1 - (1 - 0.9) * (math.cos(math.pi * step / total) + 1) / 2 if rises else 0.9
            for name, value in task.model.named_parameters():
                wanted[name] = kept * wanted[name] + (1 - kept) * value.detach()

        return follow

    monkeypatch.setattr(SelfSupervised, "setup", begin)
    for kind in (BYOL, MoCo):
        monkeypatch.setattr(kind, "after_update", following(kind.after_update, kind is BYOL))
    for method in ("byol", "moco"):
        task = trained(method, "method.momentum=0.9", "runner.precision=fp64", name=method)
        target = task.task_method.target
        assert isinstance(target, nn.Module)
        for name, value in target.named_parameters():
            near(value, wanted[name].numpy())
        moved = [float((value.detach() - wanted[name]).abs().max()) for name, value in task.model.named_parameters()]
        assert max(moved) > 1e-3


def test_the_queue_holds_the_newest_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 places for 1,167 keys an epoch: the last batch of 143 lies before the three of 256 that came earlier."""
    keys: list[Tensor] = []
    from healsg.methods.moco import MoCo

    enqueue = MoCo.enqueue
    monkeypatch.setattr(MoCo, "enqueue", lambda self, new: (keys.append(new.clone()), enqueue(self, new))[1])
    method: Any = trained("moco").task_method
    newest = torch.cat(keys)[-600:].roll(2 * 1167 % 600, dims=0)
    torch.testing.assert_close(method.keys, newest)
    assert int(method.queue_ptr) == 2 * 1167 % 600
    method.enqueue(F.normalize(torch.randn(700, 8), dim=1))
    assert method.keys.shape == (600, 8)


def test_the_centre_is_a_moving_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[Tensor] = []
    from healsg.methods.dino import DINO

    add = DINO.add_scores
    monkeypatch.setattr(DINO, "add_scores", lambda self, new, counts: (scores.append(new), add(self, new, counts))[1])
    task = trained("dino", "runner.precision=fp64", "method.center_momentum=0.8")
    center = torch.zeros(24, dtype=torch.float64)
    for each in scores:
        center = 0.8 * center + 0.2 * each.mean(dim=0)
    near(task.task_method.center, center.numpy())  # type: ignore[arg-type]
    assert task.task_method.eval_model(task) is task.task_method.target


def test_a_tail_of_one_sample_joins_the_batch_before() -> None:
    """1,167 = 4 * 106 * 11 / 4 + 1: BatchNorm in the projector fails on one sample of a network that has none."""
    for method in ("vicreg", "byol"):
        task = trained(method, "data.batch_size=106", "runner.epochs=1", name=method)
        assert task.runner.length == 11
        assert task.train_loader.bounds[-1] == (1060, 1167)  # type: ignore[union-attr]


def test_half_precision_takes_losses_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    plain = redundancy.vicreg

    def spied(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = plain(first, second)
        seen.update({first.dtype, *(each.dtype for each in found), (first.T @ first).dtype})
        return found

    monkeypatch.setattr("healsg.methods.vicreg.vicreg", spied)
    for precision in ("bf16", "fp16"):
        trained("vicreg", f"runner.precision={precision}", "runner.steps=2", name=precision)
    assert seen == {torch.float32}


@pytest.mark.parametrize("method", ["simclr", "dino", "mae"])
def test_schedule_free_weights_are_the_evaluated_ones(method: str) -> None:
    task = trained(method, "method/optimizer=schedule_free", "method/scheduler=constant")
    evaluated = task.task_method.eval_model(task)
    if method == "dino":
        assert evaluated is task.task_method.target
        return
    own = [*(task.model.encoder if method == "mae" else task.model).parameters()]  # type: ignore[union-attr]
    for kept, wanted in zip(evaluated.parameters(), task.optimizer.averaged(own), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(kept, wanted, rtol=0, atol=0)
        assert not torch.equal(kept, own[0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["method=mae"], r"method: mae hides patches from a transformer, not MLP; model=vit"),
        (["method=mae", *VIT, "model.patch=8"], r"method: mae hides some of .* patches, two or more; set model\.patch"),
        (["method=mae", *VIT, "method.heads=3"], r"method\.heads: 3 does not divide method\.width=64"),
        (["method=vicreg", "data.balanced=true"], r"data\.balanced: the method learns without labels; leave it out"),
        (["method=simclr", "runner.auto_accumulate=true"], r"the loss of SimCLR is no mean over samples"),
        (["method=byol", "task._target_=test_selfsupervised.Own"], r"BYOL needs views of the samples; .* own has none"),
    ],
)
def test_refusals_are_one_line(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        TaskTrainer.compose(*SMALL, "trusted=[test_selfsupervised]", *options, "name=run").train()
    assert "\n" not in str(caught.value)


class Bare(Classification):
    """A data set of one's own: 200 samples of 6 numbers; without a transform unless one is given."""

    change: Any = None

    @property
    def info(self) -> DataInfo:
        return DataInfo(input_shape=(6,), num_classes=2, class_names=("a", "b"))

    def read(self, part: str) -> TensorSource | None:
        if part in ("val", "unlabelled"):
            return None
        draw = torch.Generator().manual_seed(len(part))
        target = torch.randint(0, 2, (200,), generator=draw)
        return TensorSource(torch.randn(200, 6, generator=draw) + target[:, None], target)

    def transform(self, view: str, split: str) -> Any:
        return self.change


class Still(Bare):
    """The same with a transform that changes nothing at random."""

    change = staticmethod(lambda batch, draw: batch | {"input": batch["input"] * 2})


class Jittered(Bare):
    """The same with one that draws anew for each view."""

    @staticmethod
    def change(batch: Batch, draw: Draw | None) -> Batch:
        return batch if draw is None else batch | {"input": batch["input"] + draw.uniform(0).unsqueeze(1)}


TWO = Needs({"unlabelled": ("view1", "view2")})


@pytest.mark.parametrize(
    "data",
    [
        lambda: Bare(),
        lambda: Still(),
        lambda: Synthetic([1, 4, 4, 4], augment="none", train=50),
        lambda: Synthetic([1, 4, 4, 4], augment="standard", train=50),
    ],
)
def test_views_that_are_one_and_the_same_are_refused(data: Callable[[], TaskData]) -> None:
    with pytest.raises(ConfigError, match="view1 and view2 of each sample are the same, and the method compares them"):
        data().loaders(TWO)
    assert data().loaders(Needs({"unlabelled": ("view1",)})), "one view is compared with none"
    with pytest.raises(ConfigError, match=r"data.noise: 0 makes both views of a sample the same"):
        Synthetic([6], images=False).loaders(TWO)


def test_two_views_differ_where_something_is_random() -> None:
    for data in (Jittered(), Synthetic([6], images=False, noise=0.1), Synthetic([1, 4, 4, 4], shift=1), Synthetic()):
        batch, _ = next(iter(data.loaders(TWO)["train"].batches(0)))  # type: ignore[arg-type]
        views = batch["unlabelled"]
        assert not torch.equal(views["view1"], views["view2"])


def test_views_are_compared_before_a_run_and_change_no_number() -> None:
    """The refusal comes through the command too; where there are two views, looking at them is not felt."""
    options = ["method=simclr", *OPTIONS["simclr"], "trusted=[test_selfsupervised]", "~data.shift", "~data.flip"]
    for kind, known in (("Bare", False), ("Jittered", True)):
        own = [*options, "~data.augment", f"data._target_=test_selfsupervised.{kind}", f"name={kind}"]
        trainer = TaskTrainer.compose(*SMALL, "runner.steps=3", *own)
        if known:
            assert trainer.train()["status"] == "finished"
            continue
        with pytest.raises(ConfigError, match="Bare: view1 and view2 of each sample are the same"):
            trainer.train()


class Own(BasicTask):
    """A task with loaders of its own."""

    def build_dataloader(self) -> Any:
        raise AssertionError("refused before data are read")


# --- several processes -----------------------------------------------------------------------------------------------


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": lambda first, second: contrastive.nt_xent(first, second, 0.5).mean(),
    "vicreg": lambda first, second: torch.stack(redundancy.vicreg(first, second)).sum(),
    "barlow_twins": lambda first, second: redundancy.barlow_twins(first, second, 0.005),
}


def test_gradients_over_two_processes_are_those_of_one() -> None:
    """Uneven shares, and a process whose rows do not count."""

    def act(rank: int) -> None:
        found = {}
        for name, loss in LOSSES.items():
            for case, shares in {"uneven": ((0, 4), (4, 6)), "one counts none": ((0, 6), (0, 2))}.items():
                low, high = shares[rank]
                counts = 0 if case != "uneven" and rank else high - low
                views = [view[low:high].clone().requires_grad_() for view in (FIRST, SECOND)]
                value = loss(*(gather(view, counts) for view in views))
                (value * counts / ROWS).backward()
                found[f"{name} {case}"] = (value.detach(), [view.grad for view in views])
        torch.save(found, f"found{rank}.pt")

    in_processes(2, act)
    found = [torch.load(f"found{rank}.pt") for rank in range(2)]
    for name, loss in LOSSES.items():
        views = [view.clone().requires_grad_() for view in (FIRST, SECOND)]
        whole = loss(*views)
        whole.backward()
        for case in ("uneven", "one counts none"):
            (one, first), (two, second) = (each[f"{name} {case}"] for each in found)
            near(torch.stack([one, two]), [whole.item()] * 2)
            for view, own, other in zip(views, first, second, strict=True):
                assert view.grad is not None
                joined = torch.cat([own, other]) if case == "uneven" else own
                near(joined, view.grad.numpy())
                assert case == "uneven" or not other.any()


ALIKE = ["simclr", "vicreg", "barlow_twins", "moco", "dino", "byol"]


def test_one_and_two_processes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs without BatchNorm, batches of 200 out of 1,167 and two of them an update, the last one odd."""

    def bare(*sizes: int, norm: bool = True) -> nn.Sequential:
        return perceptron(*sizes, norm=False)

    for method in ALIKE:
        if method != "dino":
            monkeypatch.setattr(f"healsg.methods.{method}.perceptron", bare)
    options = ["data.batch_size=200", "runner.accumulate=2", "runner.precision=fp64", "runner.epochs=1"]
    options += ["method/optimizer=sgd", "method.optimizer.lr=0.1"]  # Adam makes much of a gradient that is 0

    def train(folder: str) -> None:
        for method in ALIKE:
            trained(method, *options, name=f"{folder}-{method}")
        trained("mae", *options, name=f"{folder}-mae")

    train("one")
    in_processes(2, lambda rank: train("two"))
    for method in ALIKE:
        states = [load(Path(f"runs/{folder}-{method}/checkpoints/last.pt")) for folder in ("one", "two")]
        for part in ("model", "method"):
            for key, value in states[0][part].items():
                torch.testing.assert_close(states[1][part][key], value, rtol=0, atol=1e-9, msg=f"{method} {key}")
        tests = [record(f"{folder}-{method}")["test"] for folder in ("one", "two")]
        assert tests[0] == tests[1]
    assert record("two-mae")["processes"] == 2

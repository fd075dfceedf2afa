"""Semi-supervised methods: each step against its paper's formula in float64, what is remembered, what is refused."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from healsg import DataInfo, TaskData, TaskTrainer, TensorSource
from healsg.datasets.digits import Digits
from healsg.errors import ConfigError
from healsg.losses import semi
from healsg.methods import consistency, mixmatch
from healsg.methods.consistency import SemiSupervised
from healsg.methods.fixmatch import FixMatch
from healsg.methods.flexmatch import FlexMatch
from healsg.methods.freematch import FreeMatch
from healsg.methods.mean_teacher import MeanTeacher
from healsg.methods.mixmatch import MixMatch
from healsg.methods.pseudo_label import PseudoLabel
from healsg.methods.softmatch import SoftMatch
from healsg.methods.uda import UDA
from healsg.training.parallel import Parallel
from healsg.training.step import loss_of

LABELLED, UNLABELLED, CLASSES, WIDTH, SAMPLES = 4, 9, 3, 5, 12
Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def softmax(scores: Tensor | Array) -> Array:
    values = np.asarray(scores.detach() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    exponents = np.exp(values - values.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def near(found: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=tolerance, atol=tolerance)


def sharpened(probabilities: Array, temperature: float) -> Array:
    powers = probabilities ** (1 / temperature)
    return np.stack([row / sum(row) for row in powers])


# --- pure functions --------------------------------------------------------------------------------------------------

P, Q = softmax(numbers(UNLABELLED, CLASSES)), softmax(numbers(UNLABELLED, CLASSES, seed=1))


def test_targets() -> None:
    near(semi.sharpen(torch.from_numpy(P), 0.5), sharpened(P, 0.5))
    near(semi.sharpen(torch.from_numpy(P), 1.0), P)
    tiny = torch.tensor([[1e-300, 1e-299]], dtype=torch.float64)
    near(semi.sharpen(tiny, 0.1), [[1 / (1 + 1e10), 1 / (1 + 1e-10)]])
    marginal, wanted = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    aligned = semi.align(torch.from_numpy(P), torch.from_numpy(marginal), torch.from_numpy(wanted))
    near(
        aligned,
        [
            [p * w / m for p, w, m in zip(row, wanted, marginal, strict=True)] / (row * wanted / marginal).sum()
            for row in P
        ],
    )
    labels = torch.tensor([2, 0, 2, -1, 1, 2])
    assert semi.histogram(labels, 4).tolist() == [1, 1, 3, 0]
    assert semi.histogram(labels, 4, torch.tensor([True, True, False, True, False, True])).tolist() == [1, 0, 2, 0]


def test_losses_of_predictions() -> None:
    output, label = numbers(UNLABELLED, CLASSES), torch.arange(UNLABELLED) % CLASSES
    near(semi.hard_cross_entropy(output, label), [-math.log(row[k]) for row, k in zip(P, label.tolist(), strict=True)])
    near(
        semi.squared_distance(output, torch.from_numpy(Q)),
        [sum((p - q) ** 2) / CLASSES for p, q in zip(P, Q, strict=True)],
    )


@pytest.mark.parametrize("chosen", [[0, 2, 3, 5, 8], [4], []], ids=str)
def test_fairness(chosen: list[int]) -> None:
    """With the samples picked out, as the paper writes it; classes that none of them has are left out."""
    selected = torch.zeros(UNLABELLED, dtype=torch.bool)
    selected[chosen] = True
    marginal, counts = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1])
    strong = torch.from_numpy(P.copy()).requires_grad_()
    found = semi.fairness(strong, selected, torch.from_numpy(marginal), torch.from_numpy(counts))
    picked = P[chosen]
    wanted = 0.0
    if chosen:
        mean = picked.mean(axis=0)
        histogram = np.array([(picked.argmax(axis=1) == k).mean() for k in range(CLASSES)])
        batch = np.array([m / h if h else 0.0 for m, h in zip(mean, histogram, strict=True)])
        batch, average = batch / batch.sum(), marginal / counts / (marginal / counts).sum()
        wanted = sum(a * math.log(b + 1e-12) for a, b in zip(average, batch, strict=True))
    near(found, wanted)
    (gradient,) = torch.autograd.grad(found, strong)
    assert torch.isfinite(gradient).all()
    assert not gradient[~selected].any()
    assert bool(gradient.any()) == (len(chosen) > 1)


@pytest.mark.parametrize(
    "remembered", [[-1] * 8, [0, 0, 1, -1, -1, -1, -1, -1], [0, 0, 0, 1, 1, 2, -1, 0], [2] * 8], ids=str
)
def test_curriculum_thresholds(remembered: list[int]) -> None:
    """Equations of FlexMatch with loops: beta with the warm-up, then its convex mapping."""
    learned = [sum(label == k for label in remembered) for k in range(CLASSES)]
    status = [sigma / max(*learned, len(remembered) - sum(learned)) for sigma in learned]
    found = semi.curriculum_thresholds(torch.tensor(remembered), CLASSES, 0.95)
    near(found, [0.95 * beta / (2 - beta) for beta in status], 1e-6)


def test_weights_of_confidence() -> None:
    confidence = torch.linspace(0, 1, 21, dtype=torch.float64)
    mean, variance = torch.tensor(0.6).double(), torch.tensor(0.04).double()
    wanted = [1.0 if c >= 0.6 else math.exp(-((c - 0.6) ** 2) / (2 * 0.04 / 2.0**2)) for c in confidence.tolist()]
    near(semi.truncated_gaussian(confidence, mean, variance, 2.0), wanted, 1e-7)
    near(semi.class_thresholds(torch.tensor([0.5, 0.25, 0.1]), torch.tensor(0.8)), [0.8, 0.4, 0.16], 1e-6)


def test_schedules() -> None:
    for schedule, value in {"linear": 0.3, "log": 1 - math.exp(-1.5), "exp": math.exp(-3.5)}.items():
        assert semi.signal_threshold(schedule, 0.3, 10) == pytest.approx(value * 0.9 + 0.1)
        assert semi.signal_threshold(schedule, 1.0, 10) == pytest.approx(1.0, abs=0.01)
    assert [semi.linear_ramp(t, 0.2, 0.6) for t in (0.0, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([0, 0, 0.25, 1, 1])
    assert semi.linear_ramp(0.0, 0.0, 0.0) == semi.linear_ramp(0.5, 0.5, 0.5) == 1.0
    assert [semi.sigmoid_ramp(t, 0.5) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [math.exp(-5), math.exp(-1.25), 1, 1]
    )
    assert semi.sigmoid_ramp(0.0, 0.0) == 1.0


# --- a step of each method -------------------------------------------------------------------------------------------


def nullcontext_of(batch: dict[str, Any]) -> contextlib.nullcontext[None]:
    """What the runner of one process says of what is drawn together."""
    return contextlib.nullcontext()


class Case:
    """A method on a linear network, a batch of invented numbers, and what the network says of it."""

    def __init__(self, method: SemiSupervised, progress: tuple[int, int] = (30, 100)) -> None:
        self.method = method
        self.network = nn.Linear(WIDTH, CLASSES).double()
        with torch.no_grad():
            self.network.weight.copy_(numbers(CLASSES, WIDTH, seed=5, scale=1.0))
            self.network.bias.zero_()
        source = TensorSource(torch.zeros(SAMPLES, WIDTH), torch.zeros(SAMPLES).long())
        self.calls = list[int]()
        self.task = SimpleNamespace(
            model=self.network,
            net=self.net,
            criterion=nn.CrossEntropyLoss(),
            info=DataInfo((WIDTH,), CLASSES),
            task_method=method,
            train_loader=Loaderlike(source),
            runner=SimpleNamespace(
                step_count=progress[0],
                total_steps=progress[1],
                epoch=0,
                drawn_together=nullcontext_of,
                record_pseudo_labels=lambda *given: None,
            ),
        )
        method.setup(self.task)  # type: ignore[arg-type]
        method.double()
        self.target = torch.tensor([0, 2, 1, 0])
        self.views = {view: numbers(UNLABELLED, WIDTH, seed=seed) for seed, view in enumerate(method.views, 11)}
        self.index = torch.tensor([3, 0, 7, 7, 11, 2, 5, 6, 1])
        self.input = numbers(LABELLED, WIDTH, seed=10)
        self.labels = np.eye(CLASSES)[self.target]

    def net(self, input: Tensor) -> Tensor:
        self.calls.append(len(input))
        output: Tensor = self.network(input)
        return output

    def step(self) -> dict[str, Tensor]:
        labelled = {"input": self.input, "target": self.target, "index": torch.arange(LABELLED)}
        batch = {"labelled": labelled, "unlabelled": {**self.views, "index": self.index}}
        logs = self.method.train_step(self.task, batch)  # type: ignore[arg-type]
        return {name: loss_of(value).value for name, value in logs.items()}

    def predicted(self, view: str | None = None) -> Array:
        """By softmax in NumPy."""
        return softmax(self.network(self.input if view is None else self.views[view]))

    def supervised(self) -> float:
        return float(np.mean([-math.log(p[k]) for p, k in zip(self.predicted(), self.target.tolist(), strict=True)]))


class Loaderlike:
    def __init__(self, source: TensorSource) -> None:
        self.sources = {"labelled": source, "unlabelled": source}


@pytest.fixture(autouse=True)
def _loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "Loader", (consistency.Loader, Loaderlike))


def made(kind: type[SemiSupervised], **settings: Any) -> SemiSupervised:
    return kind(optimizer=torch.optim.SGD, **settings)


def pseudo(weak: Array, strong: Array, weight: Any) -> float:
    """``mean_b weight_b (- log strong_b[argmax weak_b])``."""
    losses = [w * -math.log(q[p.argmax()]) for p, q, w in zip(weak, strong, weight, strict=True)]
    return sum(losses) / len(losses)


def test_fixmatch() -> None:
    case = Case(made(FixMatch, threshold=0.7, unlabelled_weight=0.5))
    logs = case.step()
    weak, strong = case.predicted("weak"), case.predicted("strong")
    sure = weak.max(axis=1) >= 0.7
    assert 0 < sure.sum() < UNLABELLED
    near(logs["loss"], case.supervised() + 0.5 * pseudo(weak, strong, sure))
    near(logs["unlabelled"], pseudo(weak, strong, sure))
    near(logs["selected"], sure.mean())
    assert case.calls == [LABELLED + 2 * UNLABELLED]


def test_only_the_strong_views_learn_from_unlabelled_samples() -> None:
    case = Case(made(FixMatch, threshold=0.7))
    for view in case.views.values():
        view.requires_grad_()
    case.step()["loss"].backward()
    assert not case.views["weak"].grad.any()  # type: ignore[union-attr]
    assert case.views["strong"].grad.any()  # type: ignore[union-attr]


def test_flexmatch() -> None:
    """Two steps: what is remembered after the first sets the thresholds of the second."""
    case = Case(made(FlexMatch, threshold=0.7))
    weak, strong = case.predicted("weak"), case.predicted("strong")
    near(case.step()["loss"], case.supervised() + pseudo(weak, strong, np.ones(UNLABELLED)), 1e-6)
    remembered = [-1] * SAMPLES
    for place, p in zip(case.index.tolist(), weak, strict=True):
        if p.max() > 0.7:
            remembered[place] = max(remembered[place], int(p.argmax()))
    case.method.remember()  # type: ignore[operator]
    found: Tensor = case.method.remembered  # type: ignore[assignment]
    assert found.tolist() == remembered
    learned = [remembered.count(k) for k in range(CLASSES)]
    beta = [sigma / max(*learned, remembered.count(-1)) for sigma in learned]
    sure = [p.max() > 0.7 * beta[p.argmax()] / (2 - beta[p.argmax()]) for p in weak]
    logs = case.step()
    near(logs["loss"], case.supervised() + pseudo(weak, strong, sure), 1e-6)
    near(logs["threshold"], np.mean([0.7 * b / (2 - b) for b in beta]), 1e-6)


def test_flexmatch_remembers_the_first_class_as_any_other() -> None:
    """-1 alone is not sure; a sample of class 0 is remembered, and takes the place of another class."""
    method = made(FlexMatch, threshold=0.7)
    Case(method)
    method.remembered.fill_(-1)
    method.note({"index": torch.tensor([1, 2, 4])}, torch.tensor([0, 3, -1]))
    method.remember()
    assert method.remembered[:5].tolist() == [-1, 0, 3, -1, -1]
    method.note({"index": torch.tensor([2, 1])}, torch.tensor([0, -1]))
    method.remember()
    assert method.remembered[:5].tolist() == [-1, 0, 0, -1, -1]


def test_freematch() -> None:
    case = Case(made(FreeMatch, momentum=0.2, fairness_weight=0.3, unlabelled_weight=0.5))
    weak, strong = case.predicted("weak"), case.predicted("strong")
    tau, marginal, shares = 1 / CLASSES, np.full(CLASSES, 1 / CLASSES), np.full(CLASSES, 1 / CLASSES)
    for _ in range(3):
        logs = case.step()
        tau = 0.2 * tau + 0.8 * weak.max(axis=1).mean()
        marginal = 0.2 * marginal + 0.8 * weak.mean(axis=0)
        shares = 0.2 * shares + 0.8 * np.eye(CLASSES)[weak.argmax(axis=1)].mean(axis=0)
        sure = np.array([p.max() >= marginal[p.argmax()] / marginal.max() * tau for p in weak])
        assert 0 < sure.sum() < UNLABELLED
        picked = strong[sure]
        histogram = np.array([(picked.argmax(axis=1) == k).mean() for k in range(CLASSES)])
        batch = np.array([m / h if h else 0.0 for m, h in zip(picked.mean(axis=0), histogram, strict=True)])
        average = marginal / shares
        terms = zip(average / average.sum(), batch / batch.sum(), strict=True)
        fair = sum(a * math.log(b + 1e-12) for a, b in terms)
        wanted = case.supervised() + 0.5 * pseudo(weak, strong, sure) + 0.3 * fair
        near(logs["loss"], wanted, 1e-6)
        near(logs["threshold"], tau, 1e-6)


@pytest.mark.parametrize("alignment", [False, True])
def test_softmatch(alignment: bool) -> None:
    case = Case(made(SoftMatch, momentum=0.6, alignment=alignment, unlabelled_weight=0.5))
    weak, strong = case.predicted("weak"), case.predicted("strong")
    mean, variance, marginal = 1 / CLASSES, 1.0, np.full(CLASSES, 1 / CLASSES)
    for _ in range(3):
        logs = case.step()
        marginal = 0.6 * marginal + 0.4 * weak.mean(axis=0)
        seen = weak / marginal / CLASSES if alignment else weak
        confidence = (seen / seen.sum(axis=1, keepdims=True)).max(axis=1)
        mean = 0.6 * mean + 0.4 * confidence.mean()
        variance = 0.6 * variance + 0.4 * confidence.var(ddof=1)
        weight = [1.0 if c >= mean else math.exp(-((c - mean) ** 2) / (2 * variance / 4)) for c in confidence]
        near(logs["loss"], case.supervised() + 0.5 * pseudo(weak, strong, weight), 1e-6)
        near(logs["selected"], np.mean(weight), 1e-6)


@pytest.mark.parametrize("annealing", ["none", "linear"])
def test_uda(annealing: str) -> None:
    case = Case(made(UDA, threshold=0.7, temperature=0.4, unlabelled_weight=0.5, annealing=annealing))
    weak, strong = case.predicted("weak"), case.predicted("strong")
    pairs = zip(sharpened(weak, 0.4), strong, weak, strict=True)
    losses = [-(target * np.log(q)).sum() * (p.max() > 0.7) for target, q, p in pairs]
    case.target[:2] = torch.from_numpy(case.predicted()[:2].argmax(axis=1))
    right = [p[k] for p, k in zip(case.predicted(), case.target.tolist(), strict=True)]
    highest = 0.3 * (1 - 1 / CLASSES) + 1 / CLASSES if annealing == "linear" else 1.0
    kept = [-math.log(p) for p in right if p <= highest]
    assert annealing == "none" or 0 < len(kept) < LABELLED
    near(case.step()["loss"], np.mean(kept) + 0.5 * np.mean(losses))


def test_pseudo_label() -> None:
    case = Case(made(PseudoLabel, ramp_start=0.2, ramp_end=0.6, unlabelled_weight=3.0))
    weak = case.predicted("weak")
    near(case.step()["loss"], case.supervised() + 3.0 * 0.25 * pseudo(weak, weak, np.ones(UNLABELLED)))


def test_mean_teacher() -> None:
    """The teacher's weights follow the network's after each update, and are evaluated."""
    case = Case(made(MeanTeacher, ramp=0.6, unlabelled_weight=10.0, ema=0.5))
    first = case.network.weight.detach().clone()
    with torch.no_grad():
        case.network.weight += numbers(CLASSES, WIDTH, seed=6)
    teacher = softmax(case.views["weak"] @ first.T + case.network.bias)
    distance = ((case.predicted("input") - teacher) ** 2).mean()
    near(case.step()["loss"], case.supervised() + 10.0 * math.exp(-5 * 0.25) * distance)
    assert case.calls == [LABELLED + UNLABELLED]
    task: Any = case.task
    task.runner.batch_count, task.runner.length = 1, 10
    with torch.no_grad():
        case.method.after_update(task)
    near(case.method.eval_model(task).weight, 0.5 * first + 0.5 * case.network.weight.detach())  # type: ignore[arg-type]


def test_mixmatch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(made(MixMatch, temperature=0.5, unlabelled_weight=8.0, ramp=0.6))
    total = LABELLED + 2 * UNLABELLED
    torch.manual_seed(0)
    partner, share = mixmatch.partners(total, 0.75, case.input)
    assert sorted(partner.tolist()) == list(range(total))
    assert float(share.min()) >= 0.5
    assert len(share.unique()) == total
    monkeypatch.setattr(mixmatch, "partners", lambda *given: (partner, share))
    guess = sharpened((case.predicted("weak") + case.predicted("input")) / 2, 0.5)
    inputs = torch.cat([case.input, case.views["weak"], case.views["input"]]).numpy()
    targets = np.concatenate([case.labels, guess, guess])
    supervised, distance = [], []
    for row, (other, own) in enumerate(zip(partner.tolist(), share.tolist(), strict=True)):
        target = own * targets[row] + (1 - own) * targets[other]
        scores = case.network(torch.from_numpy(own * inputs[row] + (1 - own) * inputs[other]))
        (p,) = softmax(scores[None])
        if row < LABELLED:
            supervised.append(-(target * np.log(p)).sum())
        else:
            distance.append(((target - p) ** 2).sum() / CLASSES)
    near(case.step()["loss"], np.mean(supervised) + 0.5 * 8.0 * np.mean(distance), 1e-10)


@pytest.mark.parametrize("kind", [FixMatch, FlexMatch, FreeMatch, SoftMatch, UDA, PseudoLabel, MeanTeacher, MixMatch])
def test_a_method_tells_what_it_takes_its_samples_for(kind: type[SemiSupervised]) -> None:
    """So that a ledger compares it with the true classes, after the fact."""
    assert kind.records_pseudo_labels
    case = Case(made(kind))
    told: list[Any] = []
    case.task.runner.record_pseudo_labels = lambda *given: told.append(given)
    logs = case.step()
    ((stream, scores, *weight),) = told
    assert stream["index"] is case.index
    guess = case.predicted("weak")
    if kind is MixMatch:
        guess = sharpened((guess + case.predicted("input")) / 2, 0.5)
    near(softmax(scores), guess)
    if "selected" in logs:
        near(logs["selected"], weight[0].mean())


def test_what_several_processes_tell_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process brings three samples of its own to the means, and its classes to the memory."""
    own, other = numbers(5, 2), numbers(3, 2, seed=1)
    said = torch.cat([other.sum(dim=0), torch.tensor([3.0]).double()])
    two = Parallel(world=2)
    monkeypatch.setattr(consistency.distributed, "processes", lambda: two)
    monkeypatch.setattr(two, "sum", lambda value: value + said)
    near(consistency.mean_over_all(own), torch.cat([own, other]).mean(dim=0))
    method: Any = Case(made(FlexMatch)).method
    theirs = torch.tensor([-1, 2, 1] + [-1] * (SAMPLES - 3))
    monkeypatch.setattr(two, "largest", lambda told: torch.maximum(told, theirs))
    method.remembered[5] = 2
    method.note({"index": torch.tensor([0, 1, 5, 0])}, torch.tensor([1, 0, -1, -1]))
    method.remember()
    assert method.remembered.tolist() == [1, 2, 1, -1, -1, 2] + [-1] * (SAMPLES - 6)


# --- on data ---------------------------------------------------------------------------------------------------------


class Bare(TaskData):
    """Labelled samples, and no others."""

    @property
    def info(self) -> DataInfo:
        return DataInfo((1, 8, 8), 10)


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        (Bare, "multiclass", "data: Bare gives no unlabelled samples, which FixMatch needs"),
        (Digits, "multilabel", "method: FixMatch needs one class a sample, and this task is multilabel"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: type[TaskData], kind: str, told: str) -> None:
    info = DataInfo((1, 8, 8), 10, kind=kind)
    task: Any = SimpleNamespace(task_data=data(), info=info)
    with pytest.raises(ConfigError, match=told):
        made(FixMatch).check(task)


def test_no_samples_are_mixed_where_a_task_has_loaders_of_its_own() -> None:
    task: Any = SimpleNamespace(task_data=Digits(), info=None)
    with pytest.raises(ConfigError, match=r"method\.mixup: FixMatch learns from unlabelled samples"):
        made(FixMatch, mixup=0.2).check(task)


def test_a_loader_without_unlabelled_samples_is_refused() -> None:
    task: Any = Case(made(FixMatch)).task
    del task.train_loader.sources["unlabelled"]
    with pytest.raises(ConfigError, match="build_dataloader: FixMatch needs batches of `labelled` and `unlabelled`"):
        made(FixMatch).setup(task)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["method=fixmatch", "method.mixup=0.2"], r"method\.mixup: FixMatch .* set it to 0"),
        (["method=uda", "method.cutmix=1"], r"method\.cutmix: UDA"),
        (["method=fixmatch", "method.swa=0.5"], r"method\.ema: method\.swa averages"),
        (["method=mean_teacher", "method.ema=0"], r"method\.ema: is the decay of the teacher"),
        (["method=pseudo_label", "method.ramp_start=0.7"], r"method\.ramp_start: 0\.7 lies after"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TaskTrainer.compose("data=digits", "model=mlp", "quiet=true", *options).train()


FEW = ["data=digits", "data.labels=40", "data.batch_size=40", "data.augment=strong", "quiet=true", "name=run"]


def epochs() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path("runs/run/metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "epoch"]


def test_an_optimizer_that_averages_is_the_teacher() -> None:
    options = ["method=mean_teacher", "method/optimizer=schedule_free", "method/scheduler=constant"]
    trainer = TaskTrainer.compose(*FEW, "model=mlp", *options, "runner.steps=4")
    assert trainer.train()["status"] == "finished"
    task = trainer.task
    assert task is not None
    weights = list(task.task_method.eval_model(task).parameters())
    averaged = task.optimizer.averaged(list(task.model.parameters()))  # type: ignore[attr-defined]
    for kept, wanted, own in zip(weights, averaged, task.model.parameters(), strict=True):
        assert torch.equal(kept, wanted)
        assert not torch.equal(kept, own)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["flexmatch", "freematch", "softmatch", "mean_teacher", "mixmatch"])
def test_half_precision(method: str, precision: str) -> None:
    settings = [f"method={method}", f"runner.precision={precision}", "runner.limit_batches=2", "runner.epochs=2"]
    trainer = TaskTrainer.compose(*FEW, "model=mlp", "model.width=16", *settings)
    assert trainer.train()["status"] == "finished"
    assert trainer.task is not None
    state = {**trainer.task.model.state_dict(), **trainer.task.task_method.state_dict()}
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert all(np.isfinite(row["train/loss"]) for row in epochs())


def test_few_labels_and_the_rest_without() -> None:
    """On 40 labels of 1,167 the thresholds rise with what is learned; benchmarks/methods measures what comes of it."""
    settings = ["method=flexmatch", "method.threshold=0.8", "method.unlabelled_ratio=3", "method.optimizer.lr=1e-2"]
    result = TaskTrainer.compose(*FEW, "model=cnn", "model.width=12", *settings, "runner.steps=100").train()
    rows = epochs()
    assert {"train/supervised", "train/unlabelled", "train/selected", "train/threshold"} <= set(rows[-1])
    assert rows[0]["train/threshold"] < 0.001 < 0.03 < rows[-1]["train/threshold"]
    assert rows[-1]["train/unlabelled"] < rows[0]["train/unlabelled"]
    assert result["test"]["test/acc"] > 0.7

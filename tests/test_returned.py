"""What a user's own classes return that cannot be used is one line, and no run learns nothing in silence."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from healsg.data.foreign import ForeignLoader, wrap_loader
from healsg.data.info import DataInfo
from healsg.errors import ConfigError, DataError, HealsgError
from healsg.metric import Metric, computed
from healsg.training import returned
from healsg.training.step import Mean
from helpers import lines, record, trainer

NETWORK = torch.nn.Linear(2, 2)
LOSS = NETWORK.weight.mean()

OWN = """
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from healsg import BasicTask, DataInfo, TaskData, TaskMethod, TaskModel, TensorSource


def points(rows, dtype=torch.float32):
    inputs = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))
    return inputs.to(dtype), (inputs.sum(dim=1) > 0).long()


class Points(TaskData):
    info = DataInfo(input_shape=(8,), num_classes=2)

    def read(self, part):
        return None if part == "val" else TensorSource(*points(40))


class ArrayPoints(Points):
    def read(self, part):
        return TensorSource(*(value.numpy() for value in points(40)))


class ThirdClass(Points):
    def read(self, part):
        return TensorSource(points(40)[0], points(40)[1] + 1)


class Ignored(Points):
    def read(self, part):
        targets = points(40)[1]
        targets[:5] = 255
        return TensorSource(points(40)[0], targets)


class Unread(TaskData):
    info = Points.info


class Unmade(Points):
    def __init__(self, **common):
        pass


class Wide(TaskModel):
    def build(self, info):
        return torch.nn.Linear(8, 7)


class Embedding(Wide):  # its criterion takes no scores of classes
    def criterion(self, info):
        return lambda output, target: output.pow(2).mean()

    def metrics(self, info):
        return {}


class Ignoring(TaskModel):
    def build(self, info):
        return torch.nn.Linear(8, 2)

    def criterion(self, info):
        return torch.nn.CrossEntropyLoss(ignore_index=255)


class Unbuilt(TaskModel):
    pass


class Linear(TaskModel):
    def build(self, info):
        return torch.nn.Linear(8, 2)


class Method(TaskMethod):
    def train_step(self, task, batch):
        return self.scalars(cross_entropy(task.net(batch["input"]), batch["target"]))


class Vector(Method):
    def scalars(self, loss):
        return {"loss": loss, "scores": torch.zeros(3)}


class Undefined(TaskMethod):
    pass


class Bound(TaskMethod):
    def __init__(self, **common):
        super().__init__(**common)
        self.train_step = lambda task, batch: {"loss": task.criterion(task.net(batch["input"]), batch["target"])}


class Following(Bound):
    def __init__(self, **common):
        super().__init__(**common)
        self.after_update = lambda task: updates.append(task.runner.step_count)


updates = []


class Headed(Method):
    def scalars(self, loss):
        return {"loss": loss}

    def extend_network(self, task, network):
        return torch.nn.Sequential(network, torch.nn.Linear(2, 2))

    def setup(self, task):
        assert len(task.model) == 2
        super().setup(task)

    def evaluated(self, network):
        return torch.nn.Sequential(network, torch.nn.Linear(2, 2))


class Assigning(Headed):
    def extend_network(self, task, network):
        return network

    def setup(self, task):
        task.model = torch.nn.Sequential(task.model, torch.nn.Linear(2, 2))
        super().setup(task)


class Task(BasicTask):
    dtype = torch.float32

    def build_dataloader(self):
        return [DataLoader(TensorDataset(*points(rows, self.dtype)), batch_size=16) for rows in (64, 32)]

    def build_model(self):
        return torch.nn.Linear(8, 2)

    def build_criterion(self):
        return torch.nn.CrossEntropyLoss()


class BySample(Task):
    def build_criterion(self):
        return torch.nn.CrossEntropyLoss(reduction="none")


class OtherParameters(Task):
    def build_optimizer(self):
        return self.task_method.optimizer_over([{"params": [torch.nn.Parameter(torch.zeros(2))]}])


class Double(Task):
    dtype = torch.float64


class Keys(Task):
    def build_dataloader(self):
        rows = [{"image": image, "label": label} for image, label in zip(*points(32))]
        return DataLoader(rows, batch_size=16), None


class NoNumbers(Task):
    def run_epoch(self):
        self.train_epoch.run()


class Foreign(Task):
    def run_epoch(self):
        return {"train": self.train_epoch.run(), "own": {"a": torch.tensor(2.0), "b": np.float64(0.5)}}


class OneElement(Task):
    def build_criterion(self):
        return lambda output, target: cross_entropy(output, target).reshape(1)


class NoParts(Task):
    def __init__(self):
        super().__init__()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A trainer with classes of ``OWN`` in the place of the parts, by group."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own", None)

    def made(**named: str) -> Any:
        run = trainer("data=digits", "model=mlp", "method=adamw", "runner.epochs=1", "quiet=true", "name=own")
        for group, name in named.items():
            common = {"method": ("optimizer", "scheduler"), "data": ("batch_size", "val_fraction")}.get(group, ())
            node = run.composed.values[group]
            run.composed.values[group] = {"_target_": f"own.{name}", **{key: node[key] for key in common}}
        return run

    yield made
    sys.modules.pop("own", None)


def one_epoch(run: Any) -> None:
    """Build the task and train for an epoch, without a run's folder."""
    task = run.make_task()
    task.build()
    numbers = task.runner.epoch_numbers(task, task.run_epoch(), 0.0)
    task.runner.best_tracker.update(numbers, task.directions())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BySample", "the loss: has the shape (16,); return its mean"),
        ("OtherParameters", "build_optimizer: none of its parameters belongs to the network"),
        ("Double", "the input of the batch is float64"),
        ("Keys", "the batch has image, label, index, and no input"),
        ("NoNumbers", "run_epoch: returned NoneType"),
        ("NoParts", "task: own.NoParts.__init__ cannot take the parts of a task"),
    ],
)
def test_what_a_task_of_ones_own_returns_wrongly_is_one_line(own: Any, name: str, words: str) -> None:
    with pytest.raises(HealsgError) as found:
        one_epoch(own(task=name))
    assert words in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"data": "ArrayPoints"}, "ArrayPoints.read('train'): TensorSource holds ndarray"),
        ({"data": "ThirdClass"}, "is 2; the classes are 0 to 1"),
        ({"data": "Unread"}, "data: Unread: defines no read"),
        ({"data": "Unmade"}, "Unmade.__init__: does not call that of TaskData"),
        (
            {"data": "Points", "model": "Wide"},
            "model: the network gives 7 outputs a sample, and the data have 2 classes",
        ),
        ({"data": "Points", "model": "Linear", "method": "Vector"}, "train_step: 'scores' has the shape (3,)"),
        ({"method": "Undefined"}, "method: Undefined: defines no train_step"),
    ],
)
def test_what_parts_of_ones_own_return_wrongly_is_one_line(own: Any, parts: dict[str, str], words: str) -> None:
    with pytest.raises(HealsgError) as found:
        one_epoch(own(**parts))
    assert words in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"data": "Points", "model": "Embedding"},
        {"data": "Ignored", "model": "Ignoring"},
        {"data": "Unread", "model": "Unbuilt", "task": "Task"},
        {"task": "Task", "method": "Bound"},
    ],
)
def test_what_no_part_of_a_run_calls_is_not_asked_for(own: Any, parts: dict[str, str]) -> None:
    own(**parts).train()
    assert record("own")["status"] == "finished"


@pytest.mark.parametrize("parts", [{"data": "Unread"}, {"model": "Unbuilt"}, {"method": "Undefined"}])
def test_a_class_that_lacks_a_method_leaves_no_run_behind(own: Any, parts: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="defines no"):
        own(**parts).train()
    assert not Path("runs/own").exists()


def test_a_hook_that_is_set_on_the_object_is_called(own: Any) -> None:
    run = own(task="Task", method="Following")
    run.train()
    assert sys.modules["own"].updates == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["Headed", "Assigning"])
def test_a_method_may_train_and_evaluate_another_network(own: Any, method: str) -> None:
    run = own(data="Points", model="Linear", method=method)
    run.train()
    assert len(run.task.model) == 2
    assert run.evaluate()["acc"] == record("own")["test"]["test/acc"], "with the weights of both of its parts"


def rates(*given: Any) -> torch.optim.Optimizer:
    """Of the weight and, where there is a second one, of the bias."""
    parameters = zip(NETWORK.parameters(), given, strict=False)
    return torch.optim.SGD([{"params": [parameter], "lr": rate} for parameter, rate in parameters])


def grouped(settings: dict[str, Any]) -> torch.optim.Optimizer:
    group = {"params": NETWORK.parameters(), **settings}
    return returned.optimizer(torch.optim.SGD([group], lr=0.1, momentum=0.9), NETWORK)


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (returned.network, torch.nn.Linear, "build_model: returned the class Linear"),
        (returned.network, torch.nn.LazyLinear(2), "build_model: the shape of weight is not known yet"),
        (returned.criterion, torch.nn.CrossEntropyLoss, "build_criterion: returned the class CrossEntropyLoss"),
        (returned.criterion, None, "build_criterion: returned NoneType"),
        (lambda value: returned.optimizer(value, NETWORK), [], "build_optimizer: returned list; return one"),
        (
            lambda value: returned.optimizer(value, NETWORK),
            torch.optim.Adam,
            "build_optimizer: returned the class Adam",
        ),
        (lambda rate: returned.optimizer(rates(rate), NETWORK), math.nan, "build_optimizer: its lr is nan, which"),
        (lambda rate: returned.optimizer(rates(rate), NETWORK), torch.tensor(math.inf), "its lr is inf"),
        (grouped, {"lr": None}, "build_optimizer: a group of parameters has lr=None, which is not a number; leave"),
        (
            grouped,
            {"lr": "0.1"},
            "build_optimizer: a group of parameters has lr='0.1', which is not a number",
        ),
        (lambda rate: returned.optimizer(rates(0.1, rate), NETWORK), math.nan, "build_optimizer: its lr is nan, which"),
        (returned.scheduler, torch.optim.lr_scheduler.StepLR, "build_scheduler: returned the class StepLR"),
        (returned.epoch_numbers, {"train": {}, "own": 3.0}, "run_epoch: returned float for 'own'"),
        (returned.epoch_numbers, {"own": {"a": torch.ones(2)}}, "run_epoch: own/a: is Tensor; give a number"),
        (returned.explain_step, None, "train_step: returned NoneType"),
        (returned.explain_step, {"mine": LOSS}, "train_step: returned mine, and no loss"),
        (returned.explain_step, {"loss": 3.0}, "the loss: is float"),
        (returned.explain_step, {"loss": LOSS.detach()}, "the loss: has no gradient"),
        (returned.explain_step, {"loss": LOSS + Mean(torch.ones(2), 3)}, "the loss: has the shape (2,)"),
        (returned.explain_scalars, {"loss": LOSS, "name": "text"}, "train_step: 'name' is str"),
    ],
)
def test_what_cannot_be_used_is_named_by_what_returned_it(check: Any, value: Any, words: str) -> None:
    with pytest.raises(HealsgError) as found:
        check(value)
    assert words in str(found.value)


def test_what_can_be_used_is_passed_on() -> None:
    assert grouped({"lr": np.float32(0.5), "foreach": None}).param_groups[0]["lr"] == 0.5
    task_loss = NETWORK(torch.ones(3, 2)).mean() + 2 * Mean(LOSS, 3)
    returned.explain_step({"loss": task_loss, "other": 3})
    returned.explain_scalars({"loss": torch.ones(1), "count": 3})
    assert returned.scheduler(None) is None
    made = torch.optim.SGD(NETWORK.parameters(), lr=0.1)
    made.param_groups[0]["weight_decay"] = None
    assert returned.optimizer(made, NETWORK) is made
    assert returned.network(NETWORK) is NETWORK


def test_numbers_of_tensors_and_numpy_are_written_as_numbers(own: Any) -> None:
    own(task="Foreign").train()
    row = next(row for row in lines("own") if row["event"] == "epoch")
    assert (row["own/a"], row["own/b"]) == (2.0, 0.5)


def test_a_loss_of_one_element_is_measured_in_an_evaluation_too(own: Any) -> None:
    assert own(task="OneElement").train()["status"] == "finished"
    assert record("own")["best"]["value"] is not None


class Share(Metric):
    """Its value and what a batch adds are given."""

    def __init__(self, measured: Any, value: Any) -> None:
        super().__init__()
        self.measured, self.number = measured, value

    def measure(self, output: Any, target: Any) -> Any:
        return self.measured

    def value(self, state: Any) -> Any:
        return self.number


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (torch.tensor([2.0]), 2.0), ({"a": np.int64(3)}, {"a": 3})],
)
def test_a_metric_may_give_a_number_of_torch_or_numpy(value: Any, plain: Any) -> None:
    metric = Share(torch.ones(2), value)
    metric.update(torch.zeros(1), torch.zeros(1))
    found = computed(metric.compute([metric.packed()]))
    assert found == plain
    assert type(found) in (float, dict)


@pytest.mark.parametrize("measured", [3, torch.tensor(1.0)])
def test_a_metric_that_measures_no_vector_is_one_line(measured: Any) -> None:
    with pytest.raises(HealsgError, match=r"Share.measure: returned .*; return a vector of sums"):
        Share(measured, 0.0).update(torch.zeros(1), torch.zeros(1))


def test_an_own_batch_sampler_keeps_its_order() -> None:
    held = TensorDataset(torch.rand(10, 2), torch.arange(10))
    sampler = BatchSampler(RandomSampler(held), 4, drop_last=False)
    loader = wrap_loader(DataLoader(held, batch_sampler=sampler), "train")
    assert isinstance(loader, ForeignLoader)
    dealt = torch.cat([batch["target"] for batch in loader]).tolist()
    assert sorted(dealt) == list(range(10)) != dealt


def test_class_names_are_as_many_as_classes() -> None:
    with pytest.raises(ConfigError, match="2 class_names for num_classes=3"):
        DataInfo(input_shape=(2,), num_classes=3, class_names=("a", "b"))


def test_a_target_of_no_class_is_one_line(own: Any, tmp_path: Path) -> None:
    text = (tmp_path / "own.py").read_text()
    (tmp_path / "own.py").write_text(text.replace("(inputs.sum(dim=1) > 0).long()", "(inputs.sum(dim=1) > 0) * 5"))
    with pytest.raises(DataError, match="a target is 5, which is no class"):
        own(task="Task").train()

"""A composed configuration against its constructors: one line for each mistake."""

from __future__ import annotations

import contextlib
import copy
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from healsg.config.check import check, explain_addition, explain_option, explain_unknown, explain_word, option_of
from healsg.config.compose import Composer
from healsg.config.signature import constructor
from healsg.errors import ConfigError
from helpers import REPOSITORY

SOURCE = """
from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from healsg.types import Count, NonNegative, Positive, Share

@dataclass
class Top:
    seed: Count
    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    runner: Any = None
    data: Any = None
    task: Any = None

class Method:
    def __init__(self, optimizer: Callable[..., Any], scheduler: Method | None = None): ...

class Supervised(Method):
    def __init__(self, label_smoothing: Share = 0.0, weights: list[NonNegative] | None = None, **common: Any):
        super().__init__(**common)

class Runner:
    def __init__(self, epochs: Count = 30, precision: Literal["fp32", "bf16"] = "fp32", clip: Positive | None = None,
        device: str | int = "auto", compile: bool = False, callbacks: dict[str, Any] | None = None): ...

class Data:
    def __init__(self, folder: str, sizes: dict[str, Count] | None = None, fill: Any = None): ...

class Task:
    def __init__(self, config: Any, model: Any): ...
"""

CONFIG: dict[str, Any] = {
    "seed": 1,
    "name": None,
    "args": {},
    "method": {
        "_target_": "my_parts.Supervised",
        "label_smoothing": 0.1,
        "weights": [1, 0.5],
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "_partial_": True,
            "lr": 0.1,
            "betas": [0.9, 0.99],
            "weight_decay": 0,
            "fused": None,
        },
        "scheduler": None,
    },
    "runner": {"_target_": "my_parts.Runner", "epochs": 3, "precision": "bf16", "clip": None, "callbacks": {}},
    "data": {"_target_": "my_parts.Data", "folder": "data", "sizes": {"train": 3}},
    "task": {"_target_": "my_parts.Task"},
}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_parts.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, leaf = key.split(".")
    node: Any = config
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return config


def run(config: Any, project: Path) -> None:
    check(config, schema_target="my_parts.Top", project=[project])


GOOD = [
    ("seed", 7),
    ("name", "exp1"),
    ("args", {"anything": [1, {"x": None}]}),
    ("method.label_smoothing", 0),
    ("method.weights", None),
    ("method.optimizer.lr", 1e-3),
    ("method.optimizer.fused", True),
    ("method.scheduler", {"_target_": "my_parts.Supervised", "optimizer": {"_target_": "torch.nn.ReLU"}}),
    ("runner.device", 0),
    ("runner.callbacks", {"stop": {"_target_": "my_parts.Runner", "_convert_": "all", "_recursive_": False}}),
    ("data.fill", [1, "x", {"_target_": "torch.nn.ReLU"}]),
]

BAD = [
    ("method.lable_smoothing", 0.1, "Supervised takes no lable_smoothing; did you mean label_smoothing?"),
    ("runner.zzz", 1, "Runner takes no zzz; it takes epochs, precision, clip, device, compile, callbacks"),
    ("runner.epochs", "abc", "'abc' is not a whole number (int >= 1)"),
    ("runner.epochs", 3.0, "3.0 is not a whole number (int >= 1)"),
    ("runner.epochs", True, "true is not a whole number (int >= 1)"),
    ("runner.epochs", None, "null is not a whole number (int >= 1)"),
    ("runner.epochs", 0, "0 is out of range: >= 1"),
    ("runner.epochs", [3], "[3] is not a whole number (int >= 1)"),
    ("runner.epochs", {"_target_": "torch.nn.ReLU"}, "a part stands where a whole number (int >= 1) belongs"),
    ("runner.precision", "fp8", "'fp8' is not one of fp32, bf16"),
    ("runner.precision", True, "true is not one of fp32, bf16"),
    ("runner.clip", 0, "0 is out of range: > 0"),
    ("runner.clip", INF, "inf is not a finite number"),
    ("runner.clip", NAN, "nan is not a number (float > 0) or null"),
    ("runner.device", 1.5, "1.5 is not a text or a whole number (int)"),
    ("runner.compile", "yes", "'yes' is not true or false"),
    ("runner._convert_", "some", "'some' is not one of none, partial, object, all"),
    ("runner._args_", [1], "arguments without names are refused; give them by name"),
    ("method.label_smoothing", 1.5, "1.5 is out of range: >= 0 and < 1"),
    ("method.label_smoothing", True, "true is not a number (float >= 0 and < 1)"),
    ("method.optimizer", "sgd", "'sgd' is a name where a part belongs; did you mean method/optimizer=sgd?"),
    ("method.optimizer", 0.1, "0.1 is a plain value where a part belongs"),
    ("method.optimizer", {"lr": 1}, "has no _target_, but a part belongs here; choose one with method/optimizer=NAME"),
    ("method.optimizer.lr", INF, "inf is not a finite number"),
    ("method.optimizer.lr", -INF, "-inf is not a finite number"),
    ("method.optimizer.lr", NAN, "nan is not a number (float >= 0)"),
    ("method.optimizer.lr", -0.1, "-0.1 is out of range: >= 0"),
    ("method.optimizer.lr", "fast", "'fast' is not a number (float >= 0)"),
    ("method.optimizer.betas", [0.9], "[0.9] has 1 elements, not 2"),
    ("method.optimizer.momentum", 0.9, "AdamW takes no momentum; it takes params, lr"),
    ("method.optimizer.weight_decay", INF, "inf is not a finite number"),
    ("method.optimizer.eps", INF, "inf is not a finite number"),
    ("method.optimizer.fused", "yes", "'yes' is not true or false or null"),
    ("seed", "x", "'x' is not a whole number (int >= 1)"),
    ("sede", 1, "no such key; did you mean seed?"),
    ("epochs", 1, "no such key; did you mean runner.epochs?"),
    ("data.folder", "???", "is missing; set data.folder=..."),
    ("data.fill", NAN, "nan is not a number that can be used"),
]

DEEPER = [
    ("method.weights", [1, -1], "method.weights[1]: -1 is out of range: >= 0"),
    ("method.optimizer.betas", [0.9, 1.0], "method.optimizer.betas[1]: 1.0 is out of range: >= 0 and < 1"),
    ("data.sizes", {"train": 0}, "data.sizes.train: 0 is out of range: >= 1"),
    ("data", {"_target_": "my_parts.Data"}, "data.folder: is missing; Data needs a text; set data.folder=..."),
    ("method.optimizer._partial_", False, "method.optimizer.params: is missing"),
    ("args", {"x": [{"_target_": "os.system"}]}, "args.x[0]._target_: os.system is not a part; parts come from"),
    ("runner._target_", "subprocess.Popen", "runner._target_: subprocess.Popen is not a part; parts come from"),
    ("runner._target_", None, "runner._target_: None is not a dotted path of names"),
    ("runner._target_", "my_parts.Runer", "runner._target_: my_parts has no Runer; did you mean Runner?"),
    ("_target_", "os.system", "_target_: os.system is not a part"),
    (
        "runner.callbacks",
        {"a": {"_target_": "my_parts.Data", "fold": 1}},
        "runner.callbacks.a.fold: Data takes no fold",
    ),
]


def test_a_right_configuration_passes(project: Path) -> None:
    run(CONFIG, project)
    run(OmegaConf.create(CONFIG), project)


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_right_values_pass(project: Path, key: str, value: Any) -> None:
    run(changed(key, value), project)


@pytest.mark.parametrize(
    ("key", "value", "line"), [(key, value, f"{key}: {text}") for key, value, text in BAD] + DEEPER
)
def test_mistakes_are_answered_in_one_line(project: Path, key: str, value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(changed(key, value), project)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


RELATED = """
from typing import Annotated
from healsg.types import Count, Divides, Excludes, Range, Requires

class Base:
    def __init__(self, momentum: float = 0.9, share: Annotated[float, Excludes("amount")] | None = None,
        amount: int | None = None): ...

class Part(Base):
    def __init__(self, nesterov: Annotated[bool, Requires("momentum")] = False, unknown: float = 1.0 + 0,
        heads: Annotated[Count, Divides(other="width")] = 4, width: Count = 64,
        depth: Annotated[int, Range(low=8, step=6)] = 8, more: Annotated[bool, Requires("unknown")] = False,
        **common: float):
        super().__init__(**common)
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"nesterov": True}, ""),
        ({"momentum": 0}, ""),
        ({"nesterov": True, "momentum": 0.0}, "part.nesterov: true needs part.momentum, which is 0.0; set that, or "),
        ({"share": 0.5, "amount": 3}, "part.share: 0.5 and part.amount=3 exclude each other; leave one out"),
        ({"share": 0.5}, ""),
        ({"share": None, "amount": 3}, ""),
        ({"width": 30}, "part.heads: 4 does not divide part.width=30"),
        ({"heads": 3, "width": 30}, ""),
        ({"depth": 20}, ""),
        ({"depth": 18}, "part.depth: 18 is out of range: >= 8 in steps of 6"),
        ({"more": True}, ""),
        ({"nesterov": True, "momentum": 0.0, "_partial_": True}, "part.nesterov: true needs part.momentum"),
        ({"width": 30, "_partial_": True}, ""),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(
    arguments: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of base classes, and those that stand at their defaults; a default that is no literal is not known,
    and one of a partial may be replaced by its caller."""
    (tmp_path / "my_related.py").write_text(RELATED)
    (tmp_path / "my_top.py").write_text("class Top:\n    def __init__(self, part): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"part": {"_target_": "my_related.Part", **arguments}}
    with pytest.raises(ConfigError) if line else contextlib.nullcontext() as caught:
        check(config, schema_target="my_top.Top", project=[tmp_path])
    assert caught is None or str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        (
            "_target_: torch.optim.SGD, nesterov: true",
            "method.optimizer.nesterov: true needs method.optimizer.momentum",
        ),
        ("_target_: torch.optim.SGD, nesterov: true, momentum: 0.9", ""),
        ("_target_: torch.optim.Muon, momentum: 0.0", ""),
    ],
)
def test_the_optimizer_is_called_with_the_parameters_alone(optimizer: str, line: str) -> None:
    override = f"+method.optimizer={{{optimizer}, _partial_: true, lr: 0.1}}"
    with pytest.raises(ConfigError) if line else contextlib.nullcontext() as caught:
        Composer().compose(["~method.optimizer", override])
    assert caught is None or str(caught.value).startswith(line)


def test_relations_name_arguments_of_the_same_constructor() -> None:
    files = (REPOSITORY / "conf").rglob("*.yaml")
    texts = [file.read_text() for file in files]
    found = {target for text in texts for target in re.findall(r"_target_: (healsg\S+)", text)}
    relations = []
    for made in filter(None, map(constructor, sorted(found))):
        for parameter in made.parameters.values():
            relations += parameter.relations
            assert all(relation.other in made.parameters for relation in parameter.relations), made.target
    assert len(relations) >= 8


def test_targets_are_checked_before_anything_else(project: Path) -> None:
    config = changed("seed", "wrong")
    config["data"] = {"_target_": "os.system", "folder": "???"}
    with pytest.raises(ConfigError, match=r"^data\._target_: os\.system is not a part"):
        run(config, project)


def test_the_top_level_needs_its_keys(project: Path) -> None:
    config = copy.deepcopy(CONFIG)
    del config["seed"]
    with pytest.raises(ConfigError, match=r"^seed: is missing; a run needs a whole number \(int >= 1\)"):
        run(config, project)


def test_interpolations_are_resolved(project: Path) -> None:
    run(OmegaConf.create(changed("runner.epochs", "${seed}")), project)
    with pytest.raises(ConfigError, match=r"runner\.epochs.*nothing"):
        run(OmegaConf.create(changed("runner.epochs", "${nothing}")), project)


def test_the_current_folder_is_the_users_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ConfigError, match="is not a part"):
        check(CONFIG, schema_target="my_parts.Top")
    check(CONFIG, schema_target="my_parts.Top", project=project)
    check(CONFIG, schema_target="my_parts.Top", trusted=["my_parts"])
    monkeypatch.chdir(project)
    check(CONFIG, schema_target="my_parts.Top")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("method.optimzer.lr", "method.optimizer.lr"),
        ("lr", "method.optimizer.lr"),
        ("epochs", "runner.epochs"),
        ("runner.epoch", "runner.epochs"),
        ("method.lable_smoothing", "method.label_smoothing"),
        ("metod", "method"),
        ("optimizer.lr=0.1", "method.optimizer.lr"),
    ],
)
def test_the_nearest_key_is_named(key: str, nearest: str) -> None:
    line = f"{key.split('=')[0]}: no such key; did you mean {nearest}?"
    assert explain_unknown(key, CONFIG) == line
    assert explain_unknown(key, OmegaConf.create(CONFIG)) == line


def test_the_answer_can_be_typed_as_it_stands() -> None:
    line = "lr: no such key; did you mean method.optimizer.lr=0.1?"
    assert explain_unknown("lr", CONFIG, "0.1") == line
    assert explain_unknown("data.qqqq", CONFIG, "0.1").startswith("data.qqqq: no such key; there are data._target_")


GROUPS = {"data": ["cifar", "digits"], "method": ["adamw", "sgd"], "method/optimizer": ["adamw", "sgd", "lion"]}


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("optimizer", "sgd", "method/optimizer=sgd"),
        ("method.optimizer", "sgd", "method/optimizer=sgd"),
        ("optimizer", "lyon", "method/optimizer=lion"),
        ("data", "cifar", "data=cifar"),
        ("optimizer", "zzz", None),
        ("izer", "sgd", None),
        ("model", "sgd", None),
    ],
)
def test_a_group_that_is_set_as_a_key_is_named(key: str, value: str, meant: str | None) -> None:
    assert option_of(key, value, GROUPS) == meant


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("cifar", "; did you mean data=cifar?"),
        ("adamw", "; did you mean method=adamw or method/optimizer=adamw?"),
        ("cfar", "; did you mean data=cifar?"),
        ("epochs", "; did you mean runner.epochs=...?"),
        ("runner.epochs", "; did you mean runner.epochs=...?"),
        ("zzz", "; --help shows what there is"),
    ],
)
def test_a_word_alone_is_given_its_group_or_key(word: str, told: str) -> None:
    assert explain_word(word, GROUPS, CONFIG) == f"{word}: is not of the form key=value{told}"


def test_where_no_key_is_near_its_neighbours_are_named() -> None:
    assert explain_unknown("data.qqqq", CONFIG) == (
        "data.qqqq: no such key; there are data._target_, data.folder, data.sizes"
    )


def test_options_and_additions() -> None:
    options = ["cifar", "digits"]
    line = "data=cifr: no such option; did you mean cifar? data is one of cifar, digits"
    assert explain_option("data", "cifr", options) == line
    assert explain_option("data", "zzz", options) == "data=zzz: no such option; data is one of cifar, digits"
    line = "foo.bar: nothing reads it (settings of your own go under args: +args.bar=...)"
    assert explain_addition("+foo.bar=1", CONFIG) == line
    line = explain_addition("+runner.epoch=1", CONFIG)
    assert line.startswith("runner.epoch: nothing reads it; did you mean runner.epochs?")

"""``explain``, ``list``, ``show`` and ``--help``: the configuration says by itself what it is, without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from healsg.commands.explain import option_lines
from healsg.commands.train.help import help_lines
from healsg.config.catalogue import Catalogue
from healsg.config.comments import read_comments
from healsg.config.compose import Composer, conf_folder
from healsg.config.signature import constructor

Answer = Callable[..., Any]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Answer:
    """What a command prints on a terminal of 80 columns; of one with ``--json`` the value."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main(arguments) == status
        out, err = capsys.readouterr()
        text = err if status else out
        return json.loads(text) if "--json" in arguments else text

    return run


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(Composer())


def test_explain_shows_a_comment_for_every_argument_of_every_option(catalogue: Catalogue) -> None:
    seen = 0
    for group, names in catalogue.choices.items():
        for name in names if group != "recipe" else ():
            option = catalogue.option(group, name)
            lacking = [argument.key for argument in option.arguments if not argument.comment]
            assert not lacking, f"{group}={name}: {lacking}"
            assert option.summary, f"{group}={name}: its YAML does not begin with a comment"
            seen += len(option.arguments)
            text = " ".join(" ".join(option_lines(option, catalogue)).split())
            for argument in option.arguments:
                assert " ".join(argument.comment.split()) in text
            made = constructor(option.target) if option.target.startswith("healsg.") else None
            keys = {argument.key for argument in option.arguments} | {part.replace("/", ".") for part in option.parts}
            place = group.replace("/", ".")
            assembled = {"params", "config", "task_data", "task_model", "task_method", "runner"}
            for argument in made.parameters if made else ():
                below = f"{place}.{argument}"
                assert below in keys or any(key.startswith(f"{below}.") for key in keys) or argument in assembled
    assert seen > 1000


def test_the_values_are_those_that_a_run_gets(catalogue: Catalogue) -> None:
    for choice in ("method=recipe/fixmatch", "method=sgd_multistep", "data=csv", "runner=debug", "model=vit"):
        group, _, name = choice.partition("=")
        required = ["data.file=t.csv"] * (choice == "data=csv")
        node: Any = catalogue.composer.compose([choice, *required], checked=False).values
        for argument in catalogue.option(group, name).arguments:
            value = node
            for part in argument.key.split("."):
                value = value[part]
            if argument.value != "???" and argument.kind != "a part":
                assert value == argument.value, argument.key


def test_an_option_is_explained_with_its_paper(said: Answer) -> None:
    text = said("explain", "method=fixmatch")
    assert "Sohn et al. 2020, arXiv 2001.07685" in text
    assert "method.threshold=0.95" in text
    assert "method/optimizer=adamw (or adam" in text
    assert max(map(len, text.splitlines())) <= 80
    found = said("explain", "method=fixmatch", "--json")
    assert found["papers"] == ["Sohn et al. 2020, arXiv 2001.07685"]
    assert found["target"] == "healsg.methods.fixmatch.FixMatch"
    threshold = next(one for one in found["arguments"] if one["key"] == "method.threshold")
    assert (threshold["default"], threshold["type"]) == (0.95, "number >= 0, <= 1")
    assert "least confidence" in threshold["comment"]
    assert said("explain", "fixmatch") == text


def test_a_key_is_explained(said: Answer) -> None:
    found = said("explain", "runner.accumulate", "--json")
    assert (found["default"], found["type"], found["required"]) == (1, "whole number >= 1", False)
    assert "batches accumulated per update" in found["comment"]
    assert "moving average" in said("explain", "method.ema")
    assert said("explain", "method.optimizer.lr", "method=sgd", "--json")["default"] == 0.1
    assert said("explain", "method.negatives", "--json")["default"] == 16384  # which the usual method has not
    assert said("explain", "data.folder", "data=imagefolder", "--json")["required"] is True


TYPOS = [
    (["explain", "method=fixmach"], "method=fixmach: no such option; did you mean fixmatch?"),
    (["explain", "method.emma"], "did you mean method.ema"),
    (["explain", "method.treshold"], "did you mean method.threshold"),
    (["explain", "runner.acumulate"], "did you mean runner.accumulate"),
    (["explain", "method"], "is a group of options; healsg list method shows them"),
    (["explain", "resume"], "resume: holds resume.force"),
    (["explain"], "the following arguments are required: GROUP=OPTION|KEY"),
    (["explain", "method=fixmatch", "--jsn"], "--jsn: there is no such option; did you mean --json?"),
    (["list", "metods"], "metods: no such group; did you mean method"),
    (["list", "data", "model"], "model: is one argument too many; healsg list --help"),
    (["list", "--config-dir"], "--config-dir: expected one argument"),
    (["show"], "the following arguments are required: RUN"),
]


@pytest.mark.parametrize(("arguments", "told"), TYPOS, ids=[" ".join(arguments) for arguments, _ in TYPOS])
def test_a_typo_is_answered_with_the_nearest_names(arguments: list[str], told: str, said: Answer) -> None:
    text = said(*arguments, status=2)
    assert told in text
    assert text.count("\n") == 1


def test_list_says_what_can_be_chosen(said: Answer) -> None:
    lines = said("list", "model").splitlines()
    assert any(line.startswith("  * cnn ") for line in lines)
    found = said("list", "recipe", "--json")
    assert {"group", "name", "summary", "default", "file", "origin"} == set(found[0])
    assert len(found) == len(list((conf_folder() / "recipe").glob("*.yaml")))
    assert all(option["summary"] for option in said("list", "--json"))
    assert "method/optimizer" in said("list")


def test_options_of_ones_own_are_listed_and_explained(said: Answer, tmp_path: Path) -> None:
    folder = tmp_path / "my_conf" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "mine.py").write_text(
        'from healsg import TaskModel\n\n\nclass Mine(TaskModel):\n    """Mine (Doe 2020).\n\n    Args:\n'
        '        width: of it,\n            in units.\n    """\n\n'
        "    def __init__(self, width: int = 3):\n        pass\n"
    )
    (folder / "mine.yaml").write_text("# My model\n_target_: mine.Mine\nwidth: 5\n")
    assert "mine" in said("list", "model", "--config-dir", "my_conf")
    found = said("explain", "model=mine", "--config-dir=my_conf", "--json")
    assert (found["summary"], found["papers"]) == ("My model", ["Doe 2020"])
    assert found["arguments"][0] | {"comment": "of it, in units."} == found["arguments"][0]
    assert "mine" not in sys.modules


def test_help_is_short_and_has_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    composer = Composer()
    lines = help_lines(composer, [])
    assert len(lines) < 120
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in ("runner.epochs=60 passes over the training data", "seed=0 seed of all randomness", "-m key=a,b,c"):
        assert words in text
    everything = help_lines(composer, ["model=mlp"], everything=True)
    keys = {line.split("=")[0].strip() for line in everything}
    assert {argument.key for argument in Catalogue(composer).settings(["model=mlp"])} <= keys


def test_comments_are_those_beside_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "# @package _global_\n# Above\n"
        "a: 1 # one\nb:  # two\n  c: '#no'   # three\n  d: [1, # not this\n    2]  # four\n"
        "e: |  # a text\n  # no comment\nf: x#y\n"
    )
    comments = read_comments(path)
    assert comments.header == ("Above",)
    assert comments.keys == {"a": "one", "b": "two", "b.c": "three", "b.d": "four"}


def test_show_tells_what_a_run_was(said: Answer) -> None:
    from healsg import TaskTrainer

    tiny = ["model=mlp", "model.width=8", "runner=debug", "quiet=true", "method/optimizer=sgd", "seed=3"]
    TaskTrainer.compose(*tiny, "name=run").train()
    text = said("show", "run")
    assert "seed=3" in text
    assert "(0) seed of all randomness" in text
    assert "test/acc" in text
    assert "runs/run/checkpoints/best.pt" in text
    found = said("show", "runs/run", "--json")
    assert found["status"] == "finished"
    assert found["parts"]["method/optimizer"] == "sgd"
    assert {one["key"]: one["default"] for one in found["changed"]} == {
        "seed": 0,
        "quiet": False,
        "model.width": 128,
    }
    record = json.loads(Path("runs/run/run.json").read_text())
    Path("runs/run/run.json").write_text(json.dumps(record | {"status": "running"}))
    assert said("show", "run", "--json")["status"] == "dead"
    (Path("runs/run/.hydra") / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: nowhere}}}")
    assert said("show", "run", "--json")["changed"] is None
    assert "no run" in said("show", "nowhere", status=1)

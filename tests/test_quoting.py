"""Values that Hydra's grammar takes in quotes alone are texts as they stand; a run's own name needs no quotes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from healsg import TaskTrainer
from healsg.cli import main
from healsg.config.compose import Composer
from healsg.config.overrides import parse, quoted
from healsg.errors import ConfigError

TINY = ["model=mlp", "model.width=8", "runner=debug", "quiet=true"]

TEXTS = [
    "a;b",
    "my data (1)/x",
    "~/data",
    "runs/s/method.optimizer.lr=0.1,seed=1",
    "实验 一",
    "Straße",
    "it's",
    'a"b',
    "both 'a' and \"b\"",
    "x=[1,2]",
    "a#b&c!",
    "end\\;\\",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_that_only_quotes_would_take_is_a_text(text: str) -> None:
    for key in ("data.root", "+args.mine"):
        (override,) = parse([f"{key}={text}"])
        assert override.value() == text
        assert not override.is_sweep_override()
    composed = Composer().compose([f"data.root={text}", "model=mlp"])
    assert composed.values["data"]["root"] == text
    assert composed.overrides == [f"data.root={text}", "model=mlp"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_quotes_that_are_shown_work_in_a_shell(text: str) -> None:
    (argument,) = shlex.split(shlex.quote(quoted(f"data.root={text}")))
    assert parse([argument])[0].value() == text


def test_what_the_grammar_knows_keeps_its_meaning() -> None:
    texts = ["a=1", "a=1e-3", "a=true", "a=null", "a=[1,x]", "a={b:1}", "a='1'", "a=x y", "a=1,2", "a=choice(1,2)"]
    known = parse(texts)
    assert [override.is_sweep_override() for override in known] == [False] * 8 + [True] * 2
    assert [override.value() for override in known[:8]] == [
        1,
        1e-3,
        True,
        None,
        [1, "x"],
        {"b": 1},
        known[6].value(),
        "x y",
    ]


@pytest.mark.parametrize("value", ["[1", "{a", "'a", '"a', "choice(a;b)", "${a;b", "=a"])
def test_what_begins_as_something_else_is_no_text(value: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form key=value") as caught:
        parse([f"data.root={value}"])
    assert "\n" not in str(caught.value)
    if "${" not in value:
        assert shlex.split(str(caught.value).partition("a text is quoted: ")[2]) == [quoted(f"data.root={value}")]


def test_the_name_of_a_sweeps_job_needs_no_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "-m", "seed=0", "method.optimizer.lr=0.1,0.2", "model.dropout=0,0.1", "name=s"]) == 0
    job = "method.optimizer.lr=0.1,model.dropout=0.1"
    assert Path("runs/s", job, "run.json").exists()
    result = TaskTrainer.compose(*TINY, f"init_from=runs/s/{job}", f"name={job}").train()
    assert (result["status"], result["name"]) == ("finished", job)
    assert main(["train", *TINY, "-m", "seed=0,1", f"init_from=s/{job}", "name=again"]) == 0
    assert {path.name for path in Path("runs/again").iterdir() if path.is_dir()} == {"seed=0", "seed=1"}
    assert main(["eval", f"s/{job}", "split=val"]) == 0
    capsys.readouterr()


def test_a_run_named_in_another_alphabet_goes_on() -> None:
    for _ in range(2):
        TaskTrainer.compose(*TINY, "name=实验;一", "runner.max_time=0").train()
    assert Path("runs/实验;一/checkpoints/last.pt").exists()


def test_a_text_with_commas_in_a_sweep_is_asked_about() -> None:
    with pytest.raises(ConfigError, match="is it one text or several"):
        Composer().sweep(["data.root=a;b,c", "seed=0,1"])
    Path("a;b,c").mkdir()
    jobs = Composer().sweep(["data.root=a;b,c", "seed=0,1"])
    assert jobs == [["data.root=a;b,c", "seed=0"], ["data.root=a;b,c", "seed=1"]]

"""Recipes, and ``healsg reproduce``: what they aim at, how they run one after the other, and what the verdict says.

``python tests/test_reproduce.py`` writes the table of ``docs/recipes.md``.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import fake_data
import fake_tables
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.cli import main
from healsg.commands.reproduce import command as reproduce
from healsg.commands.reproduce.published import chain, read_target, recipes, verdict
from healsg.config.compose import Composer
from helpers import REPOSITORY, Program

NAMES = list(recipes())
VOLUMES = [name for name in NAMES if name.startswith(("acdc", "btcv", "hippocampus", "left_atrium"))]
TEACHER = ["data=synthetic", "data.classes=100", "model=mlp", "model.width=8", "runner=debug", "name=teacher"]
FOUND = ["data.root=files", "data.download=false", "data.verify=false"]
TINY = [*FOUND, "data.batch_size=16", "runner.steps=2", "runner.limit_batches=2", "runner.eval_every=1", "quiet=true"]
NODE = {"paper": "Nobody 2020", "table": "Table 1", "data": "digits", "budget": "2 updates", "metric": "test/acc"}
NODE |= {"published": 0.5, "spread": None, "tolerance": 0.5, "first": None, "gives": None, "measured": None}
DOCUMENT = REPOSITORY / "docs/recipes.md"


def header(name: str) -> dict[str, str]:
    """The entries of a recipe's header, each on one line."""
    entries: dict[str, str] = {}
    key = ""
    for line in recipes()[name].read_text().splitlines():
        found = re.match(r"#(?:   (\w+): +| {14})(\S.*)$", line)
        if found:
            key = found[1] or key
            entries[key] = f"{entries[key]} {found[2]}" if key in entries else found[2]
    return entries


def recipe(name: str, **changes: object) -> list[str]:
    """Write a recipe of one's own, two updates on the digits; the option that finds it."""
    own = {"defaults": [{"override /model": "mlp"}], "model": {"width": 8}, "runner": {"steps": 2, "limit_batches": 2}}
    path = Path("mine/recipe") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    method = {"defaults": [*own["defaults"], {"override /method": "kd"}]} if changes.get("first") else {}
    data = {"data": changes.pop("data")} if "data" in changes and isinstance(changes["data"], dict) else {}
    path.write_text("# @package _global_\n" + yaml.safe_dump({**own, **method, **data, "recipe": NODE | changes}))
    return ["--config-dir", "mine", "quiet=true"]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that answers a wrong command."""
    assert main(["reproduce", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# --- the recipes -----------------------------------------------------------------------------------------------------


def test_every_recipe_tells_what_it_aims_at() -> None:
    assert len(NAMES) >= 40
    for name in NAMES:
        target = chain(name, recipes())[-1]
        told = header(name)
        assert set(told) - {"differs"} == {"command", "published", "measured"}, name
        assert told["command"].startswith(f"healsg reproduce {name} python train.py recipe={name}")
        assert told["published"].startswith(f"{100 * target.published:.2f} "), name
        assert (f" +- {100 * (target.spread or 0):.2f} %" in told["published"]) == (target.spread is not None), name
        assert ("never run" in told["measured"]) == (target.measured is None), name
        assert 0.1 < target.published < 1
        assert max(0.002, target.spread or 0) <= target.tolerance <= 0.05, name
        assert re.search(r"(19|20)\d\d, (arXiv \d{4}\.\d{4,5}|ICML workshop)", target.paper), name
        assert target.metric in ("test/acc", "test/robust_acc", "val/acc", "test/dice", "val/dice")


def test_every_recipe_composes_passes_the_checks_and_fits() -> None:
    TaskTrainer.compose(*TEACHER, "quiet=true").train()
    composer = Composer()
    for name in NAMES:
        target = read_target(recipes()[name])
        composed = composer.compose([f"recipe={name}", *[f"{target.gives}=teacher"] * bool(target.gives)])
        if name not in VOLUMES:  # which look into their files; see test_recipes_masks.py
            build_task(composed)
        assert composed.values["data"]["batch_size"] in (2, 4, 9, 12, 64, 100, 128, 256, 2000)
        assert composed.choices["recipe"] == name
    own = {path.stem for path in (REPOSITORY / "conf/method/recipe").glob("*.yaml")}
    chosen = {
        Path(line.split(": ")[1]).name
        for path in recipes().values()
        for line in path.read_text().splitlines()
        if "override /method: recipe/" in line
    }
    assert own == chosen


def test_a_recipe_with_another_method_means_it() -> None:
    asked = Composer().compose(["recipe=fixmatch_cifar10_250", "method=gce"]).values
    plain = Composer().compose(["method=gce"]).values
    assert asked["method"] == plain["method"]
    assert asked["data"]["val_fraction"] == 0


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cifar_resnet18", ["model.width=4"]),
        ("fixmatch_cifar10_250", ["model.depth=10", "model.widen_factor=1", "data.labels=50"]),
    ],
)
def test_two_recipes_train(name: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fake_data.write_cifar("files", per_batch=20)
    code = main(["reproduce", name, *TINY, *more])
    *told, line = capsys.readouterr().out.splitlines()
    target = read_target(recipes()[name])
    numbers = json.loads(Path(f"runs/reproduce-{name}-0/run.json").read_text())["test"]
    passed, expected = verdict(target, [numbers["test/acc"]], [])
    assert code == int(not passed) == 1
    assert line.startswith(f"{expected}; not the published setting: data.")
    assert line.endswith(" more")
    assert told[0] == f"{name} (never run by this project)"
    for text in (target.paper, target.table, target.data, target.budget, f"test/acc {target.published:.4f}"):
        assert any(text in each for each in told)


def smaller(name: str) -> list[str]:
    """What makes a recipe small, and lets it find invented samples."""
    text = recipes()[name].read_text()
    found = [*FOUND, "data.batch_size=12", *TINY[len(FOUND) + 1 :], "runner.threads=1"]
    for part, settings in {
        "/model: resnet\n": ["model.width=4"],
        "/model: wide_resnet\n": ["model.depth=10", "model.widen_factor=1"],
        "/model: airbench\n": ["model.width=8", "runner.compile=false"],
        "/model: vit\n": ["model.depth=1"],
        "/data: imagenette\n": ["data.image_size=32", "data.workers=0"],
        "  imbalance: ": ["data.imbalance=5", "model.depth=8"],
        "  labels: ": ["data.labels=50"],
    }.items():
        found += settings if part in text else []
    return found


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(VOLUMES)))
def test_every_recipe_trains_and_has_its_number(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake_data.write_cifar("files", per_batch=60)
    fake_data.write_cifar("files", classes=100, per_batch=60)
    fake_data.write_imagenette("files")
    fake_tables.write_medmnist("files")
    assert main(["reproduce", name, *smaller(name)]) in (0, 1)
    target = read_target(recipes()[name])
    assert f": {target.metric} 0." in capsys.readouterr().out.splitlines()[-1]


def test_the_run_before_and_what_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("teaching")
    option = recipe("taught", first="teaching", gives="method.teacher")
    own = [*option, "method.temperature=2", "method/optimizer=lion"]
    assert main(["reproduce", "taught", "seed=3", *own]) == 0
    *told, line = capsys.readouterr().out.splitlines()
    runs = ["reproduce-taught-3", "reproduce-teaching-3"]
    assert sorted(path.name for path in Path("runs").iterdir()) == runs
    config = yaml.safe_load(Path("runs/reproduce-taught-3/config.yaml").read_text())
    assert config["method"]["teacher"] == "reproduce-teaching-3"
    assert (config["method"]["temperature"], config["seed"]) == (2, 3)
    assert "AdamW" in Path("runs/reproduce-teaching-3/config.yaml").read_text()
    value = json.loads(Path("runs/reproduce-taught-3/run.json").read_text())["test"]["test/acc"]
    target = read_target(Path("mine/recipe/taught.yaml"))
    assert line == verdict(target, [value], ["method/optimizer=lion", "method.temperature"])[1]
    assert any(each.split() == ["first", "teaching"] for each in told)

    def begun() -> list[int]:
        return [Path(f"runs/{run}/metrics.jsonl").stat().st_mtime_ns for run in runs]

    before = begun()
    assert main(["reproduce", "taught", "seed=3", *own]) == 0
    assert capsys.readouterr().out.count(": is finished\n") == 2
    assert begun() == before


def test_a_stopped_run_goes_on_and_is_judged_when_it_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    option = recipe("own")
    assert main(["reproduce", "own", *option, "runner.max_time=0.01", "runner.steps=6"]) == 1
    assert capsys.readouterr().out.endswith("runs/reproduce-own-0: is not finished; the same command continues\n")
    record = Path("runs/reproduce-own-0/run.json")
    assert json.loads(record.read_text())["status"] == "stopped"
    assert main(["reproduce", "own", *option, "runner.steps=6", "data.workers=0"]) == 0
    told = json.loads(record.read_text())
    assert (told["status"], len(told["continued"])) == ("finished", 1)
    assert capsys.readouterr().out.endswith("; not the published setting: runner.steps\n")
    alone = TaskTrainer.compose("model=mlp", "model.width=8", "runner.steps=6", "runner.limit_batches=2", "quiet=true")
    assert alone.train()["digest"] == told["digest"]
    assert main(["reproduce", "own", *option, "runner.steps=8"]) == 1
    assert "reproduce-own-0: is finished with another runner.steps; fresh=true" in capsys.readouterr().err
    recipe("own", metric="test/robust_acc")
    assert main(["reproduce", "own", *option, "runner.steps=6"]) == 1
    assert (
        "reproduce-own-0: has no number test/robust_acc; there are val/acc, test/loss, test/acc"
        in capsys.readouterr().err
    )
    recipe("own", metric="val/acc")
    assert main(["reproduce", "own", *option, "runner.steps=6"]) == 0
    assert f"val/acc {told['best']['value']:.4f}, published" in capsys.readouterr().out
    assert json.loads(record.read_text()) == told


def test_what_cannot_alter_the_result_is_the_published_setting(capsys: pytest.CaptureFixture[str]) -> None:
    option = recipe("own", published=0.9, tolerance=0.0)
    harmless = ["runner.save_every=1", "runner.device=cpu", "model/metrics=classification", "data.batch_size=64"]
    assert main(["reproduce", "own", "seeds=2", *option, *harmless]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    values = [
        json.loads(Path(f"runs/reproduce-own-{seed}/run.json").read_text())["test"]["test/acc"] for seed in (0, 1)
    ]
    assert line == verdict(read_target(Path("mine/recipe/own.yaml")), values, [])[1]
    assert line.startswith("own: missed: test/acc 0.")
    assert "over 2 seeds" in line
    assert main(["reproduce", "own", *option, "fresh=true", "method=sgd", "runner.accumulate=2"]) == 1
    assert capsys.readouterr().out.endswith("; not the published setting: method=sgd, runner.accumulate\n")


def test_each_seed_draws_its_own_labels(capsys: pytest.CaptureFixture[str]) -> None:
    """Few, noisy and unequal labels; not where nothing is drawn, nor where the draw is given."""

    def draws(name: str) -> list[int]:
        return [
            yaml.safe_load(Path(f"runs/reproduce-{name}-{seed}/config.yaml").read_text())["data"]["split_seed"]
            for seed in (1, 2)
        ]

    option = recipe("few", data={"labels": 40})
    assert main(["reproduce", "few", "seed=1", "seeds=2", *option]) == 0
    assert draws("few") == [1, 2]
    assert "not the published setting" not in capsys.readouterr().out
    assert main(["reproduce", "few", "fresh=true", "seed=1", "seeds=2", *option, "data.split_seed=5"]) == 0
    assert draws("few") == [5, 5]
    assert capsys.readouterr().out.endswith("; not the published setting: data.split_seed\n")


@pytest.mark.parametrize(
    ("data", "drawn"), [({"label_noise": 0.2}, True), ({"imbalance": 10.0}, True), ({"batch_size": 32}, False)]
)
def test_only_what_draws_labels_or_samples_draws_them_by_seed(data: dict[str, Any], drawn: bool) -> None:
    recipe("own", data=data)
    assert reproduce._draws(Composer("mine"), read_target(Path("mine/recipe/own.yaml")), []) == drawn


def test_a_recipe_passes_where_it_gains_over_its_method_off(capsys: pytest.CaptureFixture[str]) -> None:
    option = recipe("own", without=["method.label_smoothing=0"])
    assert main(["reproduce", "own", *option, "baseline=false"]) == 0
    *told, line = capsys.readouterr().out.splitlines()
    assert line.startswith("own: reached: ")
    assert line.endswith("; the gain over the method off is not measured")
    assert any(each.split(maxsplit=1) == ["gain", "over the method off: method.label_smoothing=0"] for each in told)
    assert not Path("runs/reproduce-own-off-0").exists()
    assert main(["reproduce", "own", *option]) == 1, "what is off already gains nothing"
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("own: missed: ")
    assert "; with the method off 0." in line
    assert line.endswith(", gain +0.0000")
    digests = [json.loads(Path(f"runs/reproduce-own{off}-0/run.json").read_text())["digest"] for off in ("", "-off")]
    assert digests[0] == digests[1]
    recipe("own", published=1.0, tolerance=0.0, without=["method.label_smoothing=0.9"])
    assert main(["reproduce", "own", "fresh=true", *option]) == 1
    assert "with the method off" not in capsys.readouterr().out, "what missed the number needs no second run"


def test_another_method_as_the_method_off_knows_no_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    recipe("teaching")
    option = recipe("taught", first="teaching", gives="method.teacher", without=["method=sgd"])
    main(["reproduce", "taught", *option, "method.temperature=2", "data.batch_size=32"])
    assert "with the method off" in capsys.readouterr().out
    config = yaml.safe_load(Path("runs/reproduce-taught-off-0/config.yaml").read_text())
    assert config["method"]["_target_"].endswith("Supervised")
    assert "teacher" not in config["method"]
    assert config["data"]["batch_size"] == 32


def test_every_recipe_with_its_method_off_passes_the_checks() -> None:
    composer = Composer()
    named = {name: target for name in NAMES if (target := read_target(recipes()[name])).without}
    assert {"mean_teacher_cifar10_250", "mixmatch_cifar10_250", "cifar_sam", "cifar_label_smoothing"} <= set(named)
    assert {"focal_cifar10_lt", "kd_cifar100", "fitnet_cifar100", "attention_transfer_cifar100"} <= set(named)
    for name, target in named.items():
        off = composer.compose([f"recipe={name}", *(target.without or [])])
        if name not in VOLUMES:
            build_task(off)
        on = composer.compose([f"recipe={name}", *[f"{target.gives}=teacher"] * bool(target.gives)], checked=False)
        assert off.values["data"] == on.values["data"]
        assert off.values["runner"] == on.values["runner"]
        assert off.values["method"]["optimizer"] == on.values["method"]["optimizer"]
        assert off.values["method"]["scheduler"] == on.values["method"]["scheduler"]
        assert off.values["method"] != on.values["method"]


def test_verdicts_over_the_method_off() -> None:
    target = replace(read_target(recipes()["cifar_sam"]), tolerance=0.005)
    passed, line = verdict(target, [0.958, 0.962], [], [0.95, 0.958])
    assert passed
    assert line.startswith("cifar_sam: passed: ")
    assert line.endswith("; with the method off 0.9540, gain +0.0060 +- 0.0028 over 2 seeds")
    passed, line = verdict(target, [0.958], [], [0.959])
    assert not passed
    assert line.startswith("cifar_sam: missed: ")
    assert line.endswith(", gain -0.0010")
    assert verdict(target, [0.9], [])[1].startswith("cifar_sam: missed: ")
    assert verdict(target, [0.958], [])[1].startswith("cifar_sam: reached: ")


def test_verdicts() -> None:
    target = replace(read_target(recipes()["cifar_resnet18"]), tolerance=0.005)
    passed, line = verdict(target, [0.9478], [])
    assert passed
    assert line == ("cifar_resnet18: passed: test/acc 0.9478, published 0.9528, gap -0.0050, tolerance 0.0050")
    passed, line = verdict(target, [0.9477], [])
    assert (passed, line[:22]) == (False, "cifar_resnet18: missed")
    passed, line = verdict(target, [0.95, 0.96], ["runner.epochs"])
    assert passed
    assert "test/acc 0.9550 +- 0.0071 over 2 seeds, published 0.9528, gap +0.0022" in line
    assert line.endswith("; not the published setting: runner.epochs")
    assert verdict(target, [1.0], list("abcdefg"))[1].endswith("setting: a, b, c, d, e and 2 more")


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_a_wrong_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, *words in (
        (["cifar_resnet_18"], "no such recipe; did you mean cifar_resnet18?"),
        (["nothing at all"], "no such recipe; healsg reproduce shows what there is"),
        (["kd_cifar100", "seeds=0"], "seeds=0: seeds is a whole number, from 1 on"),
        (["kd_cifar100", "baseline=1"], "baseline=1: baseline is true or false"),
        (["kd_cifar100", "seed=x"], "seed=x: seed is a whole number, from 0 on"),
        (["kd_cifar100", "dkd_cifar100"], "healsg reproduce RECIPE [seeds=1]"),
        (["runner.epochs=1"], "healsg reproduce RECIPE [seeds=1]"),
        (["kd_cifar100", "name=x"], "name=x: reproduce names its runs by itself"),
        (["kd_cifar100", "recipe=dkd_cifar100"], "reproduce names its runs by itself"),
        (["kd_cifar100", "-m"], "the settings of one run"),
        (["airbench94", "method.label_smoothin=2"], "did you mean method.label_smoothing=2?"),
        (["airbench94", "runner.epochs=0"], "runner.epochs: 0 is out of range"),
        (["airbench94", "--config-dir", "nowhere"], "there is no folder nowhere"),
    ):
        line = mistake(capsys, *arguments)
        for word in words:
            assert word in line
    assert not Path("runs").exists()


def test_a_broken_recipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for changes, told in (
        ({"published": 95.28}, "recipe.published: 95.28 is not a number from 0 to 1"),
        ({"published": float("nan")}, "recipe.published: nan is not a number"),
        ({"spread": "small"}, "recipe.spread: 'small' is not a number from 0 to 1, or null"),
        ({"tolerance": None}, "recipe.tolerance: None is not a number"),
        ({"paper": ""}, "recipe.paper: '' is not a text"),
        ({"without": []}, "recipe.without: [] is not a list of overrides such as method.label_smoothing=0, or null"),
        ({"without": ["method.label_smoothin=0"]}, "did you mean method.label_smoothing=0?"),
        ({"target": 0.5}, "recipe.target: no such key; there are paper, table"),
        ({"first": "own"}, "recipe.gives: the setting that gets the name of first's run"),
        ({"first": "own", "gives": "method.teacher"}, "recipe.first: own would have to run before itself"),
        ({"first": "cifar_resnet", "gives": "method.teacher"}, "recipe.first: cifar_resnet: no such recipe; did you"),
        ({"first": "cifar_resnet18", "gives": "method.pupil"}, "method.pupil: no such key"),
    ):
        assert told in mistake(capsys, "own", *recipe("own", **changes))
    own = Path("mine/recipe/own.yaml")
    for text, told in (
        ("recipe: 1", "has no node recipe"),
        ("recipe: [", "line 2: is not valid YAML"),
        ("recipe: {paper: x}", "recipe.table: is missing"),
        ("- 1", "write lines of key: value"),
    ):
        own.write_text(text)
        line = mistake(capsys, "own", "--config-dir", "mine")
        assert str(own) in line
        assert told in line
    assert main(["reproduce", "--config-dir", "mine"]) == 0
    assert f"{own}: holds list" in capsys.readouterr().out


def test_help_and_the_list_need_no_torch(program: Program, tmp_path: Path) -> None:
    code = "import sys; from healsg.cli import main; a = main(['reproduce']), main(['reproduce', '-h'])"
    done = program([sys.executable, "-c", f"{code}; print(a, 'torch' in sys.modules)"])
    assert done.stderr == ""
    *told, last = done.stdout.splitlines()
    assert last == "(0, 0) False"
    for name in NAMES:
        (line,) = [line for line in told if line.startswith(f"{name} ")]
        target = read_target(recipes()[name])
        assert target.goal in line
        assert target.table in line
        assert ("never run" in line) == (target.measured is None)


# --- the document ----------------------------------------------------------------------------------------------------


def table() -> str:
    """The table of ``docs/recipes.md``, as the recipes' files have it."""
    lines = ["| command | paper and table | target | passes from | differs | measured |", "|---|---|---|---|---|---|"]
    for name in NAMES:
        target = read_target(recipes()[name])
        first = f"; first `{target.first}`" if target.first else ""
        place = f"{target.paper}; {target.table}"
        passes = f"{target.published - target.tolerance:.4f}{', with a gain' if target.without else ''}"
        cells = [f"`healsg reproduce {name}`{first}", place, target.goal, passes, header(name).get("differs", "")]
        lines.append(f"| {' | '.join([*cells, target.record])} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text()
    assert text[text.index("| command |") : text.index("\n\n", text.index("| command |")) + 1] == table()


if __name__ == "__main__":
    old = DOCUMENT.read_text()
    begin = old.index("| command |")
    DOCUMENT.write_text(old[:begin] + table() + old[old.index("\n\n", begin) + 1 :])

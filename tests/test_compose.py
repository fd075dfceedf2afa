"""Mistakes in choosing and joining files of options: one line that names the option, the key or the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from healsg.config import hydra_loader
from healsg.config.compose import Composer
from healsg.errors import ConfigError

FILES = {
    "data/in_a_circle.yaml": "defaults:\n  - in_a_circle\n",
    "data/of_nothing.yaml": "defaults:\n  - nosuch\n",
    "recipe/without_package.yaml": "defaults:\n  - override /data: digits\n",
}


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    """With a folder of options that cannot be joined."""
    folder = tmp_path_factory.mktemp("conf")
    for name, text in FILES.items():
        file = Path(folder, name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return Composer(str(folder))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("=1", "=1: names no key"),
        ("data=[digits,cifar]", "data=[digits,cifar]: data takes one option"),
        ("logger=[tensorboard,nosuch]", "logger=nosuch: no such option; logger is one of"),
        ("model/metrics=[nosuch]", "model/metrics=nosuch: no such option"),
        ("runner={epochs:1,epoch:2}", "runner.epoch: no such key; did you mean runner.epochs?"),
        ("args.width=8", "args.width: no such key; a setting of your own is added by +args.width=8"),
        ("data=of_nothing", "data/of_nothing.yaml: its defaults name data=nosuch: no such option"),
        ("data=in_a_circle", "lead back to the option itself"),
        ("recipe=without_package", "recipe/without_package.yaml: would set data of the recipe alone"),
        ("runner.epochs=${oc.env:NOSUCH_VARIABLE}", "'NOSUCH_VARIABLE' not found"),
    ],
)
def test_what_cannot_be_composed_is_named_in_one_line(composer: Composer, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as found:
        composer.compose([override])
    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert "object_type" not in str(found.value)


@pytest.mark.parametrize(
    "options",
    [
        ["data=nifti", "data.folder=x", "data.foreground=2"],
        ["data=tubes3d", "data.foreground=-1"],
        ["data=acdc", "data.folder=x", "data.labels=0"],
    ],
)
def test_an_argument_that_a_subclass_repeats_has_its_range(composer: Composer, options: list[str]) -> None:
    with pytest.raises(ConfigError, match="is out of range"):
        composer.compose(options)


def test_several_options_of_loggers_and_metrics_are_joined(composer: Composer) -> None:
    composed = composer.compose(["model/metrics=[top5,classification]", "logger=[tensorboard,swanlab]"])
    assert set(composed.values["logger"]) == {"tensorboard", "swanlab"}
    assert {"top5", "f1"} <= set(composed.values["model"]["metrics"])


# --- compositions that are done once for the chosen options ----------------------------------------------------------


def flags_of(node: Any, key: str = "") -> dict[str, Any]:
    """The flags of each node, such as ``struct``, which decide whether a key can be added."""
    flags = {key: dict(node._metadata.flags or {})}
    if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing():
        for name in node:
            flags |= flags_of(node._get_node(name), f"{key}.{name}")
    return flags


def composition(load: Any, overrides: list[str]) -> Any:
    """All that a composition consists of, or its error."""
    try:
        config = load("config", overrides, RunMode.RUN, from_shell=False)
    except Exception as error:
        return type(error), str(error), type(error.__cause__)
    return OmegaConf.to_yaml(config), flags_of(config)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=fixmatch", "data=cifar", "seed=3"],
        ["seed=1", "seed=2", "runner.clip_norm=null", "name='a b'"],
        ["method.optimizer.lr=0.1", "+data.added=1", "++args.a={b: 1}"],
        ["~model.metrics", "method={ema: 0.9}", "+runner.callbacks.x={_target_: a.b}"],
        ["model/metrics=classification", "method/optimizer=lion", "+recipe=cifar_resnet18", "data.root=${name}"],
        ["~logger", "seed=1"],
        ["hydra.mode=RUN", "seed=1"],
        ["logger=[nosuch]", "seed=1"],
        ["data.nosuch=1"],
        ["seed=1,2"],
    ],
    ids=" ".join,
)
def test_a_composition_is_that_of_hydra_whether_its_options_were_composed_before_or_not(overrides: list[str]) -> None:
    loader = Composer()._loader
    expected = composition(super(hydra_loader.CheckedLoader, loader).load_configuration, overrides)
    assert composition(loader.load_configuration, overrides) == expected
    assert composition(loader.load_configuration, overrides) == expected


def test_options_are_composed_once_for_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_loader, "_chosen", {})
    loader = type(Composer()._loader)
    count = [0]
    merge = loader._compose_config_from_defaults_list

    def counted(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        return merge(*arguments, **named)

    monkeypatch.setattr(loader, "_compose_config_from_defaults_list", counted)
    for seed in range(40):  # e.g. the jobs of a sweep
        assert Composer().compose(["model=mlp", f"seed={seed}"]).values["seed"] == seed
    assert count[0] == 1
    Composer().compose(["model=cnn", "seed=1"])
    assert count[0] == 2


def test_options_are_composed_again_where_a_file_was_changed_added_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "conf/method/mine.yaml"
    file.parent.mkdir(parents=True)

    def composed() -> Any:
        return Composer(str(tmp_path / "conf")).compose(["method=mine"], checked=False).values["method"]

    text = "defaults: [sgd, {optional extra: mine}]\nema: "
    file.write_text(f"{text}0.1\n")
    assert composed()["ema"] == 0.1
    file.write_text(f"{text}0.2\n")
    os.utime(file, ns=(1, 1))  # a time of its own, however coarse the clock of the file system is
    assert composed()["ema"] == 0.2
    assert "extra" not in composed()
    added = tmp_path / "conf/method/extra/mine.yaml"
    added.parent.mkdir()
    added.write_text("rate: 0.5\n")
    assert composed()["extra"] == {"rate": 0.5}
    added.unlink()
    assert "extra" not in composed()
    file.unlink()
    with pytest.raises(ConfigError, match="method=mine: no such option"):
        composed()


def test_a_composition_names_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        Path(name).mkdir()
        with monkeypatch.context() as there:
            there.chdir(name)
            assert Composer().compose([]).hydra["runtime"]["cwd"] == str(tmp_path / name)


def test_a_search_path_in_a_primary_config_is_searched_in_each_composition(tmp_path: Path) -> None:
    (tmp_path / "cd").mkdir()
    (tmp_path / "extra/args").mkdir(parents=True)
    (tmp_path / "cd/mine.yaml").write_text(
        f"defaults: [config, _self_]\nhydra: {{searchpath: ['file://{tmp_path}/extra']}}\n"
    )
    composer = Composer(str(tmp_path / "cd"), "mine")
    option = tmp_path / "extra/args/big.yaml"
    for size in (7, 78):
        option.write_text(f"size: {size}\n")
        assert composer.compose(["+args=big"], checked=False).values["args"] == {"size": size}
        assert composer.compose(["+args=big", "args.size=8"], checked=False).values["args"] == {"size": 8}


def test_an_option_that_is_named_by_the_environment_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, {override data: '${oc.env:CHOSEN,digits}'}, _self_]\n")
    for chosen in ("digits", "synthetic"):
        monkeypatch.setenv("CHOSEN", chosen)
        assert Composer(str(tmp_path), "mine").compose(["seed=1"], checked=False).choices["data"] == chosen

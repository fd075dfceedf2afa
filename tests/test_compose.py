"""Mistakes in choosing and joining files of options: one line that names the option, the key or the file."""

from __future__ import annotations

from pathlib import Path

import pytest

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

"""Parts of installed packages: found by an entry point without an import, listed with whose they are, else refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from healsg.cli import main
from helpers import train

PART = '''
from healsg.models.mlp import MLP

print("imported")

class Small(MLP):
    """A small perceptron."""

def build():
    """No class."""
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package ``added_parts`` as pip leaves it, in a folder on the import path."""
    site = tmp_path / "site"
    package = site / "added_parts"
    (package / "conf/model").mkdir(parents=True)
    (package / "__init__.py").write_text(PART)
    (package / "conf/model/small_added.yaml").write_text(
        "# a small perceptron of a package\n_target_: added_parts.Small\nwidth: 8 # of it\ndepth: 1 # of it\n"
        "dropout: 0.0 # of it\nmetrics: {} # of it\n"
    )
    facts = site / "added_parts-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: added-parts\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text("[healsg.conf]\nparts = added_parts\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("added_parts", None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_package_adds_parts_by_an_entry_point(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "model", "--json"]) == 0
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)}
    assert options["small_added"]["origin"] == "added-parts 1.2"
    assert options["mlp"]["origin"] == "healsg"
    assert main(["list", "model"]) == 0
    printed = capsys.readouterr().out
    assert "a small perceptron of a package (of added-parts 1.2)" in " ".join(printed.split())
    assert "imported" not in printed
    assert "added_parts" not in sys.modules
    made = train("data=digits", "model=small_added", "method=sgd", "runner.steps=1", "quiet=true", "name=a")
    assert made["status"] == "finished"
    assert "added_parts" in sys.modules
    line = refused(capsys, "train", "data=digits", "model=small_added", "model._target_=added_parts.build")
    assert "added_parts.build is not a class" in line


def test_a_saved_run_says_not_what_is_installed(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from healsg.config.compose import Composer

    values = Composer().compose(["data=digits", "model=small_added"]).values | {"trusted": ["added_parts"]}
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").write_text(yaml.safe_dump(values))
    (installed / "added_parts-1.2.dist-info/entry_points.txt").unlink()
    sys.path.append(str(installed / "none"))  # as in another process, which has cached nothing
    try:
        assert "added_parts.Small is not a part" in refused(capsys, "resume", "a")
    finally:
        sys.path.remove(str(installed / "none"))


@pytest.mark.parametrize(
    ("value", "option", "told"),
    [
        ("added_parts", "model/mlp", "added-parts 1.2: model/mlp is an option of healsg already"),
        ("added_parts", "config", "added-parts 1.2: config is an option of healsg already"),
        ("added_parts.none", "model/a", "names added_parts.none, which has no folder conf/"),
        ("subprocess", "model/a", "names subprocess, which is not its own package"),
        ("torch.nn", "model/a", "names torch.nn, which is not its own package"),
        ("added parts", "model/a", "names 'added parts', which is no package"),
    ],
)
def test_a_package_that_takes_a_name_is_refused(
    value: str, option: str, told: str, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / f"added_parts/conf/{option}.yaml").write_text("a: 1\n")
    (installed / "added_parts-1.2.dist-info/entry_points.txt").write_text(f"[healsg.conf]\nparts = {value}\n")
    assert told in refused(capsys, "list", "model")

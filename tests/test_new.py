"""``healsg new``: a part of one's own that trains at once, whose test passes at once; nothing is overwritten."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.commands.new import contents
from helpers import Program, trainer

KINDS = ("data", "model", "method")


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Modules of this folder are forgotten afterwards."""
    yield
    for kind in KINDS:
        sys.modules.pop(f"own_{kind}", None)


def test_what_is_written_trains_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        assert main(["new", kind, f"own_{kind}"]) == 0
        assert f"healsg train {kind}=own_{kind}" in capsys.readouterr().out
    result = trainer(*(f"{kind}=own_{kind}" for kind in KINDS), "runner.epochs=3", "quiet=true", "name=a").train()
    assert result["status"] == "finished"
    assert result["test"]["test/acc"] > 0.8
    assert main(["list", "method", "--json"]) == 0
    origins = {option["name"]: option["origin"] for option in json.loads(capsys.readouterr().out)}
    assert (origins["own_method"], origins["sgd"]) == ("conf", "healsg")


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_the_yaml_has_a_comment(kind: str) -> None:
    yaml = contents(kind, f"own_{kind}")[f"conf/{kind}/own_{kind}.yaml"]
    keys = [line for line in yaml.splitlines() if line[:1].isalpha() and not line.startswith("defaults")]
    assert len(keys) >= 2
    assert all("  #" in line for line in keys)


@pytest.mark.parametrize("name", ["task", "data", "model", "own", "network", "new", "tensor", "a_b__c", "taskmodel"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_class_hides_what_it_uses(kind: str, name: str) -> None:
    texts = contents(kind, name)
    tree = ast.parse(texts[f"{name}.py"])
    ast.parse(texts[f"test_{name}.py"])
    imported = {one.name for node in tree.body if isinstance(node, ast.ImportFrom) for one in node.names}
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert not imported & set(classes)
    assert f"_target_: {name}.{classes[-1]}" in texts[f"conf/{kind}/{name}.yaml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model", "my-model"], "my-model: is no name of a Python module; write my_model"),
        (["model", "class"], "class: is no name of a Python module"),
        (["model", "../up"], "../up: is no name of a Python module; write up"),
        (["model", "_own"], "_own: is no name of a Python module"),
        (["model", "mlp"], "model=mlp: is there already"),
        (["data", "json"], "json: an installed module is called so"),
        (["data", "numpy"], "numpy: an installed module is called so"),
        (["loss", "own"], "invalid choice: 'loss'"),
        (["model", "own", "--force"], "--force: there is no such option; healsg new --help"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["new", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["own.py", "conf/model/own.yaml", "test_own.py"])
def test_nothing_is_overwritten(there: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    assert main(["new", "model", "own"]) == 2
    assert f"{there}: exists" in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["mine"]


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_the_test_that_is_written_passes(kind: str, process: Program) -> None:
    assert main(["new", kind, f"own_{kind}"]) == 0
    done = process([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_own_{kind}.py"])
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout

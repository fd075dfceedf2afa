"""The layers of the package: imports run from the commands down to the ground, and no files import each other in a
circle. An import within a function and one for type checkers alone count as any other."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Set
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src/healsg"

LAYERS: Mapping[str, tuple[str, ...]] = {
    "ground": (
        *("errors.py", "types.py", "paths.py", "seeding.py", "console.py", "safefiles.py", "peers.py"),
        *("system.py", "logs.py", "torch_private.py"),
        *("distributed.py", "callbacks.py", "parts.py"),
        # values of a step, and the files of a run's folder, which name nothing that lies higher
        *("training/__init__.py", "training/plan.py", "training/progress.py", "training/step.py"),
        *("training/parallel.py", "training/collectives.py", "training/sharded.py"),
        *("runs/__init__.py", "runs/archive.py", "runs/checkpoint.py", "runs/folder.py", "runs/logger.py"),
        *("runs/patch.py", "runs/provenance.py", "runs/record.py", "runs/redact.py", "evaluation/__init__.py"),
    ),
    "config, data and model": (
        *("config/*", "data/*", "metric.py", "model.py"),
        *("sweeps/__init__.py", "sweeps/launcher.py", "sweeps/proposals.py", "sweeps/space.py"),
    ),
    "training": ("protocols.py", "method.py", "runner.py", "training/*", "evaluation/*", "runs/*"),
    "task": (
        *("task.py", "build.py", "trainer.py", "__init__.py", "runs/session.py"),
        *("evaluation/predictor.py", "evaluation/ensemble.py"),
    ),
    "commands": ("cli.py", "__main__.py", "commands/*", "sweeps/*", "exporting/*", "serving/*"),
}
"""The frame from its lowest layer to its highest. A file belongs to the layer that names it, before patterns count."""

LEAVES = ["datasets", "metrics", "models", "methods", "transforms", "losses", "optimizers", "schedulers", "loggers"]
LEAVES += ["launchers", "searches"]

USUAL = {
    ("model.py", "losses/usual.py"),
    ("model.py", "metrics/usual.py"),
    ("evaluation/predictor.py", "datasets/new_samples/prepared.py"),
}
"""Where the frame names leaves: the loss and the metrics of each kind of task where nothing is chosen, and how new
samples are prepared for a network."""


def imported(source: str, modules: Mapping[str, str], package: str = "healsg") -> set[str]:
    """The files that a source text imports anywhere in it.

    Args:
        modules: by dotted name the file of each module.
        package: of the text, for relative imports.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {modules[name.name] for name in node.names if name.name in modules}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{base}.{name.name}" for name in node.names]
            found |= {modules[one] for name in names if (one := name if name in modules else base) in modules}
    return found


def package_imports() -> dict[str, set[str]]:
    """By file of the package, as a path in it, the files that it imports."""
    files = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    modules = {_dotted(name): name for name in files}
    found = {}
    for name, path in files.items():
        package = _dotted(name) if name.endswith("__init__.py") else _dotted(name).rpartition(".")[0]
        found[name] = imported(path.read_text(), modules, package) - {name}
    return found


def _dotted(name: str) -> str:
    return ".".join(["healsg", *Path(name).with_suffix("").parts]).removesuffix(".__init__")


def layer(name: str) -> int | None:
    """The number of a file's layer, from 0; None for a leaf."""
    if name.split("/")[0] in LEAVES:
        return None
    exact = [number for number, patterns in enumerate(LAYERS.values()) if name in patterns]
    near = [n for n, patterns in enumerate(LAYERS.values()) if any(fnmatchcase(name, one) for one in patterns)]
    assert exact or near, f"{name} is in no layer; name it in LAYERS"
    return (exact or near)[0]


def upward(imports: Mapping[str, Set[str]]) -> list[str]:
    """The imports from a layer into one above it, of a leaf into a command, and of the frame into a leaf."""
    wrong = []
    for name, others in imports.items():
        own = layer(name)
        for other in sorted(others):
            above = layer(other)
            if own is None:
                fits = above is None or above < len(LAYERS) - 1
            elif above is None:
                fits = (name, other) in USUAL or own == len(LAYERS) - 1
            else:
                fits = above <= own
            if not fits:
                wrong.append(f"{name} imports {other}")
    return wrong


def circles(imports: Mapping[str, Set[str]]) -> list[str]:
    """The files that can be reached from themselves."""
    reached = {name: set(others) for name, others in imports.items()}
    for through in reached:  # all ways that lead over one file more
        for others in reached.values():
            if through in others:
                others |= reached[through]
    return sorted(name for name, others in reached.items() if name in others)


def test_imports_run_down_the_layers() -> None:
    assert upward(package_imports()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(package_imports()) == []


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("data/loader.py", "task.py"),
        ("errors.py", "training/device.py"),
        ("training/step.py", "training/device.py"),
        ("runs/checkpointer.py", "task.py"),
        ("trainer.py", "commands/train/command.py"),
        ("runner.py", "methods/sam.py"),
        ("model.py", "models/mlp.py"),
        ("methods/sam.py", "cli.py"),
    ],
)
def test_an_import_up_the_layers_is_seen(name: str, other: str) -> None:
    assert upward({name: {other}}) == [f"{name} imports {other}"]
    assert upward({other: {name}}) == [] or layer(name) is None or layer(other) is None


def test_a_circle_of_several_files_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


@pytest.mark.parametrize(
    "source",
    [
        "from healsg.task import BasicTask",
        "import healsg.task",
        "from healsg import task",
        "from . import task",
        "from .task import BasicTask",
        "def late():\n    from healsg.task import BasicTask",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from healsg.task import BasicTask",
    ],
)
def test_an_import_counts_wherever_it_stands(source: str) -> None:
    assert imported(source, {"healsg.task": "task.py", "healsg": "__init__.py"}) == {"task.py"}

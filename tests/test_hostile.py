"""No code from data: what somebody else's run, checkpoint or configuration holds is never executed."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hostile_inputs
from healsg.config.compose import Composer
from healsg.config.targets import allowed, verify_origin
from healsg.errors import ConfigError, RunError
from healsg.runs.folder import RunFolder
from healsg.runs.saved_config import LARGEST, load_saved, read_saved
from helpers import HANG, Program, command, healsg
from test_structure import code_from_data

OURS = 1, 2
"""The exit statuses of what was refused."""


def watched(folder: Path, *words: str) -> list[dict[str, Any]]:
    """What became of every hostile input, in a process of its own under an audit hook."""
    line = [sys.executable, hostile_inputs.__file__, str(folder), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(row) for row in done.stdout.splitlines()]


def trouble(row: dict[str, Any]) -> str:
    """What is wrong with the answer to one input."""
    told: str = row["told"]
    if row["seen"]:
        return f"it ran: {row['seen']}"
    if "Traceback" in told or row["status"] not in ((0, *OURS) if row["harmless"] else OURS):
        return f"it was not refused: {row['status']}"
    errors = [line for line in told.splitlines() if line.startswith("error: ") and len(line) > 20]
    if row["status"] in OURS and len(errors) != 1 and "sweep" not in row["name"]:
        return "it was not refused in one line"
    return "" if errors or row["harmless"] else "no line says why"


def judge(rows: list[dict[str, Any]]) -> int:
    """Every input was refused and none ran, and the watch is no blind one; returns how many there were."""
    deliberate = [row for row in rows if row.get("deliberate")]
    inputs = [row for row in rows if not row.get("deliberate")]
    wrong = [f"{row['name']}: {told}; {row['told'][-200:]}" for row in inputs if (told := trouble(row))]
    assert not wrong, "\n".join(wrong)
    assert len({row["name"] for row in inputs}) > 0.9 * len(inputs)
    assert max(row["cpu"] for row in inputs) < HANG, "an input that costs minutes"
    assert len(deliberate) >= 9
    assert all(row["seen"] for row in deliberate), "what does run is seen by the hook"
    assert sum("the canary" in row["seen"] for row in deliberate) >= 6, "and by the canary"
    return len(inputs)


def test_no_hostile_input_runs(tmp_path: Path) -> None:
    rows = watched(tmp_path)
    assert judge(rows) >= 300
    names = " ".join(row["name"] for row in rows)
    for way in ("eval:", "resume:", "train:", "sweep:", "init_from:", "command line:", "command line, swept:"):
        assert way in names


@pytest.mark.soak
def test_no_hostile_input_runs_by_any_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = watched(tmp_path, "every")
    count = judge(rows)
    with capsys.disabled():
        print(f"\n{count} hostile inputs, {sum(row['cpu'] for row in rows if 'cpu' in row):.0f} s of CPU")
    assert count >= 1500


def test_the_judge_is_not_blind() -> None:
    good = {"name": "x", "status": 2, "told": "error: os.system is not a part\n", "seen": [], "harmless": False}
    assert not trouble(good)
    bad = [{"seen": ["os.system"]}, {"status": 0}, {"status": None}, {"told": ""}, {"told": good["told"] * 2}]
    for change in (*bad, {"told": "Traceback (most recent call last)\n" + good["told"]}):
        assert trouble(good | change)


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run, and a sweep's job, that were begun with a plain configuration."""
    values = Composer().compose(["name=run", "quiet=true"]).values
    for folder in (tmp_path / "runs/run", tmp_path / "runs/sweep/seed=1"):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        (folder / "metrics.jsonl").write_text('{"event": "step", "epoch": 1, "step": 1}\n')
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (healsg("eval", "run"), "runs.SGD"),
        (healsg("resume", "run"), "os.system"),
        (command("name=run", "quiet=true"), "os.system"),
        (command("-m", "name=sweep", "quiet=true", "seed=choice(1)"), "runs.SGD"),
    ],
    ids=["eval", "resume", "train", "sweep"],
)
def test_the_four_commands_in_processes_of_their_own(
    runs: Path, line: list[str], target: str, process: Program
) -> None:
    for place in (runs, runs / "run", runs / "sweep"):
        (place / "__init__.py").write_text(hostile_inputs.PLANTED)
    for config in runs.rglob("config.yaml"):
        text = config.read_text()
        assert "healsg.optimizers.adam.AdamW" in text
        config.write_text(text.replace("healsg.optimizers.adam.AdamW", target))
    done = process(line)
    assert done.returncode in OURS, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not list(runs.parent.rglob(hostile_inputs.CANARY))


# --- the allow-list ---------------------------------------------------------------------------------------------------


def test_a_module_of_a_run_that_hands_on_a_part_is_refused_before_it_is_imported(runs: Path) -> None:
    (runs / "__init__.py").write_text(hostile_inputs.PLANTED)
    config = runs / "run/config.yaml"
    config.write_text(config.read_text().replace("healsg.optimizers.adam.AdamW", "runs.SGD"))
    with pytest.raises(ConfigError, match="lies in a run's own folder"):
        load_saved(RunFolder(runs / "run"), [])
    assert not Path(hostile_inputs.CANARY).exists()


def test_modules_beside_the_data_are_no_project(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run's own folder, no module counts as the user's own, and the folder is not put on the path of imports."""
    (runs / "run/evil_parts.py").write_text(hostile_inputs.PLANTED)
    assert load_saved(RunFolder(runs / "run"), []).project == (runs.parent,)
    monkeypatch.chdir(runs / "run")
    assert load_saved(RunFolder(Path()), []).project == ()
    config = Path("config.yaml")
    config.write_text(config.read_text().replace("healsg.optimizers.adam.AdamW", "evil_parts.SGD"))
    with pytest.raises(ConfigError, match=r"evil_parts\.SGD is not a part"):
        load_saved(RunFolder(Path()), [])


@pytest.mark.parametrize("text", hostile_inputs.WHOLE.values(), ids=hostile_inputs.WHOLE)
def test_a_file_that_would_grow_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(RunError) as caught:
        read_saved(file)
    assert "\n" not in str(caught.value)


def test_what_a_run_holds_is_read(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None, True, "$x", {"b": {}}], 3: "int keys", "nan": float("inf"), "large": 2**62}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values | {"long": "x" * (LARGEST - 300)}))
    assert read_saved(file) == values | {"long": "x" * (LARGEST - 300)}


def parts() -> Iterator[tuple[str, Any]]:
    """Every name under the allowed namespaces that the allow-list lets through, with what it is."""
    for root in ("torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms", "healsg"):
        package = importlib.import_module(root)
        for name in [root, *(module.name for module in pkgutil.walk_packages(package.__path__, f"{root}."))]:
            module = importlib.import_module(name)
            for attribute in dir(module):
                try:
                    allowed(f"{name}.{attribute}")
                    verify_origin(part := getattr(module, attribute), f"{name}.{attribute}")
                except ConfigError:
                    continue
                yield f"{name}.{attribute}", part


@pytest.mark.soak
def test_nothing_that_the_allow_list_lets_through_runs_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    """No part's source has a call that turns its arguments into a program, and functions are torchvision's networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dict(parts())
    kinds: set[Any] = set()
    for name, part in found.items():
        if not inspect.isclass(part):
            assert part.__module__.startswith("torchvision.models."), name
            assert not part.__name__.startswith("_"), name
        kinds |= {kind for kind in getattr(part, "__mro__", (part,)) if kind.__module__.startswith(("torch", "healsg"))}
    unread = set()
    for kind in kinds:
        try:
            source = inspect.getsource(kind)
        except OSError:
            unread.add(kind)
        else:
            assert not code_from_data(textwrap.dedent(source)), kind
    with capsys.disabled():
        print(f"\n{len(found)} names, {len(set(map(id, found.values())))} parts")
    assert len(found) > 800
    told = {kind.__name__ for kind in unread}  # made in C, or naming another module as theirs
    assert told <= {"Adafactor", "Muon", "Tensor", "TensorBase"}, told


@pytest.mark.parametrize("node", ["model=torchvision", "builder"])
def test_a_cached_file_of_weights_runs_nothing(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision reads its cache with weights_only=False, and checks no hash of what lies there."""
    import torch

    from healsg import TaskTrainer
    from healsg.build import make
    from healsg.errors import HealsgError

    class Evil:
        def __reduce__(self) -> object:
            return Path.touch, (Path("canary"),)

    cache = Path("cache/hub/checkpoints")
    cache.mkdir(parents=True)
    torch.save({"conv1.weight": Evil()}, cache / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(Path("cache").resolve()))
    torch.load(cache / "resnet18-f37072fd.pth", weights_only=False)
    assert Path("canary").exists(), "the file is hostile"
    Path("canary").unlink()
    composed = Composer().compose(["model=torchvision", "model.name=resnet18", "model.weights=DEFAULT", "quiet=true"])
    target = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    begin = (
        TaskTrainer(composed).train if node != "builder" else lambda: make(target, "model", composed, torch.nn.Module)
    )
    with pytest.raises(HealsgError):
        begin()
    assert not Path("canary").exists()

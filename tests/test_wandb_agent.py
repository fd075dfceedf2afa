"""``wandb agent`` drives ``train.py`` by overrides, as docs/coming.md says, and gets its metric."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fake_wandb import FakeWandb
from healsg.loggers.wandb import Wandb
from helpers import REPOSITORY
from test_site import blocks


def test_a_trial_of_an_agent_is_the_run_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    for name in ("own", "trial"):
        (tmp_path / name).mkdir()
    own = Wandb().prepare(tmp_path / "own", {"name": "own"})["id"]
    assert own != "trial7", "without a sweep it would be that of every job"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert Wandb().prepare(tmp_path / "trial", {"name": "trial"})["id"] == "trial7"
    assert Wandb().prepare(tmp_path / "own", {"name": "own"})["id"] == own, "one that goes on keeps its id"


@pytest.mark.soak
def test_an_agent_trains_each_trial_and_gets_its_metric(tmp_path: Path) -> None:
    (text,) = (block for language, block in blocks("coming") if language == "yaml")
    sweep = yaml.safe_load(text)
    sweep["program"] = str(REPOSITORY / sweep["program"])
    words = {"${interpreter}": [sys.executable], "use_wandb=true": ["use_wandb=true", "model=mlp", "runner.epochs=2"]}
    sweep["command"] = [part for word in sweep["command"] for part in words.get(word, [word])]
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src")}
    with FakeWandb() as server:
        server.grid(sweep)
        line = [sys.executable, "-m", "wandb", "agent", "--entity", "somebody", "--project", "healsg", "sweep1"]
        done = subprocess.run(
            line,
            cwd=tmp_path,
            env={**os.environ, **home, **server.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert set(server.runs) == {"trial0", "trial1"}, done.stdout[-2000:] + done.stderr[-2000:]
        for key, rate in (("trial0", 0.001), ("trial1", 0.01)):
            rows = server.rows(key)
            assert sum("val/acc" in row for row in rows) >= 2
            assert server.runs[key]["complete"]
            kept = yaml.safe_load(next(p for p in tmp_path.glob("runs/*/config.yaml") if _is(p, key)).read_text())
            assert kept["method"]["optimizer"]["lr"] == rate


def _is(config: Path, key: str) -> bool:
    return key in (config.parent / "wandb.json").read_text()

"""``wandb agent`` drives ``train.py`` by overrides, as docs/coming.md says, and gets its metric; ``wandb sync`` takes
what a run left that was offline and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import yaml

from fake_wandb import FakeWandb
from healsg.loggers.wandb import Wandb
from helpers import REPOSITORY, epochs_of, healsg, lines
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
    """The file of docs/coming.md, with less to train: ``wandb sweep`` takes it to the server, ``wandb agent`` trains
    what the server gives, by the id that it told."""
    (text,) = (block for language, block in blocks("coming") if language == "yaml")
    less = text.replace("  - use_wandb=true\n", "  - use_wandb=true\n  - runner.epochs=2\n  - model.width=8\n")
    assert less != text
    (tmp_path / "sweep.yaml").write_text(less)
    (tmp_path / "train.py").symlink_to(REPOSITORY / "train.py")
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ${env} finds python
    with FakeWandb() as server:

        def wandb(*arguments: str) -> str:
            line = [sys.executable, "-m", "wandb", *arguments]
            given = {**os.environ, **home, **server.environment, "PATH": path}
            done = subprocess.run(line, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout[-2000:] + done.stderr[-2000:]

        told = wandb("sweep", "--project", "healsg", "sweep.yaml")
        assert server.sweep["metric"] == {"name": "val/acc", "goal": "maximize"}
        (address,) = re.findall(r"wandb agent (\S+)", told)
        told = wandb("agent", address)
        assert len(server.runs) == 4, told
        for number, (rate, model) in enumerate(product((0.0001, 0.1), ("MLP", "CNN"))):
            key = f"trial{number}"
            rows = server.rows(key)
            assert sum("val/acc" in row for row in rows) >= 2, "the metric of the sweep"
            assert server.runs[key]["complete"]
            kept = yaml.safe_load(next(p for p in tmp_path.glob("runs/*/config.yaml") if _is(p, key)).read_text())
            assert kept["method"]["optimizer"]["lr"] == rate
            assert kept["model"]["_target_"].endswith(model)


def _is(config: Path, key: str) -> bool:
    return key in (config.parent / "wandb.json").read_text()


@pytest.mark.soak
def test_a_run_that_was_offline_and_killed_five_times_arrives_as_one(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src")}
    given = [
        "use_wandb=true",
        "wandb.mode=offline",
        "model=mlp",
        "runner.epochs=120",
        "runner.save_every=10",
        "name=run",
    ]
    for kill in range(6):
        child = subprocess.Popen(healsg("train", *given, "quiet=true"), cwd=tmp_path, env={**os.environ, **home})
        while kill < 5 and child.poll() is None and epochs_of(tmp_path / "runs/run") < 15 * (kill + 1):
            time.sleep(0.02)
        if kill < 5:
            assert child.poll() is None, "it is to be killed before its end"
            child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=120) == (0 if kill == 5 else -signal.SIGKILL)
        time.sleep(1.0)  # the client ends by itself once the run is gone
    folders = sorted(str(path) for path in (tmp_path / "runs/run/wandb").glob("offline-run-*"))
    assert len(folders) == 6
    with FakeWandb() as server:
        environment = {**os.environ, **home, **server.environment}
        line = [sys.executable, "-m", "wandb", "sync", *folders]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (key,) = server.runs
        epochs = [(row["step"], row["val/acc"]) for row in server.rows(key) if "val/acc" in row]
    kept = [(row["step"], row["val/acc"]) for row in lines(tmp_path / "runs/run") if row["event"] == "epoch"]
    assert sorted(set(epochs)) == sorted(kept), "every epoch has arrived"
    assert len(epochs) == len(kept), "and once"

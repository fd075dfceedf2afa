"""The ledger: each training sample's loss, confidence and correctness by epoch, the same bytes after a stop, with
workers and without; and a run that keeps one is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from healsg.cli import main
from healsg.commands.ledger import Read, forgotten
from healsg.runs.folder import RunFolder
from helpers import record, stopped_at, train

OPTIONS = ("data=digits", "model=mlp", "data.labels=300", "data.batch_size=64", "runner.epochs=3", "quiet=true")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("runs", run, "ledger").iterdir())}


def test_a_ledger_holds_every_sample_of_every_epoch() -> None:
    train(*OPTIONS, "runner.ledger=true", "name=kept")
    read = Read(RunFolder(Path("runs/kept")))
    assert read.correct.shape == (3, 300)
    assert set(np.unique(read.correct)) == {0, 1}
    assert np.isfinite(read.losses).all()
    assert np.allclose(np.exp(-read.losses), read.confidence, atol=2e-3)
    told = [json.loads(text) for text in Path("runs/kept/metrics.jsonl").read_text().splitlines()]
    means = [row["train/loss"] for row in told if row["event"] == "epoch"]
    assert read.losses.mean(axis=1) == pytest.approx(means, rel=1e-3), "the losses are those of the training steps"
    assert np.bincount(read.targets, minlength=10).sum() == 300


def test_a_run_is_the_same_with_a_ledger_and_a_ledger_after_a_stop() -> None:
    train(*OPTIONS, "runner.ledger=true", "name=whole")
    train(*OPTIONS, "name=without")
    assert record("whole")["digest"] == record("without")["digest"]
    assert not Path("runs/without/ledger").exists()
    stopped_at(7, *OPTIONS, "runner.ledger=true", "name=cut")  # in the middle of an epoch
    assert main(["resume", "cut"]) == 0
    assert written("cut") == written("whole")
    assert record("cut")["digest"] == record("whole")["digest"]


def test_the_command_tells_what_was_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    train(*OPTIONS, "runner.ledger=true", "name=kept")
    capsys.readouterr()
    assert main(["ledger", "kept", "--json", "--top", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["forgotten"].values()) + found["never_learned"] == found["samples"] == 300
    losses = [one["loss"] for one in found["hardest"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5
    assert main(["ledger", "kept"]) == 0
    assert "hardest" in capsys.readouterr().out
    Path("runs/kept/ledger/0002.bin").write_bytes(b"short")
    assert main(["ledger", "kept"]) == 1
    assert "0002.bin" in capsys.readouterr().err


def test_forgetting_is_right_and_then_wrong() -> None:
    correct = np.array([[1, 0, 1, 255], [0, 1, 255, 255], [1, 1, 0, 255], [0, 1, 0, 255]], np.uint8)
    assert forgotten(correct).tolist() == [2, 0, 1, 0]


def test_a_method_without_one_class_a_sample_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data=digits", "model=cnn", "method=simclr", "runner.ledger=true", "quiet=true"]) == 2
    assert "runner.ledger" in capsys.readouterr().err

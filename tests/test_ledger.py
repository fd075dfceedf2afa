"""The ledger: each training sample's loss, confidence and correctness by epoch, the same bytes after a stop, with
workers and without; and a run that keeps one is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_data
from healsg.cli import main
from healsg.commands.ledger.command import Read, forgotten, forgotten_by_epoch
from healsg.commands.ledger.pseudo_labels import PseudoLabels, facts_of_pseudo_labels
from healsg.data.source import TensorSource
from healsg.evaluation.label_errors import candidates, thresholds
from healsg.runs.folder import RunFolder
from healsg.training.ledger_files import LedgerFiles
from helpers import UNLABELLED_ACTS, record, stopped_at, train, trained
from json_schema import mismatch, schemas

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


def test_a_sample_that_an_epoch_did_not_deal_has_no_numbers_of_the_one_before() -> None:
    train(*OPTIONS, "runner.ledger=true", "runner.limit_batches=2", "runner.epochs=2", "name=some")
    epochs = Path("runs/some/ledger/epochs.bin").read_bytes()
    assert len(epochs) == 2 * 1500
    for content in (epochs[:1500], epochs[1500:]):
        losses, correct = np.frombuffer(content, "<f2", 300), np.frombuffer(content, "u1", 300, 1200)
        assert (int((correct < 2).sum()), int((losses >= 0).sum())) == (128, 128)


def test_a_run_is_the_same_with_a_ledger_and_a_ledger_after_a_stop() -> None:
    train(*OPTIONS, "runner.ledger=true", "name=whole")
    train(*OPTIONS, "name=without")
    assert record("whole")["digest"] == record("without")["digest"]
    assert not Path("runs/without/ledger").exists()
    stopped_at(7, *OPTIONS, "runner.ledger=true", "name=cut")  # in the middle of an epoch
    assert main(["resume", "cut"]) == 0
    assert written("cut") == written("whole")
    assert record("cut")["digest"] == record("whole")["digest"]


def test_a_file_of_epochs_is_cut_where_the_run_stands() -> None:
    files = LedgerFiles(TensorSource(torch.zeros(2, 1), torch.tensor([0, 1])), torch.tensor([0, 1]), {"classes": ["a"]})

    def write(epoch: int, *values: int) -> list[int]:
        for value in values:
            files.add([torch.full((2,), value, dtype=torch.uint8)])
        files.write(Path(), epoch)
        return list(Path("ledger/epochs.bin").read_bytes())

    assert write(3, 1, 2, 3) == [1, 1, 2, 2, 3, 3]
    with Path("ledger/epochs.bin").open("ab") as file:
        file.write(b"\4")  # killed as it wrote
    assert write(2, 5) == [1, 1, 5, 5], "it goes on from a save in its second epoch"
    assert write(4, 7) == [1, 1, 5, 5, 255, 255, 7, 7], "of an epoch that is missing no sample was dealt"


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
    with Path("runs/kept/ledger/epochs.bin").open("r+b") as file:
        file.truncate(2 * 5 * 300 - 1)  # as a run was killed that wrote its second epoch
    assert len(Read(RunFolder(Path("runs/kept"))).correct) == 1
    Path("runs/kept/ledger/targets.bin").write_bytes(b"short")
    assert main(["ledger", "kept"]) == 1
    assert "targets.bin" in capsys.readouterr().err


def test_forgetting_is_right_and_then_wrong() -> None:
    correct = np.array([[1, 0, 1, 255], [0, 1, 255, 255], [1, 1, 0, 255], [0, 1, 0, 255]], np.uint8)
    assert forgotten(correct).tolist() == [2, 0, 1, 0]
    assert forgotten_by_epoch(correct).tolist() == [0, 1, 1, 1]


def planted(labels: np.ndarray, seed: int, share: float = 0.1) -> np.ndarray:
    """The labels of which a share are others; which are, and which they become, is drawn."""
    rng = np.random.default_rng(seed)
    wrong = labels.copy()
    chosen = rng.choice(len(labels), round(share * len(labels)), replace=False)
    wrong[chosen] = (labels[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return wrong


def digits_in_files(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as a table with planted label errors: the true labels, and those in the file."""
    from sklearn.datasets import load_digits

    found = load_digits()
    wrong = planted(found.target, seed)
    lines = [",".join([*(f"p{place}" for place in range(64)), "label"])]
    lines += [",".join([*map(str, row.astype(int)), f"d{label}"]) for row, label in zip(found.data, wrong, strict=True)]
    Path("digits.csv").write_text("\n".join(lines) + "\n")
    return found.target, wrong


FOLDS = ("data=csv", "data.file=digits.csv", "model=mlp", "quiet=true", "data.batch_size=64")


@pytest.mark.soak
def test_label_errors_are_found_by_the_runs_that_held_them_out(capsys: pytest.CaptureFixture[str]) -> None:
    true, wrong = digits_in_files(0)
    for fold in ("1/2", "2/2"):
        train(*FOLDS, "runner.epochs=8", f"data.fold={fold}", f"name=folds{fold[0]}")
    capsys.readouterr()
    assert main(["ledger", "errors", "folds1", "folds2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judged"] == found["samples"] == len(true)
    named = {one["index"] for one in found["errors"]}
    planted_errors = set(np.flatnonzero(true != wrong).tolist())
    assert len(named & planted_errors) / len(planted_errors) > 0.75
    assert len(named & planted_errors) / len(named) > 0.6
    for one in found["errors"]:
        assert one["label"] == f"d{wrong[one['index']]}"
    assert main(["ledger", "errors", "folds1", "folds2", "--top", "3"]) == 0
    assert "more: --top N" in capsys.readouterr().out


def test_confident_learning_takes_what_is_confidently_another_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    sure = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.95])  # of class 0
    probabilities = np.stack([sure, 1 - sure], axis=1)
    assert thresholds(labels, probabilities) == pytest.approx([0.6, 1 - (0.2 + 0.3 + 0.95) / 3])
    assert candidates(labels, probabilities).tolist() == [5, 2], "the least probable label first"


def test_candidates_are_those_of_cleanlab() -> None:
    """The package of the paper's authors, by the same way of pruning."""
    pytest.importorskip("cleanlab")
    from cleanlab.filter import find_label_issues

    rng = np.random.default_rng(1)
    true = rng.integers(0, 5, 2000)
    labels = np.where(rng.random(2000) < 0.15, rng.integers(0, 5, 2000), true)
    scores = rng.normal(0, 1, (2000, 5)) + 3 * np.eye(5)[true]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    issues = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    found, wanted = set(candidates(labels, probabilities).tolist()), set(np.flatnonzero(issues).tolist())
    assert len(wanted) > 200
    assert len(found ^ wanted) <= 5, "they round the joint such that its sum stays: a count may differ by one"


def test_a_method_without_one_class_a_sample_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data=digits", "model=cnn", "method=simclr", "runner.ledger=true", "quiet=true"]) == 2
    assert "runner.ledger" in capsys.readouterr().err


# --- pseudo-labels ---------------------------------------------------------------------------------------------------

SEMI = ("data=digits", "model=mlp", "data.labels=40", "data.batch_size=16", "runner.epochs=2", "quiet=true")


def test_a_semi_supervised_run_keeps_what_it_took_its_samples_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = (*SEMI, "method=fixmatch", "method.threshold=0.3")
    task = trained(*options, "runner.ledger=true", "name=kept")
    train(*options, "name=without")
    assert record("kept")["digest"] == record("without")["digest"]
    stopped_at(2, *options, "runner.ledger=true", "name=cut")  # in the middle of an epoch
    assert main(["resume", "cut"]) == 0
    assert written("cut") == written("kept")
    assert record("cut")["digest"] == record("kept")["digest"]

    source, whole = task.train_loader.sources["unlabelled"], task.task_data.read("train")
    assert set(source.fetch(torch.arange(3))) == {"input", "index"}, "no batch has the true classes"
    known = {one.numpy().tobytes(): int(target) for one, target in zip(whole.input, whole.target, strict=True)}
    read = PseudoLabels(RunFolder(Path("runs/kept")))
    assert read.targets.tolist() == [known[one.numpy().tobytes()] for one in source.input]
    dealt = read.label >= 0
    assert dealt.all(), "an epoch deals each unlabelled sample"
    assert set(np.unique(read.weight[dealt])) <= {0.0, 1.0}
    assert (read.confidence[read.weight == 1] >= 0.2998).all()
    assert (read.right.sum(axis=1) == ((read.label == read.targets) & dealt).sum(axis=1)).all()

    capsys.readouterr()
    assert main(["ledger", "kept", "--json", "--top", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert mismatch(found, schemas()["ledger guesses"]) == ""
    assert found["known"] == found["samples"] == sum(one["samples"] for one in found["by_difficulty"])
    assert [one["right"] for one in found["epochs"]] == pytest.approx(read.right.sum(axis=1) / dealt.sum(axis=1))
    confidences = [one["confidence"] for one in found["wrong"]]
    assert confidences == sorted(confidences, reverse=True)
    assert all(one["class"] != one["guess"] for one in found["wrong"])
    assert main(["ledger", "kept"]) == 0
    assert "right pseudo-labels by difficulty, in epoch" in capsys.readouterr().out

    targets = Path("runs/kept/ledger/targets.bin")
    targets.write_bytes(np.full(len(read.targets), -1, "<i4").tobytes())
    assert main(["ledger", "kept"]) == 0
    said = capsys.readouterr().out
    assert f"the true class of {found['samples']} samples is not known; none is called right" in said
    assert "wrong at last" not in said

    ledger = task.runner.ledger  # of a sample that is dealt twice the last guess counts
    scores = torch.tensor([[0.0, 3.0], [5.0, 0.0], [0.0, 1.0]])
    ledger.add(torch.tensor([7, 2, 7]), scores, None)
    ledger.add(torch.tensor([2]), scores[:1], torch.tensor([0.25]))
    state = ledger.state_dict()
    assert (state["label"] >= 0).nonzero().flatten().tolist() == [2, 7]
    assert state["label"][[2, 7]].tolist() == [1, 1]
    assert state["weight"][[2, 7]].tolist() == [0.25, 1.0]
    assert state["confidence"][[2, 7]].tolist() == pytest.approx([0.9526, 0.7311], abs=1e-3)


def test_guesses_by_difficulty() -> None:
    """Of four samples two are hard; the last guess of a sample counts, and what was not dealt counts nowhere."""
    place = Path("runs/made/ledger")
    place.mkdir(parents=True)
    (place / "ledger.json").write_text('{"schema": 1, "kind": "guesses", "samples": 4, "classes": ["a", "b"]}')
    (place / "targets.bin").write_bytes(np.array([0, 1, 0, -1], "<i4").tobytes())
    content = b""
    for sure, label in [([1, 0.5, 0.75, 1], [0, 0, 1, 1]), ([1, -1, 0.75, 1], [0, -1, 0, 1])]:
        halves = np.array([sure, [1 if one > 0.6 else 0 if one >= 0 else -1 for one in sure]], "<f2")
        content += halves.tobytes() + np.array(label, "<i4").tobytes()
    (place / "epochs.bin").write_bytes(content)
    found = facts_of_pseudo_labels(RunFolder(Path("runs/made")), 9)
    assert (found["samples"], found["known"]) == (4, 3)
    assert [one["right"] for one in found["epochs"]] == pytest.approx([1 / 3, 1.0])
    assert [one["right_of_learned"] for one in found["epochs"]] == pytest.approx([1 / 2, 1.0])
    assert [one["right"] for one in found["by_difficulty"]] == [[1.0, 1.0], [None, None], [0.0, 1.0], [0.0, None]]
    assert [one["name"] for one in found["wrong"]] == ["sample 1"]


@pytest.mark.soak
@pytest.mark.parametrize("method", UNLABELLED_ACTS)
def test_every_semi_supervised_method_keeps_the_same_bytes_over_workers_and_stops(method: str) -> None:
    fake_data.write_imagefolder(Path("pictures"), per_class=12, parts=("train",))
    options = [
        "data=imagefolder",
        "data.folder=pictures",
        "data.image_size=12",
        "data.shift=2",
        "data.labels_per_class=3",
    ]
    options += [
        "data.batch_size=4",
        "model=cnn",
        "model.width=4",
        "runner.epochs=2",
        "quiet=true",
        "runner.ledger=true",
    ]
    options += [f"method={method}", *UNLABELLED_ACTS[method]]
    train(*options, "data.workers=0", "name=whole")
    train(*options, "data.workers=2", "name=workers")
    stopped_at(2, *options, "data.workers=2", "name=cut")
    assert main(["resume", "cut"]) == 0
    assert written("workers") == written("whole") == written("cut")
    assert record("workers")["digest"] == record("whole")["digest"] == record("cut")["digest"]
    read = PseudoLabels(RunFolder(Path("runs/whole")))
    assert (read.label >= 0).all()
    assert ((read.confidence > 0) & (read.confidence <= 1)).all()
    assert all(
        Path(name).parent.name == read.named(int(label)) for name, label in zip(read.names, read.targets, strict=True)
    )

"""``healsg predict``: new samples of files, in the numbers of an evaluation, gone on with after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from healsg import DataInfo, TaskTrainer
from healsg.cli import main
from healsg.commands.predict import command
from healsg.evaluation.ensemble import shifted
from healsg.evaluation.predictor import Predictor
from healsg.evaluation.writers import File
from healsg.models.mlp import MLP
from healsg.training.device import DeviceSetup

PICTURES = ["data=imagefolder", "data.folder=pics", "data.image_size=16", "data.batch_size=5", "data.workers=0"]
TINY = ["model=cnn", "model.width=4", "runner.epochs=1", "quiet=true", "data.augment=none", "data.shift=0"]
CLASSES = ["apple", "kiwi"]

Answer = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on pictures, one on a table of numbers, and one on two other classes."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 4)):
        for place, name in enumerate(CLASSES):
            Path("pics", part, name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (20, 24, 3))
                pixels[..., place] += 100
                Image.fromarray(pixels.astype("uint8")).save(f"pics/{part}/{name}/{number}.png")
    rows = [f"{a:.3f},{b:.3f},{'yes' if a + b > 0 else 'no'}" for a, b in rng.normal(size=(40, 2))]
    Path("t.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    for seed in (0, 1):
        TaskTrainer.compose(*PICTURES, *TINY, f"seed={seed}", f"name=run{seed}").train()
    shutil.copytree("pics/train", "other/train")
    Path("other/train/kiwi").rename("other/train/plum")
    TaskTrainer.compose(*PICTURES, *TINY, "data.folder=other", "name=others").train()
    table = ["data=csv", "data.file=t.csv", "model=mlp", "model.width=8", "runner.epochs=1", "quiet=true", "name=table"]
    TaskTrainer.compose(*table).train()
    os.chdir(before)
    return folder


@pytest.fixture
def asked(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """``healsg predict`` in a folder that has the runs; its status and what it prints."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path) if path.name != "runs" else shutil.copytree(path, tmp_path / "runs")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["predict", *arguments])
        return (status, *capsys.readouterr())

    return run


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_gives_a_row_each_with_the_numbers_of_an_evaluation(asked: Answer) -> None:
    assert asked("run0", "pics/test", "--out", "p.csv") == (0, "", "p.csv: 8 samples\n")
    rows = rows_of("p.csv")
    assert list(rows[0]) == ["file", "row", "class", "probability", "p_apple", "p_kiwi", "error"]
    files = sorted(str(path) for path in Path("pics/test").rglob("*.png"))
    assert [row["file"] for row in rows] == files
    found = TaskTrainer.load("run0").predictor()("pics/test", batch_size=5)
    assert [row["class"] for row in rows] == found.classes
    written = torch.tensor([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows], dtype=torch.float32)
    assert found.probabilities is not None
    assert torch.equal(written, found.probabilities)
    right = sum(Path(row["file"]).parent.name == row["class"] for row in rows) / len(rows)
    assert TaskTrainer.load("run0").evaluate("test")["acc"] == pytest.approx(right)


def test_what_cannot_be_read_is_a_row_with_the_reason(
    asked: Answer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed" / "in"
    folder.mkdir(parents=True)
    good = Path("pics/test/apple/0.png").read_bytes()
    for name in ("a.png", "通 b.PNG", "line\nbreak.png"):
        (folder / name).write_bytes(good)
    (folder / "broken.jpg").write_text("no picture")
    for junk in (".DS_Store", "._a.png", "notes.txt"):
        (folder / junk).write_text("junk")
    os.mkfifo(folder / "pipe.png")
    status, _, err = asked("run0", "mixed", "--out=p.csv")
    assert status == command.UNREADABLE == 3
    assert "5 samples, 2 of which cannot be read" in err
    assert "mixed: files that are no pictures by their names are left out: 1 ('.txt')" in caplog.text
    rows = rows_of("p.csv")
    assert [row["file"].rpartition("/")[2] for row in rows] == [
        *("a.png", "broken.jpg", "line\\nbreak.png", "pipe.png", "通 b.PNG")
    ]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True, False]
    assert "cannot identify" in rows[1]["error"]
    assert rows[1]["class"] == ""
    status, out, _ = asked("run0", "mixed", "--json")
    assert status == 3
    lines = [json.loads(line) for line in out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False, True, False]
    assert lines[0]["class"] == rows[0]["class"]
    assert lines[0]["probabilities"]["kiwi"] == pytest.approx(float(rows[0]["p_kiwi"]))
    assert asked("run0", "mixed", "--out=p.csv")[0] == 3  # also where all had been done before


def cut_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process stop within the write that follows on so many batches, as a kill does."""
    write, seen = File._add, [0]

    def add(self: File, text: str) -> None:
        if text and seen[0] > batches:
            write(self, text[: len(text) // 2])
            raise KeyboardInterrupt
        seen[0] += bool(text)
        write(self, text)

    monkeypatch.setattr(File, "_add", add)


@pytest.mark.parametrize("out", ["p.csv", "p.jsonl"])
def test_a_file_that_was_cut_is_gone_on_with_bit_for_bit(
    out: str, asked: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["run0", "pics/test", "pics/train", "--batch-size", "3"]
    assert asked(*line, "--out", f"whole-{out}")[0] == 0
    whole = Path(f"whole-{out}").read_bytes()
    for batches in (0, 1, 4):
        Path(out).unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            cut_after(batches, patched)
            assert asked(*line, "--out", out)[0] == 130
        assert Path(out).read_bytes() != whole
        assert asked(*line, "--out", out)[0] == 0
        assert Path(out).read_bytes() == whole
    assert asked(*line, "--out", out)[0] == 0
    assert Path(out).read_bytes() == whole
    assert json.loads(Path(f"{out}.json").read_text())["samples"] == 20


def test_a_file_of_something_else_is_refused(asked: Answer) -> None:
    assert asked("run0", "pics/test", "--out", "p.csv")[0] == 0
    before = Path("p.csv").read_bytes()
    for other, told in (
        (["run1"], "p.csv: was written with runs/run0 (best), not runs/run1 (best)"),
        (["run0", "--features"], "features false, not true"),
        (["run0", "--tta=flips"], "tta"),
    ):
        status, _, err = asked(*other, "pics/test", "--out", "p.csv")
        assert status == 1
        assert told in err
        assert err.count("\n") == 1
    shutil.copy("runs/run1/checkpoints/best.pt", "runs/run0/checkpoints/best.pt")
    record = json.loads(Path("runs/run0/run.json").read_text())
    record["id"] = json.loads(Path("runs/run1/run.json").read_text())["id"]
    Path("runs/run0/run.json").write_text(json.dumps(record))
    assert "other weights of runs/run0" in asked("run0", "pics/test", "--out", "p.csv")[2]
    assert Path("p.csv").read_bytes() == before
    Path("mine.csv").write_text("a,b\n")
    assert "not written by healsg predict" in asked("run1", "pics/test", "--out", "mine.csv")[2]
    assert Path("mine.csv").read_text() == "a,b\n"


def probabilities(path: str) -> torch.Tensor:
    return torch.tensor([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows_of(path)])


def test_several_runs_are_averaged_and_must_have_the_same_classes(asked: Answer) -> None:
    for runs, out in ((["run0"], "a.csv"), (["run1"], "b.csv"), (["run0", "run1"], "both.csv")):
        assert asked(*runs, "pics/test", "--out", out)[0] == 0
    mean = (probabilities("a.csv") + probabilities("b.csv")) / 2
    torch.testing.assert_close(probabilities("both.csv"), mean, rtol=0, atol=1e-6)
    chosen = [CLASSES[place] for place in mean.argmax(dim=1).tolist()]
    assert [row["class"] for row in rows_of("both.csv")] == chosen
    status, _, err = asked("run0", "others", "pics/test")
    assert (status, err.count("\n")) == (2, 1)
    assert "runs/others: cannot be averaged with runs/run0 (there): other classes: 'kiwi' there alone" in err
    Path("runs/sweep").mkdir()
    Path("runs/sweep/sweep.csv").write_text("job,status\n")
    for name in ("run0", "run1"):
        shutil.copytree(f"runs/{name}", f"runs/sweep/{name}")
    assert asked("sweep", "pics/test", "--out", "sweep.csv")[0] == 0
    assert torch.equal(probabilities("sweep.csv"), probabilities("both.csv"))


def test_the_labels_of_a_sample_are_those_that_are_likelier_than_not() -> None:
    info = DataInfo((3,), 3, "multilabel", class_names=("a", "b", "c"))
    predictor = Predictor(nn.Identity(), MLP(), DeviceSetup("cpu", "fp32", False, False), info)
    found = predictor(torch.tensor([[0.3, -0.3, 2.0], [-1.0, -1.0, -1.0]]))
    assert found.classes == [["a", "c"], []]
    assert found.probabilities is not None
    assert (found.probabilities > 0.5).tolist() == [[True, False, True], [False, False, False]]


def test_test_time_augmentation_is_the_mean_over_the_views(asked: Answer, tmp_path: Path) -> None:
    for name in ("plain", "flipped"):
        (tmp_path / name).mkdir()
    picture = Image.open("pics/test/kiwi/0.png").resize((16, 16))
    picture.save("plain/0.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("flipped/0.png")
    for folder in ("plain", "flipped"):
        assert asked("run0", folder, "--out", f"{folder}.csv")[0] == 0
    assert asked("run0", "plain", "--out", "tta.csv", "--tta", "flips")[0] == 0
    mean = (probabilities("plain.csv") + probabilities("flipped.csv")) / 2
    torch.testing.assert_close(probabilities("tta.csv"), mean, rtol=0, atol=1e-6)
    assert asked("run0", "plain", "--tta", "flips,shifts")[0] == 0
    assert "--tta: flip is none; did you mean flips?" in asked("run0", "plain", "--tta", "flip")[2]
    assert "--tta: is for pictures" in asked("table", "t.csv", "--tta", "flips")[2]
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3)
    assert shifted(image, 1).tolist() == [[[4, 3, 4], [1, 0, 1], [4, 3, 4]]]
    assert shifted(image, -1).tolist() == [[[4, 5, 4], [7, 8, 7], [4, 5, 4]]]


def test_tables_and_arrays(asked: Answer, made: Path) -> None:
    assert asked("table", "t.csv", "--out", "p.csv", "--features")[0] == 0
    rows = rows_of("p.csv")
    assert [row["row"] for row in rows[:3]] == ["1", "2", "3"]
    assert {name for name in rows[0] if name.startswith("f")} >= {"f0", "f7", "file"}
    found = TaskTrainer.load("table").predictor()("t.csv", batch_size=128, features=True)
    assert [row["class"] for row in rows] == found.classes
    assert found.features is not None
    written = torch.tensor([[float(row[f"f{place}"]) for place in range(8)] for row in rows])
    torch.testing.assert_close(written, found.features, rtol=0, atol=1e-6)
    Path("some.csv").write_text("b,a,more\n1,0.5,x\nthree,1,x\n,1,x\n1,2\n")
    status, out, _ = asked("table", "some.csv", "--json")
    assert status == 3
    reasons = [json.loads(line).get("error", "") for line in out.splitlines()]
    assert [bool(reason) for reason in reasons] == [False, True, False, True]
    assert "column 'b' is 'three', which is no number" in reasons[1]
    assert "has 2 values, not 3" in reasons[3]
    values = torch.tensor([[float(row["a"]), float(row["b"])] for row in rows_of("t.csv")])
    np.savez_compressed("t.npz", x=values.numpy(), y=np.zeros(3))
    assert asked("table", "t.npz", "--out", "n.csv", "--features")[0] == 0
    assert [row["class"] for row in rows_of("n.csv")] == found.classes
    Path("list.csv").write_text("label,image\n0,pics/test/kiwi/0.png\n0,nowhere.png\n")
    status, out, _ = asked("run0", "list.csv", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (status, lines[0]["row"], "error" in lines[1]) == (3, 1, True)
    single = json.loads(asked("run0", "pics/test/kiwi/0.png", "--json")[1])
    assert single["probabilities"] == pytest.approx(lines[0]["probabilities"], abs=1e-5)


def test_the_last_weights_and_another_device(asked: Answer) -> None:
    assert asked("run0", "pics/test", "--checkpoint", "last", "runner.device=cpu", "--out", "made/")[0] == 0
    assert len(rows_of("made/predictions.csv")) == 8


WRONG: list[tuple[list[str], int, str]] = [
    ([], 2, "name a run, and pictures"),
    (["run0"], 2, "name a run, and pictures"),
    (["nowhere", "pics"], 1, "nowhere: is no run"),
    (["run0", "nowhere.png"], 1, "nowhere.png: there is no such file or folder"),
    (["run0", "nothing"], 1, "nothing: no pictures in it"),
    (["run0", "pics", "--out", "a.txt"], 2, "neither a .csv or .jsonl file nor a folder"),
    (["run0", "pics", "--out", "no/a.csv"], 2, "--out: there is no folder no"),
    (["run0", "pics", "--outt=a.csv"], 2, "did you mean --out?"),
    (["run0", "pics", "--checkpoint", "first"], 2, "--checkpoint: invalid choice: 'first'"),
    (["run0", "pics", "--batch-size", "0"], 2, "--batch-size: 0 is not a whole number"),
    (["run0", "pics", "runner.devise=cpu"], 2, "did you mean runner.device=cpu?"),
    (["run0", "t.csv"], 1, "t.csv: which column holds the pictures' paths?"),
    (["table", "pics"], 1, "pics: is read as pictures, but the network takes the columns 'a', 'b'"),
    (["run0", "run1", "pics", "--features"], 2, "--features: those of several networks"),
    (["run0", "bad.npz"], 1, "bad.npz: holds an array of (2, 3); the network takes"),
    (["run0", "objects.npz"], 1, "objects.npz: cannot be read as an array"),
    (["run0", "no.npz"], 1, "no.npz: cannot be read as an array"),
]


def test_mistakes_are_one_line(asked: Answer) -> None:
    np.savez("bad.npz", x=np.zeros((2, 3)))
    np.savez("objects.npz", x=np.array([{}], dtype=object))
    Path("no.npz").write_text("no archive")
    Path("nothing").mkdir()
    for arguments, status, told in WRONG:
        got, out, err = asked(*arguments)
        assert (got, out, err.count("\n")) == (status, "", 1), (arguments, err)
        assert told in err
    assert not list(Path().glob("*.csv.json"))


def test_explain_draws_where_the_network_looked_and_names_the_pictures(asked: Answer) -> None:
    assert asked("run0", "run1", "pics/test", "--explain", "--out", "p.csv")[0] == 0
    assert asked("run0", "run1", "pics/test", "--out", "plain.csv")[0] == 0
    rows, plain = rows_of("p.csv"), rows_of("plain.csv")
    assert list(rows[0]) == ["file", "row", "class", "probability", "p_apple", "p_kiwi", "explain", "error"]
    assert [{key: row[key] for key in plain[0]} for row in rows] == plain
    pictures = [Path(row["explain"]) for row in rows]
    assert sorted(pictures) == sorted(Path("p-explain").iterdir())
    assert len({path.read_bytes() for path in pictures}) == len(rows)
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (224, 224)
    before = {path: path.stat().st_mtime_ns for path in pictures}
    assert asked("run0", "run1", "pics/test", "--explain", "--out", "p.csv")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in pictures} == before
    assert "was written with explain" in asked("run0", "run1", "pics/test", "--explain", "--out", "plain.csv")[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run0", "pics/test", "--explain"], "say where these go: --out FILE.csv"),
        (["table", "t.csv", "--explain", "--out", "p.csv"], "--explain: is for classes of pictures"),
        (["run0", "pics/test", "--explian", "--out", "p.csv"], "--explain"),
    ],
)
def test_what_cannot_be_explained_is_one_line(asked: Answer, arguments: list[str], told: str) -> None:
    status, out, err = asked(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not Path("p.csv").exists()


def test_no_more_than_a_batch_is_held(asked: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    from healsg.datasets.new_samples import samples

    living: list[Any] = [0, 0]

    def decode(path: str, size: int, channels: int) -> torch.Tensor:
        living[0] += 1
        living[1] = max(living)
        return torch.zeros(channels, size, size, dtype=torch.uint8)

    write = command.PredictedRows._rows

    def rows(self: Any, batch: Any, read: Any) -> Any:
        made = write(self, batch, read)
        living[0] -= len(batch)
        return made

    monkeypatch.setattr(samples, "decode", decode)
    monkeypatch.setattr(command.PredictedRows, "_rows", rows)
    assert asked("run0", "pics/train", "pics/test", "--batch-size=4", "--json")[0] == 0
    assert living == [0, 4]


def test_eval_of_other_data_and_with_further_metrics(asked: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluated(*arguments: str, status: int = 0) -> Any:
        capsys.readouterr()
        got, (out, err) = main(["eval", *arguments]), capsys.readouterr()
        assert got == status, err
        assert not status or err.count("\n") == 1
        return err if status else json.loads(out)["metrics"]

    usual = evaluated("run0")
    rows = [f"{path.parent.name},{path}" for path in sorted(Path("pics/test").rglob("*.png"))]
    Path("rows.csv").write_text("\n".join(["label,path", *rows]) + "\n")
    table = ["data=csv", "data.file=rows.csv", "data.test_file=rows.csv", "data.image=path", "data.shift=0"]
    assert evaluated("run0", *table) == pytest.approx(usual, abs=1e-5)
    more = evaluated("run0", "model/metrics=[classification,top5]", "model.metrics.top5.k=1")
    assert set(more) >= {*usual, "f1", "ece", "top5"}
    assert more["acc"] == usual["acc"] == more["top5"]
    assert "model/metrics=clasification: no such option; did you mean classification?" in evaluated(
        "run0", "model/metrics=clasification", status=2
    )
    assert "did you mean" in evaluated("run0", "data=imagefoldr", status=2)
    assert "data.file: is missing" in evaluated("run0", "data=csv", status=2)
    assert "classes" in evaluated("run0", "data=digits", status=1)

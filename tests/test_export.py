"""``healsg export``: an archive that predicts as the run does, without torch and healsg, or none at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_volumes
from healsg import DataInfo, TaskTrainer
from healsg.cli import main
from healsg.datasets.images import decoding, folders
from healsg.datasets.targets import columns
from healsg.datasets.volumes.cases import Preparation, segmented
from healsg.datasets.volumes.files import read_image, read_volume, write_volume
from healsg.errors import ConfigError, RunError
from healsg.evaluation.sliding_window import Windows
from healsg.exporting import network, program, volumes
from healsg.exporting.card import UNFILLED
from healsg.exporting.check import compared
from healsg.metrics.interval import wilson

SMALL = ["runner.epochs=1", "quiet=true", "data.workers=0"]
PICTURES = ["data=imagefolder", "data.folder=pics", "data.image_size=16", "data.shift=0", "model=cnn", "model.width=4"]
TABLE = ["data=csv", "data.file=t.csv", "model=mlp", "model.width=8"]
KINDS = ["png", "png L", "png RGBA", "png LA", "png P", "png 16", "jpg", "jpg L", "jpg CMYK", "bmp", "webp", "tif"]
TURNED = [f"jpg turned {turn}" for turn in (2, 3, 4, 5, 6, 7, 8)] + ["tif turned 6", "png turned 5"]


def written(kind: str, folder: Path, size: tuple[int, int] = (37, 23), name: str = "x") -> Path:
    """A picture of a kind such as ``png RGBA``, ``png 16`` or ``jpg turned 6``, of noise and a slope."""
    suffix, *how = kind.split()
    rng = np.random.default_rng(size[0])
    levels = rng.integers(0, 200, (size[1], size[0], 3)) + np.linspace(0, 55, size[0])[:, None]
    picture = Image.fromarray(levels.astype(np.uint8))
    options: dict[str, Any] = {}
    if how[:1] == ["turned"]:
        options["exif"] = picture.getexif()
        options["exif"][decoding.ORIENTATION] = int(how[1])
    elif how in (["RGBA"], ["LA"]):
        picture.putalpha(picture.convert("L"))
        picture = picture.convert(how[0])
    elif how == ["16"]:
        picture = Image.fromarray((levels[..., 0] * 250).astype(np.uint16))
    elif how:
        picture = picture.quantize(20) if how[0] == "P" else picture.convert(how[0])
    picture.save(path := folder / f"{name}.{suffix}", **options)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on pictures of all kinds, and one on a table."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    for part, kinds in (("train", KINDS[:4]), ("val", [*KINDS, *TURNED]), ("test", KINDS[:3])):
        for place, name in enumerate(("apple", "kiwi é")):
            (inner := Path("pics", part, name)).mkdir(parents=True)
            for number, kind in enumerate(kinds):
                written(kind, inner, (20 + 5 * number, 30 + 20 * place), str(number))
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'yes' if a + b > 0 else 'no'}" for a, b in rng.normal(size=(60, 2))]
    rows[50:] = ["," + row.partition(",")[2] for row in rows[50:]]
    Path("t.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    for seed in (0, 1):
        TaskTrainer.compose(*PICTURES, *SMALL, f"seed={seed}", f"name=run{seed}").train()
    TaskTrainer.compose(*TABLE, *SMALL, "name=table").train()
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def archive(made: Path) -> Path:
    """The one ONNX archive of the quick tests, in the folder of the runs."""
    pytest.importorskip("onnxscript", reason="healsg[export] is not installed")
    pytest.importorskip("onnxruntime", reason="healsg[export] is not installed")
    before = Path.cwd()
    os.chdir(made)
    try:
        assert main(["export", "run0", "--to", "onnx", "--out", "archive"]) == 0
    finally:
        os.chdir(before)
    return made / "archive"


def asked(folder: Path, *paths: str) -> tuple[int, list[dict[str, str]], str]:
    """``python predict.py PATH...`` of an archive by hand: its status, rows and errors."""
    line = [sys.executable, "-I", str(folder / "predict.py"), *paths]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, list(csv.DictReader(done.stdout.splitlines())), done.stderr


def test_an_archive_is_used_by_hand_and_says_what_the_run_says(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(archive.parent)
    assert sorted(path.name for path in archive.iterdir()) == ["README.md", "classes.json", "model.onnx", "predict.py"]
    shutil.copytree("pics/test", tmp_path / "test")
    (tmp_path / "test/broken.png").write_bytes(Path("pics/test/apple/0.png").read_bytes()[:100])
    status, rows, errors = asked(archive, str(tmp_path / "test"))
    assert status == 3, errors
    assert "broken.png: " in errors
    assert list(rows[0]) == ["file", "class", "probability", "p_apple", "p_kiwi é"]
    found = TaskTrainer.load("run0").predictor()([row["file"] for row in rows])
    assert len(rows) == 6
    assert [row["class"] for row in rows] == found.classes
    assert found.probabilities is not None
    own = torch.tensor([[float(row["p_apple"]), float(row["p_kiwi é"])] for row in rows])
    torch.testing.assert_close(own, found.probabilities, rtol=0, atol=1e-5)


def test_the_card_says_what_is_known_and_leaves_the_rest_to_be_filled_in(archive: Path) -> None:
    text = (archive / "README.md").read_text(encoding="utf-8")
    record = json.loads((archive.parent / "runs/run0/run.json").read_text())
    low, high = wilson(record["test"]["test/acc"] * 6, 6)
    assert f"| test/acc | {record['test']['test/acc']:.4f} | {low:.4f} to {high:.4f} | 6 |" in text
    for known in (record["data_digest"], record["command"], record["versions"]["torch"], "apple, kiwi é"):
        assert known in text
    assert f"reproduced all {2 * len([*KINDS, *TURNED])} predictions" in text
    assert f"## Intended use\n\n{UNFILLED}" in text
    assert "names no published weights" in text


def test_a_network_that_is_not_the_runs_is_refused_and_nothing_is_left(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(archive.parent)
    before = sorted(path.name for path in Path().iterdir())

    def other(predictor: Any, to: str, folder: Path) -> None:
        shutil.copy(archive / "model.onnx", folder)

    monkeypatch.setattr(network, "write_network", other)
    assert main(["export", "run1", "--out", "wrong"]) == 1
    assert "predictions of the val split are off by more than 1e-05, by 0." in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.parametrize("kind", [*KINDS, *TURNED])
def test_the_program_reads_pictures_level_for_level(kind: str, tmp_path: Path) -> None:
    for size in ((37, 23), (500, 330), (7, 9), (16, 16), (1, 5)):
        path = written(kind, tmp_path, size)
        for channels in (1, 3):
            expected = decoding.decode(str(path), 16, channels).float().numpy()
            np.testing.assert_array_equal(program.picture(path, (channels, 16, 16)), expected)


def test_the_program_knows_the_same_files_and_words() -> None:
    assert program.FORMATS == decoding.FORMATS
    assert program.SUFFIXES == folders.EXTENSIONS
    assert program.MISSING == columns.MISSING
    assert [program.number(text) for text in ("1.5", " TRUE", "false")] == [1.5, 1.0, 0.0]
    assert np.isnan(program.number("NA"))


def test_weights_alone_need_no_proof(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_file = pytest.importorskip("safetensors.torch", reason="healsg[export] is not installed").load_file
    monkeypatch.chdir(made)
    capsys.readouterr()
    gone = "data.file=/no/such/table.csv"
    assert main(["export", "table", "--to", "safetensors", "--out", str(tmp_path / "weights"), "--json", gone]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["files"]) == ["README.md", "classes.json", "model.json", "model.safetensors"]
    state = TaskTrainer.load("table").predictor().network.state_dict()
    read = load_file(tmp_path / "weights/model.safetensors")
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert list(json.loads((tmp_path / "weights/model.json").read_text())["tensors"]) == list(state)
    assert json.loads((tmp_path / "weights/classes.json").read_text())["columns"] == ["a", "b"]


def test_differences_are_named() -> None:
    info = DataInfo((2,), 2)
    right = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    found = torch.cat([right[:1], right])
    assert compared(found, right, info).samples == 3
    found[2, 0] += 0.01
    with pytest.raises(RunError, match=r"1 of 3 predictions .* by more than 1e-05, by 0\.01 at most"):
        compared(found, right, info)
    with pytest.raises(RunError, match=r"3 of 3 predictions"):
        compared(found * torch.nan, right, info)
    near = torch.tensor([[0.5, 0.5 + 1e-6]])
    with pytest.raises(RunError, match="1 of 1 samples of the val split get another class"):
        compared(near.flip(1).repeat(2, 1), near, info)


def test_mistakes_are_one_line_before_anything_is_read(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    assert main(["export", "run0", "--out", "pics"]) == 2
    assert "--out: pics is there already" in capsys.readouterr().err
    assert main(["export", "run0", "--out", "a/b", "--to", "safetensors"]) == 2
    assert "--out: there is no folder" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", "run0", "--out", "new"]) == 2
    assert "onnxscript is not installed; install it with: pip install 'healsg[export]'" in capsys.readouterr().err


def test_masks_of_pictures_are_written_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows of 16 of pictures whose shorter side is 24: padded, overlapping, brought back to 40 x 52 pixels."""
    pytest.importorskip("onnxscript", reason="healsg[export] is not installed")
    pytest.importorskip("onnxruntime", reason="healsg[export] is not installed")
    fake_volumes.write_pictures(Path("masked"), 8)
    data = ["data=seg2d", "data.folder=masked", "data.image_size=24", "data.patch=[16,16]", "data.val_fraction=0.3"]
    TaskTrainer.compose(*data, "model=unet", "model.width=4", "model.stages=2", *SMALL, "name=masks").train()
    assert main(["export", "masks", "--out", "archive"]) == 0
    assert "masks of the val split, with another label at most" in capsys.readouterr().out
    line = [sys.executable, "-I", "archive/segment.py", "masked/images", "--out", "made"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["predict", "masks", "masked/images", "--out", "own"]) == 0
    for path in sorted(Path("masked/images").iterdir()):
        with Image.open(f"made/{path.stem}.png") as made, Image.open(f"own/{path.stem}.png") as own:
            assert made.size == own.size
            assert (np.asarray(made) != np.asarray(own)).mean() < 1e-4
            assert set(np.unique(np.asarray(made))) <= {0, 255}


PLACES = [
    ({"intensity": "zscore", "orient": True}, Preparation(mapping={0: 0, 4: 1})),
    (
        {"intensity": "window", "window": [-50.0, 400.0], "orient": True, "spacing": [1.3, 0.0, 1.1], "crop": 0.0},
        Preparation((1.3, 0.0, 1.1), True, "window", (-50.0, 400.0), 0.0, {0: 0, 4: 1}),
    ),
    (
        {"intensity": "none", "orient": False, "spacing": [0.7, 0.9, 2.0]},
        Preparation((0.7, 0.9, 2.0), False, "none", mapping={0: 0, 4: 1}),
    ),
]
"""What a checkpoint says of preprocessing, and what HEALSg makes of it."""


@pytest.mark.parametrize(("how", "preparation"), PLACES)
def test_the_program_takes_volumes_to_the_networks_space_and_back(
    how: dict[str, Any], preparation: Preparation, tmp_path: Path
) -> None:
    """Of a network that sees voxels one by one the masks are equal; windows are those of pictures."""
    nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
    path = tmp_path / "scan.nii.gz"
    image, _, affine = fake_volumes.scan(1)
    turned = affine @ np.array([[0, 1, 0.1, 0], [-1, 0, 0, 0], [0, 0.1, 1, 0], [0, 0, 0, 1.0]])
    stored = nibabel.Nifti1Image(image, turned)
    stored.header.set_slope_inter(0.5, -20)
    nibabel.save(stored, path)
    about = {"preprocessing": {**how, "labels": [0, 4]}, "shape": [1, 8, 8, 8], "written": []}
    read = volumes.read(path, about)

    def scores(values: Any) -> Any:
        return np.concatenate([values, 0.4 - values])

    def labels(found: Any, _: Any) -> Any:
        return np.array([0, 4])[found.argmax(axis=0)]

    made = volumes.mask_of(read, about, scores, labels)
    given = read_image([path])
    own = segmented(lambda batch: torch.cat([batch, 0.4 - batch], dim=1), given, preparation, Windows((8, 8, 8)))[0]
    assert (made != own).mean() <= 1e-4
    assert set(np.unique(made)) == {0, 4}
    assert read.affine.tobytes() == given.geometry.affine.tobytes()
    volumes.write(tmp_path / "mask.nii.gz", made, read)
    write_volume(tmp_path / "own.nii.gz", made.astype(np.uint8), given)
    assert (tmp_path / "mask.nii.gz").read_bytes() == (tmp_path / "own.nii.gz").read_bytes()


def test_the_program_refuses_volumes_by_their_reason(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
    about = {"preprocessing": {"intensity": "none", "orient": True}, "shape": [2, 8, 8, 8], "written": []}
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"a volume of \(4, 4, 4\); the network takes 2 channels"):
        volumes.read(path, about)
    with pytest.raises(ValueError, match="some of its numbers are NaN or infinite"):
        volumes.read(path, {**about, "shape": [1, 8, 8, 8]})
    with pytest.raises(ValueError, match=r"no NIfTI file \(\.nii, \.nii\.gz\)"):
        volumes.read(tmp_path / "scan.mha", about)


@pytest.mark.soak
@pytest.mark.parametrize("to", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "more",
    [
        [],
        [
            "data.spacing=[1.2,1.0,1.5]",
            "data.crop=50",
            "data.intensity=window",
            "data.window=[0,600]",
            "model.mirror=true",
        ],
    ],
)
def test_masks_of_volumes_are_written_without_torch(
    to: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """LPS and RAS, labels that are not consecutive, windows of 16 x 16 x 8 that overlap."""
    pytest.importorskip("onnxscript", reason="healsg[export] is not installed")
    pytest.importorskip("onnxruntime", reason="healsg[export] is not installed")
    pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
    fake_volumes.write_scans(Path("scans"), 8, labels=(0, 3, 7))
    data = ["data=nifti", "data.folder=scans", "data.patch=[16,16,8]", "data.val_fraction=0.3", *more]
    TaskTrainer.compose(*data, "model=unet", "model.width=4", "model.stages=2", *SMALL, "name=masks").train()
    assert main(["export", "masks", "--to", to, "--out", "archive"]) == 0
    assert "reproduced 2 of 2 masks of the val split" in capsys.readouterr().out
    assert "python volumes.py scans/ --out masks" in Path("archive/README.md").read_text()
    line = [sys.executable, "-I", "archive/volumes.py", "scans/images", "--out", "made"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["predict", "masks", "scans/images", "--out", "own"]) == 0
    for path in sorted(Path("scans/images").iterdir()):
        made, own = (read_volume(Path(folder) / path.name) for folder in ("made", "own"))
        assert (made.array != own.array).mean() < 1e-4
        assert set(np.unique(made.array)) <= {0, 3, 7}
        assert made.geometry.affine.tobytes() == own.geometry.affine.tobytes()
    Path("scans/images/case0.nii.gz").write_bytes(b"cut")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("scans/images/case0.nii.gz: ")


@pytest.mark.soak
@pytest.mark.parametrize("to", ["onnx", "pt2"])
@pytest.mark.parametrize("data", ["digits", "table", "regression", "multilabel"])
def test_other_kinds_of_data(to: str, data: str, made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "t.csv", "t.csv")
    rng = np.random.default_rng(0)
    numbers = [f"{a:.3f},{b:.3f},{1000 + 300 * a:.2f},{int(a > 0)},{int(b > 0)}" for a, b in rng.normal(size=(80, 2))]
    Path("n.csv").write_text("\n".join(["a,b,y,u,v", *numbers]) + "\n")
    of_numbers = ["data=csv", "data.file=n.csv", "model=mlp", "model.width=8", "data.columns=[a,b]"]
    settings = {
        "digits": ["data=digits", "model=cnn"],
        "table": TABLE,
        "regression": [*of_numbers, "data.target=y", "data.kind=regression"],
        "multilabel": [*of_numbers, "data.target=[u,v]", "data.kind=multilabel"],
    }
    TaskTrainer.compose(*settings[data], "runner.epochs=1", "quiet=true", "name=run").train()
    assert main(["export", "run", "--to", to, "--out", "archive"]) == 0
    given = {"digits": "samples.npy", "table": "t.csv"}.get(data, "n.csv")
    np.save("samples.npy", np.zeros((3, 1, 8, 8), np.uint8))
    status, rows, errors = asked(tmp_path / "archive", given)
    assert status == 0, errors
    assert len(rows) == {"digits": 3, "table": 60}.get(data, 80)


MODELS = ["resnet", "vit", "mlp", "cnn", "wide_resnet", "airbench", "resnet8x4", "resnet32x4", "torchvision", "timm"]


@pytest.mark.soak
@pytest.mark.parametrize("data", ["digits", "pictures", "grey", "synthetic"])
@pytest.mark.parametrize("model", MODELS)
def test_models_and_data(model: str, data: str, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every model that fits a set is exported; one that does not is left out."""
    monkeypatch.chdir(made)
    pictures = PICTURES[:4]
    sets = {
        "digits": ["data=digits"],
        "pictures": [*pictures, "data.image_size=32"],
        "grey": [*pictures, "data.channels=1"],
        "synthetic": ["data=synthetic"],
    }
    name = f"name={model}-{data}"
    try:
        trainer = TaskTrainer.compose(*sets[data], f"model={model}", "runner=debug", "quiet=true", name, "fresh=true")
        trainer.train()
    except ConfigError as error:
        pytest.skip(f"{model} does not go with {data}: {error}")
    assert main(["export", f"{model}-{data}", "--out", str(tmp_path / "archive")]) == 0

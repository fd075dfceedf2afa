"""``healsg serve`` for volumes: a file in, its mask as a file in the same space out; bad uploads get one line."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_volumes
from healsg import TaskTrainer
from healsg.datasets.new_samples.mask_files import Scan
from healsg.datasets.new_samples.segmenter import Segmenter
from healsg.datasets.volumes.files import Volume, read_geometry, read_mask, read_volume, write_volume
from healsg.serving.folder import OWNER, PREFIX, ServerFolder, remove_stale

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
pytest.importorskip("starlette", reason="healsg[serve] is not installed")
pytest.importorskip("python_multipart", reason="healsg[serve] is not installed")
pytest.importorskip("httpx2", reason="starlette's TestClient needs httpx2, which healsg[dev] brings")
testclient = pytest.importorskip("starlette.testclient")

DATA = ["data=nifti", "data.folder=scans", "data.patch=[8,8,8]", "data.spacing=[1,1,2]", "data.val_fraction=0.34"]
TINY = ["data.workers=0", "model=unet", "model.width=2", "model.stages=2", "runner.steps=1", "quiet=true", "name=run"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans and a run on them."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    fake_volumes.write_scans(folder / "scans", 3)
    TaskTrainer.compose(*DATA, *TINY, "runner=debug").train()
    os.chdir(before)
    return folder


@pytest.fixture
def client(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from healsg.serving.app import application

    monkeypatch.chdir(made)
    app = application(TaskTrainer.load("run").predictor(), "runs/run", "best", ["127.0.0.1"])
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as made_client:
        yield made_client


def scan_of(kind: str) -> Path:
    """The first scan as a file of this kind."""
    first = Path("scans/images/case0.nii.gz")
    path = Path(f"scan{kind}")
    if kind == ".nii.gz":
        return first
    write_volume(path, read_volume(first).array, read_volume(first))
    return path


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_volume_gives_the_mask_that_predict_writes(client: Any, kind: str, tmp_path: Path) -> None:
    if kind in (".mha", ".nrrd"):
        pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'healsg[seg]'")
    path = scan_of(kind)
    expected = tmp_path / f"mask{kind}"
    Segmenter([("run", TaskTrainer.load("run").predictor())]).write(Scan((path,), Path(path.name)), expected)
    answer = client.post("/predict", files={"file": (f"C:\\kept\\Bild 1{kind.upper()}", path.read_bytes())})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["file"] == f"Bild 1_seg{kind}"
    assert (found["shape"], set(found["shares"])) == ([18, 20, 12], {"0", "1", "2"})
    assert sum(found["shares"].values()) == pytest.approx(1)
    with Image.open(io.BytesIO(base64.b64decode(found["planes"]))) as planes:
        assert planes.size == (3 * 256, 2 * 256)
    saved = client.get(f"/{found['mask']}")
    assert saved.content == expected.read_bytes()
    assert "Bild" in saved.headers["Content-Disposition"]
    assert client.post("/mask", content=path.read_bytes()).content == saved.content
    np.testing.assert_array_equal(read_geometry(expected).affine, read_geometry(path).affine)
    labels = read_mask(expected).array
    shares = [float((labels == label).mean()) for label in range(3)]
    assert list(found["shares"].values()) == pytest.approx(shares)


def elsewhere(content: bytes, name: str) -> bytes:
    """A MetaImage that names another file as that of its numbers."""
    return re.sub(rb"(?s)ElementDataFile = LOCAL.*", b"ElementDataFile = " + name.encode() + b"\n", content)


def test_bad_uploads_get_one_line_each(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = Path("scans/images/case0.nii.gz").read_bytes()
    deep = tmp_path / "deep.nii.gz"
    nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)).to_filename(deep)
    flat = tmp_path / "flat.nii"
    nibabel.Nifti1Image(np.zeros((4, 5), np.int16), np.eye(4)).to_filename(flat)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    bad: list[tuple[int, str, dict[str, Any]]] = [
        (400, "nothing was sent; send a volume", {"content": b""}),
        (415, "this is no volume of a known kind, and the network takes volumes", {"content": picture.getvalue()}),
        (415, "this is no volume", {"files": {"file": ("scan.nii.gz", b"\x1f\x8bhello")}}),
        (415, "text/html is no volume", {"content": whole, "headers": {"Content-Type": "text/html"}}),
        (422, "the volume: cannot be read, it is cut short or damaged", {"content": whole[: len(whole) // 2]}),
        (422, "the volume is 4 x 5 x 6 with 2 channels; the network takes 1", {"content": deep.read_bytes()}),
        (422, "the volume: has the shape (4, 5)", {"content": flat.read_bytes()}),
        (400, "form cannot be read", {"content": b"no form", "headers": {"Content-Type": "multipart/form-data"}}),
    ]
    for path in ("/predict", "/mask"):
        for status, message, request in bad:
            answer = client.post(path, **request)
            assert answer.status_code == status, (answer.text, message)
            assert list(answer.json()) == ["error"]
            assert message in answer.json()["error"]
            assert "\n" not in answer.json()["error"]
            assert "healsg-serve" not in answer.json()["error"], "no path of this machine"
    image = nibabel.load("scans/images/case0.nii.gz")
    image.header.set_zooms((1.0, 1.0, 1e6))
    image.set_sform(None)
    image.set_qform(np.diag([1.0, 1.0, 1e6, 1.0]), code=1)
    answer = client.post("/predict", content=image.to_bytes())
    assert answer.status_code == 413
    assert answer.json()["error"].endswith("are its spacings in mm?")
    monkeypatch.setattr("healsg.serving.volumes.MOST_VOXELS", 18 * 20 * 12 - 1)
    answer = client.post("/predict", content=whole)
    assert (answer.status_code, answer.json()["error"][:35]) == (413, "the volume has 18 x 20 x 12 voxels;")
    monkeypatch.setattr("healsg.serving.volumes.MOST_BYTES", len(whole) - 1)
    for request in ({"content": whole}, {"files": {"file": whole}}, {"content": iter([whole[:99], whole[99:]])}):
        assert client.post("/predict", **request).status_code == 413
    assert client.get("/masks/unknown").status_code == 404
    assert client.get("/mask").status_code == 405


def test_a_volume_that_names_another_file_does_not_reach_it(client: Any, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'healsg[seg]'")
    head = scan_of(".mha").read_bytes()
    numbers = tmp_path / "numbers.raw"
    numbers.write_bytes(bytes(2 * 18 * 20 * 12))
    for name in (str(numbers), "LIST", "numbers%03d.raw 1 1 1"):
        answer = client.post("/predict", content=elsewhere(head, name))
        assert answer.status_code == 422
        assert "numbers of this .mha file are in another file" in answer.json()["error"]
    nrrd = re.sub(rb"(?m)^encoding: .*$", b"encoding: raw\ndata file: " + str(numbers).encode(), head_of_nrrd())
    answer = client.post("/predict", content=nrrd)
    assert answer.status_code == 422
    assert "numbers of this .nrrd file are in another file" in answer.json()["error"]


def head_of_nrrd() -> bytes:
    return scan_of(".nrrd").read_bytes().partition(b"\n\n")[0] + b"\n\n"


def test_old_masks_are_removed(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healsg.serving.volumes.KEPT", 1)
    content = Path("scans/images/case0.nii.gz").read_bytes()
    first, second = (client.post("/predict", content=content).json() for _ in range(2))
    assert client.get(f"/{first['mask']}").status_code == 404
    assert client.get(f"/{second['mask']}").status_code == 200
    assert second["file"] == "volume_seg.nii.gz"


def test_the_page_and_info_say_that_volumes_are_taken(client: Any) -> None:
    page = client.get("/").text
    assert "Drop a volume here" in page
    assert 'accept=".nii,.gz,.mha,.nrrd"' in page
    assert not re.findall(r"https?://|src=|href=|@import|url\(", page), "nothing is fetched from elsewhere"
    info = client.get("/info").json()
    assert info["formats"] == [".nii", ".nii.gz", ".mha", ".nrrd"]
    assert {"most_bytes", "most_voxels"} <= set(info)


def test_planes_lie_through_the_mask_and_are_turned_upright() -> None:
    from healsg.serving.volumes import planes

    array = np.zeros((1, 8, 8, 8), np.float32)
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[6, 1, 2] = 4
    path = Path("x.nii")
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    from healsg.datasets.volumes.files import Geometry

    volume = Volume(path, array, Geometry((8, 8, 8), affine, 1, array.dtype, None))
    below = np.split(planes(volume, mask, [0, 4])[256:], 3, axis=1)
    for view, (across, up) in zip(below, ((6, 1), (6, 2), (1, 2)), strict=True):
        rows, columns = np.nonzero(view.max(axis=2))
        assert abs(columns.mean() / 256 - (across + 0.5) / 8) < (0.02 if view is below[0] else 0.3)
        assert rows.mean() > 128, "low along the second axis is shown low"
        assert up < 4


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no users, or no flock, on this system")
def test_only_folders_of_killed_servers_of_this_user_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, owner_is_link, without_owner, outside = (
        tmp_path / name for name in (f"{PREFIX}0", f"{PREFIX}1", f"{PREFIX}2", "outside")
    )
    for folder in (stale, owner_is_link, without_owner, outside):
        folder.mkdir()
        (folder / "mask.nii").touch()
    for folder in (stale, outside):
        (folder / OWNER).touch()
    (stale / "inner").symlink_to(outside)
    (owner_is_link / OWNER).symlink_to(outside / OWNER)
    (tmp_path / f"{PREFIX}3").symlink_to(outside)
    running = ServerFolder()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert remove_stale(tmp_path) == [], "those of another user stay"
    monkeypatch.undo()
    assert remove_stale(tmp_path) == [], "one is removed as the server starts, and its own is in use"
    assert not stale.exists()
    assert (outside / "mask.nii").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {running.path.name, "outside", *(f"{PREFIX}{number}" for number in (1, 2, 3))}


@pytest.mark.soak
def test_a_server_that_is_killed_leaves_what_the_next_one_removes(made: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "healsg", "serve", "run", "--port", "0", "--json"]
    for number in range(2):
        with subprocess.Popen(
            line, cwd=made, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            server.stdout.readline()
            folders = list(tmp_path.glob(f"{PREFIX}*"))
            assert len(folders) == 1
            server.send_signal(signal.SIGTERM if number else signal.SIGKILL)
        assert len(list(tmp_path.iterdir())) == 1 - number


@pytest.mark.soak
def test_a_server_that_is_asked_to_end_leaves_no_files(made: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "healsg", "serve", "run", "--port", "0", "--json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(line, cwd=made, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["url"].startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("healsg-serve-*"))
        server.terminate()
        assert server.wait(60) in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not list(tmp_path.iterdir())

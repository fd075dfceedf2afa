"""``healsg serve``: pictures in, classes out; what is no picture, or too much of one, is answered in one line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from healsg import TaskTrainer
from healsg.cli import main
from healsg.commands.serve import is_loopback, listen
from helpers import HANG
from json_schema import mismatch, schemas

pytest.importorskip("starlette", reason="healsg[serve] is not installed")
pytest.importorskip("uvicorn", reason="healsg[serve] is not installed")
pytest.importorskip("python_multipart", reason="healsg[serve] is not installed")
pytest.importorskip("httpx2", reason="starlette's TestClient needs httpx2, which healsg[dev] brings")
testclient = pytest.importorskip("starlette.testclient")

SETTINGS = ["data=imagefolder", "data.folder=pics", "data.image_size=16", "data.shift=0", "data.workers=0"]
TINY = ["model=cnn", "model.width=4", "runner.epochs=1", "quiet=true", "name=run"]
HOSTS = ["127.0.0.1", "localhost", "[::1]"]


def picture(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (20, 24)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on pictures of two classes, one of which is called by a piece of HTML."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    for part in ("train", "val"):
        for name in ("apple", "<b>kiwi"):
            (inner := Path("pics", part, name)).mkdir(parents=True)
            for number in range(4):
                (inner / f"{number}.png").write_bytes(picture(size=(20 + number, 24)))
    TaskTrainer.compose(*SETTINGS, *TINY).train()
    os.chdir(before)
    return folder


@pytest.fixture
def client(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from healsg.serving.app import application

    monkeypatch.chdir(made)
    app = application(TaskTrainer.load("run").predictor(), "runs/<run>", "best", HOSTS)
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as made_client:
        yield made_client


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("L", "JPEG"), ("RGBA", "PNG"), ("CMYK", "JPEG")])
def test_a_picture_gives_what_predict_gives(client: Any, mode: str, kind: str) -> None:
    content = picture(mode, kind)
    Path("../x").with_suffix(f".{kind.lower()}").write_bytes(content)
    expected = TaskTrainer.load("run").predictor()(f"../x.{kind.lower()}")
    assert expected.probabilities is not None
    raw = client.post("/predict", content=content, headers={"Content-Type": f"image/{kind.lower()}"})
    form = client.post("/predict", files={"file": ("a name.bin", content)})
    for answer in (raw, form):
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["class"] == expected.classes[0]  # type: ignore[index]
        assert list(found["probabilities"]) == ["<b>kiwi", "apple"]
        own = torch.tensor(list(found["probabilities"].values()))
        torch.testing.assert_close(own, expected.probabilities[0], rtol=0, atol=1e-6)
        assert found["probability"] == max(found["probabilities"].values())


def test_bad_uploads_get_one_line_each(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture()
    deep = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.int32)).save(deep, "TIFF")
    empty = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na text\r\n--x--\r\n'
    bad = [
        (400, "nothing was sent", {"content": b""}),
        (400, "nothing was sent", {"content": empty, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
        (415, "no picture of a known kind", {"content": b"hello"}),
        (415, "text/html is no picture", {"content": whole, "headers": {"Content-Type": "text/html"}}),
        (
            415,
            "no picture of a known kind",
            {"files": {"file": ("x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>")}},
        ),
        (422, "cannot be read", {"content": whole[: len(whole) // 2]}),
        (422, "32 bits a channel", {"content": deep.getvalue()}),
        (400, "form cannot be read", {"content": b"no form", "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "form cannot be read", {"files": [("f", (f"{n}.png", whole)) for n in range(9)]}),
    ]
    for status, message, request in bad:
        answer = client.post("/predict", **request)
        assert answer.status_code == status, (answer.text, message)
        assert list(answer.json()) == ["error"]
        assert message in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert client.post("/predict", files={"file": whole}).status_code == 200
    monkeypatch.setattr("healsg.serving.app.MOST_PIXELS", 20 * 24 - 1)
    assert client.post("/predict", content=whole).status_code == 413
    monkeypatch.setattr("healsg.serving.app.MOST_BYTES", len(whole) - 1)
    assert client.post("/predict", content=whole).status_code == 413
    parts = iter([whole[:100], whole[100:]])  # sent in chunks, whose sum is not announced
    assert client.post("/predict", content=parts).status_code == 413


def test_other_addresses_and_hosts_are_refused(client: Any) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/nowhere").status_code == 404
    assert client.get("/info", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/info", headers={"Host": "localhost:1234"}).status_code == 200


def test_the_page_has_all_that_it_needs(client: Any) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "<title>runs/&lt;run&gt;</title>" in answer.text
    assert "prefers-color-scheme: dark" in answer.text
    assert not re.findall(r"https?://|src=|href=|@import|url\(", answer.text), "nothing is fetched from elsewhere"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    info = client.get("/info").json()
    assert (info["run"], info["classes"], info["shape"]) == ("runs/<run>", ["<b>kiwi", "apple"], [3, 16, 16])


def test_it_answers_until_ctrl_c(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    seen: list[Any] = []

    def visit() -> None:
        deadline = time.monotonic() + HANG
        try:
            while time.monotonic() < deadline:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/info", timeout=HANG) as answer:
                        seen.append(json.load(answer))
                        return
                except OSError:
                    time.sleep(0.05)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert main(["serve", "run", "--port", str(port), "--json"]) == 0
    finally:
        visitor.join()
    assert seen[0]["classes"] == ["<b>kiwi", "apple"]
    told = json.loads(capsys.readouterr().out)
    assert told["url"] == f"http://127.0.0.1:{port}/"
    assert mismatch(told, schemas()["serve"]) == ""


def test_mistakes_are_one_line(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "run", "--port", port]) == 1
        assert f"127.0.0.1:{port}: cannot be listened on" in capsys.readouterr().err
    assert main(["serve", "run", "--port", "70000"]) == 2
    assert "--port: 70000 is not a number from 0 to 65535" in capsys.readouterr().err
    assert main(["serve", "nowhere"]) == 1
    capsys.readouterr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "run"]) == 2
    assert "python-multipart is not installed; install it with: pip install 'healsg[serve]'" in capsys.readouterr().err


def test_only_this_machine_is_served_unless_it_is_asked_for() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))

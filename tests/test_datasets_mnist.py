from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

import fake_data
from fake_data import NEITHER, refuse_network, refused, serve_https
from healsg.datasets.mnist import MIRRORS, MNIST, parse_idx


@pytest.fixture
def offline(monkeypatch):
    return refuse_network(monkeypatch)


def test_mnist(tmp_path, monkeypatch, offline):
    folder = fake_data.write_mnist(tmp_path)
    fake_data.publish_mnist(monkeypatch, folder)
    data = MNIST(root=str(tmp_path))
    train, test = data.read("train"), data.read("test")
    assert train.input.shape == (200, 1, 28, 28)
    assert (train.input.dtype, train.targets.dtype) == (torch.uint8, torch.int64)
    assert (len(test), data.read("val")) == (40, None)
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        assert file.read()[16:] == train.input.numpy().tobytes()
    assert not offline


def test_mnist_unpacked(tmp_path, offline, caplog):
    folder = fake_data.write_mnist(tmp_path, packed=False)
    refused(lambda: MNIST(root=str(tmp_path), download=False).read("train"), folder, "data.verify=false")
    refused(lambda: MNIST(root=str(tmp_path)).read("train"), "download failed", folder, "data.verify=false")
    assert len(MNIST(root=str(tmp_path), **NEITHER).read("train")) == 200
    assert "without a check" in caplog.text


def test_mnist_wrong_checksum_and_missing(tmp_path, offline):
    folder = fake_data.write_mnist(tmp_path)
    refused(lambda: MNIST(root=str(tmp_path)).read("train"), folder / "train-images-idx3-ubyte.gz", "data.verify=false")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    line = refused(lambda: MNIST(root=str(tmp_path), download=False).read("test"), "t10k-labels-idx1-ubyte.gz", folder)
    assert "data.download=true" in line
    assert not offline


def test_mnist_download(tmp_path, monkeypatch):
    folder = fake_data.write_mnist(tmp_path / "server")
    fake_data.publish_mnist(monkeypatch, folder)

    def answer(request):
        if request.full_url.startswith(MIRRORS[0]):
            return 503, {}, b"gone"
        return 200, {}, (folder / request.full_url.rsplit("/", 1)[1]).read_bytes()

    asked = serve_https(monkeypatch, answer)
    assert len(MNIST(root=str(tmp_path / "new")).read("train")) == 200
    assert len(list((tmp_path / "new" / "MNIST" / "raw").iterdir())) == 4
    assert len(asked) == 12, "each file twice from the first mirror, then from the second"


def test_mnist_damaged(tmp_path):
    folder = fake_data.write_mnist(tmp_path)
    path = folder / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    data = MNIST(root=str(tmp_path), **NEITHER)
    idx = gzip.decompress(content)
    for broken in (content[:-20], b"", b"nothing", gzip.compress(idx[:-1]), gzip.compress(b"")):
        path.write_bytes(broken)
        refused(lambda: data.read("train"), path, "damaged")
    path.write_bytes(gzip.compress(idx[:-1] + b"\x0a"))
    refused(lambda: data.read("train"), path, "outside 0..9")
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2])))
    refused(lambda: data.read("train"), folder, "do not go with")


def test_parse_idx():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    assert parse_idx(content, Path("x")).tolist() == [[1, 2, 3], [4, 5, 6]]
    for broken in (b"", content[:7], b"\0\0\x0d" + content[3:], b"\x01" + content[1:], content + b"7"):
        refused(lambda broken=broken: parse_idx(broken, Path("x")), "x: damaged")

from __future__ import annotations

import logging
import shutil
import socket
import tarfile
import warnings

import pytest
import torch

import fake_data
from fake_data import NEITHER, refuse_network, refused, serve_https
from healsg.datasets.cifar import NAMES, Cifar
from helpers import no_hang


@pytest.fixture
def offline(monkeypatch):
    return refuse_network(monkeypatch)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_reads_what_torchvision_reads(tmp_path, monkeypatch, classes):
    from torchvision import datasets

    written = fake_data.write_cifar(tmp_path, classes, per_batch=20)
    fake_data.publish_cifar(monkeypatch, written, classes)
    data = Cifar(classes=classes, root=str(tmp_path), download=False)
    published = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    monkeypatch.setattr(published, "_load_meta", lambda self: None)
    for part, train in (("train", True), ("test", False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, on how torchvision reads a Python 2 pickle
            theirs = published(tmp_path, train=train)
        ours = data.read(part)
        assert torch.equal(ours.input, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
        assert ours.targets.tolist() == theirs.targets
        assert ours.input.dtype == torch.uint8
    assert data.read("val") is None


def test_cifar_names_are_in_the_order_of_the_files():
    assert NAMES[10].split()[3] == "cat"
    assert NAMES[100].split()[0] == "apple"
    assert NAMES[100].split()[99] == "worm"


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_from_the_archive(tmp_path, monkeypatch, offline, classes):
    archive = fake_data.write_cifar(tmp_path, classes, per_batch=10, packed=True)
    fake_data.publish_cifar(monkeypatch, archive, classes)
    data = Cifar(classes=classes, root=str(tmp_path))
    assert len(data.read("train")) == 50
    assert len(data.read("test")) == 10
    archive.unlink()
    assert len(Cifar(classes=classes, root=str(tmp_path)).read("train")) == 50
    assert not offline


def test_cifar_download(tmp_path, monkeypatch, caplog):
    from torchvision import datasets

    archive = fake_data.write_cifar(tmp_path / "server", per_batch=10, packed=True)
    fake_data.publish_cifar(monkeypatch, archive)
    asked = serve_https(monkeypatch, lambda request: (200, {}, archive.read_bytes()))
    caplog.set_level(logging.INFO, "healsg")
    data = Cifar(root=str(tmp_path / "new"))
    assert len(data.read("train")) == 50
    assert len(data.read("test")) == 10
    assert asked == [datasets.CIFAR10.url]
    assert any("downloading" in record.message and asked[0] in record.message for record in caplog.records)


def test_cifar_missing(tmp_path, offline):
    timeout = socket.getdefaulttimeout()
    with no_hang():
        line = refused(
            lambda: Cifar(root=str(tmp_path / "new")).read("train"), "download failed", "cifar-10-python.tar.gz"
        )
    assert f"into {tmp_path / 'new'}" in line
    assert offline
    assert socket.getdefaulttimeout() == timeout
    folder = tmp_path / "cifar-100-python"
    data = Cifar(classes=100, root=str(tmp_path), download=False)
    refused(lambda: data.read("train"), folder, "data.download=true", "cifar-100-python.tar.gz", tmp_path)
    assert not folder.exists()


def test_cifar_wrong_checksum(tmp_path, monkeypatch, offline):
    folder = fake_data.write_cifar(tmp_path, per_batch=10)
    data = Cifar(root=str(tmp_path))
    refused(lambda: data.read("train"), folder / "data_batch_1", "data.verify=false")
    fake_data.publish_cifar(monkeypatch, folder)
    assert len(data.read("train")) == 50
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[-100] ^= 1
    (folder / "data_batch_3").write_bytes(content)
    refused(lambda: data.read("train"), folder / "data_batch_3", "data.verify=false")
    shutil.rmtree(folder)
    archive = fake_data.write_cifar(tmp_path, per_batch=10, packed=True)
    refused(lambda: data.read("train"), archive, "data.verify=false")


def test_cifar_unverified(tmp_path, caplog, offline):
    fake_data.write_cifar(tmp_path, per_batch=10, packed=True)
    assert len(Cifar(root=str(tmp_path), **NEITHER).read("train")) == 50
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "data.verify=false" in warned[0]
    assert "without a check" in warned[0]


def test_cifar_a_missing_file_comes_from_the_archive(tmp_path):
    folder = fake_data.write_cifar(tmp_path, per_batch=10, seed=1)
    kept = (folder / "data_batch_1").read_bytes()
    (folder / "data_batch_2").unlink()
    refused(lambda: Cifar(root=str(tmp_path), **NEITHER).read("train"), "is not in", folder)
    fake_data.write_cifar(tmp_path, per_batch=10, packed=True)
    assert len(Cifar(root=str(tmp_path), **NEITHER).read("train")) == 50
    assert (folder / "data_batch_1").read_bytes() == kept


def test_cifar_damaged_archive(tmp_path):
    archive = fake_data.write_cifar(tmp_path, per_batch=10, packed=True)
    content = archive.read_bytes()
    data = Cifar(root=str(tmp_path), **NEITHER)
    for broken in (content[: len(content) // 2], b"", b"not an archive"):
        archive.write_bytes(broken)
        refused(lambda: data.read("train"), archive, "damaged")
    with tarfile.open(archive, "w:gz"):
        pass
    refused(lambda: data.read("train"), archive, "holds no")


def test_an_archive_writes_nothing_else(tmp_path):
    archive = fake_data.write_cifar(tmp_path / "a", per_batch=10, packed=True)
    root = tmp_path / "b"
    root.mkdir()
    (tmp_path / "intruder").write_text("x")
    with tarfile.open(archive) as old, tarfile.open(root / archive.name, "w:gz") as new:
        for name in (
            "../canary",
            "cifar-10-batches-py/../../canary",
            "cifar-10-batches-py/canary",
            str(tmp_path / "canary"),
        ):
            new.add(tmp_path / "intruder", arcname=name)
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "intruder")
        new.addfile(link)
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
    assert len(Cifar(root=str(root), **NEITHER).read("train")) == 50
    assert not list(tmp_path.rglob("canary"))
    assert not (root / "cifar-10-batches-py" / "data_batch_1").is_symlink()

from __future__ import annotations

import fcntl
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import fake_data
from fake_data import NEITHER, refused
from healsg.datasets.cifar import Cifar
from healsg.datasets.published.files import exclusive, load_arrays


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickles(tmp_path, protocol):
    folder, canary = fake_data.write_cifar(tmp_path, per_batch=10), tmp_path / "canary"
    data = Cifar(root=str(tmp_path), **NEITHER)
    for hostile in (
        Hostile(os.system, f"touch {canary}"),
        Hostile(eval, f"open({str(canary)!r}, 'w')"),
        Hostile(exec, f"open({str(canary)!r}, 'w')"),
        Hostile(Path.touch, canary),
        Hostile(np.save, str(canary), 1),
        Hostile(getattr, np, "load"),
    ):
        try:
            content = pickle.dumps({"data": hostile, "labels": []}, protocol)
        except (TypeError, pickle.PicklingError):
            content = pickle.dumps({"data": hostile.function, "labels": []}, protocol)
        (folder / "data_batch_1").write_bytes(content)
        refused(lambda: data.read("train"), folder / "data_batch_1", "asks for")
        assert not canary.exists()
        assert not canary.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch canary'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0ff2py.os.system\x93\x8c\x0ctouch canary\x85R.",
        b"cnumpy.core.multiarray\nos.system\n(S'touch canary'\ntR.",
        b"(S'touch canary'\nios\nsystem\n.",
        b"\x80\x02P1\n.",
    ],
)
def test_hostile_opcodes(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_arrays(content, Path("batch")), "batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_restricted_unpickler_reads_arrays(protocol):
    array = np.arange(300, dtype=np.uint8).reshape(3, 100)
    value = {"data": array, "labels": [1, 2, 3], "name": "x"}
    result = load_arrays(pickle.dumps(value, protocol), Path("batch"))
    assert np.array_equal(result["data"], array)
    assert result["labels"] == [1, 2, 3]
    old = load_arrays(fake_data.python2_pickle(value), Path("batch"))
    assert np.array_equal(old["data"], array)
    assert b"numpy.core.multiarray" in fake_data.python2_pickle(value)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        ([1, 2], "no images"),
        ({"labels": [1]}, "no images"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 1]}, "no images"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 1]}, "no images"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 1]}, "labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "outside 0..9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "a"]}, "outside 0..9"),
    ],
)
def test_cifar_other_contents(tmp_path, batch, word):
    folder = fake_data.write_cifar(tmp_path, per_batch=10)
    (folder / "data_batch_4").write_bytes(pickle.dumps(batch, 2))
    refused(lambda: Cifar(root=str(tmp_path), **NEITHER).read("train"), folder / "data_batch_4", word)


@pytest.mark.parametrize("kept", [0, 1, 100, 20_000])
def test_cifar_truncated(tmp_path, kept):
    folder = fake_data.write_cifar(tmp_path, per_batch=10)
    content = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(content[:kept])
    refused(lambda: Cifar(root=str(tmp_path), **NEITHER).read("test"), folder / "test_batch", "damaged")


def test_exclusive_names_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(lambda: exclusive(tmp_path / "file" / "data").__enter__(), "data.root", tmp_path / "file")


def test_exclusive_lets_one_in(tmp_path):
    lock = tmp_path / ".download.lock"
    with exclusive(tmp_path), lock.open() as second, pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open() as third:
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)

from __future__ import annotations

import pytest
import torch

import fake_data
from fake_data import NEITHER
from healsg.data.base import Needs
from healsg.datasets.cifar import Cifar
from healsg.datasets.digits import Digits, read_table
from healsg.datasets.imagefolder import ImageFolder
from healsg.datasets.mnist import MNIST
from healsg.errors import ConfigError, DataError


def test_info_needs_no_file(tmp_path):
    digits, mnist = Digits(root=str(tmp_path)).info, MNIST(root=str(tmp_path)).info
    assert (digits.input_shape, digits.num_classes) == ((1, 8, 8), 10)
    assert (mnist.input_shape, mnist.num_classes) == ((1, 28, 28), 10)
    for classes in (10, 100):
        info = Cifar(classes=classes, root=str(tmp_path)).info
        assert (info.input_shape, info.num_classes) == ((3, 32, 32), classes)
        assert len(set(info.class_names)) == classes
        assert list(info.class_names) == sorted(info.class_names)
    assert not list(tmp_path.iterdir())


def test_constructors_refuse():
    with pytest.raises(ConfigError, match=r"data\.classes: 20"):
        Cifar(classes=20)
    with pytest.raises(ConfigError, match=r"data\.shift"):
        Cifar(shift=32)
    with pytest.raises(ConfigError, match=r"data\.mean: 2 numbers for 3 channels"):
        ImageFolder("x", mean=[0.1, 0.2])
    with pytest.raises(ConfigError, match=r"data\.std"):
        ImageFolder("x", std=[0.1, 0.2, 0.0])


def test_digits_are_those_of_scikit_learn(monkeypatch):
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    table = read_table()
    assert torch.equal(table[:, :-1], torch.from_numpy(pixels).to(torch.uint8))
    assert torch.equal(table[:, -1].long(), torch.from_numpy(classes).long())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"digits\.csv\.gz cannot be read .*; pip install scikit-learn"):
        read_table()


def test_digits():
    data = Digits(root="nowhere")
    train, test = data.read("train"), data.read("test")
    assert (len(train), len(test), data.read("val")) == (1297, 500, None)
    assert train.input.shape == (1297, 1, 8, 8)
    assert (train.input.dtype, int(train.input.max())) == (torch.uint8, 16)
    assert test.targets.bincount().min() >= 48
    shown = data.transform("input", "train")({"input": train.input}, None)["input"]
    assert abs(float(shown.mean())) < 1e-3
    assert abs(float(shown.std()) - 1) < 1e-3
    other = Digits(split_seed=7).read("test")
    assert torch.equal(other.input, test.input)


def test_splits(tmp_path):
    fake_data.write_mnist(tmp_path, train=200)

    def splits(**more):
        return MNIST(root=str(tmp_path), **NEITHER, **more).splits()

    whole = splits(val_fraction=0)
    assert [len(whole[split]) for split in ("train", "val", "test")] == [200, 40, 40]
    assert MNIST(val_fraction=0).val_is_test
    first, again, other = splits(), splits(), splits(split_seed=1)
    assert [len(first[split]) for split in ("train", "val", "test")] == [180, 20, 40]
    assert first["val"].targets.bincount().tolist() == [2] * 10
    assert torch.equal(first["val"].input, again["val"].input)
    assert not torch.equal(first["val"].input, other["val"].input)
    both = torch.cat([first["train"].input, first["val"].input]).flatten(1).sort(0).values
    assert torch.equal(both, whole["train"].input.flatten(1).sort(0).values)


def test_loaders_deal_normalised_batches(tmp_path):
    fake_data.write_cifar(tmp_path)
    loaders = Cifar(root=str(tmp_path), batch_size=32, **NEITHER).loaders(Needs())
    batch = next(iter(loaders["train"]))
    assert batch["input"].shape == (32, 3, 32, 32)
    assert (batch["input"].dtype, batch["target"].dtype) == (torch.float32, torch.int64)
    first, second = (loaders["train"].batch(epoch, 0)[0] for epoch in (0, 1))
    assert torch.equal(first["input"], batch["input"])
    assert not torch.equal(second["input"], batch["input"])


@pytest.mark.parametrize("name", ["digits", "cifar", "mnist", "imagefolder"])
def test_yaml_lists_every_argument(name):
    import inspect

    from hydra.utils import instantiate

    from healsg.config.compose import Composer

    node = Composer().compose([f"data={name}", *["data.folder=x"] * (name == "imagefolder")]).values["data"]
    data = instantiate(node)
    taken = [inspect.signature(kind.__init__).parameters for kind in reversed(type(data).__mro__[:-1])]
    defaults = {key: value.default for one in taken for key, value in one.items()}
    assert set(node) - {"_target_"} == set(defaults) - {"self", "common"}
    differ = {key for key in set(node) - {"_target_", "folder"} if node[key] != defaults[key]}
    assert differ <= {"batch_size", "workers"}

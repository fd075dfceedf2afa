"""Checkpoint files: written in one atomic step, checked before they are read, of plain values alone."""

from __future__ import annotations

import datetime
import decimal
import enum
import errno
import fractions
import hashlib
import os
import pathlib
import random
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from healsg import TaskTrainer
from healsg.errors import RunError
from healsg.methods.supervised import Supervised
from healsg.runs import checkpoint
from healsg.runs.folder import RunFolder
from helpers import Program, command, fork, killed

SHORT = ["model=mlp", "model.width=16", "runner.epochs=3", "data.batch_size=256", "quiet=true"]


def state(number: int, size: int = 2000) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((size,), float(number))},
        "runner": {"step": number, "name": "x", "none": None},
    }


# --- one atomic step -------------------------------------------------------------------------------------------------


def save_for_ever() -> None:
    folder, number = RunFolder(Path("run")), 0
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    while True:
        number += 1
        checkpoint.keep_previous(folder.last, folder.previous)
        checkpoint.save(folder.last, state(number, 500_000))


def kills_inside_a_save(count: int) -> int:
    """SIGKILL at random times in saves of 2 MB; how many left a part of a file behind."""
    chance, folder, inside = random.Random(count), RunFolder(Path("run")), 0
    for _ in range(count):
        assert killed(save_for_ever, chance.uniform(0.01, 0.09))
        inside += any(folder.checkpoints.glob(".*.tmp"))
        before = {}
        for path in (folder.last, folder.previous):
            if path.exists():
                loaded = checkpoint.load(path)
                before[path] = loaded["runner"]["step"]
                assert (loaded["model"]["weight"] == loaded["runner"]["step"]).all()
        assert folder.last_state() is not None or not before
        folder.sweep()
        assert not any(folder.checkpoints.glob(".*.tmp"))
    return inside


def test_no_torn_file_after_a_sigkill_inside_a_save() -> None:
    assert kills_inside_a_save(12) > 0


@pytest.mark.soak
def test_no_torn_file_after_200_sigkills_inside_a_save() -> None:
    """Kills go on until 200 of them fell between the opening of the file and its renaming."""
    inside = 0
    while inside < 200:
        inside += kills_inside_a_save(50)
    print(f"\n{inside} kills inside a save")


# --- damage ----------------------------------------------------------------------------------------------------------


def flips(size: int, count: int) -> list[int]:
    chance = random.Random(count)
    return [chance.randrange(size * 8) for _ in range(count)]


def test_damage_is_found_before_anything_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 flipped bits, 200 truncations, 200 zeroed blocks, a missing trailer, a longer file."""
    path = Path("last.pt")
    checkpoint.save(path, state(1))
    good, opened = path.read_bytes(), list[int]()
    true_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *values, **more: opened.append(1) or true_load(*values, **more))
    assert checkpoint.load(path)["runner"]["step"] == 1
    assert len(opened) == 1, "the watch sees torch.load"
    damaged: list[bytes] = []
    for bit in flips(len(good), 1000):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    chance = random.Random(200)
    damaged += [good[: chance.randrange(len(good))] for _ in range(200)]
    for _ in range(200):
        start = chance.randrange(len(good) - 1)
        stop = min(len(good), start + chance.choice([1, 64, 512, 4096]))
        changed = bytearray(good)
        changed[start:stop] = bytes(stop - start)
        damaged.append(bytes(changed))
    damaged += [good[:-40], good + b"\0", b"", bytes(len(good)), good[:-32] + hashlib.sha256(b"").digest()]
    different = [content for content in damaged if content != good]
    assert len(different) >= 1380
    for content in different:
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"last\.pt: (is damaged|is no checkpoint|was written by another)"):
            checkpoint.load(path)
    assert len(opened) == 1


@pytest.mark.parametrize("magic", [b"HEALSg-1", b"HEALSg-3"])
def test_another_version_of_the_format_is_refused_in_one_line(magic: bytes) -> None:
    path = Path("last.pt")
    checkpoint.save(path, state(1))
    body = path.read_bytes()[: -len(magic) - 32] + magic
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(RunError, match=r"another version of the format, which this one does not read$"):
        checkpoint.load(path)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_a_run_goes_on_from_the_one_before_or_says_that_none_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SHORT, "runner.save_every=1", "runner.steps=12"]
    digest = TaskTrainer.compose(*options, "name=whole").train()["digest"]
    TaskTrainer.compose(*options, "name=run", "runner.max_time=0").train()
    folder = RunFolder(Path("runs/run"))
    TaskTrainer.compose(*options, "name=run", "runner.max_time=0").train()
    assert folder.previous.exists()
    damage(folder.last)
    assert TaskTrainer.compose(*options, "name=run").train()["digest"] == digest
    assert "is damaged; its SHA-256 does not fit; going on from previous.pt" in (folder.path / "train.log").read_text()
    options[-1] = "runner.steps=11"
    TaskTrainer.compose(*options, "name=lost", "runner.max_time=0").train()
    TaskTrainer.compose(*options, "name=lost", "runner.max_time=0").train()
    for name in ("last", "previous"):
        damage(Path(f"runs/lost/checkpoints/{name}.pt"))
    with pytest.raises(RunError, match=r"no good checkpoint is left: .*; fresh=true starts anew"):
        TaskTrainer.compose(*options, "name=lost").train()
    for name in ("last", "previous"):
        Path(f"runs/lost/checkpoints/{name}.pt").unlink()
    TaskTrainer.compose(*options, "name=lost").train()
    assert "no save of this run was ever completed: it starts at step 0" in Path("runs/lost/train.log").read_text()


# --- a disk that fails -----------------------------------------------------------------------------------------------


def limited(path: Path, limit: int) -> None:
    """Save with a limit on the size of files: the kernel refuses the write that goes past it, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(RunError, match=r"last\.pt: cannot be written \(File too large\); the checkpoint before it is"):
        checkpoint.save(path, state(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_a_write_that_fails_at_20_places_leaves_the_old_file() -> None:
    path = Path("folder/last.pt")
    path.parent.mkdir()
    checkpoint.save(path, state(1))
    size = path.stat().st_size
    for limit in [*(size * place // 19 for place in range(19)), size - 1]:
        assert os.waitpid(fork(lambda limit=limit: limited(path, limit)), 0)[1] == 0, limit
    assert checkpoint.load(path)["runner"]["step"] == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_every_call_that_can_fail_is_told(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, each write, fsync, renaming, fsync of the folder."""
    path = Path("last.pt")
    checkpoint.save(path, state(1))
    seen, failing = [0], [-1]

    def sometimes(call: Any) -> Any:
        def wrapped(*values: Any, **more: Any) -> Any:
            seen[0] += 1
            if seen[0] == failing[0]:
                raise OSError(number, os.strerror(number))
            return call(*values, **more)

        return wrapped

    monkeypatch.setattr(checkpoint._Hashed, "_put", sometimes(checkpoint._Hashed._put))
    monkeypatch.setattr(os, "fsync", sometimes(os.fsync))
    monkeypatch.setattr(pathlib.Path, "replace", sometimes(pathlib.Path.replace))
    checkpoint.save(path, state(1))
    calls = seen[0]
    assert calls >= 10
    for place in range(1, calls + 1):
        seen[0], failing[0] = 0, place
        with pytest.raises(RunError, match=r"last\.pt: cannot be written .*; the checkpoint before it is good") as told:
            checkpoint.save(path, state(2))
        assert "\n" not in str(told.value)
        assert checkpoint.load(path)["runner"]["step"] == (2 if place == calls else 1), place
        if place == calls:  # all but the folder's fsync is done: the new file stands, and is whole
            break
    assert [entry.name for entry in Path().iterdir()] == ["last.pt"]


def test_a_full_disk_ends_a_run_with_one_line(program: Program) -> None:
    """In the first save, and in a later one; the checkpoint before it stays, and the same command continues."""
    options = [*SHORT, "runner.save_every=1", "model.width=600"]
    whole = TaskTrainer.compose(*options, "name=whole").train()
    options.append("name=run")

    def limit(size: int) -> Any:
        def set_it() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return set_it

    weights = sum(
        value.numel() * 4 for value in checkpoint.load(Path("runs/whole/checkpoints/last.pt"))["model"].values()
    )
    none, good = "there is no checkpoint before it", "the checkpoint before it is good"
    for size, steps, before in ((weights // 2, None, none), (2 * weights, 0, good)):
        done = program(command(*options), preexec_fn=limit(size))
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"last.pt: cannot be written (File too large); {before}" in done.stderr
        last = Path("runs/run/checkpoints/last.pt")
        assert (checkpoint.load(last)["runner"]["step"] if last.exists() else None) == steps
    assert TaskTrainer.compose(*options).train()["digest"] == whole["digest"]


# --- what may be saved -----------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Text(str):
    pass


ODD: dict[str, Any] = {
    "numpy scalar": np.float32(1.0),
    "numpy integer": np.int64(1),
    "numpy bool": np.bool_(True),
    "numpy array": np.zeros(2),
    "numpy text": np.str_("x"),
    "path": Path("x"),
    "DictConfig": OmegaConf.create({"a": 1}),
    "ListConfig": OmegaConf.create([1]),
    "enum": Colour.RED,
    "text of a class": Text("x"),
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "complex": 1j,
    "decimal": decimal.Decimal("1"),
    "fraction": fractions.Fraction(1, 2),
    "date": datetime.date(2020, 1, 1),
    "function": len,
    "class": dict,
    "module": nn.Linear(1, 1),
    "generator": torch.Generator(),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "range": range(3),
    "sparse tensor": torch.eye(2).to_sparse(),
    "meta tensor": torch.zeros(2, device="meta"),
    "object": object(),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_plain_is_named(kind: str, inside: bool) -> None:
    value = {"deep": [1, ("x", ODD[kind])]} if inside else ODD[kind]
    place = r"method\.mine\.deep\.1\.1" if inside else r"method\.mine"
    with pytest.raises(RunError, match=rf"^checkpoint: {place} is a .*; keep tensors and plain values"):
        checkpoint.save(Path("last.pt"), {"method": {"mine": value}})
    assert not any(Path().iterdir())


@pytest.mark.parametrize("key", [np.int64(1), Path("x"), Colour.RED, b"x"])
def test_keys_that_are_not_plain_are_named(key: Any) -> None:
    with pytest.raises(RunError, match=r"^checkpoint: a key of method\.mine is a "):
        checkpoint.save(Path("last.pt"), {"method": {"mine": {key: 1}}})


def test_what_is_saved_loads_with_weights_only_and_is_the_same() -> None:
    """With torch's own reader too, which stops at the end of the archive."""
    kept = {
        "model": {},
        "numbers": [1, -(2**80), 0.1, float("-inf"), True, None],
        "text": "ä\n",
        "empty": {},
        "nested": {"a": {1: (2, [3])}},
        "tensors": [torch.arange(3), torch.zeros(2, 0), torch.ones((), dtype=torch.bfloat16), torch.tensor([True])],
        "complex": torch.ones(2, dtype=torch.complex64),
        "view": torch.arange(12.0).view(3, 4).t()[1:],
    }
    checkpoint.save(Path("last.pt"), kept)
    for loaded in (checkpoint.load(Path("last.pt")), torch.load("last.pt", weights_only=True)):
        assert loaded.pop("format") == checkpoint.FORMAT
        assert checkpoint.digest(loaded) == checkpoint.digest(kept)
        assert loaded["numbers"] == kept["numbers"]


def test_an_odd_value_of_a_method_is_named_before_training() -> None:
    options = [*SHORT, "trusted=[test_checkpoints]", "method._target_=test_checkpoints.Forgetful"]
    with pytest.raises(RunError, match=r"checkpoint: method\.where is a pathlib\..*Path; keep tensors"):
        TaskTrainer.compose(*options).train()


class Forgetful(Supervised):
    """A method of a user's own with something in its state that cannot be kept."""

    def state_dict(self, *values: Any, **more: Any) -> Any:
        return {**super().state_dict(*values, **more), "where": Path("x")}

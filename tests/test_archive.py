"""Checkpoints of somebody else's that would grow: they are refused before they take memory, time or code."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg import system
from healsg.errors import RunError
from healsg.runs import archive, checkpoint

PATH = Path("last.pt")


def close(body: bytes) -> None:
    """Write a checkpoint around an archive, with a digest that fits."""
    content = body + checkpoint._MAGIC
    PATH.write_bytes(content + hashlib.sha256(content).digest())


def archived(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def repacked(state: Any, kind: int, change: Callable[[str, bytes], bytes] = lambda name, content: content) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archived(state))) as old, zipfile.ZipFile(buffer, "w", kind) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return buffer.getvalue()


def sized(width: int) -> dict[str, Any]:
    return {"model": {"weight": torch.zeros(width)}, "runner": {"step": 1}}


def shared(levels: int) -> Any:
    value: Any = [0, 0]
    for _ in range(levels):
        value = [value, value]
    return value


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


BOMBS: dict[str, Callable[[], bytes]] = {
    "compressed": lambda: repacked(sized(1 << 24), zipfile.ZIP_DEFLATED),
    "compressed a little": lambda: repacked(sized(1000), zipfile.ZIP_DEFLATED),
    "another archive behind": lambda: archived(sized(4)) + repacked(sized(1 << 22), zipfile.ZIP_DEFLATED),
    "an expanded tensor": lambda: archived({"model": {"weight": torch.zeros(1).expand(1 << 20, 1 << 20)}}),
    "many expanded tensors": lambda: archived(
        {"model": {str(n): torch.zeros(1).expand(1 << 20) for n in range(1000)}},
    ),
    "lists of lists": lambda: archived(sized(4) | {"runner": shared(40)}),
    "deep lists": lambda: archived(sized(4) | {"runner": deep(150)}),
    "a key of tuples": lambda: archived(sized(4) | {"runner": {(1, (2, 3)): 1}}),
    "a set": lambda: archived(sized(4) | {"runner": {1, 2}}),
    "a sparse tensor": lambda: archived({"model": {"weight": torch.eye(4).to_sparse()}}),
    "a comment": lambda: archived(sized(4))[:-2] + b"\5\0hello",
    "no archive": lambda: b"x" * 1000,
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_checkpoint_that_would_grow_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    close(BOMBS[kind]())
    assert PATH.stat().st_size < 4 << 20
    request.getfixturevalue("little_memory")
    with pytest.raises(RunError, match=r"last\.pt: holds something that is neither a tensor nor a plain value"):
        checkpoint.load(PATH)


def test_a_compressed_archive_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    close(repacked(sized(1000), zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(torch, "load", lambda *values, **more: pytest.fail("it was loaded"))
    with pytest.raises(RunError):
        checkpoint.load(PATH)


def test_ordinary_states_are_read() -> None:
    weight = torch.arange(12.0)
    state = {
        "model": {"a": weight, "b": weight, "c": weight.view(3, 4).t()[1:], "d": torch.ones(1).expand(1000)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [{"betas": (0.9, 0.99)}] * 50},
        "text": "x" * 10_000,
    }
    checkpoint.save(PATH, state)
    loaded = checkpoint.load(PATH)
    assert checkpoint.digest({key: loaded[key] for key in state}) == checkpoint.digest(state)


def test_a_file_that_is_larger_than_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(PATH, sized(10_000))
    monkeypatch.setattr(system, "physical_memory", lambda: 1000)
    monkeypatch.setattr(archive, "sha256", lambda *values: pytest.fail("it was read"))
    with pytest.raises(RunError, match=r"last\.pt: has [\d,]+ bytes, more than the memory of this machine \(1,000\)"):
        checkpoint.load(PATH)


def test_a_part_of_a_file_ends_where_it_should() -> None:
    Path("whole").write_bytes(bytes(range(100)))
    with Path("whole").open("rb") as file:
        part = archive.Part(file, 40)
        assert part.read(10) == bytes(range(10))
        assert part.seek(-5, io.SEEK_END) == 35
        assert part.read() == bytes(range(35, 40))
        assert part.read(1) == b""
        part.seek(38)
        buffer = bytearray(10)
        assert part.readinto(buffer) == 2
        assert buffer[:2] == bytes([38, 39])
        part.close()
        assert not file.closed

"""Checkpoints: single files of tensors and plain values, written in one atomic step, with their SHA-256 at the end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from healsg import safefiles, system
from healsg.errors import RunError
from healsg.runs import archive

log = logging.getLogger("healsg")

FORMAT = 2
_MAGIC = f"HEALSg-{FORMAT}".encode()
_TRAILER = len(_MAGIC) + hashlib.sha256().digest_size


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: temporary file, fsync, rename, fsync of the folder; a kill leaves the old or the new
    file.

    Raises:
        RunError: a value is neither a tensor nor plain (its key is named), or the file cannot be written; an existing
            file is then unchanged.
    """
    for key, value in _leaves(state, ""):
        if name := odd(value):
            raise RunError(f"checkpoint: {key} is {name}; keep tensors and plain values (numbers, text, lists, dicts)")
    try:
        if aside := safefiles.set_folder_aside(path):
            log.warning("%s: is a folder, and not a checkpoint; moved to %s", path, aside.name)
        with safefiles.replacing(path, sync=True) as file:
            hashed = _Hashed(file)
            torch.save({"format": FORMAT, **state}, cast("BinaryIO", hashed))
            hashed.write(_MAGIC)
            hashed.finish()
        system.sync_folder(path.parent)
    except OSError as error:
        before = "the checkpoint before it is good" if path.exists() else "there is no checkpoint before it"
        if not path.exists() and (last := path.with_name("last.pt")).exists():
            before = f"{last.name}, which was saved before, is good"
        raise RunError(f"{path}: cannot be written ({error.strerror}); {before}") from error


class _Hashed:
    """A file that computes the SHA-256 of what is written. An error is only raised at the end, by ``finish``, because
    torch's writer does not tolerate exceptions."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        if self.failure is None:
            try:
                self._put(content)
            except OSError as error:
                self.failure = error
        return len(content)

    def _put(self, content: bytes | memoryview) -> None:
        self.file.write(content)
        self.hash.update(content)

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        """Append the SHA-256 of everything written. Raises OSError, also for an earlier failure."""
        if self.failure is not None:
            raise self.failure
        self._put(self.hash.digest())
        self.file.flush()


def load(path: Path) -> dict[str, Any]:
    """Read a file of ``save`` onto the CPU; its checksum is verified before anything is unpickled.

    Raises:
        RunError: the file is missing, damaged, not ours, or of a format this version does not know.
    """
    try:
        with safefiles.open_to_read(path) as file:
            state = _read(file, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    weights = state["model"].values()
    if not all(isinstance(value, Tensor) for value in weights):
        raise RunError(f"{path}: its weights are no tensors")
    return state


def _read(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The state in an open file. Cheap checks come first, and nothing is unpickled before its checksum is verified."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _TRAILER))
    trailer = file.read(_TRAILER)
    magic, digest = trailer[:-32], trailer[-32:]
    if magic[:6] != _MAGIC[:6]:
        raise RunError(f"{path}: is no checkpoint of HEALSg, or its end is missing")
    archive.require_size(file, path)
    file.seek(0)
    if archive.sha256(file, size - 32) != digest:
        raise RunError(f"{path}: is damaged; its SHA-256 does not fit")
    if magic != _MAGIC:
        raise RunError(f"{path}: was written by another version of the format, which this one does not read")
    body = archive.Part(file, size - _TRAILER)
    try:
        archive.require_stored(body, size)
        body.seek(0)
        state: dict[str, Any] = torch.load(cast("BinaryIO", body), map_location="cpu", weights_only=True)
        require_plain(state, size)
        state["model"].values()
    except MemoryError as error:
        raise RunError(f"{path}: does not fit into the memory that is left") from error
    except Exception as error:  # a file that imitates a checkpoint can raise almost any exception
        raise RunError(f"{path}: holds something that is neither a tensor nor a plain value, or no weights") from error
    return state


def require_plain(state: Any, size: int) -> None:
    """Raise ValueError for a state that is larger than its file allows, or that ``save`` would not have written.

    A pickle may refer to one list many times, and a tensor may expand a few bytes to gigabytes by its strides:
    traversing or copying such a state would not end. So the values are counted, up to a limit.

    Args:
        state: the unpickled state.
        size: the size of its file in bytes.

    Raises:
        ValueError: it is too large, too deeply nested, or not plain.
    """
    values, tensors = max(size, 1 << 20), 16 * size + (1 << 28)
    level: list[Any] = [state]
    for _ in range(100):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if any(type(key) not in (str, int) for key in value):
                    raise ValueError("a key is not plain")
                inner += value.values()
            elif isinstance(value, (list, tuple)):
                inner += value
            elif odd(value):
                raise ValueError("a value is not plain")
            elif isinstance(value, Tensor):
                tensors -= value.numel() * value.element_size()
            if len(inner) > values or tensors < 0:
                raise ValueError("the state is larger than its file allows")
        values -= len(inner)
        level = inner
        if not level:
            return
    raise ValueError("the state is nested too deeply")


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the trailer of a checkpoint, of any version. Raises OSError."""
    with safefiles.open_to_read(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TRAILER))
        return file.read(6) == _MAGIC[:6]


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """The identity of a file, to recognise one that was written or verified before; None if it does not exist."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def keep_previous(path: Path, previous: Path) -> None:
    """Replace ``previous`` by ``path``, before ``path`` is replaced; both are intact at every moment.

    ``path`` must be known to be intact, since the old ``previous`` is lost.
    """
    if safefiles.kind_of(path) == safefiles.FILE:
        safefiles.set_folder_aside(previous)
        link = safefiles.temporary_name(previous)
        try:
            os.link(path, link)
            link.replace(previous)
            link.unlink(missing_ok=True)  # renaming does nothing if both are the same file already, as after a kill
        except OSError:  # a file system without hard links
            link.unlink(missing_ok=True)
            with safefiles.open_to_read(path) as file, safefiles.replacing(previous, sync=True) as copy:
                shutil.copyfileobj(file, copy, 1 << 20)


def digest(state: Any) -> str:
    """SHA-256 of a state's values under their keys, whatever file they come from."""
    total = hashlib.sha256()
    for key, value in _leaves(state, ""):
        total.update(f"{key}\0".encode())
        if isinstance(value, Tensor):
            bare = value.detach().cpu().contiguous()
            total.update(f"{bare.dtype}{tuple(bare.shape)}\0".encode())
            if bare.numel():  # hashed without a copy, which would double the memory of the largest tensor
                total.update(memoryview(bare.flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
        else:
            total.update(f"{value!r}\0".encode())
    return total.hexdigest()


def odd(value: Any) -> str:
    """The type of a value that is neither plain nor a plain tensor, in words; otherwise empty."""
    if type(value) in (Tensor, nn.Parameter):
        return "" if value.layout == torch.strided and not value.is_meta else f"a tensor of layout {value.layout}"
    plain = type(value) in (int, float, str, bool, type(None))
    return "" if plain else f"a {type(value).__module__}.{type(value).__name__}"


def not_finite(state: dict[str, Any]) -> Iterator[str]:
    """The keys of the tensors of network and optimizer that contain NaN or infinity."""
    for key, value in _leaves({part: state[part] for part in ("model", "optimizer") if part in state}, ""):
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            yield key


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            if type(name) not in (str, int):
                yield f"a key of {key}", name
            yield from _leaves(value[name], f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, element in enumerate(value):
            yield from _leaves(element, f"{key}.{number}")
    else:
        yield key, value


def like(state: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the ``_metadata`` of a module's state dict: the versions of its modules."""
    if not hasattr(state, "_metadata"):
        return values
    copied: Any = OrderedDict(values)
    copied._metadata = state._metadata
    return cast("dict[str, Any]", copied)


@contextlib.contextmanager
def weights_of(model: nn.Module, weights: dict[str, Any]) -> Iterator[None]:
    """A context in which ``model`` has other weights."""
    state = model.state_dict()
    original = like(state, {key: value.detach().clone() for key, value in state.items()})
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(original)

"""Files of published data sets: download, checksum, unpacking, and a reader of pickles that cannot run code."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import socket
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from healsg.errors import DataError

log = logging.getLogger("healsg")

TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""


def checked_bytes(path: Path, md5: str | None) -> bytes:
    """The content of ``path``, which must have the published checksum ``md5``; None takes any content.

    What is checked is what is returned. Raises DataError that names the file and the setting.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from error
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(
            f"{path}: not the published file, its MD5 is not {md5}; get it anew, or take it with data.verify=false"
        )
    return content


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (created where it is missing) for one process of this machine while files are put there."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".download.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released as the file closes, however the process ends
            yield
    except OSError as error:
        raise DataError(f"{folder}: files cannot be put there ({_reason(error)}); check data.root") from error


def download(urls: Sequence[str], target: Path, md5: str, by_hand: str) -> None:
    """Fetch ``target`` from the first of ``urls`` that gives the content with checksum ``md5``.

    The file appears under its name only when it is whole. Raises DataError of one line that ends with ``by_hand``.
    """
    from torchvision.datasets import utils

    part, reason = target.with_name(target.name + ".part"), ""
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for url in urls:
            log.info("downloading %s to %s", url, target)
            try:
                utils.download_url(url, str(part.parent), part.name, md5)
            except Exception as error:  # whatever a network can do
                reason = _reason(error)
            else:
                part.replace(target)
                return
    finally:
        socket.setdefaulttimeout(previous)
    raise DataError(f"{target.name} is not in {target.parent} and its download failed ({reason}); {by_hand}")


def unpack(archive: Path, folder: Path, wanted: Collection[str]) -> None:
    """Put the files ``wanted`` of a tar archive's folder ``folder.name`` into ``folder``, and nothing else.

    Raises DataError where the archive is damaged or lacks one of them.
    """
    names = {f"{folder.name}/{name}": name for name in wanted}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = names.get(member.name.removeprefix("./"))
                content = tar.extractfile(member) if name and member.isfile() else None
                if name is None or content is None:
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                part = folder / f"{name}.part"
                part.write_bytes(content.read())
                part.replace(folder / name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: the archive is damaged ({_reason(error)}); delete it and get it anew") from error
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise DataError(f"{archive}: the archive holds no {folder.name}/{missing[0]}; delete it and get it anew")


def load_arrays(content: bytes, path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays, of Python 2 or 3, without running any code it asks for.

    Args:
        content: the pickle.
        path: the file it came from, for the message.

    Raises:
        DataError: the pickle names anything but an array, or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForbiddenError as error:
        raise DataError(f"{path}: the pickle asks for {error}, which no such file needs; it was not loaded") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path}: damaged, not a pickle of arrays ({_reason(error)})") from error


class _ForbiddenError(Exception):
    """A pickle asked for something that is not an array."""


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 calls to write bytes in an old protocol; the pickle has no say in the codec."""
    return text.encode("latin1")


_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _ForbiddenError(f"{module}.{name}")
        return _ALLOWED[module, name]


def _reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split()) or type(error).__name__

"""Files of data sets: search paths, download, checksums, and a pickle reader that cannot run code."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from healsg.data.source import line
from healsg.errors import DataError
from healsg.safefiles import IrregularFileError, open_to_append
from healsg.system import ProcessLock

log = logging.getLogger("healsg")

TIMEOUT = 10.0
"""Seconds without data after which a download fails."""

MOST = 1 << 28
"""The largest size of a data set's file, or of its unpacked content, in bytes; larger files are refused."""

CHUNK = 1 << 20


@dataclass(frozen=True)
class Sums:
    """The published checksums, if any, and size of a file."""

    md5: str = ""
    sha256: str = ""
    size: int | None = None

    def problem(self, file: IO[bytes]) -> str:
        """The difference between an open file and the published one; empty if there is none. Rewinds the file."""
        size = file.seek(0, 2)
        if self.size is not None and size != self.size:
            return f"it has {size} bytes, not {self.size}"
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for name, actual, expected in (("MD5", md5, self.md5), ("SHA-256", sha256, self.sha256)):
            file.seek(0)
            while expected and (chunk := file.read(CHUNK)):
                actual.update(chunk)
            if expected and actual.hexdigest() != expected:
                return f"its {name} is not {expected}"
        file.seek(0)
        return ""

    def require(self, file: IO[bytes], path: Path) -> None:
        """Raise DataError that names ``path`` and the setting if the open file is not the published one."""
        if wrong := self.problem(file):
            raise DataError(
                f"{path}: not the published file, {wrong}; download it again, or take it with data.verify=false"
            )


def locate(key: str, name: str, folders: Sequence[Path], kind: Literal["file", "folder", "file or folder"]) -> Path:
    """The path of ``name``, relative to the first of ``folders`` in which such a file or folder exists.

    Raises DataError that names the setting ``data.<key>`` and all searched paths if there is none.
    """
    given = Path(name).expanduser()
    lies = {"file": Path.is_file, "folder": Path.is_dir}.get(kind, Path.exists)
    files = [folder / given for folder in folders]
    if found := next(filter(lies, files), None):
        return found
    names = " nor ".join(dict.fromkeys(map(str, files)))
    raise DataError(f"data.{key}: no such {kind}: {names}")


def checked_bytes(path: Path, sums: Sums) -> bytes:
    """The verified content of the published file ``path``. The returned bytes are those that were verified.

    Raises DataError that names the file and the setting.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST:
                raise DataError(f"{path}: has {size} bytes, which no such file has; it was not read")
            content = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({line(error)})") from error
    sums.require(io.BytesIO(content), path)
    return content


@contextmanager
def checked_file(path: Path, sums: Sums) -> Iterator[IO[bytes]]:
    """The published file ``path``, open and verified. Raises DataError as ``checked_bytes`` does."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({line(error)})") from error
    with file:
        sums.require(file, path)
        yield file


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock ``folder`` (created if missing) against other processes on this machine while files are added."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_to_append(folder / ".download.lock") as lock:
            held = ProcessLock(lock, folder / ".download.lock")
            held.acquire(wait=True)
            try:
                yield
            finally:
                held.release()
    except (OSError, IrregularFileError) as error:
        raise DataError(f"{folder}: files cannot be put there ({line(error)}); check data.root") from error


def obtain(
    urls: Sequence[str],
    target: Path,
    sums: Sums,
    by_hand: str,
    allowed: bool,
    most: int = MOST,
    mirror: str | None = None,
) -> None:
    """Ensure that ``target`` exists, by a ``download`` if allowed; otherwise raise DataError."""
    if target.is_file():
        return
    if not allowed:
        raise DataError(f"{target}: not there; set data.download=true, or {by_hand}")
    with exclusive(target.parent):
        if not target.is_file():  # another process may have created it
            download(urls, target, sums, by_hand, most, mirror)


def download(
    urls: Sequence[str], target: Path, sums: Sums, by_hand: str, most: int = MOST, mirror: str | None = None
) -> None:
    """Download ``target`` from the first of ``urls`` that provides the published file; all must be https.

    A ``mirror`` is tried first, with the same file name; see ``TaskData``.

    The file gets its name only when it is complete. A partial download is resumed, immediately or, if the size is
    published, by the next call, and discarded if its content turns out to differ. Without a published size the file has
    at most ``most`` bytes. Raises DataError, one line that ends with ``by_hand``.
    """
    part = target.with_name(target.name + ".part")
    reason = "no address"
    size = sums.size or most
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = [f"{mirror.rstrip('/')}/{target.name}", *urls] if mirror else urls
    for number, url in enumerate(url for url in sources for _ in range(2)):
        if mirror and number == 2:  # a partial file from a mirror is not resumed at another address
            log.warning("data.mirror: %s is not to be had there (%s)", target.name, reason)
            part.unlink(missing_ok=True)
        log.info("downloading %s to %s", url, target)
        try:
            fetch(url, part, size)
            with part.open("rb") as file:
                reason = sums.problem(file)
        except Exception as error:  # any network error
            reason = line(error)
            if isinstance(error, urllib.error.HTTPError):  # e.g. no such range
                part.unlink(missing_ok=True)
            continue
        if not reason:
            part.replace(target)
            return
        if part.stat().st_size >= size:  # a shorter one may be truncated
            part.unlink()
    if sums.size is None:
        part.unlink(missing_ok=True)
    raise DataError(f"{target.name} is not in {target.parent} and its download failed ({reason}); {by_hand}")


def fetch(url: str, part: Path, size: int) -> None:
    """Append the missing part of the ``size`` bytes at ``url`` to ``part``; or start over if the server requires it.

    Raises DataError if the response is truncated, too long, or not delivered over https only.
    """
    have = part.stat().st_size if part.is_file() else 0
    have = have if have < size else 0
    headers = {"User-Agent": "healsg"} | ({"Range": f"bytes={have}-"} if have else {})
    with opener().open(urllib.request.Request(_secure(url), headers=headers), timeout=TIMEOUT) as answer:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        with open_to_append(part) as file:
            if not have:
                file.truncate(0)
            while chunk := answer.read(CHUNK):
                have += len(chunk)
                if have > size:
                    _refuse(f"more than the {size} bytes of the published file")
                file.write(chunk)
    if have < size < MOST:
        _refuse(f"cut after {have} of {size} bytes")


def opener() -> urllib.request.OpenerDirector:
    """The URL opener: with the proxies of the environment, and without redirects away from https."""
    return urllib.request.build_opener(_Redirects)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, code, msg, headers, _secure(newurl))


def _secure(url: str) -> str:
    return url if url.startswith("https://") else _refuse(f"{url} is not https")


def _refuse(reason: str) -> Any:
    raise DataError(reason)


def load_arrays(content: bytes, path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays, of Python 2 or 3, without running any code from it.

    Raises DataError, with ``path``, if the pickle contains other objects or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForbiddenError as error:
        raise DataError(f"{path}: the pickle asks for {error}, which no such file needs; it was not loaded") from None
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise DataError(f"{path}: damaged, not a pickle of arrays ({line(error)})") from error


class _ForbiddenError(Exception):
    """A pickle contains an object that is not an array."""


def _encode(text: str, encoding: str) -> bytes:
    """The function that Python 3 uses to pickle bytes in old protocols; the codec is fixed."""
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

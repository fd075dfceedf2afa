"""Files of published data sets: download, checksum, unpacking, and a reader of pickles that cannot run code."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import pickle
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from healsg.errors import DataError
from healsg.source import line

log = logging.getLogger("healsg")

TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""

MOST = 1 << 28
"""Bytes that a file of a data set, or all that is packed in one, may have: more is refused, not read."""

CHUNK = 1 << 20


@dataclass(frozen=True)
class Sums:
    """What is published of a file: its checksums, where there are any, and its size in bytes."""

    md5: str = ""
    sha256: str = ""
    size: int | None = None

    def problem(self, content: bytes) -> str:
        """In what ``content`` is not the published file; nothing where it is."""
        if self.size is not None and len(content) != self.size:
            return f"it has {len(content)} bytes, not {self.size}"
        if self.md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != self.md5:
            return f"its MD5 is not {self.md5}"
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256:
            return f"its SHA-256 is not {self.sha256}"
        return ""


def checked_bytes(path: Path, sums: Sums) -> bytes:
    """The content of ``path``, which must be the published file. What is checked is what is returned.

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
    if problem := sums.problem(content):
        raise DataError(f"{path}: not the published file, {problem}; get it anew, or take it with data.verify=false")
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
        raise DataError(f"{folder}: files cannot be put there ({line(error)}); check data.root") from error


def download(urls: Sequence[str], target: Path, sums: Sums, by_hand: str) -> None:
    """Fetch ``target`` from the first of ``urls`` that gives the published file; all must be https.

    The file appears under its name only when it is whole. One that was cut is gone on with, at once or by the next
    call, and thrown away where that leads to another content. Raises DataError of one line that ends with ``by_hand``.
    """
    part, reason = target.with_name(target.name + ".part"), "no address"
    target.parent.mkdir(parents=True, exist_ok=True)
    for url in [url for url in urls for _ in range(2)]:
        log.info("downloading %s to %s", url, target)
        try:
            fetch(url, part, sums.size or MOST)
            reason = sums.problem(part.read_bytes())
        except Exception as error:  # whatever a network can do
            reason = line(error)
            if isinstance(error, urllib.error.HTTPError):  # no such range, say
                part.unlink(missing_ok=True)
            continue
        if not reason:
            part.replace(target)
            return
        part.unlink()
    raise DataError(f"{target.name} is not in {target.parent} and its download failed ({reason}); {by_hand}")


def fetch(url: str, part: Path, size: int) -> None:
    """Add to ``part`` what it lacks of the ``size`` bytes behind ``url``; or begin anew, where the server wants that.

    Raises DataError where the answer is cut, longer, or not given over https from end to end.
    """
    have = part.stat().st_size if part.is_file() else 0
    have = have if have < size else 0
    headers = {"User-Agent": "healsg"} | ({"Range": f"bytes={have}-"} if have else {})
    with opener().open(urllib.request.Request(_secure(url), headers=headers), timeout=TIMEOUT) as answer:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                have += len(chunk)
                if have > size:
                    _refuse(f"more than the {size} bytes of the published file")
                file.write(chunk)
    if have < size < MOST:
        _refuse(f"cut after {have} of {size} bytes")


def opener() -> urllib.request.OpenerDirector:
    """What opens addresses: with the proxies of the environment, and no way out of https."""
    return urllib.request.build_opener(_Redirects)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, code, msg, headers, _secure(newurl))


def _secure(url: str) -> str:
    return url if url.startswith("https://") else _refuse(f"{url} is not https")


def _refuse(reason: str) -> Any:
    raise DataError(reason)


def unzip(packed: bytes, path: Path) -> bytes:
    """What the gzip file ``path``, with the content ``packed``, holds. Raises DataError where it is damaged."""
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while chunk := stream.read(CHUNK):
                content += chunk
                if len(content) > MOST:
                    raise ValueError(f"it holds more than {MOST} bytes")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: damaged, cannot be unpacked ({line(error)}); delete it and get it anew") from error
    return bytes(content)


def unpack(packed: bytes, archive: Path, folder: Path, wanted: Collection[str]) -> None:
    """Put the files ``wanted`` of a tar.gz archive's folder ``folder.name`` into ``folder``, and nothing else.

    Raises DataError where the archive, with the content ``packed``, is damaged or lacks one of them.
    """
    names = {f"{folder.name}/{name}": name for name in wanted}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            for member, size in tar_files(stream):
                if name := names.pop(member.removeprefix("./"), None):
                    if len(content := stream.read(size)) < size:
                        raise EOFError
                    folder.mkdir(parents=True, exist_ok=True)
                    part = folder / f"{name}.part"
                    part.write_bytes(content)
                    part.replace(folder / name)
                if not names:
                    return
    except (gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{archive}: the archive is damaged ({line(error)}); delete it and get it anew") from error
    raise DataError(f"{archive}: the archive holds no {next(iter(names))}; delete it and get it anew")


def tar_files(stream: gzip.GzipFile) -> Iterator[tuple[str, int]]:
    """Name and size of each plain file of a tar archive; ``stream`` then stands at its content.

    Nothing else in it is looked at: links, devices and folders, and what other entries say of a file's name or size.
    Raises ValueError where it is no archive or holds too much, EOFError where it is cut.
    """
    start = 0
    while True:
        header = stream.read(512)
        if len(header) < 512:
            raise EOFError
        if not header.strip(b"\0"):
            return
        size, checksum = (int(header[at].strip(b"\0 ") or b"0", 8) for at in (slice(124, 136), slice(148, 156)))
        if size < 0 or checksum != sum(header[:148] + b" " * 8 + header[156:]):
            raise ValueError("it is no tar archive")
        if start + size > MOST:
            raise ValueError(f"it holds more than {MOST} bytes")
        if header[156:157] in (b"0", b"\0"):
            yield header[:100].split(b"\0")[0].decode("latin1"), size
        start += 512 + -(-size // 512) * 512
        stream.seek(start)


def load_arrays(content: bytes, path: Path) -> Any:
    """Read a pickle of plain values and NumPy arrays, of Python 2 or 3, without running any code it asks for.

    Raises DataError, with ``path``, where the pickle names anything but an array, or is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _ForbiddenError as error:
        raise DataError(f"{path}: the pickle asks for {error}, which no such file needs; it was not loaded") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path}: damaged, not a pickle of arrays ({line(error)})") from error


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

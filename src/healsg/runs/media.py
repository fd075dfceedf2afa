"""MediaLog: writes images, tables and plots of a run below ``media/``, and a line for each into ``media.jsonl``.

The files are the truth; loggers are shown the same lines and read the same files.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from healsg import safefiles
from healsg.runs.folder import finite, naming
from healsg.runs.record import row_of

FILE = "media.jsonl"

FOLDER = "media"

LARGEST = 1 << 28
"""Bytes of ``media.jsonl`` that are read."""

LARGEST_FILE = 1 << 28
"""Bytes of an image, a table or a plot that are read."""

SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
"""The files that an image may be given as, by their first bytes."""

Entry = dict[str, Any]
"""One line: ``kind`` (image, table or plot), ``name``, ``file``, ``epoch``, ``step`` and ``caption``."""

Curves = Mapping[str, Sequence[tuple[float, float]]]


class MediaLog:
    """Writes media such that each is in ``media.jsonl`` once, also after a run was killed and resumed.

    What is logged a second time under the same kind, name and step takes the place of the first.

    Args:
        folder: the run's folder.
        forward: shown each line; ``MetricsLog.forward_media`` passes it on to the loggers.
    """

    def __init__(self, folder: Path, forward: Callable[[Entry], None] | None = None) -> None:
        self.folder = folder
        self.forward = forward
        self._lines = {_key(entry): entry for entry in entries(folder)}
        self._ragged = _content(folder) != b"".join(map(_text, self._lines.values()))
        """Whether the file holds more than these lines, such as half a line that a kill has left."""

    def image(
        self, name: str, epoch: int, picture: np.ndarray[Any, Any] | bytes, caption: str = "", step: int | None = None
    ) -> Path:
        """Log an image.

        Args:
            name: such as ``val/overlay``; several steps of one name follow each other.
            epoch: in which it was made, from 1.
            picture: (H, W) or (H, W, 3) uint8 levels, which are written as PNG, or the bytes of a PNG or JPEG file.
            caption: a line below it.
            step: the update at which it was made; None where the epoch alone counts.

        Returns:
            The file.

        Raises:
            ValueError: the picture is none of these.
            OSError: it cannot be written.
        """
        content = picture if isinstance(picture, bytes) else png(picture)
        suffix = next((suffix for begin, suffix in SUFFIXES.items() if content.startswith(begin)), None)
        if suffix is None:
            raise ValueError(f"{name}: the bytes are no PNG and no JPEG file")
        return self._write("image", name, epoch, step, caption, suffix, content)

    def table(
        self,
        name: str,
        epoch: int,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        caption: str = "",
        step: int | None = None,
    ) -> Path:
        """Log a table of plain values, written as JSON: ``{"columns": [...], "rows": [[...], ...]}``.

        The other arguments are those of ``image``. Raises ValueError for a row of another length, OSError.
        """
        listed = [list(row) for row in rows]
        if wrong := next((row for row in listed if len(row) != len(columns)), None):
            raise ValueError(f"{name}: a row has {len(wrong)} values and there are {len(columns)} columns")
        return self._write_json("table", name, epoch, step, caption, {"columns": list(columns), "rows": listed})

    def plot(
        self, name: str, epoch: int, curves: Curves, x: str = "x", caption: str = "", step: int | None = None
    ) -> Path:
        """Log curves, written as JSON: ``{"x": "recall", "curves": {"cat": [[0, 1], ...]}}``.

        Args:
            curves: by name their points (x, y).
            x: what the horizontal axis shows.

        The other arguments are those of ``image``. Raises ValueError for points that are no pairs, OSError.
        """
        points = {curve: [[float(x), float(y)] for x, y in pairs] for curve, pairs in curves.items()}
        return self._write_json("plot", name, epoch, step, caption, {"x": x, "curves": points})

    def rewind(self, step: int, epoch: int) -> None:
        """Forget what was logged after update ``step`` and ``epoch`` complete epochs, to which the run goes back."""
        kept = {
            key: entry
            for key, entry in self._lines.items()
            if (entry["epoch"] <= epoch if entry["step"] is None else entry["step"] <= step)
        }
        if len(kept) != len(self._lines):
            self._lines = kept
            self._rewrite()

    # --- files -------------------------------------------------------------------------------------------------------

    def _write_json(
        self, kind: str, name: str, epoch: int, step: int | None, caption: str, value: dict[str, Any]
    ) -> Path:
        content = json.dumps(finite(value), default=str).encode()
        return self._write(kind, name, epoch, step, caption, ".json", content)

    def _write(
        self, kind: str, name: str, epoch: int, step: int | None, caption: str, suffix: str, content: bytes
    ) -> Path:
        at = f"epoch{epoch:04}" if step is None else f"step{step:08}"
        file = f"{FOLDER}/{kind}-{file_name(name)}-{at}{suffix}"
        entry: Entry = {"kind": kind, "name": name, "file": file, "epoch": epoch, "step": step, "caption": caption}
        safefiles.make_folder(self.folder / FOLDER)
        with naming(self.folder / file), safefiles.replacing(self.folder / file) as target:
            target.write(content)
        key = _key(entry)
        known = self._lines.get(key)
        self._lines[key] = entry
        if known is None and not self._ragged:
            with naming(self.folder / FILE), safefiles.open_to_append(self.folder / FILE) as lines:
                lines.write(_text(entry))
        elif known != entry:
            self._rewrite()
        if self.forward is not None:
            self.forward(entry)
        return self.folder / file

    def _rewrite(self) -> None:
        with naming(self.folder / FILE), safefiles.replacing(self.folder / FILE) as lines:
            lines.write(b"".join(map(_text, self._lines.values())))
        self._ragged = False


def entries(folder: Path) -> list[Entry]:
    """The lines of a run's ``media.jsonl``, those that are damaged left out. The files need not exist.

    Raises RunError where it is no regular file.
    """
    rows = map(row_of, _content(folder).decode(errors="replace").splitlines())
    return [row for row in rows if row is not None and _is_entry(row)]


def _content(folder: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return safefiles.read_bytes(folder / FILE, LARGEST)
    return b""


def read(folder: Path, entry: Entry) -> bytes:
    """The content of a medium's file. Raises OSError, RunError."""
    return safefiles.read_bytes(folder / entry["file"], LARGEST_FILE)


def _is_entry(row: Entry) -> bool:
    """Whether a line is one of ours: its file lies in ``media/`` itself, so that no line leads out of the run."""
    texts = all(isinstance(row.get(key), str) for key in ("kind", "name", "file", "caption"))
    numbers = type(row.get("epoch")) is int and (row.get("step") is None or type(row["step"]) is int)
    return texts and numbers and re.fullmatch(rf"{FOLDER}/[A-Za-z0-9_-][A-Za-z0-9._-]*", row["file"]) is not None


def _key(entry: Entry) -> tuple[Any, ...]:
    return entry["kind"], entry["name"], entry["epoch"] if entry["step"] is None else None, entry["step"]


def _text(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def file_name(name: str) -> str:
    """A name as a part of the name of a file; two names never give the same one."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:80].strip(".-")
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}".strip("-")


def png(picture: np.ndarray[Any, Any]) -> bytes:
    """The PNG file of (H, W) or (H, W, 3) uint8 levels. Raises ValueError."""
    from PIL import Image

    levels = np.asarray(picture)
    if levels.dtype != np.uint8 or not (levels.ndim == 2 or (levels.ndim == 3 and levels.shape[2] == 3)):
        shape = f"{levels.dtype} of shape {levels.shape}"
        raise ValueError(f"an image is (H, W) or (H, W, 3) of uint8 levels, and not {shape}")
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(levels)).save(buffer, "PNG")
    return buffer.getvalue()

"""MediaLog: writes images, tables and plots of a run below ``media/``, and a line for each into ``media.jsonl``.

The files are authoritative; loggers receive the same lines and read the same files.
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
"""The largest ``media.jsonl``, in bytes, that is read."""

LARGEST_FILE = 1 << 28
"""The largest image, table or plot, in bytes, that is read."""

SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}
"""The supported image files, by their first bytes."""

Entry = dict[str, Any]
"""One line: ``kind`` (image, table or plot), ``name``, ``file``, ``epoch``, ``step`` and ``caption``."""

Curves = Mapping[str, Sequence[tuple[float, float]]]


class MediaLog:
    """Writes media such that each is in ``media.jsonl`` exactly once, even if a run was killed and resumed.

    A second entry with the same kind, name and step replaces the first.

    Args:
        folder: the run's folder.
        forward: called with each line; ``MetricsLog.forward_media`` passes it on to the loggers.
    """

    def __init__(self, folder: Path, forward: Callable[[Entry], None] | None = None) -> None:
        self.folder = folder
        self.forward = forward
        self._lines = {_key(entry): entry for entry in entries(folder)}
        self._ragged = _content(folder) != b"".join(map(_text, self._lines.values()))
        """Whether the file contains more than these lines, such as a partial line that a kill has left."""

    def image(
        self, name: str, epoch: int, picture: np.ndarray[Any, Any] | bytes, caption: str = "", step: int | None = None
    ) -> Path:
        """Log an image.

        Args:
            name: such as ``val/overlay``; images of the same name at several steps form a sequence.
            epoch: the epoch, from 1.
            picture: (H, W) or (H, W, 3) uint8 pixels, which are written as PNG, or the bytes of a PNG or JPEG file.
            caption: a line below it.
            step: the update; None to identify it by the epoch.

        Returns:
            The file.

        Raises:
            ValueError: ``picture`` is none of these.
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

        The other arguments are those of ``image``. Raises ValueError if a row does not fit the columns, OSError.
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
            curves: the points (x, y) of each curve, by name.
            x: the label of the horizontal axis.

        The other arguments are those of ``image``. Raises ValueError for points that are not pairs, OSError.
        """
        points = {curve: [[float(x), float(y)] for x, y in pairs] for curve, pairs in curves.items()}
        return self._write_json("plot", name, epoch, step, caption, {"x": x, "curves": points})

    def rewind(self, step: int, epoch: int) -> None:
        """Remove what was logged after update ``step`` and ``epoch`` completed epochs, where the run resumes."""
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
    """The lines of a run's ``media.jsonl``; damaged lines are skipped. The files need not exist.

    Raises RunError if it is not a regular file.
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
    """Whether a line is valid: its file is directly in ``media/``, so that no line refers to a file outside the run."""
    texts = all(isinstance(row.get(key), str) for key in ("kind", "name", "file", "caption"))
    numbers = type(row.get("epoch")) is int and (row.get("step") is None or type(row["step"]) is int)
    return texts and numbers and re.fullmatch(rf"{FOLDER}/[A-Za-z0-9_-][A-Za-z0-9._-]*", row["file"]) is not None


def _key(entry: Entry) -> tuple[Any, ...]:
    return entry["kind"], entry["name"], entry["epoch"] if entry["step"] is None else None, entry["step"]


def _text(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def file_name(name: str) -> str:
    """A name as a part of a file name; different names give different file names."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:80].strip(".-")
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}".strip("-")


def png(picture: np.ndarray[Any, Any]) -> bytes:
    """(H, W) or (H, W, 3) uint8 pixels as a PNG file. Raises ValueError."""
    from PIL import Image

    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        shape = f"{pixels.dtype} of shape {pixels.shape}"
        raise ValueError(f"an image is (H, W) or (H, W, 3) of uint8 levels, and not {shape}")
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()

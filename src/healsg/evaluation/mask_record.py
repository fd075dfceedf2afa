"""MaskRecord: the finished masks of a folder and the weights that made them, so that a killed prediction can be
continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from healsg.errors import RunError
from healsg.evaluation.writers import WAY, settings_of
from healsg.runs.folder import write_text

ABOUT, LINES = "predictions.json", "predictions.jsonl"
"""The file with the weights and settings, and the file with one line for each mask."""


class MaskRecord:
    """The record of a folder of masks.

    A mask is finished if its line and its file exist and its image has not changed since. The line is written after the
    file; after a kill between the two, the mask is predicted again.

    Args:
        folder: of the masks; created if it does not exist.
        about: the weights and settings, as plain values; a folder with other ones is refused.

    Raises:
        RunError: the folder holds masks of other weights or settings, or its predictions.json is invalid.
        OSError: it cannot be created or written to.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = folder / ABOUT
        self.lines = folder / LINES
        self.done: dict[str, dict[str, Any]] = {}
        self.fresh = not self.about.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            write_text(self.about, json.dumps(dict(about), indent=1, ensure_ascii=False) + "\n")
        else:
            foreign = f"{self.about}: was not written by healsg predict"
            settings_of(self.about, about, foreign, f"{self.folder}: its masks were written with")
            self._read()

    def is_done(self, files: Sequence[Path], mask: Path) -> dict[str, Any] | None:
        """The line of a finished mask; None if it has to be predicted.

        Args:
            files: of the volume or image.
            mask: the path of its mask in the folder.

        Raises:
            RunError: the mask exists, but belongs to other files or is not in the record.
        """
        there, line = (self.folder / mask).exists(), self.done.get(str(mask))
        if line is None:
            if there and self.fresh:
                raise RunError(f"{self.folder / mask}: is there, and was not written by healsg predict; {WAY}")
            return None
        if line.get("files") != [str(file.absolute()) for file in files]:
            other = ", ".join(map(str, line.get("files") or ["something else"]))
            raise RunError(f"{self.folder / mask}: is the mask of {other}, not of {files[0]}; {WAY}")
        return line if there and line.get("stamp") == _stamp(files) else None

    def add(self, files: Sequence[Path], mask: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Record a written mask; returns its line."""
        names = [str(file.absolute()) for file in files]
        line = {"files": names, "mask": str(mask), "stamp": _stamp(files), **facts}
        with self.lines.open("ab", buffering=0) as file:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        self.done[str(mask)] = line
        return line

    def _read(self) -> None:
        """The complete lines; a line that was truncated by a kill is removed."""
        if not self.lines.exists():
            return
        content = self.lines.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.lines.open("r+b") as file:
                file.truncate(end)
        for number, text in enumerate(content[:end].splitlines(), 1):
            try:
                line = json.loads(text)
                self.done[line["mask"]] = line
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(f"{self.lines}: line {number} is none that was written here; {WAY}") from error


def _stamp(files: Sequence[Path]) -> list[list[int]]:
    """The size and modification time of each file."""
    found = [file.stat() for file in files]
    return [[one.st_size, one.st_mtime_ns] for one in found]

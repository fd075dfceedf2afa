"""Writers: predictions as lines of a CSV or JSON file that is continued after a kill, or on the screen."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from healsg.console import fitted
from healsg.errors import RunError
from healsg.runs.folder import write_text

SUFFIXES = (".csv", ".jsonl")
"""The kinds of files."""

WAY = "take another --out, or remove it"
"""The hint in errors about results that were written by something else."""


@dataclass(frozen=True)
class Row:
    """The prediction for one sample.

    Args:
        file: its path in printable form.
        row: its row in a table or array, from 1; None for an image.
        classes: its class, or its labels; None for a regression and for an unreadable sample.
        numbers: the probability of each class or label, or each predicted number.
        features: the inputs of the network's head, if requested.
        error: why the sample could not be read; empty if it could.
        explained: the file with the heat map, if requested.
    """

    file: str
    row: int | None
    classes: str | list[str] | None = None
    numbers: Sequence[float] = ()
    features: Sequence[float] = ()
    error: str = ""
    explained: str = ""


class Writer(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add the rows of one batch, all or none of them."""


def printable(text: str) -> str:
    """A text on one line of valid UTF-8, with surrogates and control characters escaped."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)


def key_of(file: str, row: int | None) -> int:
    """A hash of a sample, for the set of completed samples."""
    return int.from_bytes(hashlib.blake2b(f"{row}:{file}".encode(), digest_size=8).digest())


# --- forms of a row ---------------------------------------------------------------------------------------------------


class CsvForm:
    """Rows as lines of CSV: ``file``, ``row``, ``class``, ``probability``, ``p_<class>`` ..., ``f<n>`` ...,
    ``explain``, ``error``.

    Args:
        names: the classes, or the predicted numbers.
        regression: whether these are predicted numbers, whose columns have their names, and without a class.
        features: number of features.
        explained: whether there is a column for the heat map's file.
    """

    def __init__(
        self, names: Sequence[str], regression: bool = False, features: int = 0, explained: bool = False
    ) -> None:
        self.names = list(map(printable, names))
        self.regression = regression
        self.features = features
        self.explained = explained

    def header(self) -> str:
        numbers = self.names if self.regression else [f"p_{name}" for name in self.names]
        best = [] if self.regression else ["class", "probability"]
        features = [f"f{number}" for number in range(self.features)]
        return _csv_line(["file", "row", *best, *numbers, *features, *["explain"] * self.explained, "error"])

    def line(self, row: Row) -> str:
        where = [row.file, "" if row.row is None else row.row]
        best = [] if self.regression else [_joined(row.classes), _number(_largest(row))]
        numbers = [_number(value) for value in row.numbers] or [""] * len(self.names)
        features = [_number(value) for value in row.features] or [""] * self.features
        return _csv_line([*where, *best, *numbers, *features, *[row.explained] * self.explained, row.error])

    def read(self, line: str) -> tuple[str, int | None, bool]:
        """The file and row of a line, and whether it contains an error. Raises ValueError."""
        (cells,) = csv.reader([line], strict=True)
        if len(cells) != 3 + len(self.names) + self.features + self.explained + 2 * (not self.regression):
            raise ValueError("another number of columns")
        return cells[0], int(cells[1]) if cells[1] else None, bool(cells[-1])


class JsonForm:
    """Rows as JSON objects, one per line."""

    def __init__(self, names: Sequence[str], regression: bool = False) -> None:
        self.names = list(names)
        self.regression = regression

    def header(self) -> str:
        return ""

    def line(self, row: Row) -> str:
        fields: dict[str, Any] = {"file": row.file, "row": row.row}
        if row.error:
            return json.dumps({**fields, "error": row.error}, ensure_ascii=False) + "\n"
        numbers = dict(zip(self.names, map(_finite, row.numbers), strict=True))
        if self.regression:
            fields["prediction"] = numbers
        else:
            fields |= {"class": row.classes, "probability": _finite(_largest(row)), "probabilities": numbers}
        if len(row.features):
            fields["features"] = [_finite(value) for value in row.features]
        if row.explained:
            fields["explain"] = row.explained
        return json.dumps(fields, ensure_ascii=False) + "\n"

    def read(self, line: str) -> tuple[str, int | None, bool]:
        fields = json.loads(line)
        if not isinstance(fields, dict) or not isinstance(fields.get("file"), str):
            raise ValueError("no object with a file")
        return fields["file"], fields.get("row"), "error" in fields


Form = CsvForm | JsonForm


def _csv_line(cells: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _joined(classes: str | list[str] | None) -> str:
    return printable("|".join(classes) if isinstance(classes, list) else classes or "")


def _largest(row: Row) -> float | None:
    return max(row.numbers) if len(row.numbers) else None


def _number(value: float | None) -> str:
    """A float32 as text with enough digits to be read back as the same value."""
    return "" if value is None else f"{value:.9g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# --- where rows go ----------------------------------------------------------------------------------------------------


class Screen:
    """Rows on standard output, for people: the most probable classes, then the file.

    Args:
        names: the classes, or the predicted numbers.
        regression: whether these are numbers.
    """

    def __init__(self, names: Sequence[str], regression: bool = False) -> None:
        from rich.cells import cell_len

        self.names = list(map(printable, names))
        self.regression = regression
        self.width = min(24, max(map(cell_len, self.names)))

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            where = row.file if row.row is None else f"{row.file}:{row.row}"
            print(f"{self._summary(row)}  {where}", flush=True)

    def _summary(self, row: Row) -> str:
        if row.error:
            return f"cannot be read ({row.error}):"
        pairs = list(zip(self.names, row.numbers, strict=True))
        if self.regression:
            return "  ".join(f"{name} {value:.6g}" for name, value in pairs[:6])
        best = sorted(pairs, key=lambda pair: -pair[1])[:2]
        return "  ".join(f"{fitted(name, self.width)} {value:.4f}" for name, value in best)


class Lines:
    """Rows on standard output as lines of JSON, for programs.

    Args:
        form: of a row.
    """

    def __init__(self, form: Form) -> None:
        self.form = form

    def write(self, rows: Sequence[Row]) -> None:
        print("".join(map(self.form.line, rows)), end="", flush=True)


class File:
    """Rows in a file; each batch is appended in one write. ``FILE.json`` next to it records the weights and settings,
    so that rows of others are never appended.

    Args:
        path: the file.
        form: of a row.
        about: weights and settings, as plain values; an existing file with others is an error.
        batch_size: if the file ends within a batch, that batch is predicted again, so that its numbers are the same.

    Raises:
        RunError: the file was written with other weights or settings, or by something else.
    """

    def __init__(self, path: Path, form: Form, about: Mapping[str, Any], batch_size: int) -> None:
        self.path = path
        self.form = form
        self.about = dict(about)
        self.batch_size = batch_size
        self.beside = path.with_name(f"{path.name}.json")
        self.done: set[int] = set()
        self.unreadable = 0
        self.finished = False
        if path.exists():
            self._resume()
        else:
            self._write_about()
            self._add(form.header())

    def write(self, rows: Sequence[Row]) -> None:
        self._add("".join(map(self.form.line, rows)))
        self.done.update(key_of(row.file, row.row) for row in rows)
        self.unreadable += sum(bool(row.error) for row in rows)

    def finish(self) -> None:
        """Record that every sample has its row."""
        self.finished = True
        self._write_about()

    def _add(self, text: str) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())

    def _write_about(self) -> None:
        facts = {**self.about, "batch_size": self.batch_size, "finished": self.finished}
        if self.finished:
            facts |= {"samples": len(self.done), "unreadable": self.unreadable}
        write_text(self.beside, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def _resume(self) -> None:
        """Read the completed rows, and cut off a partial line or batch that a kill has left."""
        before = self._before()
        finished = before.get("finished") is True
        aligned = before.get("batch_size") == self.batch_size and not finished
        end = 0
        keys: list[int] = []
        unreadable = 0
        for number, (stop, line) in enumerate(self._lines(), 1):
            if number == 1 and self.form.header():
                end = stop
                continue
            try:
                file, row, failed = self.form.read(line)
            except (ValueError, csv.Error) as error:
                raise RunError(f"{self.path}: line {number} is none that was written here ({error})") from error
            keys.append(key_of(file, row))
            unreadable += failed
            if not aligned or len(keys) == self.batch_size:
                self.done.update(keys)
                self.unreadable += unreadable
                end = stop
                keys = []
                unreadable = 0
        if end < self.path.stat().st_size:
            with self.path.open("r+b") as written:
                written.truncate(end)
        if not end:
            self._add(self.form.header())
        self._write_about()

    def _before(self) -> dict[str, Any]:
        """The content of ``FILE.json``. Raises RunError if it is of other weights or settings."""
        foreign = f"{self.path}: is there, and was not written by healsg predict"
        return settings_of(self.beside, self.about, foreign, f"{self.path}: was written with")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Each complete line, with the position of its end."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, line.decode("utf-8", "replace").rstrip("\n")


def settings_of(file: Path, about: Mapping[str, Any], foreign: str, other: str) -> dict[str, Any]:
    """Read the weights and settings of existing predictions, and compare them with the current ones.

    Args:
        file: the JSON file next to the predictions.
        about: the current weights and settings.
        foreign: the message if the file is missing or is not JSON.
        other: the start of the message if they differ.

    Raises:
        RunError: one of the two messages, with a hint.
    """
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{foreign}; {WAY}") from error
    saved = before if isinstance(before, dict) else {}
    for key, value in json.loads(json.dumps(dict(about))).items():
        if saved.get(key) != value:
            raise RunError(f"{other} {differing(key, saved.get(key), value)}; {WAY}")
    return saved


def differing(key: str, saved: Any, current: Any) -> str:
    """Describe how a saved setting differs from the current one."""
    if key == "runs" and isinstance(saved, list) and all(isinstance(run, dict) for run in saved):
        before, now = ([f"{run.get('run')} ({run.get('checkpoint')})" for run in runs] for runs in (saved, current))
        return f"other weights of {', '.join(now)}" if before == now else f"{', '.join(before)}, not {', '.join(now)}"
    return f"{key} {json.dumps(saved, ensure_ascii=False)[:100]}, not {json.dumps(current, ensure_ascii=False)[:100]}"

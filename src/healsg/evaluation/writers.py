"""Writers: predictions as lines of a CSV or JSON file that is gone on with after a kill, or on the screen."""

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
"""What to do about results that something else has written."""


@dataclass(frozen=True)
class Row:
    """What is said of one sample.

    Args:
        file: its path, as it can be printed.
        row: its row in a table or array, from 1; None of a picture.
        classes: its class, or its labels; None of a regression, and of what could not be read.
        numbers: the probability of each class or label, or each predicted number.
        features: what the head makes outputs of, where they were asked for.
        error: why it could not be read; empty where it could.
        explained: the file of the picture that shows where the network looked, where that was asked for.
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
    """A text on one line that any file can hold: what is no text of UTF-8, and what ends lines, is escaped."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in plain)


def key_of(file: str, row: int | None) -> int:
    """A number that stands for a sample among those that are done."""
    return int.from_bytes(hashlib.blake2b(f"{row}:{file}".encode(), digest_size=8).digest())


# --- forms of a row ---------------------------------------------------------------------------------------------------


class CsvForm:
    """Rows as lines of CSV: ``file``, ``row``, ``class``, ``probability``, ``p_<class>`` ..., ``f<n>`` ...,
    ``explain``, ``error``.

    Args:
        names: the classes, or the predicted numbers.
        regression: whether these are numbers, which have columns of their own names and no class.
        features: how many features there are.
        explained: whether there is a picture of where the network looked.
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
        own = [] if self.regression else ["class", "probability"]
        features = [f"f{place}" for place in range(self.features)]
        return _csv_line(["file", "row", *own, *numbers, *features, *["explain"] * self.explained, "error"])

    def line(self, row: Row) -> str:
        where = [row.file, "" if row.row is None else row.row]
        own = [] if self.regression else [_joined(row.classes), _number(_largest(row))]
        numbers = [_number(value) for value in row.numbers] or [""] * len(self.names)
        features = [_number(value) for value in row.features] or [""] * self.features
        return _csv_line([*where, *own, *numbers, *features, *[row.explained] * self.explained, row.error])

    def read(self, line: str) -> tuple[str, int | None, bool]:
        """The file and row of a line, and whether it holds an error. Raises ValueError."""
        (cells,) = csv.reader([line], strict=True)
        if len(cells) != 3 + len(self.names) + self.features + self.explained + 2 * (not self.regression):
            raise ValueError("another number of columns")
        return cells[0], int(cells[1]) if cells[1] else None, bool(cells[-1])


class JsonForm:
    """Rows as objects of JSON, one a line."""

    def __init__(self, names: Sequence[str], regression: bool = False) -> None:
        self.names, self.regression = list(names), regression

    def header(self) -> str:
        return ""

    def line(self, row: Row) -> str:
        made: dict[str, Any] = {"file": row.file, "row": row.row}
        if row.error:
            return json.dumps({**made, "error": row.error}, ensure_ascii=False) + "\n"
        numbers = dict(zip(self.names, map(_finite, row.numbers), strict=True))
        if self.regression:
            made["prediction"] = numbers
        else:
            made |= {"class": row.classes, "probability": _finite(_largest(row)), "probabilities": numbers}
        if len(row.features):
            made["features"] = [_finite(value) for value in row.features]
        if row.explained:
            made["explain"] = row.explained
        return json.dumps(made, ensure_ascii=False) + "\n"

    def read(self, line: str) -> tuple[str, int | None, bool]:
        found = json.loads(line)
        if not isinstance(found, dict) or not isinstance(found.get("file"), str):
            raise ValueError("no object with a file")
        return found["file"], found.get("row"), "error" in found


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
    """A float32 so that it is read back as the same one."""
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

        self.names, self.regression = list(map(printable, names)), regression
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
    """Rows in a file, of which each batch is added in one write. Beside it lies ``FILE.json``, which says of which
    weights it is, so that nothing else is ever added to it.

    Args:
        path: the file.
        form: of a row.
        about: what it is made with, as plain values: where another file's differs, it is refused.
        batch_size: where it was cut within a batch, that batch is predicted again, so that its numbers are the same.

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
            self._go_on()
        else:
            self._say()
            self._add(form.header())

    def write(self, rows: Sequence[Row]) -> None:
        self._add("".join(map(self.form.line, rows)))
        self.done.update(key_of(row.file, row.row) for row in rows)
        self.unreadable += sum(bool(row.error) for row in rows)

    def finish(self) -> None:
        """Say that every sample has its row."""
        self.finished = True
        self._say()

    def _add(self, text: str) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())

    def _say(self) -> None:
        facts = {**self.about, "batch_size": self.batch_size, "finished": self.finished}
        if self.finished:
            facts |= {"samples": len(self.done), "unreadable": self.unreadable}
        write_text(self.beside, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def _go_on(self) -> None:
        """Take up what is done, and cut off what a kill left of a line or of a batch."""
        before = self._before()
        whole = before.get("finished") is True
        aligned = before.get("batch_size") == self.batch_size and not whole
        end = 0
        keys: list[int] = []
        unreadable = 0
        for place, (stop, line) in enumerate(self._lines()):
            if place == 0 and self.form.header():
                end = stop
                continue
            try:
                file, row, failed = self.form.read(line)
            except (ValueError, csv.Error) as error:
                raise RunError(f"{self.path}: line {place + 1} is none that was written here ({error})") from error
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
        self._say()

    def _before(self) -> dict[str, Any]:
        """What the file beside it says. Raises RunError where it is of something else."""
        foreign = f"{self.path}: is there, and was not written by healsg predict"
        return settings_of(self.beside, self.about, foreign, f"{self.path}: was written with")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Each whole line, with where it ends."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, line.decode("utf-8", "replace").rstrip("\n")


def settings_of(file: Path, about: Mapping[str, Any], foreign: str, other: str) -> dict[str, Any]:
    """What a file says of how predictions were made, which must be as they are made now.

    Args:
        file: the JSON that was written beside them.
        about: what they are made with now.
        foreign: the message where the file is missing or is not JSON.
        other: the beginning of the message where they were made with something else.

    Raises:
        RunError: one of the two messages, and what to do.
    """
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{foreign}; {WAY}") from error
    held = before if isinstance(before, dict) else {}
    for key, value in json.loads(json.dumps(dict(about))).items():
        if held.get(key) != value:
            raise RunError(f"{other} {differing(key, held.get(key), value)}; {WAY}")
    return held


def differing(key: str, held: Any, wanted: Any) -> str:
    """In words, how what a file was made with differs from what is asked for now."""
    if key == "runs" and isinstance(held, list) and all(isinstance(one, dict) for one in held):
        before, now = ([f"{one.get('run')} ({one.get('checkpoint')})" for one in runs] for runs in (held, wanted))
        return f"other weights of {', '.join(now)}" if before == now else f"{', '.join(before)}, not {', '.join(now)}"
    return f"{key} {json.dumps(held, ensure_ascii=False)[:100]}, not {json.dumps(wanted, ensure_ascii=False)[:100]}"

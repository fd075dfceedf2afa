"""The table of a sweep, shown at its end, and ``sweep.csv`` with the jobs of all commands."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from healsg import distributed
from healsg.cli import say
from healsg.commands.compare.command import show_comparison
from healsg.commands.compare.comparison import Comparison, of_sweep
from healsg.commands.terminal import tables
from healsg.console import visible
from healsg.runs.folder import ROOT, RunFolder, write_text

SHOWN = 20
"""The most jobs, and settings, in the table at the end of a sweep."""

Row = dict[str, Any]
"""A row of the table: ``job``, ``status``, ``exit``, its metrics, or the ``reason`` why it has none."""


def numbers(record: dict[str, Any]) -> dict[str, float]:
    best, tested = (part if isinstance(part := record.get(key), dict) else {} for key in ("best", "test"))
    found = {f"best {best['monitor']}": best["value"]} if {"monitor", "value"} <= best.keys() else {}
    return found | {name: value for name, value in tested.items() if isinstance(value, float)}


def table(name: str, rows: list[Row]) -> None:
    """Show the jobs of this command with their best metrics, and write the jobs of all commands to ``sweep.csv``.

    The best jobs come first, those without a metric last, followed by the comparison of all finished jobs in the
    folder.
    """
    path = ROOT / name / "sweep.csv"
    compared = of_sweep(ROOT / name)
    ordered = ranked(rows, compared)
    show(ordered[:SHOWN])
    if len(rows) > SHOWN:
        say(f"{SHOWN} of {len(rows)} jobs of this call, the best first; the others stand in {path}")
    if compared and len(compared.settings) > 1:
        repeated = any(len(one.val) > 1 for one in compared.settings)
        say("")
        if repeated:
            show_comparison(compared, most=SHOWN)
        else:
            say("\n".join(map(visible, compared.verdict)))
    known = all_rows(ROOT / name, rows)
    write(path, known)
    more = f", with {len(known) - len(rows)} jobs of earlier calls" if len(known) > len(rows) else ""
    say(f"table: {path}{more}")


def ranked(rows: list[Row], compared: Comparison | None) -> list[Row]:
    """The rows sorted best first; rows without the compared metric come last, in their original order.

    Args:
        rows: of the jobs.
        compared: defines the metric and the direction.
    """
    if compared is None:
        return rows
    key = f"best {compared.metric}"
    having = [row for row in rows if isinstance(row.get(key), (int, float)) and row["status"] == "finished"]
    lacking = [row for row in rows if row not in having]
    return sorted(having, key=lambda row: -compared.sign * row[key]) + lacking


def show(rows: list[Row]) -> None:
    """Print rows as a table, on rank 0 only."""
    if distributed.processes().rank == 0:
        columns = _columns(rows)
        tables.show(columns, [[row.get(column) for column in columns] for row in rows])


def write(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(rows), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _columns(rows: list[Row]) -> list[str]:
    """The keys of all rows: the job and its status, its metrics, and finally the reason why it has none."""
    names = [key for row in rows for key in row if key not in ("job", "status", "exit", "reason")]
    reason = ["reason"] * any("reason" in row for row in rows)
    return list(dict.fromkeys(["job", "status", *names, *reason]))


def all_rows(folder: Path, rows: list[Row]) -> list[Row]:
    """The rows of all jobs in a sweep's folder: from the existing table, from other folders, and from this command.

    A job that failed before it had a folder is only known from the table.

    Args:
        rows: of this command. For a job that was refused, for example for a changed setting, its folder counts.
    """
    known = {row["job"]: row for row in _read_table(folder / "sweep.csv")}
    own = {row["job"]: row for row in rows}
    records = {job.name: RunFolder(job).record for job in folder.iterdir() if _is_job(job)}
    for job in sorted(records, key=lambda job: (str(records[job].get("begin")), job)):
        if records[job] and (job in known or job not in own):
            known[job] = _row_of(job, records[job])
    for job, row in own.items():
        if row["status"] == "failed" and records.get(job, {}).get("status") == "finished":
            known[job] = {**_row_of(job, records[job]), "reason": row["reason"]}
        else:
            known[job] = row
    return list(known.values())


def _read_table(path: Path) -> list[Row]:
    """The rows of ``sweep.csv``; none if it does not exist or is not a table of HEALSg."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if "job" in row and "status" in row]


def _is_job(path: Path) -> bool:
    """Whether a folder belongs to a job, and is not one that ``fresh=true`` replaced."""
    return path.is_dir() and not path.is_symlink() and not re.search(r"~\d+$", path.name)


def _row_of(job: str, record: dict[str, Any]) -> Row:
    row = {"job": job, "status": str(record.get("status")), **numbers(record)}
    return row | ({"reason": str(record["reason"])} if record.get("reason") else {})

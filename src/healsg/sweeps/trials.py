"""The trials of a search: their values in ``search.json``, their results in their own folders.

There is no other state: a continued search is rebuilt from these files, also in another place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from healsg import safefiles
from healsg.config.check import show
from healsg.errors import ConfigError, RunError
from healsg.runs.folder import RunFolder, write_text
from healsg.runs.record import row_of
from healsg.sweeps.proposals import Mode, Search, Trial
from healsg.sweeps.space import Space

LARGEST = 1 << 26
"""Largest size of a ``search.json``, in bytes."""


class Trials:
    """The trials in the folder of a search. The caller must hold the folder's lock to change them.

    Args:
        folder: of the search.
        search: what proposes trials.
        space: what is searched over.

    Raises:
        ConfigError: the search there was started with other settings; the message names the key.
        RunError: ``search.json`` is damaged.
    """

    def __init__(self, folder: RunFolder, search: Search, space: Space) -> None:
        self.folder = folder
        self.search = search
        self.space = space
        self.file = folder.path / "search.json"
        self.rows: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """Load trials that other commands have proposed meanwhile."""
        try:
            content = json.loads(safefiles.read_bytes(self.file, LARGEST))
        except FileNotFoundError:
            self.rows = []
            return
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged("cannot be read") from error
        if not isinstance(content, dict) or not isinstance(content.get("trials"), list):
            raise self._damaged("has no trials")
        own, known = self._settings(), content.get("settings")
        if not isinstance(known, dict):
            raise self._damaged("has no settings")
        for key in [*own, *(key for key in known if key not in own)]:
            if own.get(key) != known.get(key):
                old, new = show(known.get(key)), show(own.get(key))
                raise ConfigError(
                    f"{key}: {self.folder.shown} was started with {old}, not {new}; use another name, or fresh=true"
                )
        for number, row in enumerate(content["trials"]):
            if not isinstance(row, dict) or not _lies_in(row.get("parameters"), self.space):
                raise self._damaged(f"trial {number} does not lie in what is searched over")
        self.rows = content["trials"]

    def _damaged(self, detail: str) -> RunError:
        return RunError(f"{self.file}: {detail}; restore it, or use another name, or fresh=true")

    def _settings(self) -> dict[str, Any]:
        """The settings that a continued search must not change, as JSON values."""
        shown = {key: str(dimension) for key, dimension in self.space.items()}
        return {**self.search.settings(), **shown}

    def job(self, number: int) -> str:
        """The name of a trial's folder."""
        return f"{number:04d}"

    def propose(self, numbers: Sequence[int], epoch: int | None = None) -> None:
        """Propose the trials of a round that do not exist yet, and save them before any of them starts.

        Args:
            numbers: of the round.
            epoch: of the first rung, by whose numbers they are proposed; None if that is the end.
        """
        before = self.all(epoch)
        for number in numbers[max(0, len(self.rows) - numbers[0]) :]:
            first = number // self.search.batch * self.search.batch
            known = [*before[:first], *(replace(trial, status="open", value=None) for trial in before[first:])]
            values = self.search.propose(self.space, number, known, self.mode(first))
            before.append(Trial(number, values))
            self.rows.append({"parameters": values})
        self.write()

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial has failed without a folder."""
        self.rows[number]["failed"] = reason
        self.write()

    def write(self) -> None:
        write_text(self.file, json.dumps({"settings": self._settings(), "trials": self.rows}, indent=1) + "\n")

    def record(self, number: int) -> dict[str, Any]:
        return RunFolder(self.folder.path / self.job(number)).record

    def trial(self, number: int, epoch: int | None = None) -> Trial:
        """A trial, as its folder says.

        Args:
            number: of the trial.
            epoch: what has become of it by the end of this epoch, whether or not it went on since; None: by its end.
        """
        row, record = self.rows[number], self.record(number)
        trial, status = Trial(number, row["parameters"]), record.get("status")
        value = (record.get("best") or {}).get("value")
        if epoch is not None and (lines := self._epochs(number)):
            reached = max(int(line["epoch"]) for line in lines)
            if status == "finished" or reached > epoch or (reached == epoch and status != "running"):
                value = self._best(lines, epoch)
                status = "finished"
        if status == "finished":
            return replace(trial, status="failed" if value is None else "finished", value=value)
        if status == "failed" or row.get("failed"):
            return replace(trial, status="failed")
        return trial

    def _epochs(self, number: int) -> list[dict[str, Any]]:
        """The lines of a trial's epochs."""
        try:
            text = safefiles.read_bytes(self.folder.path / self.job(number) / "metrics.jsonl", LARGEST)
        except OSError:
            return []
        lines = map(row_of, text.splitlines())  # the last line of a killed run may be truncated
        return [line for line in lines if line is not None and line.get("event") == "epoch"]

    def _best(self, lines: Sequence[dict[str, Any]], epoch: int) -> float | None:
        """The best number of the objective up to an epoch."""
        monitor = next((name for number in range(len(self.rows)) if (name := self.record(number).get("monitor"))), "")
        values = [line.get(monitor) for line in lines if line["epoch"] <= epoch]
        found = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
        if not found:
            return None
        return max(found) if self.mode() == "max" else min(found)

    def all(self, epoch: int | None = None) -> list[Trial]:
        return [self.trial(number, epoch) for number in range(len(self.rows))]

    def mode(self, before: int | None = None) -> Mode:
        """Whether more or less of the objective is better, as the first trial with a number says.

        Args:
            before: only trials of lower numbers are considered; None for all.
        """
        found = (self.record(number).get("mode") for number in range(len(self.rows) if before is None else before))
        return next((mode for mode in found if mode), "min")

    def promoted(self, count: int, rung: int, pauses: Sequence[int | None]) -> list[int]:
        """The numbers of the trials that are trained to a rung, in the order in which they were proposed.

        Args:
            count: of the trials of the search.
            rung: 0 is the first, which all trials reach.
            pauses: the epoch of each rung, see ``Search.pauses``.
        """
        chosen = list(range(min(count, len(self.rows))))
        for below in range(rung):
            at_rung = [self.trial(number, pauses[below]) for number in chosen]
            best = self.sorted([trial for trial in at_rung if trial.status == "finished"])
            chosen = sorted(trial.number for trial in best[: max(1, count // self.search.factor ** (below + 1))])
        return chosen

    def ranked(self, count: int, pauses: Sequence[int | None]) -> list[Trial]:
        """The trials that have a number, the best first: those of the last rung, then those of the one before."""
        found: dict[int, Trial] = {}
        for rung in reversed(range(len(pauses))):
            at_rung = [self.trial(number, pauses[rung]) for number in self.promoted(count, rung, pauses)]
            for trial in self.sorted([trial for trial in at_rung if trial.status == "finished"]):
                found.setdefault(trial.number, trial)
        return list(found.values())

    def sorted(self, trials: Sequence[Trial]) -> list[Trial]:
        """Finished trials, the best first; ties in the order of proposal."""
        sign = -1 if self.mode() == "max" else 1
        return sorted(trials, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def _lies_in(values: Any, space: Space) -> bool:
    """Whether values that were read from a file are those of a trial."""
    if not isinstance(values, dict) or list(values) != list(space):
        return False
    return all(type(value) in (int, float, str) and value in space[key] for key, value in values.items())

"""``-m search=...``: trials in rounds, each in a folder of its own, until all are done; and the best of them."""

from __future__ import annotations

import contextlib
import gc
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from healsg import distributed, safefiles
from healsg.build import make
from healsg.cli import say
from healsg.commands.sweep.run import as_run, held, launcher_of, new_sweep_name, run_jobs
from healsg.commands.sweep.search_page import write_page
from healsg.commands.sweep.table import Row, numbers, show, write
from healsg.config.schema import Composed, check_init_from, verify
from healsg.errors import ConfigError
from healsg.runs import acquire, redact
from healsg.runs.folder import ROOT, RunFolder
from healsg.sweeps.launcher import LOST, JobLauncher
from healsg.sweeps.proposals import Search, Trial
from healsg.sweeps.space import Choice, Space, space_of, written
from healsg.sweeps.trials import Trials
from healsg.training.interrupt import StopSignal

if TYPE_CHECKING:
    from healsg.config.compose import Composer

SHOWN = 10
"""Most trials in the final table."""

ATTEMPTS = 3
"""Attempts for a trial whose worker is lost, before it counts as failed."""


@dataclass(frozen=True)
class SearchPlan:
    """The arguments of a search command.

    Args:
        name: of the search, and its folder.
        composer: composes the trials.
        overrides: of the command.
        space: what is searched over.
        search: what proposes the trials.
        launcher: what runs them.
        pauses: the epoch of each rung, see ``Search.pauses``.
        fresh: whether an existing search of this name is moved aside.
    """

    name: str
    composer: Composer
    overrides: Sequence[str]
    space: Space
    search: Search
    launcher: JobLauncher | None
    pauses: Sequence[int | None]
    fresh: bool

    @property
    def count(self) -> int:
        """The trials of the whole search."""
        return self.search.count(self.space)

    def composed(self, rows: Sequence[dict[str, str]]) -> list[Composed]:
        """The configurations of trials, each given by the overrides of its keys."""
        lines = [_line(self.composer, self.overrides, row) for row in rows]
        return [self.composer.compose(line, checked=False) for line in lines]


def is_search(overrides: Sequence[str]) -> bool:
    """Whether a command asks for a search instead of a sweep over all values."""
    return any(override.startswith("search=") and override != "search=null" for override in overrides)


def run_search(composer: Callable[[], Composer], overrides: list[str]) -> int:
    """Run a search; returns 0 if all trials have ended and one is finished, or if ``runner.max_time`` has stopped
    it."""
    plan = plan_search(composer(), overrides)
    folder = RunFolder(ROOT / plan.name)
    with StopSignal() as stop_signal:
        with held(folder):
            if plan.fresh and (folder.path / "search.json").exists():
                _set_aside(folder)
            folder.path.mkdir(parents=True, exist_ok=True)
            trials = Trials(folder, plan.search, plan.space)
            trials.write()
        with contextlib.ExitStack() as stack:
            stack.callback(gc.unfreeze)
            if plan.launcher:
                stack.callback(plan.launcher.close)
            status = _all_rounds(plan, trials, stop_signal)
        with held(folder):
            _show(plan, trials)
    if status is not None:
        return status
    return 0 if trials.ranked(plan.count, plan.pauses) else 1


def plan_search(composer: Composer, overrides: list[str]) -> SearchPlan:
    """Read and check the arguments; nothing is started. Raises ConfigError."""
    if distributed.processes().several:
        raise ConfigError("search: starts processes of its own by launcher=local; leave torchrun out")
    space = space_of(composer.parse(overrides))
    some = {
        key: written(key, value.values[0] if isinstance(value, Choice) else value.low) for key, value in space.items()
    }
    first = composer.compose(_line(composer, overrides, some), checked=False)
    verify(first)
    check_init_from(first)
    search: Search = make(first.values["search"], "search", first, Search)
    search.check(space)
    name = first.values["name"] or new_sweep_name("search")
    acquire.check_name(name)
    there = [file for file in ("config.yaml", "sweep.csv", "search.json") if (ROOT / name / file).exists()]
    if there and "search.json" not in there:
        raise ConfigError(f"name: {ROOT / name} is another run or sweep; give the search another name")
    pauses = _pauses(search, first)
    return SearchPlan(name, composer, overrides, space, search, launcher_of(first), pauses, first.values["fresh"])


def _pauses(search: Search, composed: Composed) -> Sequence[int | None]:
    """The epoch of each rung. Raises ConfigError if there are not enough epochs."""
    runner = composed.values["runner"]
    if search.rungs > 1 and runner["steps"] is not None:
        raise ConfigError("runner.steps: the rungs of a search count epochs; set runner.epochs")
    pauses = search.pauses(runner["epochs"])
    if (first := pauses[0]) is not None and first < runner["eval_every"]:
        fewest = runner["eval_every"] * search.factor ** (search.rungs - 1)
        raise ConfigError(f"search.rungs: {search.rungs} rungs by factor {search.factor} take {fewest} epochs or more")
    return pauses


def _line(composer: Composer, overrides: Sequence[str], values: dict[str, str]) -> list[str]:
    """The overrides of one trial: those of the command, with one value for each key that is searched over."""
    parsed = composer.parse(overrides)
    keys = [override.get_key_element() if override.is_sweep_override() else "" for override in parsed]
    return [values.get(key, override) for key, override in zip(keys, overrides, strict=True)]


def _set_aside(folder: RunFolder) -> None:
    """Move an earlier search aside; nothing is deleted."""
    path = folder.path
    aside = safefiles.aside_name(path)
    aside.mkdir()
    for entry in path.iterdir():
        if not entry.name.startswith(".lock"):
            entry.rename(aside / entry.name)


def _all_rounds(plan: SearchPlan, trials: Trials, stop_signal: StopSignal) -> int | None:
    """Run the rounds and then the rungs; returns the exit status if a stop came before their end, else None."""
    count = plan.count
    for first in range(0, count, plan.search.batch):
        numbers: Sequence[int] = range(first, min(count, first + plan.search.batch))
        with held(trials.folder):
            trials.read()
            trials.propose(numbers, plan.pauses[0])
        if (status := _until_done(plan, trials, numbers, plan.pauses[0], stop_signal)) is not None:
            return status
    for rung, pause in enumerate(plan.pauses[1:], 1):
        numbers = trials.promoted(count, rung, plan.pauses)
        if (status := _until_done(plan, trials, numbers, pause, stop_signal)) is not None:
            return status
    return None


def _until_done(
    plan: SearchPlan, trials: Trials, numbers: Sequence[int], pause: int | None, stop_signal: StopSignal
) -> int | None:
    """Train some trials to an epoch or their end; returns the exit status if a stop came before, else None."""
    if stop_signal.asked():
        return stop_signal.stopped().status
    for _ in range(ATTEMPTS):
        rows = _train(plan, trials, numbers, pause, stop_signal)
        if stop_signal.received is not None or any(row["exit"] >= 128 for row in rows):
            return stop_signal.stopped().status or max(row["exit"] for row in rows)
        if not any(row["status"] == LOST for row in rows):
            break
    with held(trials.folder):
        trials.read()
        for row in rows:
            if row["status"] in ("failed", LOST) and trials.trial(int(row["job"]), pause).status == "open":
                trials.fail(int(row["job"]), str(row.get("reason")))
    if any(trials.trial(number, pause).status == "open" for number in numbers):
        say("the same command continues the trials that are left")
        return 0
    return None


def _train(
    plan: SearchPlan, trials: Trials, numbers: Sequence[int], pause: int | None, stop_signal: StopSignal
) -> list[Row]:
    """Train the given trials that are neither finished nor failed; returns their rows."""
    left = [number for number in numbers if trials.trial(number, pause).status == "open"]
    if not left:
        return []
    values = [trials.trial(number).parameters for number in left]
    composed = plan.composed([{key: written(key, value) for key, value in row.items()} for row in values])
    jobs = [(trials.job(number), _of_trial(one, pause)) for number, one in zip(left, composed, strict=True)]
    for job, one in jobs:
        folder = RunFolder(trials.folder.path / job)
        if folder.config.exists() and acquire.has_trained(folder) and (other := acquire.changed(folder, one.values)):
            key, (old, new) = next(iter(other.items()))
            raise ConfigError(f"{key}: {folder.shown} was started with {old}, not {new}; use another name")
    to_epoch = f", to epoch {pause}" if pause else ""
    say(f"trials {', '.join(job for job, _ in jobs)} of {plan.count}{to_epoch}")
    return list(run_jobs(plan.name, jobs, False, plan.launcher, stop_signal))


def _of_trial(composed: Composed, pause: int | None) -> Composed:
    """A trial's configuration: ``fresh=true`` has set the whole search aside, and counts for no trial."""
    run = as_run(composed)
    runner = run.values["runner"] | ({"pause_after": pause} if pause else {})
    return replace(run, values=run.values | {"fresh": False, "runner": runner})


def _show(plan: SearchPlan, trials: Trials) -> None:
    """The table, the best first, and the command of the best."""
    ranked = trials.ranked(plan.count, plan.pauses)
    known = {trial.number for trial in ranked}
    order = [*ranked, *(trial for trial in trials.all() if trial.number not in known)]
    rows: list[Row] = []
    for trial in order:
        record = trials.record(trial.number)
        reason = record.get("reason") or trials.rows[trial.number].get("failed")
        status = record.get("status") if trial.status == "finished" else trial.status
        rows.append(
            {"job": trials.job(trial.number), **trial.parameters}
            | {"status": str(status), **numbers(record)}
            | ({"reason": str(reason)} if reason and trial.status == "failed" else {})
        )
    if not rows:
        return
    show([{key: value for key, value in row.items() if key != "reason"} for row in rows[:SHOWN]])
    failed = sum(trial.status == "failed" for trial in order)
    finished = sum(row["status"] == "finished" for row in rows)
    more = f"{len(rows)} trials, {finished} finished, {failed} failed"
    say(f"{more}; all of them: {trials.folder.shown / 'sweep.csv'}")
    write(trials.folder.path / "sweep.csv", rows)
    again = _again(plan, ranked[0]) if ranked else ""
    page = trials.folder.path / "search.html"
    write_page(page, plan.name, order, plan.space, trials.mode(), again)
    say(f"page: {trials.folder.shown / page.name}")
    if ranked:
        say(f"best: {trials.folder.shown / trials.job(ranked[0].number)}, again by: {again}")


def _again(plan: SearchPlan, best: Trial) -> str:
    """The command that trains the best trial by itself."""
    values = {key: written(key, value) for key, value in best.parameters.items()}
    line = [
        redact.override(override)
        for override in _line(plan.composer, plan.overrides, values)
        if not override.startswith(("search=", "search.", "launcher=", "launcher.", "name=", "fresh="))
    ]
    return f"healsg train {shlex.join(line)}"

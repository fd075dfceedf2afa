"""Comparison of settings over seeds and folds, for ``healsg compare`` and the end of a sweep.

Runs that differ in nothing but the seed, the split or the fold are repetitions of one setting. Settings are ranked by
their metric on val; the test metric is only reported.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from healsg.commands.compare.statistics import MOST, Difference, adjusted, difference, interval
from healsg.commands.terminal.tables import cell
from healsg.config.names import is_below
from healsg.config.values import flat
from healsg.errors import ConfigError, RunError
from healsg.runs import redact
from healsg.runs.acquire import FREE
from healsg.runs.folder import RunFolder
from healsg.runs.registry import FINISHED
from healsg.runs.saved_config import read_saved

REPETITIONS = ("seed", "data.split_seed", "data.fold")
"""Keys in which the runs of one setting may differ."""

LESS_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "nll", "brier", "ece", "hd95", "assd", "perplexity")
"""Names or endings of metrics for which lower is better, if the runs do not declare it."""

SIGNIFICANT = 0.05

_SET_ASIDE = re.compile(r"~\d+$")
"""The end of the name of a job's folder that was replaced with ``fresh=true``."""


class Finished(NamedTuple):
    """A finished run: its name, its folder, and the content of its ``run.json``."""

    name: str
    folder: RunFolder
    record: dict[str, Any]


class Setting(NamedTuple):
    """The runs of one setting.

    Args:
        label: the keys in which it differs from the other settings, with their values.
        settings: the same by key.
        names: of the runs.
        val, test: the metric of each run, by seed, split and fold; a run without a test part has no test metric.
    """

    label: str
    settings: dict[str, Any]
    names: list[str]
    val: dict[tuple[Any, ...], float]
    test: dict[tuple[Any, ...], float]


class Comparison(NamedTuple):
    """The result of a comparison.

    Args:
        metric: the metric on val by which settings are ranked.
        sign: 1 if higher is better, else -1.
        settings: best first.
        gaps: the difference between the best setting and each of the others.
        chances: the p-value of each difference, adjusted for the number of comparisons.
        verdict: the conclusion, in one or two lines.
    """

    metric: str
    sign: int
    settings: list[Setting]
    gaps: list[Difference]
    chances: list[float]
    verdict: list[str]


def of_sweep(folder: Path) -> Comparison | None:
    """The comparison of the finished jobs in the folder of a sweep; None if they cannot be compared, e.g. without
    metrics on val."""
    jobs = [RunFolder(path) for path in sorted(folder.iterdir()) if path.is_dir() and not _SET_ASIDE.search(path.name)]
    try:
        done = [Finished(f"{folder.name}/{job.path.name}", job, job.record) for job in jobs]
        done = [one for one in done if one.record.get("status") == FINISHED]
        return comparison(done, common_monitor(done)) if done else None
    except (ConfigError, RunError):
        return None


def comparison(runs: list[Finished], metric: str, less: bool = False) -> Comparison:
    """Rank the settings of finished runs by a metric on val.

    Args:
        runs: at least one.
        metric: its name.
        less: whether lower is better; otherwise this is taken from the runs, or from the name of the metric.

    Raises:
        RunError: a run lacks the metric, or two runs are the same repetition of one setting.
    """
    settings = grouped(runs, metric)
    sign = -1 if less or _less_is_better(runs, metric) else 1
    settings.sort(key=lambda one: -sign * interval(list(one.val.values()))[0])
    best, *others = settings
    gaps = [difference(_signed(best.val, sign), _signed(other.val, sign)) for other in others]
    chances = adjusted([gap.chance for gap in gaps])
    return Comparison(metric, sign, settings, gaps, chances, verdict(best, others, gaps, chances))


def is_clear(chances: list[float]) -> bool:
    """Whether the best setting differs significantly from each of the others."""
    return bool(chances) and all(chance < SIGNIFICANT for chance in chances)


def verdict(best: Setting, others: list[Setting], gaps: list[Difference], chances: list[float]) -> list[str]:
    """The conclusion that the runs allow, in one or two lines.

    Args:
        best: the best setting on val.
        others: the other settings.
        gaps: the differences between the best one and each of them.
        chances: the adjusted p-values.
    """
    if not others:
        return ["one setting: nothing to compare it with"]
    open_cases = [index for index, chance in enumerate(chances) if chance >= SIGNIFICANT]
    if is_clear(chances):
        return [f"{best.label} is better than {'all others' if len(others) > 1 else others[0].label} on val"]
    if len(best.val) < 2 or any(len(others[index].val) < 2 for index in open_cases):
        few = "one run of a setting says nothing of its spread; repeat them with seed=0,1,2"
        return [f"no clear winner: {few}"]
    nearest = min(open_cases, key=lambda index: gaps[index].mean)
    gap = gaps[nearest]
    rivals = f"{len(open_cases)} of {len(others)} others" if len(open_cases) > 1 else others[nearest].label
    lines = [f"no clear winner: the lead of {best.label} over {rivals} lies within what chance makes"]
    more = gap.more
    if more is not None and more < MOST // 2:
        size = f"{cell(float(gap.mean))} over {others[nearest].label}"
        lines.append(f"if its lead of {size} is real, about {more} more runs of each would show it")
    return lines


def grouped(runs: list[Finished], metric: str) -> list[Setting]:
    """Group runs into settings with their repetitions.

    Args:
        runs: finished ones.
        metric: the name of a metric on val.

    Raises:
        RunError: a run lacks the metric.
    """
    values = {one.name: dict(flat(read_saved(one.folder.config))) for one in runs}
    counting = {name: _counting(own) for name, own in values.items()}
    keys = sorted({key for own in counting.values() for key in own})
    first = next(iter(counting.values()))
    swept = [key for key in keys if any(own.get(key) != first.get(key) for own in counting.values())]
    differing = {name: {key: own.get(key) for key in swept} for name, own in counting.items()}
    public = {name: redact.config(own) for name, own in differing.items()}
    labels = _labels(public, swept, {one.name: one.record for one in runs})
    settings: dict[str, Setting] = {}
    for name, _, record in runs:
        own = differing[name]
        mark = repr(sorted(own.items()))
        settings.setdefault(mark, Setting(labels[name], public[name], [], {}, {}))
        repetition = tuple(values[name].get(key) for key in REPETITIONS)
        one = settings[mark]
        if repetition in one.val:
            raise RunError(f"{name}: repeats {one.names[-1]}, with the same settings and seed; give one of them")
        one.names.append(name)
        one.val[repetition] = _number(name, record, metric)
        tested = (record.get("test") or {}).get(f"test/{metric.rpartition('/')[2]}")
        if isinstance(tested, (int, float)):
            one.test[repetition] = float(tested)
    return list(settings.values())


def _counting(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of runs that distinguish one setting from another."""
    return {key: value for key, value in values.items() if not is_below(key, FREE) and key not in REPETITIONS}


def _labels(
    settings: dict[str, dict[str, Any]], swept: list[str], records: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """The label of each run's setting: the swept keys of its job, the chosen options, or the keys that differ.

    Args:
        settings: by run, the values of the keys that differ.
        swept: the swept keys among them.
        records: by run, the content of ``run.json``.
    """
    jobs = {run: _job(run) for run in settings}
    if all(jobs.values()):
        return jobs
    chosen = {run: record.get("choices") or {} for run, record in records.items()}
    groups = [
        group for group in ("data", "model", "method") if len({str(one.get(group)) for one in chosen.values()}) > 1
    ]
    classes = [key.removesuffix("._target_") for key in swept if key.endswith("._target_")]
    outer = [node for node in classes if not is_below(node, groups)]
    plain = [key for key in swept if not is_below(key, (*groups, *outer))]
    labels = {}
    for run, own in settings.items():
        parts = [f"{group}={chosen[run][group]}" for group in groups]
        parts += [f"{node}={str(own[f'{node}._target_']).rpartition('.')[2]}" for node in outer]
        parts += [f"{key}={own[key]}" for key in plain]
        labels[run] = " ".join(parts) or run
    return labels


def _job(run: str) -> str:
    """The part of a job's folder name that names its setting, such as ``method=sgd`` in ``sweep/method=sgd,seed=0``."""
    parts = run.rpartition("/")[2].split(",")
    if not all("=" in part for part in parts):
        return ""
    return " ".join(part for part in parts if part.partition("=")[0] not in REPETITIONS)


def _number(name: str, record: dict[str, Any], metric: str) -> float:
    best = record.get("best") or {}
    value = best.get("value") if best.get("monitor") == metric else (best.get("metrics") or {}).get(metric)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        known = ", ".join(best.get("metrics") or ()) or "none"
        raise RunError(f"{name}: has no number {metric} at its best epoch; there is {known}")
    return float(value)


def common_monitor(runs: list[Finished]) -> str:
    """The metric by which all runs chose their best epoch. Raises ConfigError if they used different ones."""
    names = {str((one.record.get("best") or {}).get("monitor")) for one in runs}
    if len(names) > 1:
        raise ConfigError(f"--metric: the runs chose their best epoch by {', '.join(sorted(names))}; name one of them")
    return names.pop()


def _less_is_better(runs: list[Finished], metric: str) -> bool:
    """Whether lower is better: as declared by the runs that used this metric for their best epoch, else by its name."""
    modes = (one.record.get("mode") for one in runs if one.record.get("monitor") == metric)
    mode = next((mode for mode in modes if mode is not None), None)
    if mode is not None:
        return bool(mode == "min")
    return metric.rpartition("/")[2].partition(".")[0].endswith(LESS_IS_BETTER)


def _signed(numbers: dict[tuple[Any, ...], float], sign: int) -> dict[Any, float]:
    return {key: sign * value for key, value in numbers.items()}


def rows_of(compared: Comparison) -> tuple[list[str], list[list[Any]]]:
    """The column names and cells of the table of settings."""
    metric, sign, settings, gaps, *_ = compared
    test = f"test/{metric.rpartition('/')[2]}"
    tested = any(one.test for one in settings)
    rows = []
    for index, one in enumerate(settings):
        row: list[Any] = [one.label, len(one.val), with_interval(list(one.val.values()))]
        row.append("" if index == 0 else _gap(gaps[index - 1], sign))
        if tested:
            row.append(with_interval(list(one.test.values())) if one.test else "")
        rows.append(row)
    pairs = max((gap.pairs for gap in gaps), default=0)
    behind = "behind the best, paired" if pairs else "behind the best"
    return ["setting", "runs", metric, behind, *[test] * tested], rows


def _gap(gap: Difference, sign: int) -> str:
    half = "" if math.isinf(gap.half) else f" ± {cell(float(gap.half))}"
    return f"{cell(float(-sign * gap.mean))}{half}"


def with_interval(values: list[float]) -> str:
    mean, half = interval(values)
    return cell(mean) if math.isinf(half) else f"{cell(mean)} ± {cell(half)}"

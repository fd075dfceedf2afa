"""``healsg compare RUN...``: which setting is better, if the number of runs allows a conclusion."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from healsg.commands.compare.comparison import Comparison, Finished, common_monitor, comparison, is_clear, rows_of
from healsg.commands.compare.statistics import interval
from healsg.commands.terminal.flags import Flags, page_file
from healsg.commands.terminal.tables import cell, messages_to_stderr, print_wrapped, show, show_json
from healsg.console import visible
from healsg.errors import ConfigError, RunError
from healsg.runs.folder import RunFolder, find
from healsg.runs.registry import FINISHED, Listed, listed, named, root_of


def run(arguments: list[str]) -> int:
    """Print the settings, best first, their differences from the best one, and the conclusion."""
    flags = Flags("compare", "Compare settings over seeds and folds. They are ranked on val; test is only shown.")
    flags.add_argument("runs", nargs="+", metavar="RUN", help="runs or sweeps: folders, or names below runs/")
    flags.add_argument("--metric", metavar="NAME", help="a metric on val instead of runner.monitor, such as val/acc")
    flags.add_argument("--less", action="store_true", help="lower values of the metric are better")
    flags.add_argument(
        "--pooled", action="store_true", help="for runs on folds: the accuracy over all held-out samples"
    )
    flags.add_argument(
        "--cases", metavar="SPLIT", help="for two segmentation runs: compare case by case, on val or test"
    )
    flags.add_argument("--page", metavar="FILE", help="write an HTML page with overlaid curves")
    flags.add_argument("--root", help="the folder of the runs (default: runs)")
    flags.add_json("for programs")
    args = flags.read(arguments)
    page = page_file(args.page)
    if args.cases:
        return _by_case(args.runs, args.cases, args.metric, root_of(args.root), args.json)
    with messages_to_stderr(args.json):
        found = _runs(args.runs, root_of(args.root))
    compared = comparison(found, args.metric or common_monitor(found), args.less)
    folders = {one.name: one.folder for one in found}
    pools = [pooled(one.label, [folders[name] for name in one.names]) for one in compared.settings if args.pooled]
    if page:
        from healsg.commands.compare.page import write_page

        write_page(page, compared, folders)
    if args.json:
        show_json(_as_json(compared) | {"pooled": [one._asdict() for one in pools]})
        return 0
    show_comparison(compared)
    if pools:
        print("\nout of fold: each sample predicted by the runs that held it out; Wilson's interval, over samples only")
        show(["setting", "samples", "acc", "95 % interval"], [_pooled_row(one) for one in pools])
    if page:
        print(visible(f"page: {page}"))
    return 0


def _by_case(names: list[str], split: str, metric: str | None, root: Path, as_json: bool) -> int:
    """Pair the cases of two runs. Raises ConfigError for another number of runs."""
    from healsg.commands.compare.cases import USUAL, paired, show_pairs

    if len(names) != 2:
        raise ConfigError(f"--cases: pairs the cases of two runs, and {len(names)} are named")
    first, second = (find(name, root=root) for name in names)
    found = paired(first, second, split, metric or USUAL)
    if as_json:
        show_json(found.as_json())
    else:
        show_pairs(found, (first.path.name, second.path.name))
    return 0


class Pooled(NamedTuple):
    """The accuracy of a setting over all samples that its runs held out.

    Args:
        label: of the setting.
        samples: the number of held-out samples, each counted once.
        of: the number of samples of the training part.
        acc: the accuracy of the mean probabilities of the runs that held out a sample.
        low, high: Wilson's 95 % interval, for independent samples.
    """

    label: str
    samples: int
    of: int
    acc: float
    low: float
    high: float


def pooled(label: str, runs: list[RunFolder]) -> Pooled:
    """Evaluate the held-out samples of each run of a setting. Raises RunError if a run held out none."""
    from healsg.commands.ledger.errors import OutOfFold
    from healsg.metrics.interval import wilson

    found = OutOfFold(runs)
    right = int((found.probabilities.argmax(axis=1) == found.labels[found.judged]).sum())
    count = len(found.judged)
    low, high = wilson(right, count)
    return Pooled(label, count, len(found.labels), right / count, low, high)


def _pooled_row(one: Pooled) -> list[Any]:
    samples = str(one.samples) if one.samples == one.of else f"{one.samples} of {one.of}"
    return [one.label, samples, cell(one.acc), f"{cell(one.low)} to {cell(one.high)}"]


def show_comparison(compared: Comparison, most: int | None = None) -> None:
    """Print the settings as a table, the best first, and the verdict.

    Args:
        compared: the comparison.
        most: the largest number of settings to show; None for all.
    """
    columns, rows = rows_of(compared)
    show(columns, rows[:most])
    if most is not None and len(rows) > most:
        print(f"{most} of {len(rows)} settings; healsg compare shows all")
    print_wrapped(compared.verdict)


def _runs(names: Iterable[str], root: Path) -> list[Finished]:
    """The named finished runs, and those of named sweeps. Raises RunError if there are none."""
    everything = listed(root) if root.is_dir() else []
    chosen: dict[str, Finished] = {}
    for name in names:
        jobs = named(everything, name, root)
        folders = [RunFolder(one.path) for one in _finished(jobs, name)] if jobs else [find(name, root=root)]
        for folder in folders:
            record = folder.record
            if record.get("status") != FINISHED:
                raise RunError(f"{folder.shown}: is not finished; healsg resume {folder.shown}")
            chosen[str(folder.path)] = Finished(str(folder.shown), folder, record)
    return list(chosen.values())


def _finished(jobs: list[Listed], name: str) -> list[Listed]:
    done = [job for job in jobs if job.status == FINISHED]
    if not done:
        raise RunError(f"{name}: none of its {len(jobs)} runs is finished")
    if len(done) < len(jobs):
        print(f"{name}: {len(jobs) - len(done)} of {len(jobs)} runs are not finished, and left out")
    return done


def _as_json(compared: Comparison) -> dict[str, Any]:
    metric, sign, settings, gaps, chances, verdict = compared
    rows = []
    for place, one in enumerate(settings):
        mean, half = interval(list(one.val.values()))
        row: dict[str, Any] = {"label": one.label, "settings": one.settings, "runs": one.names}
        row |= {"val": {"mean": mean, "half_width": half, "values": list(one.val.values())}}
        if one.test:
            mean, half = interval(list(one.test.values()))
            row |= {"test": {"mean": mean, "half_width": half, "values": list(one.test.values())}}
        if place:
            gap = gaps[place - 1]
            row |= {"behind": gap._asdict() | {"more": gap.more, "adjusted_chance": chances[place - 1]}}
        rows.append(row)
    better = "less" if sign < 0 else "more"
    return {
        "metric": metric,
        "better": better,
        "settings": rows,
        "clear_winner": is_clear(chances),
        "verdict": " ".join(verdict),
    }

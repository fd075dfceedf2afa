"""``healsg eval RUN``: evaluate a run's best or last weights on any split, as JSON."""

from __future__ import annotations

import difflib
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from healsg.commands.terminal import tables
from healsg.commands.terminal.arguments import composed_once
from healsg.commands.terminal.effect import require_effect
from healsg.commands.terminal.flags import Flags, page_file
from healsg.commands.terminal.parts import with_parts
from healsg.errors import ConfigError
from healsg.runs.folder import find, is_setting

if TYPE_CHECKING:
    from healsg.evaluation.evaluator import Evaluation

SHOWN = 20
"""Most cases in the terminal's table; the file has all."""

USAGE = "healsg eval RUN [split=test] [checkpoint=best] [--page FILE] [key=value ...]"

EXAMPLES = """\
  healsg eval exp1 split=val checkpoint=last
  healsg eval exp1 data.folder=other             the same kind of data elsewhere
  healsg eval exp1 data=csv data.file=t.csv      another kind of data
  healsg eval exp1 model/metrics=classification  further metrics"""

GROUPS = ("data", "model/metrics")
"""The groups of which an evaluation may take other options."""


def run(arguments: list[str]) -> int:
    """``RUN [split=test] [checkpoint=best|last] [overrides]``; prints and writes ``eval-<split>-<checkpoint>.json``."""
    args = _read(arguments)
    own = {"split": "test", "checkpoint": "best"}
    overrides = []
    for argument in args.settings:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        elif near := difflib.get_close_matches(key, own, 1, 0.75):
            raise ConfigError(f"{key}: no such key; did you mean {near[0]}?")
        else:
            overrides.append(argument)
    if own["checkpoint"] not in ("best", "last"):
        raise ConfigError(f"checkpoint: {own['checkpoint']} is not one of best, last")
    page = page_file(args.page)
    folder = composed_once(lambda: find(args.run))
    composed = composed_once(lambda: with_parts(folder, overrides, GROUPS, args.config_dir))
    composed_once(lambda: require_effect("eval", overrides))
    from healsg import distributed
    from healsg.runs.evaluations import write_evaluation
    from healsg.trainer import TaskTrainer

    found = TaskTrainer(composed).evaluation(own["split"], own["checkpoint"], folder, page is not None)
    if distributed.processes().rank == 0:
        print(write_evaluation(folder, own["split"], own["checkpoint"], found))
        if found.cases:
            _show_cases(found)
        if page is not None:
            from healsg.commands.eval.page import write_page

            write_page(page, f"{folder.path.name}: {own['split']}, {own['checkpoint']} weights", found)
    return 0


def _read(arguments: list[str]) -> Namespace:
    flags = Flags(
        "eval",
        "Print the metrics of a run's weights on a split as JSON, and save them in the run's folder. Metrics by case, "
        "as segmentation has them, go to standard error, the worst case first.",
        EXAMPLES,
    )
    flags.add_run()
    flags.add_settings("split=train|val|test (default: test), checkpoint=best|last (best), or changes to settings")
    flags.add_argument(
        "--page",
        metavar="FILE",
        help="also write an HTML file: the table by case, worst first, and images of the worst cases: input, truth, "
        "prediction, errors in colour",
    )
    flags.add_json("accepted for uniformity: the output is always JSON")
    flags.add_config_dir()
    args = flags.read(arguments)
    if is_setting(args.run):
        raise ConfigError(f"{USAGE}: name a run, as a folder or a name under runs/")
    return args


def _show_cases(evaluation: Evaluation) -> None:
    """The table by case on standard error, the worst first, so that standard output stays JSON."""
    from healsg.evaluation.evaluator import worst_first

    names = worst_first(evaluation.cases, SHOWN)
    columns = list(dict.fromkeys(key for numbers in evaluation.cases.values() for key in numbers))
    rows = [[name, *(evaluation.cases[name].get(key) for key in columns)] for name in names]
    tables.show(["case", *columns], rows, sys.stderr)
    if len(evaluation.cases) > SHOWN:
        print(f"and {len(evaluation.cases) - SHOWN} better ones", file=sys.stderr)

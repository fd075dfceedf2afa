"""``healsg train --help``: the options and the most used settings, with the comments of the YAML files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from healsg.commands.explain import setting
from healsg.commands.terminal import layout
from healsg.config.catalogue import Argument, Catalogue
from healsg.config.compose import Composer
from healsg.runs import redact

USAGE = """\
HEALSg trains a task that is composed of data, model and method.

  python train.py data=cifar model=resnet method=sgd
  python train.py method.optimizer.lr=0.1 runner.epochs=30 name=exp1
  python train.py -m method=sgd,adamw seed=0,1,2

healsg train is the same as python train.py."""

SECTIONS = {
    "Train": (
        *("runner.epochs", "runner.steps", "method.optimizer.lr", "method.optimizer.weight_decay"),
        *("method.label_smoothing", "method.mixup", "method.ema", "runner.precision", "runner.accumulate"),
        *("runner.clip_norm", "runner.monitor"),
    ),
    "Data": (
        *("data.root", "data.folder", "data.file", "data.name", "data.target", "data.image_size", "data.batch_size"),
        *("data.workers", "data.val_fraction", "data.fold", "data.labels", "data.augment", "data.on_error"),
    ),
    "Run": (
        *("name", "seed", "fresh", "init_from", "runner.device", "runner.compile", "runner.save_every"),
        *("runner.max_time", "use_wandb", "quiet", "debug"),
    ),
}
"""The most used keys, by purpose; keys that the chosen options do not have are left out."""

SWEEP = (
    ("-m key=a,b,c", "a sweep: one job for each combination of values, in runs/<name>/<job>/"),
    ("-m 'seed=range(0,5)'", "whole numbers from 0 to 4"),
    ("-m launcher=local", "several jobs in parallel: launcher.workers=4"),
    ("-m search=tpe", "a search over interval(a,b), tag(log,interval(a,b)), choice(a,b)"),
    ("--help-all", "every setting"),
    ("--json", "for programs: the result as one JSON object, at the end; all other output goes to standard error"),
    ("--cfg job", "print the whole configuration as YAML; with --resolve, with its interpolations resolved"),
    ("--config-dir DIR", "a folder of your own options, recipes and settings, in addition to those of HEALSg"),
    ("--hydra-help", "the other options of the command line, which are Hydra's"),
)

FEW = 12
"""A group with at most this many options is shown in full; for a larger one, the help names ``healsg list``."""


def help_lines(composer: Composer, overrides: Sequence[str], everything: bool = False) -> list[str]:
    """The help of ``healsg train``.

    Args:
        composer: composes from the folders of the configuration.
        overrides: those of the command line; the settings of the options that they choose are shown.
        everything: whether to show every setting.

    Raises:
        ConfigError: an override is wrong.
    """
    catalogue = Catalogue(composer)
    settings = catalogue.settings(overrides)
    chosen = composer.compose(overrides, checked=False).choices
    lines = [*USAGE.splitlines(), "", "Choose options (group=option; details: healsg explain method=fixmatch)"]
    lines += layout.rows([_choice(group, names, chosen) for group, names in catalogue.choices.items()])
    if everything:
        for group in dict.fromkeys(argument.group for argument in settings):
            own = [argument for argument in settings if argument.group == group]
            lines += ["", _heading(group, chosen), *layout.rows([_shown(argument) for argument in own])]
    else:
        known = {argument.key: argument for argument in settings}
        model = [argument for argument in settings if argument.group == "model"]
        sections = {"Train": [], "Data": [], f"Model ({chosen.get('model', '')})": model, "Run": []}
        for title, found in sections.items():
            shown = [*found, *(known[key] for key in SECTIONS.get(title, ()) if key in known)]
            lines += ["", title, *layout.rows([(_shown(argument)[0], argument.comment) for argument in shown])]
    lines += ["", "Sweep, and options", *layout.rows(SWEEP)]
    return lines


def _choice(group: str, names: Sequence[str], chosen: dict[str, str]) -> tuple[str, str]:
    now = f"{group}={chosen.get(group, 'null')}"
    if len(names) <= FEW:
        return now, ", ".join(names)
    return now, f"{textwrap.shorten(', '.join(names), 60, placeholder=' ...')} (healsg list {group})"


def _heading(group: str, chosen: dict[str, str]) -> str:
    return f"{group}={chosen[group]}" if group in chosen else group or "The run"


def _shown(argument: Argument) -> tuple[str, str]:
    """A setting as it is shown, with a secret value redacted."""
    left, right = setting(argument)
    return redact.override(left), right

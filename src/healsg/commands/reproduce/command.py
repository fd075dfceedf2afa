"""``healsg reproduce``: run a recipe, compare it with its published number, and report passed or missed."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from healsg.cli import say
from healsg.commands.reproduce.published import Target, chain, reaches, read_target, recipes, verdict
from healsg.commands.terminal.arguments import composed_once, parse_arguments
from healsg.commands.terminal.tables import messages_to_stderr, show_json
from healsg.commands.train import command as train
from healsg.config.compose import Composer
from healsg.config.names import is_below
from healsg.config.schema import Composed, verify
from healsg.config.values import flat
from healsg.errors import ConfigError, RunError
from healsg.runs import acquire
from healsg.runs.folder import ROOT, RunFolder

USAGE = """\
usage: healsg reproduce [RECIPE [seeds=1] [baseline=true] [--json]
                        [what healsg train takes]]

Runs conf/recipe/RECIPE.yaml and says whether the published number was reached:
the mean over the seeds may lie below it by the recipe's tolerance. What must
run before, such as a teacher, does. A recipe that names what switches its
method off must also gain over that: once the number is reached, the same seeds
run with the method off; baseline=false leaves these runs out, and the verdict
says so. Where labels are few, noisy or unequal, each seed draws its own
(data.split_seed). The runs are runs/reproduce-RECIPE-SEED and
runs/reproduce-RECIPE-off-SEED, so that the same command continues with what was
stopped; what is finished is not run again. A setting that may alter the result
makes it another setting than the published one, which the verdict then says.
Without a name: the recipes, their targets, and whether this project ever ran
them. Exit status: 0 passed or reached, 1 missed or failed."""

DRAWN = ("labels", "labels_per_class", "fraction", "imbalance", "label_noise")
"""Settings of the data under which labels or samples are drawn: a published mean is then one over draws."""

HARMLESS = (
    *(key for key in acquire.FREE if key != "recipe"),
    *("seed", "data.download", "model.metrics"),
    *("runner.device", "runner.threads", "runner.compile", "runner.cuda_graph", "runner.channels_last"),
    *("runner.deterministic", "runner.log_every", "runner.auto_accumulate", "runner.find_unused_parameters"),
)
"""Settings that a run may change and still count as the published setting, though not bit for bit."""


def run(arguments: list[str]) -> int:
    """``[RECIPE] [seeds=1] [overrides]``; exit status 0 if the number was reached, else 1."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    as_json = "--json" in arguments
    options = _options([argument for argument in arguments if argument != "--json"])
    found = recipes(options.config_dir)
    if options.recipe is None:
        show_json(_described(found)) if as_json else _list(found)
        return 0
    with messages_to_stderr(as_json):
        code, answer = _reproduced(options, options.recipe, found)
    if as_json and answer:
        show_json(answer)
    return code


def _reproduced(options: _Options, recipe: str, files: dict[str, Path]) -> tuple[int, dict[str, Any]]:
    """Run a recipe; returns the exit status and the result, which is None if a run was stopped or failed."""
    flags = [f"--config-dir={options.config_dir}"] * bool(options.config_dir)
    plans = composed_once(lambda: chain(recipe, files))
    composer = cache(lambda: Composer(options.config_dir))
    given = [_passed(target, plans[-1], options.overrides) for target in plans]
    changed = composed_once(lambda: [_changed(composer(), *each) for each in zip(plans, given, strict=True)])
    drawn = [_draws(composer(), *each) for each in zip(plans, given, strict=True)]
    target = plans[-1]
    kept = [text for text in given[-1] if not _is_replaced(text, target)] if target.without else []
    if target.without:
        composed_once(lambda: verify(composer().compose(_without(target, 0, kept, drawn[-1]), checked=False)))
    _announce(plans)
    values = []
    for seed in options.seeds:
        for plan, overrides, draws in zip(plans, given, drawn, strict=True):
            if code := _train(composer, flags, plan.run(seed), _overrides(plan, seed, overrides, draws)):
                return code, {}
        values.append(_measured(target, seed))
    off = []
    for seed in options.seeds if target.without and options.baseline and reaches(target, values) else ():
        if code := _train(composer, flags, target.run(seed, off=True), _without(target, seed, kept, drawn[-1])):
            return code, {}
        off.append(_measured(target, seed, off=True))
    passed, line = verdict(target, values, list(dict.fromkeys(key for keys in changed for key in keys)), off or None)
    say(line)
    answer = {"schema": 1, "recipe": target.name, "metric": target.metric, "published": target.published}
    answer |= {"tolerance": target.tolerance, "passed": passed, "values": values, "without": off, "verdict": line}
    return int(not passed), answer


def _described(files: dict[str, Path]) -> list[dict[str, Any]]:
    """All recipes, for programs; those that cannot be read with the reason."""
    rows = []
    for name, path in files.items():
        try:
            rows.append(asdict(read_target(path)))
        except ConfigError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


class _Options(NamedTuple):
    """The arguments of the command line."""

    recipe: str | None
    overrides: list[str]
    config_dir: str | None
    seeds: range
    baseline: bool
    """Whether to train the runs with the method off."""


def _options(arguments: list[str]) -> _Options:
    """Read the arguments. Raises ConfigError."""
    own, rest = {"seeds": 1, "seed": 0}, []
    baseline = True
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "baseline":
            if value not in ("true", "false"):
                raise ConfigError(f"{argument}: baseline is true or false")
            baseline = value == "true"
        elif key not in own:
            rest.append(argument)
        elif not value.isdecimal() or (key == "seeds" and not int(value)):
            raise ConfigError(f"{argument}: {key} is a whole number, from {int(key == 'seeds')} on")
        else:
            own[key] = int(value)
    args = parse_arguments(rest)
    if args.multirun or args.cfg or args.info or args.shell_completion or args.hydra_help or args.config_name:
        raise ConfigError("healsg reproduce: takes the settings of one run, and of the options --config-dir alone")
    names = [text for text in args.overrides if "=" not in text and not text.startswith("~")]
    if len(names) > 1 or (args.overrides and args.overrides[:1] != names):
        raise ConfigError(f"healsg reproduce RECIPE [seeds=1] [key=value ...]: {' '.join(args.overrides)} is not of it")
    overrides = args.overrides[1:]
    if taken := next((text for text in overrides if text.split("=")[0] in ("name", "recipe")), None):
        raise ConfigError(f"{taken}: reproduce names its runs by itself, runs/reproduce-RECIPE-SEED")
    seeds = range(own["seed"], own["seed"] + own["seeds"])
    return _Options(names[0] if names else None, overrides, args.config_dir, seeds, baseline)


def _passed(target: Target, last: Target, overrides: list[str]) -> list[str]:
    """The overrides for a recipe; a prerequisite recipe gets all but those of the method or the network."""
    about = ("method", "model", "init_from")
    return [text for text in overrides if target is last or re.split(r"[./=]", text.lstrip("+~"))[0] not in about]


def _overrides(target: Target, seed: int, overrides: list[str], draws: bool) -> list[str]:
    """The arguments of ``healsg train``; ``draws``: each seed draws its own labels."""
    before = [f"{target.gives}=reproduce-{target.first}-{seed}"] * bool(target.first)
    return [f"recipe={target.name}", *overrides, *before, *_seeded(seed, draws), f"name={target.run(seed)}"]


def _without(target: Target, seed: int, overrides: list[str], draws: bool) -> list[str]:
    """The arguments of ``healsg train`` for the same recipe with its method off."""
    off = target.without or []
    before = [f"{target.gives}=reproduce-{target.first}-{seed}"] * bool(target.first and not _other_method(target))
    name = f"name={target.run(seed, off=True)}"
    return [f"recipe={target.name}", *off, *overrides, *before, *_seeded(seed, draws), name]


def _seeded(seed: int, draws: bool) -> list[str]:
    return [f"seed={seed}", *[f"data.split_seed={seed}"] * draws]


def _other_method(target: Target) -> bool:
    """Whether the method is switched off by choosing another one, which knows other settings."""
    return any(text.startswith("method=") for text in target.without or [])


def _is_replaced(override: str, target: Target) -> bool:
    """Whether an override of the command line does not apply to the run with the method off."""
    key = override.partition("=")[0].lstrip("+~")
    if _other_method(target) and re.split(r"[./]", key)[0] == "method":
        return True
    return key in [text.partition("=")[0] for text in target.without or []]


def _draws(composer: Composer, target: Target, overrides: list[str]) -> bool:
    """Whether each seed draws new labels: if they are few, noisy or imbalanced, unless ``split_seed`` is given."""
    if any(text.partition("=")[0].lstrip("+") == "data.split_seed" for text in overrides):
        return False
    data = composer.compose(_overrides(target, 0, overrides, False), checked=False).values["data"]
    return "split_seed" in data and any(data.get(key) for key in DRAWN)


def _changed(composer: Composer, target: Target, overrides: list[str]) -> list[str]:
    """The settings, as groups or keys, that make it another setting than the published one. Raises ConfigError."""

    def composed(overrides: list[str]) -> Composed:
        made = composer.compose(_overrides(target, 0, overrides, False), checked=False)
        verify(made)
        return made

    plain = composed([])
    if not overrides:
        return []
    changed = composed(overrides)
    groups = [group for group, option in sorted(changed.choices.items()) if plain.choices.get(group, option) != option]
    groups = [group for group in groups if group.split("/")[0] not in groups or "/" not in group]
    exempt = (*HARMLESS, *(group.replace("/", ".") for group in groups))
    old, new = dict(flat(plain.values)), dict(flat(changed.values))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    keys = [key for key in keys if not is_below(key, exempt)]
    return [*(f"{group}={changed.choices[group]}" for group in groups if group not in HARMLESS), *keys]


def _train(composer: Callable[[], Composer], options: list[str], name: str, overrides: list[str]) -> int:
    """Train or resume a run as ``healsg train`` does; returns 0 if it is finished."""
    folder = RunFolder(ROOT / name)
    record = composed_once(lambda: folder.record)
    if record.get("status") == "finished":
        values = composed_once(lambda: composer().compose(overrides)).values
        if not values["fresh"]:
            if key := next(iter(composed_once(lambda: acquire.changed(folder, values))), None):
                raise RunError(f"{folder.shown}: is finished with another {key}; fresh=true starts anew")
            say(f"{folder.shown}: is finished")
            return 0
    code = train.run([*options, *overrides])
    gc.collect()
    if not code and composed_once(lambda: folder.record).get("status") != "finished":
        say(f"{folder.shown}: is not finished; the same command continues")
        return 1
    return code


def _measured(target: Target, seed: int, off: bool = False) -> float:
    """The number that a finished run reached: of its test, or the best of its evaluations. Raises RunError."""
    folder = RunFolder(ROOT / target.run(seed, off))
    record = composed_once(lambda: folder.record)
    best = record.get("best") or {}
    numbers = {best.get("monitor", ""): best.get("value")} | (record.get("test") or {})
    value = numbers.get(target.metric)
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise RunError(f"{folder.shown}: has no number {target.metric}; there are {', '.join(filter(None, numbers))}")
    return float(value)


def _announce(plans: list[Target]) -> None:
    target = plans[-1]
    facts = {"paper": target.paper, "table": target.table, "data": target.data, "budget": target.budget}
    facts |= {"target": f"{target.goal}; passes from {target.published - target.tolerance:.4f} on"}
    facts |= {"first": ", ".join(other.name for other in plans[:-1])} if target.first else {}
    facts |= {"gain": f"over the method off: {' '.join(target.without)}"} if target.without else {}
    say(f"{target.name} ({'never run by this project' if target.measured is None else f'measured {target.record}'})")
    for key, value in facts.items():
        say(f"  {key:<8}{value}")


def _list(files: dict[str, Path]) -> None:
    """All recipes: name, target, measured result, and source."""
    rows = []
    for name, path in files.items():
        try:
            target = read_target(path)
            rows.append([name, target.goal, target.record, target.table])
        except ConfigError as error:
            rows.append([name, "", "", str(error)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))

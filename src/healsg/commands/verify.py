"""``healsg verify``: prove on a task that a killed run ends in the same state as the uninterrupted one."""

from __future__ import annotations

import contextlib
import random
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from typing import Any

from healsg import distributed
from healsg.commands.diverge.command import TRACE, entries, first_line, first_tensor
from healsg.commands.launch import processes
from healsg.commands.launch.launching import BrokenError, TracedProcess, launch
from healsg.commands.terminal.arguments import parse_arguments
from healsg.commands.terminal.tables import messages_to_stderr, print_wrapped, show, show_json
from healsg.commands.train.tune import tuned
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import ConfigError, RunError
from healsg.runs import acquire
from healsg.runs.folder import ROOT, RunFolder

USAGE = """\
usage: healsg verify [what healsg train takes] [runs=2] [kills=3]
                     [verify_seed=0] [keep=false] [--json]

Trains the task without interruption, once more in a fresh process, and then
runs=2 times with kills=3 SIGKILLs each, at random steps and random times inside
a step (drawn from verify_seed), resuming it until it finishes. All runs must
have the same digest and the same lines in metrics.jsonl; otherwise the first
differing step and tensor are named. Without runner.save_every, a checkpoint is
saved shortly before each kill. Loggers and runner.max_time are not used. The
folders runs/verify-* are removed if all runs agree, unless keep=true."""

CAUSES = {
    "again": "the task itself is not reproducible; likely causes: its own random generator without the run's seed, "
    "threads, the time, the order of a set or of files, GPU kernels (runner.deterministic=true)",
    "killed": "the task does not resume exactly; likely cause: state that is not in a state_dict: make it a buffer or "
    "submodule of the method, or implement state_dict and load_state_dict",
}


@dataclass(frozen=True)
class Options:
    """Options of ``healsg verify``, in addition to the settings of the run."""

    runs: int = 2
    kills: int = 3
    verify_seed: int = 0
    keep: bool = False


@dataclass
class Trial:
    """One run of a verification, with its trace."""

    folder: RunFolder
    steps: int = 0
    kills: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)

    def read(self) -> None:
        """Read from the trace the number of steps, after which steps the run was killed, and from which it resumed."""
        path, last = self.folder.path / TRACE, 0
        for _, row in entries(path) if path.exists() else ():
            if "begin" in row and last:
                self.kills.append(last)
                self.begins.append(row["begin"])
            last = row.get("step", last)
            self.steps = max(self.steps, last)


def run(arguments: list[str]) -> int:
    """Verify exact resume; returns 0 if all runs agree, 1 if not, 2 if the command is wrong."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    distributed.processes().require_single_process(
        "healsg verify: starts its processes itself; call it without a launcher, and give runner.processes"
    )
    as_json = "--json" in arguments
    options, rest = _options([argument for argument in arguments if argument != "--json"])
    args = parse_arguments(rest)
    if args.multirun or args.cfg or args.info or args.shell_completion or args.hydra_help:
        raise ConfigError(
            "healsg verify: takes the settings of one run, and of the options --config-dir, --config-name"
        )
    composed = tuned(Composer(args.config_dir, args.config_name or "config").compose(args.overrides))
    base = f"verify-{composed.values['name'] or acquire.new_name(composed.choices)}"
    acquire.check_name(f"{base}-killed{options.runs}")
    names = ["whole", "again", *(f"killed{number}" for number in range(1, options.runs + 1))]
    trials = {name: Trial(RunFolder(ROOT / f"{base}-{name}")) for name in names}
    if there := next((trial.folder.shown for trial in trials.values() if trial.folder.path.exists()), None):
        raise RunError(f"{there}: is there from before; remove it, or take another name")
    remove = True
    try:
        with messages_to_stderr(as_json):
            verdict = _verify(composed, trials, options)
        remove = not verdict and not options.keep
        if as_json:
            lines = verdict or [_exact(trials, options)]
            runs = [_facts(name, trial) for name, trial in trials.items()]
            show_json({"schema": 1, "exact": not verdict, "verdict": lines, "runs": runs, "kept": not remove})
            return int(bool(verdict))
        _table(trials)
        print_wrapped(line for text in verdict or [_exact(trials, options)] for line in text.split("\n"))
        print(f"the runs {'are removed; keep=true keeps them' if remove else f'are kept: {ROOT / base}-*'}")
        return int(bool(verdict))
    except BrokenError as error:
        remove = error.status == ConfigError.status and not options.keep
        raise
    except KeyboardInterrupt:
        remove = not options.keep
        print("stopped by SIGINT: nothing is verified", file=sys.stderr)
        return 130
    finally:
        for trial in trials.values() if remove else ():
            shutil.rmtree(trial.folder.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            ROOT.rmdir()


def _options(arguments: list[str]) -> tuple[Options, list[str]]:
    """Split the options of ``healsg verify`` from the arguments of ``healsg train``. Raises ConfigError."""
    own: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "keep" and value in ("true", "false"):
            own[key] = value == "true"
        elif key in ("runs", "kills", "verify_seed") and value.isdecimal() and (int(value) or key == "verify_seed"):
            own[key] = int(value)
        elif key in Options.__dataclass_fields__:
            raise ConfigError(
                f"{argument}: {key} is {'true or false' if key == 'keep' else 'a whole number, from 1 on'}"
            )
        else:
            rest.append(argument)
    return Options(**own), rest


def _verify(composed: Composed, trials: dict[str, Trial], options: Options) -> list[str]:
    """Train all runs; returns a description of the differences, empty if they agree. Raises BrokenError."""
    uninterrupted, chance = trials["whole"], random.Random(options.verify_seed)
    own_saves = composed.values["runner"]["save_every"] is not None
    count = processes.process_count(composed)
    for number, (name, trial) in enumerate(trials.items()):
        print(f"{name}: {trial.folder.shown}", flush=True)
        plans = moments(chance, uninterrupted.steps, options.kills, own_saves, number % 2) if number > 1 else []
        killed = 0
        try:
            while launch(composed, trial.folder, _traced(count, plans, killed)).status == "killed":
                killed += 1
        except BrokenError as error:
            trial.read()
            if not killed:
                raise
            return [f"{name} cannot go on after a kill at step {trial.steps}: {error}", CAUSES["killed"]]
        trial.read()
        if number and (detail := _difference(uninterrupted.folder, trial.folder)):
            causes = CAUSES["killed" if plans else "again"]
            return [
                detail,
                causes,
                f"see: healsg diverge {shlex.join([str(uninterrupted.folder.shown), str(trial.folder.shown)])}",
            ]
    return []


def _traced(count: int, plans: list[dict[str, Any]], killed: int) -> TracedProcess:
    """What starts a run on ``count`` processes that was killed so many times already: the next plan, and none after the
    last one."""
    return TracedProcess(count, **(plans[killed] if killed < len(plans) else {}))


def moments(chance: random.Random, steps: int, kills: int, own_saves: bool, waits: int = 0) -> list[dict[str, Any]]:
    """When to kill: one random step in each of ``kills`` equal parts of the run, and a random time inside the next.

    A run that saves nothing by itself is saved up to two steps before; every other of those saves is waited for, so
    that some kills hit a save and others surely leave one.
    """
    kills, plans = min(kills, steps), []
    for number in range(kills):
        step = chance.randint(number * steps // kills + 1, (number + 1) * steps // kills)
        save = None if own_saves else max(1, step - chance.randrange(3))
        share = chance.random() if step < steps else 0.0
        plans.append({"kill": step, "save": save, "settle": (number + waits) % 2 == 0, "share": share})
    return plans


def _difference(reference: RunFolder, other: RunFolder) -> str:
    """Where a run first differs from the uninterrupted one; empty if it does not."""
    if found := first_tensor(reference.path / TRACE, other.path / TRACE):
        return f"runs differ first {found}\n{found.detail}"
    if line := first_line(reference, other)[0]:
        return f"runs differ first in metrics.jsonl, {line}; after every step all tensors agree"
    if reference.record.get("digest") != other.record.get("digest"):
        return "runs differ in their digests alone; after every step all tensors agree, and so do all lines"
    return ""


def _exact(trials: dict[str, Trial], options: Options) -> str:
    begins = sorted({step for trial in trials.values() for step in trial.begins})
    kills = sum(len(trial.kills) for trial in trials.values())
    detail = f"exact: {len(trials)} runs agree; {kills} kills (verify_seed={options.verify_seed}), resumed from "
    if not any(begins):
        return detail + "step 0 alone: nothing was saved before the kills; a smaller runner.save_every tests more"
    return detail + f"{len(begins)} different steps: {', '.join(map(str, begins))}"


def _facts(name: str, trial: Trial) -> dict[str, Any]:
    """One run of a verification, for programs."""
    digest = trial.folder.record.get("digest")
    return {"run": name, "steps": trial.steps, "kills": trial.kills, "resumed_from": trial.begins, "digest": digest}


def _table(trials: dict[str, Trial]) -> None:
    rows = []
    for name, trial in trials.items():
        digest = str(trial.folder.record.get("digest") or "-")[:12]
        kills, begins = (" ".join(map(str, steps)) or "-" for steps in (trial.kills, trial.begins))
        rows.append((name, trial.steps or None, kills, begins, digest))
    show(["run", "steps", "killed after step", "resumed from step", "digest"], rows)

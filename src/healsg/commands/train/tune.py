"""``runner=fast``: benchmark settings on this machine, and write the fastest ones into a task's configuration.

Memory format, precision, compilation and the number of threads are measured with real training steps in a separate
process, so that the run itself is not affected. The resulting configuration holds ordinary values: a resumed run, other
processes and a later run compute the same numbers, and nothing is measured again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import distributed, system
from healsg.cli import finish, say
from healsg.commands.launch.launching import ask
from healsg.commands.terminal.tables import show
from healsg.config.schema import Composed
from healsg.errors import ConfigError, RunError, one_line
from healsg.runs import acquire, redact
from healsg.runs.folder import ROOT, RunFolder
from healsg.runs.saved_config import read_saved
from healsg.sweeps.sharing import SharedData

if TYPE_CHECKING:
    from healsg.task import BasicTask
    from healsg.training.step import MicroBatch, TrainBatch

KEYS = ("precision", "channels_last", "compile", "threads")
"""The settings of the runner that are measured."""

WARM = 3
"""Warm-up steps before the measurement: memory is allocated and kernels are chosen."""
FEWEST = 10
"""The fewest steps of a setting that are timed."""
FAST = 0.1
"""The quantile of the step times that is used: other work on the machine only makes steps slower."""
GAIN = 0.97
"""A setting must take less than this share of the default setting's time; a smaller gain may be noise."""

SHORT = 60.0
"""The length of a run, in seconds, below which compilation is not tried: compiling takes half of that."""
LONGEST = 2.0
"""The multiple of the budget after which the measuring process is ended; its results until then are used."""
STARTING = 60.0
"""Additional seconds for importing and reading the data."""

Choice = dict[str, Any]
"""Settings of the runner by name, of those in ``KEYS``."""


@dataclass
class Row:
    """A measured setting.

    Args:
        choice: its difference from the default setting.
        seconds: per step; None if it failed or was not tried.
        setup: how much longer the first step takes, for example for compiling, in seconds.
        reason: why it was not measured.
    """

    choice: Choice
    seconds: float | None = None
    setup: float = 0.0
    reason: str = ""

    def total(self, steps: int) -> float:
        """Seconds of a run of this many steps; infinite without a measurement."""
        return float("inf") if self.seconds is None else self.setup + steps * self.seconds


def time_budget(composed: Composed) -> float | None:
    """The seconds for measuring; None if nothing is to be measured."""
    runner = composed.values["runner"]
    return runner.get("tune") if isinstance(runner, dict) else None


def tuned(composed: Composed) -> Composed:
    """The configuration with the fastest settings, and without ``runner.tune``.

    An existing run keeps its settings. Settings of the command line are not changed.

    Raises:
        ConfigError: it was started by a launcher such as torchrun, so that each process would measure.
        RunError: the task cannot take a step even with the default setting.
    """
    if time_budget(composed) is None:
        return composed
    name = composed.values["name"]
    existing = [RunFolder(ROOT / name)] if name and not composed.values["fresh"] else []
    kept = next((choice for _, choice in _kept(existing)), None)
    return with_choice(composed, _chosen(composed) if kept is None else kept)


def tuned_jobs(name: str, jobs: Sequence[tuple[str, Composed]]) -> list[tuple[str, Composed]]:
    """The jobs of a sweep with the fastest settings. Jobs that differ only in the seed and in numbers of the method,
    such as the learning rate, share one measurement.

    Measurements of earlier calls for the same sweep are used again; they are in the folders of its jobs.

    Args:
        name: of the sweep.
        jobs: by name.
    """
    known: dict[str, Choice] = {}
    if any(time_budget(composed) is not None for _, composed in jobs):
        folders = [RunFolder(path) for path in sorted((ROOT / name).glob("*")) if path.is_dir()]
        known = {kind_of(values): choice for values, choice in _kept(folders)}
    found = []
    for job, composed in jobs:
        if time_budget(composed) is not None:
            kind = kind_of(redact.config(composed.values))
            if kind not in known:
                known[kind] = _chosen(composed)
            composed = with_choice(composed, known[kind])
        found.append((job, composed))
    return found


def kind_of(values: Mapping[str, Any]) -> str:
    """What determines the speed of a step, as text: equal for jobs whose steps cost the same."""
    runner = {key: value for key, value in values["runner"].items() if key not in (*KEYS, "tune")}
    method = values["method"]
    target = method.get("_target_") if isinstance(method, dict) else None
    return json.dumps([values["data"], values["model"], target, runner], sort_keys=True, default=str)


def _chosen(composed: Composed) -> Choice:
    """Measure, and return the settings with which the entire run is fastest, if the gain exceeds noise."""
    if distributed.processes().several:
        raise ConfigError("runner.tune: is for one process that starts the others; give runner.processes, not torchrun")
    rows, steps = measured(composed, time_budget(composed) or 0.0)
    best = min(rows, key=lambda row: row.total(steps))
    plain = rows[0]
    chosen = best if best.total(steps) < GAIN * plain.total(steps) else plain
    show_table(rows, steps, chosen)
    return chosen.choice


def with_choice(composed: Composed, choice: Choice) -> Composed:
    """The configuration with these settings of the runner, without ``runner.tune``."""
    runner = composed.values["runner"] | choice | {"tune": None}
    return replace(composed, values=composed.values | {"runner": runner})


def _kept(folders: Sequence[RunFolder]) -> Iterator[tuple[dict[str, Any], Choice]]:
    """The configurations of existing runs, and the settings with which they started."""
    for folder in folders:
        if folder.config.exists() and acquire.has_trained(folder):
            values = read_saved(folder.config)
            if isinstance(runner := values.get("runner"), dict):
                yield values, {key: runner[key] for key in KEYS if key in runner}


def measured(composed: Composed, budget: float) -> tuple[list[Row], int]:
    """Measure settings in a fresh process.

    Args:
        composed: the checked configuration.
        budget: seconds, after which no further setting is started.

    Returns:
        The rows, the default setting's first, and the number of steps of the run.
    """
    made = with_choice(composed, {}).as_plain()
    given = [override.partition("=")[0].lstrip("+") for override in composed.overrides]
    fixed = [key for key in KEYS if f"runner.{key}" in given]
    say(f"runner.tune: measuring how this task trains fastest here, within about {budget:g} s")
    with tempfile.TemporaryDirectory() as temporary:
        answer = Path(temporary, "answer.jsonl")
        request = {"composed": made, "budget": budget, "fixed": fixed, "answer": str(answer), "command": sys.argv}
        problem = _run(yaml.safe_dump(request).encode(), LONGEST * budget + STARTING)
        found = [json.loads(line) for line in answer.read_text().splitlines()] if answer.exists() else []
    if not found:
        raise RunError(problem)
    rows = [Row(**one["row"]) for one in found]
    if rows[0].seconds is None:
        raise RunError(f"runner.tune: the task cannot take a step: {rows[0].reason}")
    return rows, int(found[-1]["steps"])


def _run(request: bytes, seconds: float) -> str:
    """Run the measuring process for at most this many seconds; returns why it ended, in case it has no results."""
    try:
        code, lines = ask(system.program(__name__, "measure"), request, seconds)
    except subprocess.TimeoutExpired:
        return f"runner.tune: nothing could be measured within {seconds:g} s; leave it out: runner.tune=null"
    ended = f"runner.tune: the process that measures ended with status {code}"
    return lines[-1].removeprefix("error: ") if lines else ended


def show_table(rows: Sequence[Row], steps: int, chosen: Row) -> None:
    """Print the measurements: milliseconds per step, seconds before the first step, seconds of the entire run."""
    cells: list[list[Any]] = []
    for row in rows:
        name = " ".join(f"{key}={_text(value)}" for key, value in row.choice.items()) or "as configured"
        if row.seconds is None:
            cells.append([name, None, None, None, row.reason])
            continue
        mark = "chosen" if row is chosen else ""
        cells.append([name, f"{1000 * row.seconds:.3g}", f"{row.setup:.1f}", f"{row.total(steps):.1f}", mark])
    show(["setting", "ms a step", "s before it", "s in all", ""], cells)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


# --- the process that measures ---------------------------------------------------------------------------------------


def measure() -> int:
    """Measure the task given on standard input; the rows are written to a file. Returns the exit status."""
    request = yaml.safe_load(sys.stdin.buffer)
    system.take_command_line(request["command"])
    composed = Composed.of_plain(request["composed"])

    def work() -> int:
        bench = Bench(composed, time.monotonic() + request["budget"])
        with Path(request["answer"]).open("w", encoding="utf-8") as answer:
            for row in bench.rows(request["fixed"]):
                print(json.dumps({"row": vars(row), "steps": bench.steps}), file=answer, flush=True)
        return 0

    return finish(work, composed.values["debug"])


class Bench:
    """Takes training steps of a task in several settings.

    Args:
        composed: the checked configuration.
        deadline: by ``time.monotonic``, after which no further setting is started.
    """

    def __init__(self, composed: Composed, deadline: float) -> None:
        self.composed = composed
        self.deadline = deadline
        self.steps = 0
        """The steps of the entire run, known once a task has been built."""
        self.runner: dict[str, Any] = composed.values["runner"]
        self.shared = SharedData()
        self.last = False
        """Whether the default setting uses the memory format channels_last."""
        self.has_images = False

    def rows(self, fixed: Sequence[str]) -> Iterator[Row]:
        """The default setting, then one kind of setting after the other, each combined with the best one before.

        Args:
            fixed: names of settings that must not be changed.
        """
        plain = self.row({})
        yield plain
        if plain.seconds is None:
            return
        best = plain
        for kind in (self.formats, self.threads, self.compilation):
            rows = [self.row(best.choice | choice) for choice in kind(fixed, best)]
            yield from rows
            best = min([best, *rows], key=lambda row: row.total(self.steps))

    def formats(self, fixed: Sequence[str], best: Row) -> list[Choice]:
        """The other memory format, and bf16 with both; a precision set by the user is not changed."""
        precisions = [] if "precision" in fixed or self.runner["precision"] != "fp32" else [{"precision": "bf16"}]
        layouts = [] if "channels_last" in fixed or not self.has_images else [{"channels_last": not self.last}]
        both = [precisions[0] | layouts[0]] if precisions and layouts else []
        return [*precisions, *layouts, *both]

    def threads(self, fixed: Sequence[str], best: Row) -> list[Choice]:
        """Fewer CPU threads: for small steps, synchronising threads costs more than they gain."""
        import torch

        now = self.runner["threads"] or torch.get_num_threads()
        if "threads" in fixed or self.device != "cpu":
            return []
        return [{"threads": number} for number in sorted({1, max(1, now // 2)} - {now})]

    def compilation(self, fixed: Sequence[str], best: Row) -> list[Choice]:
        """Compilation, if the run is long enough to recover its cost."""
        if "compile" in fixed or self.runner["compile"] or best.total(self.steps) < SHORT:
            return []
        return [{"compile": "regional"}]

    @property
    def device(self) -> str:
        """The type of the device on which the steps are taken."""
        from healsg.training.device import choose_device
        from healsg.training.parallel import Parallel

        return choose_device(self.runner["device"], Parallel()).type

    def row(self, choice: Choice) -> Row:
        """Measure one setting."""
        if time.monotonic() > self.deadline and choice:
            return Row(choice, reason="not tried: the time was over")
        from healsg.training.layout import image_dims

        try:
            with _steps_of(with_choice(self.composed, choice), self.shared) as (task, step):
                self.steps = task.runner.total_steps * task.runner.plan.accumulate
                if not choice:
                    self.last = bool(task.runner.device_setup.image_dims)
                    self.has_images = bool(image_dims(task.model))
                began = time.perf_counter()
                step()
                first = time.perf_counter() - began
                seconds = self._fast_step(step)
            return Row(choice, seconds, max(0.0, first - seconds))
        except Exception as error:  # any failure of this setting: a kernel, the memory, the compiler
            return Row(choice, reason=redact.text(one_line(error))[:100])

    def _fast_step(self, step: Callable[[], object]) -> float:
        """Seconds of a step: the ``FAST`` quantile of many."""
        for _ in range(WARM):
            step()
        left = max(0.0, self.deadline - time.monotonic())
        end = time.perf_counter() + min(5.0, max(0.5, left / 12))
        times: list[float] = []
        while len(times) < FEWEST or time.perf_counter() < end:
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        return sorted(times)[int(FAST * len(times))]


@contextlib.contextmanager
def _steps_of(composed: Composed, shared: SharedData) -> Iterator[tuple[BasicTask, Callable[[], object]]]:
    """A built task, and a function that takes its next training step and waits for the device."""
    import torch

    from healsg.sweeps.job_trainer import JobTrainer

    task = JobTrainer(composed, RunFolder(ROOT / "unused"), shared).make_task()
    task.build()
    task.net.train()
    batches = _endless(task)
    waits: Mapping[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    wait = waits.get(task.device.type, lambda: None)

    def step() -> None:
        batch, micro = next(batches)
        scalars, updated = task.runner.step(task, batch, micro)
        task.train_epoch.finish_step(micro, scalars, updated)
        wait()

    try:
        yield task, step
    finally:
        batches.close()


def _endless(task: BasicTask) -> Generator[tuple[TrainBatch, MicroBatch], None, None]:
    """The training batches of the first epoch in an endless loop, since a run may be shorter than the measurement."""
    start = task.runner.position.state_dict()
    while True:
        yield from task.runner.train_batches(task)
        task.runner.meter.clear()
        task.runner.position.load_state_dict(start, task.runner.accumulate)

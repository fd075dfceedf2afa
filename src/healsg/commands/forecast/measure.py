"""The process that measures for a forecast: it builds the task and takes some steps."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from healsg import system
from healsg.commands.forecast.model import Length, Measured, Seconds, largest_batch, mean_of, predict
from healsg.config.schema import Composed
from healsg.errors import HealsgError, one_line
from healsg.runs import redact

if TYPE_CHECKING:
    import torch

    from healsg.data.foreign import AnyLoader
    from healsg.task import BasicTask

FEWEST = 3
"""Fewest steps to measure, if the run has that many."""
WARM = 2
"""Steps whose excess over later ones is the cost of warming up."""
EVALUATING = 0.4
"""The share of the budget for evaluation batches."""


def main() -> None:
    """Measure the task given on standard input; the result is one line of JSON on standard output, all other output
    goes to standard error."""
    request = yaml.safe_load(sys.stdin.buffer)
    answer_to = os.dup(1)
    os.dup2(2, 1)
    logging.getLogger("healsg").setLevel(logging.ERROR)
    composed = Composed.of_plain(request["composed"])
    try:
        answer = measured(composed, float(request["budget"]))
    except HealsgError as error:
        answer = {"error": redact.text(one_line(error))}
    with os.fdopen(answer_to, "w") as stream:
        stream.write(json.dumps(answer) + "\n")


def measured(composed: Composed, budget: float) -> dict[str, Any]:
    """Build the task and measure it; the forecast as plain values. Raises HealsgError."""
    from healsg.build import build_task
    from healsg.training import memory

    clock = Clock()
    imports = clock.since_start()
    task = build_task(composed)
    task.build()
    build = clock.lap()
    begin = copy.deepcopy(task.state_dict())
    clock = Clock(task.device)
    try:
        first, again, starts = _steps(task, budget, begin, clock)
    except RuntimeError as error:
        if memory.is_exhausted(error):
            raise memory.explain(task) from error
        raise
    eval_first, eval_batch, val = _evaluation(task, EVALUATING * budget, clock)
    saves = _saves(task, clock)
    length = _length(task, val)
    peak = _peak(task)
    step = mean_of(again)
    warm = first if task.train_loader.in_memory else first[:WARM]
    facts = Measured(
        imports=imports,
        build=build,
        first=(sum(warm, Seconds()) - step * len(warm)).positive(),
        steps=again,
        epoch=(mean_of(starts) - step).positive() if starts else Seconds(),
        first_eval=eval_first,
        eval_batch=eval_batch,
        peak=peak,
        **saves,
    )
    forecast = predict(facts, length).as_json()
    rows = _rows(task)
    return {
        "device": str(task.device),
        "epochs": length.epochs,
        "updates": length.updates,
        "measured_steps": len(again),
        "batch": rows,
        "samples_a_second": round(rows / step.wall, 1) if rows and step.wall > 0 else None,
        **forecast,
        "loader": _loader(task, clock, step, budget),
        "largest_batch": _largest(task, rows, begin),
    }


class Clock:
    """CPU and wall time since the last reading.

    Args:
        device: synchronised at each reading; None for no synchronisation.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.last = self._now()

    def _now(self) -> Seconds:
        if self.device is not None and self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return Seconds(time.process_time(), time.perf_counter())

    def lap(self) -> Seconds:
        """Since the last look."""
        now = self._now()
        passed = now - self.last
        self.last = now
        return passed

    @staticmethod
    def since_start() -> Seconds:
        """Since the process began; where the system does not say when that was, its CPU time serves for both."""
        cpu = time.process_time()
        lived = system.process_age()
        return Seconds(cpu, cpu if lived is None else lived)


# --- training steps --------------------------------------------------------------------------------------------------


def _steps(
    task: BasicTask, budget: float, begin: dict[str, Any], clock: Clock
) -> tuple[list[Seconds], list[Seconds], list[Seconds]]:
    """The first steps of a run; the same ones and more once again, now that all is warm; and the first of each epoch.

    The state is that of the beginning before each of the two passes.
    """
    workers = int(getattr(task.train_loader, "workers", 0))
    children = system.cpu_seconds() - time.process_time() if workers else 0.0
    first = list(_few(_pass(task, clock), budget / 4))
    task.load_state_dict(copy.deepcopy(begin))
    clock.lap()
    again: list[Seconds] = []
    starts: list[Seconds] = []
    while sum(step.wall for step in again) < budget and task.runner.epoch < task.max_epoch:
        left = budget - sum(step.wall for step in again)
        found = list(_few(_pass(task, clock), left))
        if not found:
            break
        if len(found) > 1:
            starts.append(found.pop(0))
        again += found
        if task.runner.batch_count < task.runner.length:
            break
        task.runner.meter.finish()
        task.runner.next_epoch()
        clock.lap()
    if workers:  # the time of loader processes is divided evenly over all steps
        spent = system.cpu_seconds() - time.process_time() - children
        share = Seconds(cpu=spent / max(1, len(first) + len(again) + len(starts)))
        again = [step + share for step in again]
    return first, again, starts


def _pass(task: BasicTask, clock: Clock) -> Iterator[Seconds]:
    """The steps of the current epoch, each with the reading of its batch."""
    task.net.train()
    with closing(task.runner.train_batches(task)) as batches:  # type: ignore[type-var]
        for batch, micro in batches:
            scalars, updated = task.runner.step(task, batch, micro)
            task.train_epoch.finish_step(micro, scalars, updated)
            yield clock.lap()


def _few(steps: Iterator[Seconds], budget: float) -> Iterator[Seconds]:
    """Steps until ``budget`` seconds are spent, and at least FEWEST."""
    spent = 0.0
    for count, step in enumerate(steps, 1):
        yield step
        spent += step.wall
        if count >= FEWEST and spent >= budget:
            return


def _length(task: BasicTask, val: int) -> Length:
    runner = task.runner
    epochs, rest = divmod(runner.total_steps, runner.steps_per_epoch)
    return Length(
        batches=epochs * runner.length + min(runner.length, rest * runner.accumulate),
        epochs=runner.max_epoch,
        evaluations=math.ceil(runner.max_epoch / runner.eval_every),
        val=val,
        test=len(task.loaders["test"]) if "test" in task.loaders else 0,
        updates=runner.total_steps,
        log_every=runner.log_every,
        save_every=runner.save_every,
    )


# --- evaluation, saving, reading -------------------------------------------------------------------------------------


def _evaluation(task: BasicTask, budget: float, clock: Clock) -> tuple[Seconds, Seconds, int]:
    """How much longer the first evaluation takes than a later one, the time per batch, and the number of batches."""
    loader = task.val_loader
    if loader is None:
        return Seconds(), Seconds(), 0
    total = len(loader)
    if task.task_method.evaluates_itself:  # only its whole pass can be measured
        clock.lap()
        task.val_epoch.run()
        first = clock.lap()
        task.val_epoch.run()
        whole = clock.lap()
        return (first - whole).positive(), whole * (1 / total), total
    few = _limited(loader, 1)
    clock.lap()
    _evaluate(task, few)
    first = clock.lap()
    _evaluate(task, few)
    one = clock.lap()
    count = min(total, max(2, int(budget / max(one.wall, 1e-4))))
    several = _limited(loader, count)
    _evaluate(task, several)
    once = clock.lap()
    _evaluate(task, several)
    batch = clock.lap() * (1 / count)
    extra = (first - one).positive()
    if loader.in_memory:
        extra = extra + (once - batch * count).positive() * (total / count)
    return extra, batch, total


def _limited(loader: AnyLoader, count: int) -> AnyLoader:
    """The first batches of a loader."""
    limit = min(count, len(loader))
    return loader.sharded(replace(loader.sharding, limit=limit))


def _evaluate(task: BasicTask, loader: AnyLoader) -> None:
    """The default evaluation, on the batches of ``loader`` instead of ``val``."""
    from healsg.evaluation.evaluator import EvalEpoch

    loader_before = task.loaders["val"]
    task.loaders["val"] = loader
    try:
        EvalEpoch(task, "val").run()
    finally:
        task.loaders["val"] = loader_before


def _saves(task: BasicTask, clock: Clock) -> dict[str, Any]:
    """The time to write the two checkpoints, into a temporary folder, and their sizes."""
    from healsg.runs import checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        last, best = Path(temporary, "last.pt"), Path(temporary, "best.pt")
        clock.lap()
        checkpoint.save(last, copy.deepcopy(task.state_dict()))
        save = clock.lap()
        checkpoint.save(best, {"model": task.task_method.eval_model(task).state_dict()})
        save_best = clock.lap()
        checkpoint.digest(task.state_dict())
        checkpoint.load(best)
        end = clock.lap()
        sizes = last.stat().st_size, best.stat().st_size
    return {"save": save, "save_best": save_best, "end": end, "last_bytes": sizes[0], "best_bytes": sizes[1]}


def _loader(task: BasicTask, clock: Clock, step: Seconds, budget: float) -> dict[str, Any]:
    """The throughput of the loader alone, and its share of a step's wall time if it did not run in parallel."""
    loader = task.train_loader
    rows = 0
    batches = 0
    clock.lap()
    spent = Seconds()
    for _, count in loader.batches(1):
        rows += count
        batches += 1
        spent = spent + clock.lap()
        if spent.wall > budget / 4:
            break
    if spent.wall <= 0 or not batches:
        return {"samples_a_second": None, "share": None}
    share = spent.wall / batches / step.wall if step.wall > 0 else 0.0
    return {"samples_a_second": round(rows / spent.wall, 1), "share": round(share, 3)}


# --- memory ----------------------------------------------------------------------------------------------------------


def _peak(task: BasicTask) -> int | None:
    """The most bytes so far: of the process, or on a GPU what torch has reserved there."""
    if task.device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(task.device))
    return system.peak_memory()


def _rows(task: BasicTask) -> int:
    return int(getattr(task.train_loader, "batch_size", 0) or 0)


def _largest(task: BasicTask, rows: int, begin: dict[str, Any]) -> dict[str, Any] | None:
    """The largest batch that fits, from steps with one batch and with two of them at once."""
    from healsg.training import memory

    if rows < 1 or task.task_method.custom_step:
        return None
    available = _available(task)
    if available is None:
        return None
    try:
        task.load_state_dict(copy.deepcopy(begin))
        small = _peak_of_step(task, 1)
        task.load_state_dict(begin)
        large = _peak_of_step(task, 2)
    except RuntimeError as error:
        if memory.is_exhausted(error):
            return {"rows": rows, "bytes_a_sample": None, "reason": "twice the batch does not fit"}
        return None
    if small is None or large is None:
        return None
    most, slope = largest_batch((rows, small), (2 * rows, large), available)
    return {"rows": most, "bytes_a_sample": round(slope), "reason": "" if most else "memory does not grow measurably"}


def _available(task: BasicTask) -> int | None:
    """Bytes that the process, or the GPU, can hold in all."""
    if task.device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(task.device)
        return int(free + torch.cuda.memory_reserved(task.device))
    free_bytes, used = system.available_memory(), system.held_memory()
    return None if free_bytes is None or used is None else free_bytes + used


def _peak_of_step(task: BasicTask, times: int) -> int | None:
    """Bytes at the peak of a step with ``times`` batches at once; the second of two steps counts."""
    import torch

    runner = task.runner
    cuda = task.device.type == "cuda"
    for _ in range(2):
        with closing(runner.train_batches(task)) as batches:  # type: ignore[type-var]
            taken = next(batches, None)
            if taken is None:  # a run of fewer steps than are needed here
                return None
            batch, micro = taken
            samples = micro.samples._replace(
                rows=micro.rows * times,
                batch=None if micro.samples.batch is None else micro.samples.batch * times,
                update=None if micro.samples.update is None else micro.samples.update * times,
            )
            wide = _repeated(batch, times, micro.rows)
            if cuda:
                torch.cuda.reset_peak_memory_stats(task.device)
            elif not system.forget_peak_memory():
                return None
            runner.step(task, _as_batch(wide, samples), micro._replace(samples=samples, closes=True))
    return int(torch.cuda.max_memory_allocated(task.device)) if cuda else system.peak_memory()


def _repeated(value: Any, times: int, rows: int) -> Any:
    """A batch with its rows ``times`` times."""
    import torch

    if isinstance(value, dict):
        return {name: _repeated(inner, times, rows) for name, inner in value.items()}
    if isinstance(value, torch.Tensor) and value.dim():
        return torch.cat([value] * times)
    return value * times if isinstance(value, list) else value


def _as_batch(values: dict[str, Any], samples: Any) -> Any:
    from healsg.training.step import TrainBatch

    return TrainBatch(values, samples)

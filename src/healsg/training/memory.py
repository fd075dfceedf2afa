"""Out of memory: the error message, and a training step that takes its batch in smaller pieces."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.errors import ConfigError, RunError
from healsg.training.device import clear_gradients
from healsg.training.step import MicroBatch, Samples, TrainBatch, counts_of

if TYPE_CHECKING:
    from healsg.protocols import Method, Runner, Task

EXHAUSTED = (
    "can't allocate memory",  # torch's allocator on the CPU
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Parts of the messages of errors that have no type of their own."""

log = logging.getLogger("healsg")


def check(runner: Runner, method: Method) -> None:
    """Raise ConfigError if gradients are to be accumulated but cannot be."""
    if runner.cuda_graph and (runner.accumulate > 1 or runner.auto_accumulate):
        raise ConfigError("runner.cuda_graph: a replayed graph overwrites the gradients; do not accumulate them")
    if runner.cuda_graph and runner.compile == "regional":
        raise ConfigError("runner.cuda_graph: needs the network compiled as a whole; set runner.compile=true")
    if not runner.auto_accumulate:
        return
    reason = "runner.auto_accumulate: works in one process; set data.batch_size and runner.accumulate"
    runner.parallel.require_single_process(reason)
    if runner.accumulate > 1:
        raise ConfigError("runner.auto_accumulate: splits batches by itself; leave runner.accumulate at 1")
    if not method.mean_over_samples or method.custom_step:
        why = f"the loss of {type(method).__name__} is no mean over samples, so a batch cannot be split"
        raise ConfigError(f"runner.auto_accumulate: {why}; set it to false")


def explain(task: Task) -> RunError:
    """The error for a device that is out of memory: the step and batch size, and settings that need less memory."""
    runner, device = task.runner, task.device
    batch, in_use = getattr(task.train_loader, "batch_size", None), ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        in_use = f" ({(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB in use)"
    ways = ["runner.auto_accumulate=true"] * (not runner.auto_accumulate)
    if batch and batch > 1:
        ways.insert(0, f"data.batch_size={batch // 2} runner.accumulate={2 * runner.accumulate} (the same update)")
    ways += ["runner.precision=bf16"] * (runner.device_setup.dtype is None)
    return RunError(
        f"{device}: out of memory{in_use} at step {runner.step_count + 1} in the {runner.progress.phase} pass, with "
        f"{batch or 'all'} samples a batch in {runner.precision}; try {', or '.join(ways)}, or a smaller model; "
        "the last checkpoint is good"
    )


def is_exhausted(error: BaseException) -> bool:
    """Whether an error means that the memory of a GPU or of the machine is exhausted."""
    typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return typed or any(words in str(error) for words in EXHAUSTED)


def halve(task: Task, micro: MicroBatch, error: BaseException) -> bool:
    """After a failed step: whether it ran out of memory and can be repeated in twice as many pieces.

    Raises RunError if the pieces cannot get any smaller.
    """
    runner = task.runner
    if not (runner.auto_accumulate and is_exhausted(error)) or runner.accumulator.updating:
        return False  # weights may have changed, so that the step cannot be repeated
    if not runner.halve_pieces(micro):
        raise explain(task) from error
    clear_gradients(task.optimizer)
    runner.accumulator.clear()
    if task.device.type in ("cuda", "mps"):
        getattr(torch, task.device.type).empty_cache()  # the free memory may be fragmented
    log.warning("out of memory: from step %d on, batches go in %d pieces", runner.step_count + 1, runner.pieces)
    return True


def step_in_pieces(task: Task, batch: TrainBatch, micro: MicroBatch) -> tuple[dict[str, Any], bool]:
    """One update from ``runner.pieces`` pieces of a batch, each of which is a micro-batch."""
    rows = micro.rows
    pieces = min(task.runner.pieces, rows // task.runner.plan.min_rows)
    totals: dict[str, Any] = {}
    updated = False
    for number in range(pieces):
        low, high = rows * number // pieces, rows * (number + 1) // pieces
        samples = Samples(high - low, micro.samples.first + low, high - low, rows)
        part = TrainBatch(_cut(batch, low, high, rows), samples)
        piece = MicroBatch(samples, closes=number == pieces - 1, parts=pieces)
        scalars, updated = task.task_method.step(task, part, piece)
        counts = counts_of(scalars)
        for name, value in scalars.items():
            value = value.detach() if isinstance(value, Tensor) else value
            value = value * scalars[counts[name]] if name in counts else value
            totals[name] = totals.get(name, 0.0) + value
    means = {name: totals[name] / totals[count] for name, count in counts.items()}
    return totals | means, updated


def _cut(value: Any, low: int, high: int, rows: int) -> Any:
    """Rows ``low`` to ``high`` of ``rows``; of a stream with another number of samples the same fraction."""
    if isinstance(value, dict):
        return {name: _cut(inner, low, high, rows) for name, inner in value.items()}
    if isinstance(value, list) or (isinstance(value, Tensor) and value.dim()):
        return value[len(value) * low // rows : len(value) * high // rows]
    return value

"""Errors of the loop as one line that names the cause and possible remedies."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from healsg.data.source import line
from healsg.errors import DataError, NotFiniteError, RunError
from healsg.training import memory
from healsg.training.replay import first_not_finite

if TYPE_CHECKING:
    from healsg.protocols import Task
    from healsg.runs.checkpointer import Checkpointer

OUT_OF_BOUNDS = re.compile(r"^Target (-?\d+) is out of bounds")
"""torch's message for a class index of which the network has no output."""

LOST = ("device-side assert", "illegal memory access", "unspecified launch failure")
"""CUDA errors after which the process cannot use its device any more."""


@contextlib.contextmanager
def explained(task: Task, checkpointer: Checkpointer) -> Iterator[None]:
    """A context around the loop that turns its errors into explanations.

    Raises:
        RunError: for a NaN or infinity, exhausted memory, or a failed kernel.
        DataError: for a target that is no class, or a lost worker of torch's DataLoader, which raises its exception at
            any point of this process.
    """
    try:
        yield
    except NotFiniteError as error:
        raise _not_finite(task, checkpointer, error) from error
    except IndexError as error:
        if match := OUT_OF_BOUNDS.search(str(error)):
            raise DataError(
                f"a target is {match[1]}, which is no class of the network's outputs; classes are counted from 0, and "
                "the criterion's ignore_index (-100) marks what is left out"
            ) from error
        raise
    except (RuntimeError, MemoryError) as error:
        if memory.is_exhausted(error):
            raise memory.explain(task) from error
        if str(error).startswith("DataLoader worker (pid"):
            raise DataError(f"a loader worker was lost: {line(error)}") from error
        if any(words in str(error) for words in LOST):
            raise _device_lost(task, error) from error
        raise


def _device_lost(task: Task, error: Exception) -> RunError:
    """An error in a kernel. CUDA reports it at a later call, so the line that raised it is not the cause."""
    cause = "such as a class index that is negative or not below the number of classes"
    return RunError(
        f"{task.device}: a kernel failed at or before step {task.runner.step_count + 1} ({line(error)}), usually by an "
        f"index out of range, {cause}; runner.device=cpu or CUDA_LAUNCH_BLOCKING=1 shows where. This process cannot "
        "use the GPU any more: further jobs need a new one; the last checkpoint is good"
    )


def _not_finite(task: Task, checkpointer: Checkpointer, error: NotFiniteError) -> RunError:
    """The error that names the step and, if the replay finds it, the tensor."""
    runner = task.runner
    batch = runner.batch_count - error.batches  # of the epoch, from 1, in which the loss was not finite
    step = runner.position.epoch_start + -(-batch // runner.accumulate)
    checkpointer.writer.close()
    state, first = None, None
    with contextlib.suppress(Exception):  # an error in the replay must not hide the original one
        state = None if runner.parallel.several else checkpointer.folder.last_state()
        first = first_not_finite(task, state, step, checkpointer.stop_signal) if state else None
    since = f"the checkpoint of step {state['runner']['step']} is good" if state else "the last checkpoint is good"
    message = f"step {step}: {error}"
    if first:
        message = first if first.startswith(f"step {step}:") else f"{first}; {message}"
    return RunError(
        f"{message}; {since}: a smaller method.optimizer.lr, runner.clip_norm or runner.precision=fp32 may help, "
        "and go on from there with resume.force=true"
    )

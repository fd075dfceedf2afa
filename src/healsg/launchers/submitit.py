"""``launcher=submitit``: each job of a sweep as a job of Slurm, submitted by submitit; or of this machine, to try it.

The scheduler decides when and where a job runs. A job that is preempted or reaches its time limit saves, is requeued,
and resumes as the same run. The command that has submitted the jobs waits for them and writes the table. It may be
ended: the jobs continue without it, and the same command collects their results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from healsg.errors import ConfigError
from healsg.launchers.one_job import OneJob
from healsg.runs.folder import ROOT
from healsg.sweeps.launcher import LOST, Answer, JobLauncher, Order
from healsg.types import Count

_POLL = 0.5
"""Seconds between two polls of the jobs."""
_SAVING = 90.0
"""Seconds that a job has to save when the scheduler takes its machine away; submitit's signal comes 90 s before."""


class SubmititLauncher(JobLauncher):
    """Submits the jobs of a sweep.

    Args:
        executor: ``slurm``, or ``local`` for processes of this machine.
        workers: jobs that run in parallel.
        minutes: time limit of a job; it saves before the limit, and is requeued.
        requeues: how often a job may be requeued.
        options: further parameters of submitit's executor, such as ``{slurm_partition: gpu, gpus_per_node: 1}``.
    """

    def __init__(
        self,
        executor: Literal["slurm", "local"] = "slurm",
        workers: Count = 16,
        minutes: Count = 60,
        requeues: Count = 3,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if find_spec("submitit") is None:
            raise ConfigError("launcher: needs submitit; pip install 'healsg[submitit]'")
        self.executor = executor
        self.workers = workers
        self.minutes = minutes
        self.requeues = requeues
        self.options = dict(options or {})

    def results(self, orders: Sequence[Order], stop_signal: Callable[[], int | None]) -> Iterator[tuple[int, Answer]]:
        waiting = list(enumerate(orders))
        running: dict[int, Any] = {}
        if not orders:
            return
        executor = self._executor(orders[0]["name"])
        # Slurm limits an array by itself, so that all jobs are there when this command is left
        limit = len(waiting) if self.executor == "slurm" else self.workers
        while waiting or running:
            if stop_signal():
                if running:
                    print(
                        f"{len(running)} jobs continue without this command; the same command collects them", flush=True
                    )
                return
            if chosen := waiting[: limit - len(running)]:
                waiting = waiting[len(chosen) :]
                with executor.batch() if self.executor == "slurm" else contextlib.nullcontext():
                    submitted = [executor.submit(Submitted(order)) for _, order in chosen]
                running |= {index: job for (index, _), job in zip(chosen, submitted, strict=True)}
            for index in [index for index, job in running.items() if job.done()]:
                yield index, _answer(running.pop(index))
            time.sleep(_POLL if running else 0)

    def close(self) -> None:
        """Nothing of the jobs is this process's."""

    def _executor(self, sweep: str) -> Any:
        import submitit

        folder = (ROOT / sweep / ".submitit").resolve()
        try:
            executor = submitit.AutoExecutor(
                folder=folder, cluster=self.executor, **{f"{self.executor}_max_num_timeout": self.requeues}
            )
            arrays = {"slurm_array_parallelism": self.workers} if self.executor == "slurm" else {}
            executor.update_parameters(name=sweep, timeout_min=self.minutes, **arrays, **self.options)
        except (RuntimeError, TypeError, ValueError, NameError) as error:
            raise ConfigError(f"launcher: submitit refuses it: {str(error).splitlines()[0]}") from error
        return executor


def _answer(job: Any) -> Answer:
    """How a job ended."""
    try:
        answer: Answer = job.result()
        return answer
    except Exception as error:  # any error raised through submitit
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"job {job.job_id}: {lines[-1]}; the same command continues it"
        return {"status": LOST, "exit": 1, "reason": reason}


class Submitted:
    """The function that the scheduler's machine runs: it trains one job in a new process.

    submitit pickles it; ``checkpoint`` is what it calls when the scheduler takes the machine away.

    Args:
        order: of the job.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._job: OneJob | None = None

    def __call__(self) -> Answer:
        """Train; raises RuntimeError where the process that trains ended without an answer."""
        self._job = OneJob(self.order)
        return self._job.answer()

    def checkpoint(self) -> Any:
        """Let the run save and stop; the same job is requeued."""
        from submitit.helpers import DelayedSubmission

        if self._job is not None:
            self._job.stop(_SAVING)
        return DelayedSubmission(Submitted(self.order))

    def __getstate__(self) -> dict[str, Any]:
        return {"order": self.order, "_job": None}

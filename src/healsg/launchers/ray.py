"""``launcher=ray``: each job of a sweep as a task of Ray, on a cluster that has no Slurm; or on this machine.

All machines of the cluster see the folder of the runs, and have HEALSg installed. A task whose machine is lost only
fails its row of the table, and the same command resumes its run. The tasks end with the command: they save and stop on
a stop signal, and Ray kills them if the command is killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from healsg.errors import ConfigError, one_line
from healsg.launchers.one_job import OneJob
from healsg.paths import current_folder
from healsg.sweeps.launcher import LOST, Answer, JobLauncher, Order
from healsg.types import Count

_POLL = 0.5
"""Seconds between two checks for a stop signal."""

_SAVING = 90.0
"""Seconds that a task has to save after a stop request."""


class RayLauncher(JobLauncher):
    """Runs the jobs of a sweep as tasks of Ray.

    Args:
        workers: jobs that run in parallel.
        address: of the cluster's head, such as ``auto`` on one of its machines; None starts one on this machine.
        options: resources of a task, as Ray's ``options``, such as ``{num_cpus: 4, num_gpus: 1}``.
    """

    def __init__(
        self, workers: Count = 2, address: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        if find_spec("ray") is None:
            raise ConfigError("launcher: needs ray; pip install 'healsg[ray]'")
        self.workers = workers
        self.address = address
        self.options = dict(options or {})
        self._ray: Any = None
        """The module, once the first job is to run."""

    def results(self, orders: Sequence[Order], stop_signal: Callable[[], int | None]) -> Iterator[tuple[int, Answer]]:
        if not orders:
            return
        ray, task = self._connected()
        waiting = list(enumerate(orders))
        running: dict[Any, int] = {}
        signalled: int | None = None
        folder = str(current_folder())
        while waiting or running:
            if signalled is None and (signalled := stop_signal()):
                waiting.clear()
                for reference in running:
                    ray.cancel(reference, force=False)
            while waiting and len(running) < self.workers:
                index, order = waiting.pop(0)
                running[task.remote(order, folder)] = index
            if running:
                for reference in ray.wait(list(running), num_returns=1, timeout=_POLL)[0]:
                    yield running.pop(reference), _answer(ray, reference, signalled)

    def close(self) -> None:
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None

    def _connected(self) -> tuple[Any, Any]:
        """Ray, connected, and the task. Raises ConfigError if there is no such cluster, or no such option."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            if self._ray is None:
                room = None if self.address else self.workers * max(1, int(self.options.get("num_cpus", 1)))
                ray.init(
                    self.address, num_cpus=room, include_dashboard=None if self.address else False, log_to_driver=False
                )
            self._ray = ray
            return ray, ray.remote(max_retries=0, **self.options)(_train)
        except (ValueError, TypeError, RuntimeError, ConnectionError) as error:
            raise ConfigError(f"launcher: ray refuses it: {one_line(error)}") from error


def _train(order: Order, folder: str) -> Answer:
    """The task on a machine of the cluster: it trains one job in a new process."""
    job = OneJob(order, folder)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.answer)
        try:
            while not waiting.done():  # Ray interrupts only Python code, not a blocking read
                time.sleep(_POLL / 5)
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                job.stop(_SAVING)
        return waiting.result()


def _answer(ray: Any, reference: Any, signalled: int | None) -> Answer:
    """How a task ended; ``signalled`` is the stop signal that it was sent."""
    try:
        answer: Answer = ray.get(reference)
        return answer
    except Exception as error:  # any error raised through Ray
        if signalled is not None:
            return {"status": "stopped", "exit": 128 + signalled}
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"status": LOST, "exit": 1, "reason": f"{lines[-1].strip()}; the same command continues it"}

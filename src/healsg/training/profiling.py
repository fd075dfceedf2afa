"""``runner.profile``: where the time of a few updates goes, as a trace and a table in the run's folder."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from healsg import safefiles
from healsg.errors import one_line

TRACE = "trace.json.gz"
"""For chrome://tracing and https://ui.perfetto.dev."""

TABLE = "profile.txt"

WAIT = 5
"""Updates before the profiler starts."""

WARM = 2
"""Updates of its warm-up."""

ACTIVE = 8
"""Updates that it records."""

ROWS = 40
"""The most rows of the table."""

log = logging.getLogger("healsg")


class Profiling:
    """Records the updates 8 to 15 of this process; of a shorter run those that there were.

    Args:
        enabled: whether to record; otherwise it does nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._profiler: Any = None

    @contextlib.contextmanager
    def recording(self, folder: Path, device: torch.device) -> Iterator[None]:
        """A context around the loop. The files are written as soon as the updates are recorded.

        Args:
            folder: the run's folder.
            device: recorded in addition to the CPU.
        """
        if not self.enabled:
            yield
            return
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(
            activities=[kinds.CPU, *[kinds.CUDA] * (device.type == "cuda")],
            schedule=torch.profiler.schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1),
            on_trace_ready=lambda profiler: write(profiler, folder, device),
        ) as profiler:
            self._profiler = profiler
            try:
                yield
            finally:
                self._profiler = None

    def step(self) -> None:
        """An update is complete."""
        if self._profiler is not None:
            self._profiler.step()


def write(profiler: Any, folder: Path, device: torch.device) -> None:
    """Write the trace and the table; if that fails, the run continues without them."""
    order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
    try:
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        with tempfile.TemporaryDirectory() as temporary:
            trace = Path(temporary, TRACE)
            profiler.export_chrome_trace(str(trace))
            files = {
                TRACE: trace.read_bytes(),
                TABLE: f"{ACTIVE} updates at most, the costliest first\n{table}\n".encode(),
            }
        for name, content in files.items():
            with safefiles.replacing(folder / name) as file:
                file.write(content)
    except (OSError, RuntimeError, AssertionError) as error:
        log.warning("runner.profile: nothing was written: %s", one_line(error))
        return
    log.info("runner.profile: %s (a table) and %s are written", TABLE, TRACE)

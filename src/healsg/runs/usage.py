"""The resources that a run has used: CPU and wall time, memory, disk; ``usage`` in ``run.json``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from healsg import system


class Usage:
    """Counts from its creation, at the start of ``TaskTrainer.train``, i.e. without the time of imports."""

    def __init__(self) -> None:
        self._cpu = system.cpu_seconds()
        self._wall = time.monotonic()

    def so_far(self, folder: Path, before: Any = None) -> dict[str, Any]:
        """CPU and wall seconds of the run, the peak of the process's memory, and the bytes of the run's folder.

        Args:
            folder: the run's folder.
            before: the record of an earlier process of the same run, whose seconds are added.
        """
        known = before if isinstance(before, dict) else {}
        spent = {"cpu_seconds": system.cpu_seconds() - self._cpu, "wall_seconds": time.monotonic() - self._wall}
        return {
            **{key: round(value + _number(known.get(key)), 3) for key, value in spent.items()},
            "peak_memory": max(system.peak_memory() or 0, int(_number(known.get("peak_memory")))) or None,
            "disk": folder_size(folder),
            "processes": int(_number(known.get("processes"))) + 1,
        }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def folder_size(folder: Path) -> int:
    """The bytes of the files below a folder; hard links of a file count once, and symbolic links are not followed."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(parent, name).lstat()
            except OSError:  # it has just been replaced
                continue
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())

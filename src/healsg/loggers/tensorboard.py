"""Curves for TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from healsg.errors import ConfigError
from healsg.loggers.media import drawn, levels_of, markdown
from healsg.runs.logger import Logger
from healsg.runs.media import read
from healsg.safefiles import make_folder
from healsg.types import Positive


class TensorBoard(Logger):
    """Curves for TensorBoard over the updates, in the run's folder ``tensorboard``; refused where not installed.

    Args:
        flush_seconds: seconds between two writes to the file.
    """

    def __init__(self, flush_seconds: Positive = 10.0) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("logger.tensorboard: not installed; pip install healsg[tensorboard]")
        self.flush_seconds, self.step = flush_seconds, 0
        self.writer: Any = None

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = int(record.get("step") or 0)
        purge = self.step + 1 if record.get("resumed") else None
        make_folder(folder / "tensorboard")
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, flush_secs=self.flush_seconds)

    def log(self, line: dict[str, Any]) -> None:
        self.step = int(line.get("step", self.step))
        for key, value in line.items():
            if isinstance(value, int | float) and key not in ("step", "epoch", "best"):
                self.writer.add_scalar(key, value, self.step)

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        content = read(folder, entry)
        step = self.step if entry["step"] is None else entry["step"]
        if entry["kind"] == "table":
            self.writer.add_text(entry["name"], markdown(content), step)
            return
        image = content if entry["kind"] == "image" else drawn(content)
        self.writer.add_image(entry["name"], levels_of(image), step, dataformats="HWC")

    def finish(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()

"""Session: the screen, the log, the metrics and their loggers of a run; it also records how the run ended."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
from pathlib import Path
from types import TracebackType
from typing import Any

from healsg import distributed, logs, safefiles
from healsg.build import leaf
from healsg.config.schema import Composed
from healsg.errors import HealsgError, Stopped
from healsg.runs import redact
from healsg.runs.folder import RunFolder
from healsg.runs.heartbeat import Heartbeat
from healsg.runs.logger import Logger
from healsg.runs.media import MediaLog
from healsg.runs.metrics_log import MetricsLog
from healsg.runs.usage import Usage
from healsg.training.progress import Progress

log = logging.getLogger("healsg")


class Session:
    """A context manager around a run in its folder. It suppresses a stop, which is not a failure; errors propagate.

    Args:
        composed: the run's configuration.
        folder: its locked folder, which is unlocked at the end.
        progress: the progress that the screen shows.
        loggers: further receivers of the metrics, by name.
        usage: the resources that the run has used since its start.
    """

    def __init__(
        self,
        composed: Composed,
        folder: RunFolder,
        progress: Progress,
        loggers: dict[str, Logger] | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.usage = usage or Usage()
        self.composed = composed
        self.folder = folder
        self.progress = progress
        self.loggers = loggers or {}
        quiet = composed.values["quiet"] or distributed.processes().rank != 0
        self.screen = leaf("screen.make_display")(progress, quiet=quiet)
        self.metrics_log: MetricsLog | None = None
        self.media_log: MediaLog | None = None
        self.result: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        folder = self.folder
        is_first_rank = distributed.processes().rank == 0
        with contextlib.ExitStack() as stack:
            stack.callback(folder.unlock)
            stack.enter_context(self.screen)
            stack.enter_context(_logging(folder, self.screen.handler(), is_first_rank))
            if is_first_rank:
                background = leaf("background.Background")
                self.metrics_log = MetricsLog(
                    folder.metrics, {name: background(logger, name) for name, logger in self.loggers.items()}
                )
                self.media_log = MediaLog(folder.path, self.metrics_log.forward_media)
                stack.enter_context(Heartbeat(folder.path / "run.json"))
            self.screen.begin(str(folder.shown))
            self._stack = stack.pop_all()
        return self

    def begin(self, facts: dict[str, Any], step: int) -> None:
        """Record the facts about the built task, which is at ``step``, and open the loggers."""
        if self.metrics_log:
            self.folder.note(**redact.config(facts))
            config = redact.config(self.composed.values)
            detail = {"name": self.folder.path.name, "config": config, "resumed": step > 0, "step": step}
            self.metrics_log.start(detail)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        stopped = isinstance(error, (Stopped, KeyboardInterrupt))
        status = "finished" if error is None else "stopped" if stopped else "failed"
        reason = None if error is None else redact.text(str(error) or "stopped by SIGINT")
        if error is not None and status == "failed" and not isinstance(error, HealsgError):
            reason = f"{type(error).__name__}: {reason}"
            log.debug("%s", redact.trace(error))
        with self._stack:
            if self.metrics_log:
                with contextlib.suppress(OSError):
                    self.folder.ended("running", reason)  # until all is written, so that a kill here can be resumed
                self.metrics_log.close(status)
                with contextlib.suppress(OSError):
                    used = self.usage.so_far(self.folder.path, self.folder.record.get("usage"))
                    self.folder.note(status=status, usage=used)
                    if status == "finished" and not self.composed.values["runner"].get("keep_last", True):
                        self.folder.drop_last()  # at the very end, so that a kill may only leave a file too many
            if status != "failed":
                self._report_end(status, reason, getattr(error, "status", 130) if stopped else 0)
        return stopped

    def lost(self, status: str, reason: str) -> None:
        """Record the end of a run whose main thread hangs, e.g. in a collective."""
        if self.metrics_log:
            with contextlib.suppress(OSError):
                self.folder.ended(status, redact.text(reason))

    def _report_end(self, status: str, reason: str | None, code: int) -> None:
        """Show the results, the run's folder, and how to continue."""
        path, record = self.folder.path, self.folder.record if self.metrics_log else {}
        results = {key: record.get(key) for key in ("best", "test", "digest")}
        self.result = {"name": path.name, "folder": str(path), "status": status, "exit": code, **results}
        numbers = dict(record.get("test") or {})
        if best := record.get("best"):
            numbers = {f"best {best['monitor']}": best["value"], **numbers}
        detail = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if isinstance(value, float))
        finished = status == "finished"
        run = shlex.quote(str(self.folder.shown))
        go_on = f"healsg eval {run} split=val" if finished else f"healsg resume {run}"
        report = self.folder.shown / "report.html"
        lines = [
            *[detail] * (finished and bool(detail)),
            f"{reason or status}: {self.folder.shown}",
            *[f"report: {report}"] * (finished and (path / report.name).is_file()),
            f"next: {go_on}{', or predict, export, serve' * finished}",
        ]
        self.screen.end(lines)
        log.debug("\n".join(lines))


class _LogFile(logging.FileHandler):
    """``train.log``; a full disk is reported by the files that must be written, not by the log."""

    def _open(self) -> io.TextIOWrapper:
        return safefiles.open_text_to_append(Path(self.baseFilename))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _Line(logging.Formatter):
    """A line of the log without secrets. One that says that it holds only numbers (``only_numbers``) has none."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if getattr(record, "only_numbers", False) else redact.text(line)


@contextlib.contextmanager
def _logging(folder: RunFolder, screen: logging.Handler, is_first_rank: bool) -> Any:
    """A context in which log messages are sent to the screen and, on rank 0, to ``train.log``."""
    handlers = [screen]
    screen.setFormatter(_Line())
    screen.setLevel(logging.INFO if is_first_rank else logging.ERROR)
    if is_first_rank:
        file = _LogFile(folder.path / "train.log", encoding="utf-8")
        file.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    try:
        with logs.handled_by(handlers, logging.DEBUG):
            yield
    finally:
        for handler in handlers:
            handler.close()

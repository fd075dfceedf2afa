"""Loggers: mirrors of a run's metrics. The local files are the truth; a mirror that breaks never hurts a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from healsg.errors import ConfigError
from healsg.types import Positive

log = logging.getLogger("healsg")


class Logger:
    """A mirror of a run's metrics. What it raises never hurts the run: the journal drops it with one line."""

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        """Begin with the run in ``folder``; ``record`` holds its ``name``, ``config``, ``resumed`` and ``step``."""

    def log(self, line: dict[str, Any]) -> None:
        """Take one line of ``metrics.jsonl``."""

    def finish(self, status: str) -> None:
        """The run has ended as ``finished``, ``stopped`` or ``failed``."""


class Background(Logger):
    """Runs ``mirror`` in a thread of its own, so that however slow or broken it is the run waits a bounded time.

    ``start`` waits at most ``patience`` seconds and ``finish`` ``grace``; when ``size`` lines wait, more are dropped.
    """

    def __init__(self, mirror: Logger, name: str, patience: float = 9.0, grace: float = 5.0, size: int = 9999) -> None:
        self.mirror, self.name, self.patience, self.grace = mirror, name, patience, grace
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue(size)
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"healsg-{name}", daemon=True)

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        self.calls.put((self.mirror.start, folder, record))
        self.thread.start()
        self.started.wait(self.patience)

    def log(self, line: dict[str, Any]) -> None:
        if self.thread.is_alive() and not self.calls.full():
            self.calls.put_nowait((self.mirror.log, dict(line)))

    def finish(self, status: str) -> None:
        end = time.monotonic() + self.grace
        if self.thread.is_alive():
            with contextlib.suppress(queue.Full):
                self.calls.put((self.mirror.finish, status), timeout=self.grace)
            self.thread.join(max(0.0, end - time.monotonic()))
        if self.thread.is_alive():
            log.warning("%s is still busy; what it lacks is in metrics.jsonl", self.name)

    def _work(self) -> None:
        call: Any = None
        while call != self.mirror.finish:
            call, *arguments = self.calls.get()
            try:
                call(*arguments)
            except (Exception, SystemExit) as error:
                log.warning("%s is left out from here on: %s", self.name, " ".join(str(error).split()) or repr(error))
                break
            finally:
                self.started.set()


class TensorBoard(Logger):
    """Curves for TensorBoard over the updates, in the run's folder ``tensorboard``; refused where not installed.

    Args:
        flush_seconds: how often what is new is written to the file.
    """

    def __init__(self, flush_seconds: Positive = 10.0) -> None:
        self.flush_seconds, self.step = flush_seconds, 0
        self.writer: Any = None

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("logger.tensorboard: not installed; pip install healsg[tensorboard]") from error
        self.step = int(record.get("step") or 0)
        purge = self.step + 1 if record.get("resumed") else None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, flush_secs=self.flush_seconds)

    def log(self, line: dict[str, Any]) -> None:
        self.step = int(line.get("step", self.step))
        for key, value in line.items():
            if isinstance(value, int | float) and key not in ("step", "epoch", "best"):
                self.writer.add_scalar(key, value, self.step)

    def finish(self, status: str) -> None:
        if self.writer is not None:
            self.writer.close()


class Wandb(Logger):
    """Curves at Weights & Biases, or in the run's folder ``wandb`` where there is no key or no network.

    The client runs in a process of its own: it may hang, crash or print without the run noticing. The key is its own
    business (``wandb login`` or WANDB_API_KEY). ``wandb.json`` keeps the id that a resumed run goes on with.

    Args:
        project: the project's name.
        group: a name under which runs are shown together.
        name: the run's name there; its name here where it is None.
        mode: ``online``, ``offline`` (for ``wandb sync``) or ``disabled``; WANDB_MODE goes before ``online``.
        timeout: seconds in which the server must answer before the run goes on offline.
    """

    def __init__(
        self,
        project: str = "healsg",
        group: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        timeout: Positive = 8.0,
    ) -> None:
        self.project, self.group, self.name, self.mode, self.timeout = project, group, name, mode, timeout
        self.background = Logger()

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "online") if self.mode == "online" else self.mode
        if mode != "disabled":
            names = {"project": self.project, "group": self.group, "name": self.name or record.get("name")}
            self.background = Background(_Client(names, mode == "online", self.timeout), "wandb", self.timeout + 1)
            self.background.start(folder, record)

    def log(self, line: dict[str, Any]) -> None:
        self.background.log(line)

    def finish(self, status: str) -> None:
        self.background.finish(status)


class _Client(Logger):
    """The near end of the process in which wandb runs; its calls may take long."""

    def __init__(self, names: dict[str, Any], online: bool, timeout: float) -> None:
        self.names, self.online, self.timeout = names, online, timeout

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        path = folder / "wandb.json"
        key = json.loads(path.read_text())["id"] if path.exists() else uuid.uuid4().hex[:8]
        path.write_text(json.dumps({"id": key}) + "\n")
        init = {
            **self.names,
            "id": key,
            "resume": "allow",
            "dir": str(folder.resolve()),
            "config": record.get("config"),
        }
        upload = f"wandb sync {folder / 'wandb'}"
        if self.online:
            self.upload = f"{upload}/run-*-{key}"
            url, trouble = self._open({**init, "mode": "online"}, self.timeout)
            if not trouble:
                return log.info("wandb: %s", url)
            log.warning("wandb goes on offline (%s); to upload later: %s/offline-run-*-%s", trouble, upload, key)
        self.upload = f"{upload}/offline-run-*-{key}"
        if trouble := self._open({**init, "mode": "offline"}, 60.0)[1]:
            raise RuntimeError(trouble)

    def log(self, line: dict[str, Any]) -> None:
        self._send({key: value for key, value in line.items() if isinstance(value, int | float)})

    def finish(self, status: str) -> None:
        self._send({"finish": status})
        try:
            self.process.communicate(timeout=4.0)
        except subprocess.TimeoutExpired:
            log.warning("wandb is still uploading; if curves are missing there: %s", self.upload)

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message, default=str), file=self.process.stdin, flush=True)

    def _open(self, init: dict[str, Any], seconds: float) -> tuple[str, str]:
        """Start the process; its answer is the run's address there, or the trouble it had."""
        program = "import sys; sys.path.append(sys.argv.pop()); from healsg.loggers import serve_wandb; serve_wandb()"
        command = [sys.executable, "-P", "-c", program, str(Path(__file__).parents[1])]
        own: dict[str, Any] = {"env": {**os.environ, "WANDB_SERVICE": "", "WANDB_ERROR_REPORTING": "false"}}
        own |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, start_new_session=True, **own)
        killer = threading.Timer(seconds, self.process.kill)
        killer.daemon = True
        killer.start()
        self._send({"init": init, "timeout": seconds, "pid": os.getpid()})
        answer = self.process.stdout.readline() if self.process.stdout else ""
        killer.cancel()
        url, trouble = json.loads(answer) if answer else ("", f"no answer within {seconds:g} s")
        if trouble:
            self.process.communicate()
        return url, trouble


def serve_wandb() -> None:
    """The far end: open the run, log what stdin says until told to finish or until the run's process has gone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    try:
        import wandb

        if order["init"]["mode"] == "online":
            _connect(wandb.setup().settings.base_url)
        wanted = {"console": "off", "silent": True, "init_timeout": order["timeout"], "x_stats_pid": order["pid"]}
        settings = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        run = wandb.init(**order["init"], settings=wandb.Settings(**settings))
        run.define_metric("*", step_metric="step")
        answer = [run.url or "", ""]
    except Exception as error:
        answer = ["", " ".join(str(error).split())[:200] or repr(error)]
    print(json.dumps(answer), file=answers, flush=True)
    if answer[1]:
        os._exit(1)
    message: dict[str, Any] = {}
    for text in sys.stdin:
        message = json.loads(text)
        if "finish" in message:
            break
        run.log(message)
    threading.Timer(60, os._exit, (1,)).start()
    run.finish(exit_code=int(message.get("finish", "failed") == "failed"))
    os._exit(0)


def _connect(url: str) -> None:
    """Raise OSError where within 3 s nobody answers at ``url``, or at the proxy on the way to it."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), 3.0).close()

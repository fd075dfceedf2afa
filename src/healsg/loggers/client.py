"""Loggers whose client runs in a process of its own: it may hang, crash or print without the run noticing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from healsg import system
from healsg.paths import current_folder
from healsg.runs import redact
from healsg.runs.folder import write_text
from healsg.runs.logger import Logger
from healsg.runs.media import entries
from healsg.runs.provenance import within_run
from healsg.runs.record import row_of
from healsg.safefiles import make_folder, open_text_to_append, open_to_read, read_bytes

log = logging.getLogger("healsg")

LARGEST = 1 << 28
"""Bytes of a table or plot that a client reads."""
CLOSING = 4.0
"""Seconds that the end of a run waits for its client to have sent the rest."""


class ClientRun(Protocol):
    """A run at the service, in the client's own process."""

    url: str

    def log(self, numbers: dict[str, Any]) -> None:
        """Log numbers by name, ``step`` among them."""

    def media(self, entry: dict[str, Any], path: Path) -> None:
        """Log an image, a table or a plot, given as its line in ``media.jsonl`` and its file."""

    def finish(self, failed: bool) -> None:
        """End the run."""


class Client(Logger):
    """A logger that sends the run's numbers and media to a client in a process of its own. ``NAME.json`` in the run's
    folder stores the id with which a resumed run continues.

    Args:
        project, group, name: names of the project, of the group of runs, and of the run; None is the run's own name.
        timeout: seconds in which the server must answer.
    """

    title: ClassVar[str]
    """The client's package, which is also the name of its folder in the run's folder."""
    environment: ClassVar[dict[str, str]] = {}
    """Variables that the client's process gets."""

    def __init__(self, project: str, group: str | None, name: str | None, timeout: float) -> None:
        self.project = project
        self.group = group
        self.name = name
        self.timeout = timeout
        self.patience = timeout + 1
        self.process: subprocess.Popen[str] | None = None
        self.upload = ""
        """The command that uploads the curves later; known once the run is open."""

    def prepare(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        """Create the client's folder and the run's id; returns the arguments with which the client opens the run."""
        names = {"project": self.project, "group": self.group, "name": self.name or record.get("name")}
        path = folder / f"{self.title}.json"
        key = _known_id(path) or self.assigned_id() or uuid.uuid4().hex[:8]
        make_folder(folder / self.title)
        write_text(path, json.dumps({"id": key}) + "\n")
        init = {name: value and redact.text(value) for name, value in names.items()}
        return init | {"id": key, "resume": "allow", "dir": str(folder.resolve()), "config": record.get("config")}

    def assigned_id(self) -> str | None:
        """The run's id from the environment of this process; None if there is none."""
        return None

    def log(self, line: dict[str, Any]) -> None:
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
        self._send({"numbers": numbers, "key": f"{line.get('event')} {line['step']}" if "step" in line else None})

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        self._send({"media": entry, "path": str((folder / entry["file"]).resolve())})

    def finish(self, status: str) -> None:
        self._send({"finish": status})
        try:
            if self.process:
                self.process.communicate(timeout=CLOSING)
                self._check()
        except subprocess.TimeoutExpired:
            log.warning("%s is still uploading; if curves are missing there: %s", self.title, self.upload)

    def catch_up(self, folder: Path) -> None:
        """Send the lines that the run has already logged; the client skips those it has shown. (A kill may have come
        between writing a line and sending it.)"""
        with contextlib.suppress(OSError), open_to_read(folder / "metrics.jsonl") as lines:
            for row in map(row_of, lines):
                if row is not None:
                    self.log(row)
        for entry in entries(folder):
            self.media(folder, entry)

    def open(self, init: dict[str, Any], seconds: float) -> tuple[str, str]:
        """Start the process; it answers with the run's URL or its error."""
        self.process = subprocess.Popen(
            system.program(f"healsg.loggers.{self.title}", f"serve_{self.title}"),
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment},
            cwd=_trusted_folder(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        answer = ""
        with system.killed_after(self.process, seconds), contextlib.suppress(BrokenPipeError):
            self._send({"init": init, "timeout": seconds, "pid": os.getpid()})
            answer = self.process.stdout.readline() if self.process.stdout else ""
        url, trouble = json.loads(answer) if answer else ("", f"no answer within {seconds:g} s")
        if trouble:
            self.process.communicate()
            self.process = None
        return url, trouble

    def _check(self) -> None:
        if self.process and self.process.poll():
            raise RuntimeError(f"its process ended with status {self.process.returncode}")

    def _send(self, message: dict[str, Any]) -> None:
        self._check()
        if self.process:
            print(json.dumps(message, default=str), file=self.process.stdin, flush=True)


def _known_id(path: Path) -> str | None:
    """The id in ``NAME.json``; None if there is none, or one that is unsafe in a printed command."""
    try:
        known = json.loads(read_bytes(path, 1 << 16))["id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return plain_id(known)


def plain_id(identifier: Any) -> str | None:
    """An id as it is; None if it is none, or unsafe in a printed command."""
    return identifier if isinstance(identifier, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", identifier) else None


def _trusted_folder() -> Path:
    """The directory in which the client is started. The client takes settings, such as the server that gets the key,
    from the file ``wandb/settings`` there; so it must not be a run folder, which may come from somebody else."""
    here = current_folder()
    return here if here.is_dir() and not within_run(here) else Path("/")


# --- the client's process ---------------------------------------------------------------------------------------------


def serve(title: str, open_run: Callable[[dict[str, Any]], ClientRun]) -> None:
    """Open the run, and log the messages from stdin until the finish message or until the run's process is gone.

    Args:
        title: see ``Client``.
        open_run: from the first message to the run; its exceptions are reported to the run.
    """
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # which the client's processes do not inherit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    order = json.loads(orders.readline())
    temporary = tempfile.mkdtemp(prefix=f"healsg-{title}-")
    os.environ["TMPDIR"] = tempfile.tempdir = temporary  # clients remove their files at an exit that does not happen
    try:
        run = open_run(order)
        answer = [run.url, ""]
    except Exception as error:
        answer = ["", " ".join(str(error).split())[:200] or repr(error)]
    print(json.dumps(answer), file=answers, flush=True)
    if answer[1]:
        _exit(1, temporary)
    message: dict[str, Any] = {}
    sent = Sent(Path(order["init"]["dir"]) / title / f"sent-{order['init']['id']}")
    for text in orders:
        message = json.loads(text)
        if "finish" in message:
            break
        log_message(run, message, sent)
    threading.Timer(60, _exit, (1, temporary)).start()
    run.finish(message.get("finish", "failed") == "failed")
    _exit(0, temporary)


def _exit(status: int, temporary: str) -> None:
    """End the process without waiting for the client's threads, which may hang."""
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(status)


def log_message(run: ClientRun, message: dict[str, Any], sent: Sent) -> None:
    """Log one message, unless it was logged before."""
    if "media" not in message:
        if sent.add(message["key"]):
            run.log(message["numbers"])
        return
    entry = message["media"]
    if sent.add(f"{entry['kind']} {entry['name']} {entry['epoch']} {entry['step']}"):
        try:
            run.media(entry, Path(message["path"]))
        except Exception as error:  # the client may reject a medium; scalars are still logged
            print(f"{message['path']}: {error}", file=sys.stderr)


class Sent:
    """The lines that were sent under one id, so that those which a resumed run writes again are not logged twice.

    Args:
        path: the file with the key of each; its last line may be truncated.
    """

    def __init__(self, path: Path) -> None:
        self.file = open_text_to_append(path)
        self.file.seek(0)
        self.keys = set(self.file.read().splitlines())
        self.file.write("\n")

    def add(self, key: str | None) -> bool:
        """Add a line's key; returns whether it is new. A line without a key is always new."""
        if key is None:
            return True
        key = json.dumps(key)
        if key in self.keys:
            return False
        self.keys.add(key)
        self.file.write(f"{key}\n")
        self.file.flush()
        return True

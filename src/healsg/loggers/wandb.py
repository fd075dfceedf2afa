"""Curves at Weights & Biases, whose client runs in a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from healsg.paths import current_folder, shown
from healsg.runs import redact
from healsg.runs.folder import write_text
from healsg.runs.logger import Logger
from healsg.runs.media import entries
from healsg.runs.provenance import within_run
from healsg.runs.record import row_of
from healsg.safefiles import make_folder, open_text_to_append, open_to_read, read_bytes
from healsg.types import Positive

log = logging.getLogger("healsg")


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
        self.project = project
        self.group = group
        self.name = name
        self.mode = mode
        self.timeout = timeout
        self.patience = timeout + 1
        self.process: subprocess.Popen[str] | None = None
        self.upload = ""
        """The command that uploads the curves later; known once the run is."""

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "online") if self.mode == "online" else self.mode
        if mode == "disabled":
            return
        path = folder / "wandb.json"
        key = _known_id(path) or uuid.uuid4().hex[:8]
        make_folder(folder / "wandb")
        write_text(path, json.dumps({"id": key}) + "\n")
        names = {"project": self.project, "group": self.group, "name": self.name or record.get("name")}
        init = {name: value and redact.text(value) for name, value in names.items()}
        init |= {"id": key, "resume": "allow", "dir": str(folder.resolve()), "config": record.get("config")}
        upload = f"wandb sync {shlex.quote(str(shown(folder) / 'wandb'))}"
        if mode == "online":
            self.upload = f"{upload}/run-*-{key}"
            url, trouble = self._open({**init, "mode": "online"}, self.timeout)
            if not trouble:
                log.info("wandb: %s", url)
                return self._catch_up(folder)
        self.upload = f"{upload}/offline-run-*-{key}"
        if failure := self._open({**init, "mode": "offline"}, 60.0)[1]:
            self.process = None
            raise RuntimeError(failure)
        if mode == "online":
            log.warning("wandb goes on offline (%s); to upload later: %s", trouble, self.upload)
        self._catch_up(folder)

    def _catch_up(self, folder: Path) -> None:
        """Send the lines that the run has already, of which the far end leaves out those that were shown: a kill may
        have come between the writing of a line and its sending."""
        with contextlib.suppress(OSError), open_to_read(folder / "metrics.jsonl") as lines:
            for row in map(row_of, lines):
                if row is not None:
                    self.log(row)
        for entry in entries(folder):
            self.media(folder, entry)

    def log(self, line: dict[str, Any]) -> None:
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
        self._send({"numbers": numbers, "key": f"{line.get('event')} {line['step']}" if "step" in line else None})

    def media(self, folder: Path, entry: dict[str, Any]) -> None:
        self._send({"media": entry, "path": str((folder / entry["file"]).resolve())})

    def finish(self, status: str) -> None:
        self._send({"finish": status})
        try:
            if self.process:
                self.process.communicate(timeout=4.0)
                self._check()
        except subprocess.TimeoutExpired:
            log.warning("wandb is still uploading; if curves are missing there: %s", self.upload)

    def _check(self) -> None:
        if self.process and self.process.poll():
            raise RuntimeError(f"its process ended with status {self.process.returncode}")

    def _send(self, message: dict[str, Any]) -> None:
        self._check()
        if self.process:
            print(json.dumps(message, default=str), file=self.process.stdin, flush=True)

    def _open(self, init: dict[str, Any], seconds: float) -> tuple[str, str]:
        """Start the process; its answer is the run's address there, or the trouble it had."""
        program = (
            "import sys; sys.path.append(sys.argv.pop()); from healsg.loggers.wandb import serve_wandb; serve_wandb()"
        )
        command = [sys.executable, "-P", "-c", program, str(Path(__file__).parents[2])]
        own: dict[str, Any] = {"env": {**os.environ, "WANDB_SERVICE": "", "WANDB_ERROR_REPORTING": "false"}}
        own |= {
            "cwd": _trusted_folder(),
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.DEVNULL,
        }
        self.process = subprocess.Popen(command, text=True, start_new_session=True, **own)
        killer = threading.Timer(seconds, self.process.kill)
        killer.daemon = True
        killer.start()
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._send({"init": init, "timeout": seconds, "pid": os.getpid()})
            answer = self.process.stdout.readline() if self.process.stdout else ""
        killer.cancel()
        url, trouble = json.loads(answer) if answer else ("", f"no answer within {seconds:g} s")
        if trouble:
            self.process.communicate()
        return url, trouble


def _known_id(path: Path) -> str | None:
    """The id in ``wandb.json``; None where there is none, or one that is odd in a command that is shown."""
    try:
        known = json.loads(read_bytes(path, 1 << 16))["id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return known if isinstance(known, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", known) else None


def _trusted_folder() -> Path:
    """Where the client is started: it takes settings, such as the server to which the key is sent, from the file
    ``wandb/settings`` of the current directory, which may be a run from somebody else."""
    here = current_folder()
    return here if here.is_dir() and not within_run(here) else Path("/")


def serve_wandb() -> None:
    """The far end: open the run, log what stdin says until told to finish or until the run's process has gone."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # which wandb's own processes do not inherit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    order = json.loads(orders.readline())
    try:
        import wandb

        if order["init"]["mode"] == "online":
            _connect(wandb.setup().settings.base_url)
        wanted = {"console": "off", "silent": True, "init_timeout": order["timeout"], "x_stats_pid": order["pid"]}
        wanted |= {"disable_git": True, "disable_code": True}  # a remote's address and a patch may hold secrets
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
    sent = Sent(Path(order["init"]["dir"]) / "wandb" / f"sent-{order['init']['id']}")
    for text in orders:
        message = json.loads(text)
        if "finish" in message:
            break
        if "media" in message:
            entry = message["media"]
            if sent.add(f"{entry['kind']} {entry['name']} {entry['epoch']} {entry['step']}"):
                log_media(wandb, run, entry, Path(message["path"]))
        elif sent.add(message["key"]):
            run.log(message["numbers"])
    threading.Timer(60, os._exit, (1,)).start()
    run.finish(exit_code=int(message.get("finish", "failed") == "failed"))
    os._exit(0)


class Sent:
    """What the runs of one id were shown, so that lines that a resumed run writes again are not shown twice.

    Args:
        path: a line for each; it may end in the half of one.
    """

    def __init__(self, path: Path) -> None:
        self.file = open_text_to_append(path)
        self.file.seek(0)
        self.keys = set(self.file.read().splitlines())
        self.file.write("\n")

    def add(self, key: str | None) -> bool:
        """Whether this is new, or has no key; from now on it is known."""
        if key is None:
            return True
        key = json.dumps(key)
        if key in self.keys:
            return False
        self.keys.add(key)
        self.file.write(f"{key}\n")
        self.file.flush()
        return True


def log_media(wandb: Any, run: Any, entry: dict[str, Any], path: Path) -> None:
    """Log an image, a table or a plot with the client's own types; one that cannot be read is left out.

    Args:
        wandb: the client.
        run: its run.
        entry: the line of ``media.jsonl``.
        path: of its file.
    """
    at = {} if entry["step"] is None else {"step": entry["step"]}
    try:
        if entry["kind"] == "image":
            run.log({entry["name"]: wandb.Image(str(path), caption=entry["caption"] or None), **at})
            return
        held = json.loads(read_bytes(path, 1 << 28))
        if entry["kind"] == "table":
            run.log(
                {
                    entry["name"]: wandb.Table(
                        columns=list(map(str, held["columns"])), data=held["rows"], allow_mixed_types=True
                    ),
                    **at,
                }
            )
            return
        curves = held["curves"].values()
        xs, ys = ([[point[axis] for point in curve] for curve in curves] for axis in (0, 1))
        shown = wandb.plot.line_series(xs, ys, keys=list(held["curves"]), title=entry["name"], xname=held["x"])
        run.log({entry["name"]: shown, **at})
    except Exception as error:  # the client's types refuse what they like; the numbers go on
        print(f"{path}: {error}", file=sys.stderr)


def _connect(url: str) -> None:
    """Raise OSError where within 3 s nobody answers at ``url``, or at the proxy on the way to it."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), 3.0).close()

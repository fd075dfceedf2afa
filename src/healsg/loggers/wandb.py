"""Curves at Weights & Biases, whose client runs in a process of its own."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import urllib.request
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from healsg.loggers.client import LARGEST, Client, plain_id, serve
from healsg.loggers.media import drawn, html, key_of, levels_of
from healsg.paths import shown
from healsg.safefiles import read_bytes
from healsg.types import Positive

log = logging.getLogger("healsg")


class Wandb(Client):
    """Curves at Weights & Biases, or in the run's folder ``wandb`` if there is no key or no network.

    The client runs in a process of its own: it may hang, crash or print without the run noticing. The client handles
    the API key (``wandb login`` or WANDB_API_KEY). ``wandb.json`` stores the id with which a resumed run continues.

    Args:
        project: the project's name.
        group: the group under which runs are shown together.
        name: the run's name at the service; None is the run's own name.
        mode: ``online``, ``offline`` (for ``wandb sync``) or ``disabled``; WANDB_MODE overrides ``online``.
        timeout: seconds to wait for the server before the run continues offline.
    """

    title = "wandb"
    environment: ClassVar[dict[str, str]] = {"WANDB_SERVICE": "", "WANDB_ERROR_REPORTING": "false"}

    def __init__(
        self,
        project: str = "healsg",
        group: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        timeout: Positive = 8.0,
    ) -> None:
        super().__init__(project, group, name, timeout)
        self.mode = mode

    def assigned_id(self) -> str | None:
        """That of a trial which ``wandb agent`` has started. WANDB_RUN_ID without a wandb sweep is ignored: the jobs of
        a HEALSg sweep would share it."""
        return plain_id(os.environ.get("WANDB_RUN_ID")) if os.environ.get("WANDB_SWEEP_ID") else None

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE", "online") if self.mode == "online" else self.mode
        if mode == "disabled":
            return
        init = self.prepare(folder, record)
        upload = f"wandb sync {shlex.quote(str(shown(folder) / 'wandb'))}"
        trouble = ""
        if mode == "online":
            self.upload = f"{upload}/run-*-{init['id']}"
            url, trouble = self.open({**init, "mode": "online"}, self.timeout)
            if not trouble:
                log.info("wandb: %s", url)
        if mode != "online" or trouble:
            self.upload = f"{upload}/offline-run-*-{init['id']}"
            if failure := self.open({**init, "mode": "offline"}, 60.0)[1]:
                raise RuntimeError(failure)
        if trouble:
            log.warning("wandb continues offline (%s); to upload later: %s", trouble, self.upload)
        self.catch_up(folder)


class WandbRun:
    """A run of Weights & Biases (``ClientRun``), opened with the settings in ``order``."""

    def __init__(self, order: dict[str, Any]) -> None:
        import wandb

        if order["init"]["mode"] == "online":
            _connect(wandb.setup().settings.base_url)
        wanted = {"console": "off", "silent": True, "init_timeout": order["timeout"], "x_stats_pid": order["pid"]}
        wanted |= {"disable_git": True, "disable_code": True}  # a remote's address and a patch may hold secrets
        settings = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        self.wandb = wandb
        self.run = wandb.init(**order["init"], settings=wandb.Settings(**settings))
        self.run.define_metric("*", step_metric="step")
        self.url = self.run.url or ""

    def log(self, numbers: dict[str, Any]) -> None:
        self.run.log(numbers)

    def media(self, entry: dict[str, Any], path: Path) -> None:
        at = {} if entry["step"] is None else {"step": entry["step"]}
        self.run.log({key_of(entry): self._shown(entry, path), **at})

    def _shown(self, entry: dict[str, Any], path: Path) -> Any:
        """An image, a table or a plot as the client's own type."""
        if entry["kind"] == "image":
            return self.wandb.Image(str(path), caption=entry["caption"] or None)
        if entry["kind"] == "table":  # a wandb.Table is an artifact: the run's end would wait until the server has it
            return self.wandb.Html(html(read_bytes(path, LARGEST)), inject=False)
        return self.wandb.Image(levels_of(drawn(read_bytes(path, LARGEST))), caption=entry["caption"] or None)

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def serve_wandb() -> None:
    """The program of the client's process."""
    serve(Wandb.title, WandbRun)


def _connect(url: str) -> None:
    """Raise OSError if ``url``, or the proxy on the way to it, does not answer within 3 s."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), 3.0).close()

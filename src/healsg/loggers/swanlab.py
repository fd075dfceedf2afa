"""Curves for SwanLab, whose client runs in a process of its own."""

from __future__ import annotations

import logging
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from healsg.errors import ConfigError
from healsg.loggers.client import LARGEST, Client, serve
from healsg.loggers.media import drawn, key_of, levels_of, markdown
from healsg.paths import shown
from healsg.safefiles import read_bytes
from healsg.types import Positive

log = logging.getLogger("healsg")


class SwanLab(Client):
    """Curves for SwanLab: at its server, or in the run's folder ``swanlab``; refused if it is not installed.

    The API key is handled by the client (``swanlab login`` or SWANLAB_API_KEY). ``swanlab.json`` stores the id with
    which a resumed run continues.

    Args:
        project: the project's name.
        group: the group under which runs are shown together.
        name: the run's name at the service; None is the run's own name.
        mode: ``online``, or ``offline`` if there is no key or no network (for ``swanlab sync``), ``local`` (for
            ``swanlab watch``, on this machine alone) or ``disabled``.
        timeout: seconds to wait for the server before the run continues offline.
    """

    title = "swanlab"
    environment: ClassVar[dict[str, str]] = {"SWANLAB_INTERACTIVE": "0"}

    def __init__(
        self,
        project: str = "healsg",
        group: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "local", "disabled"] = "online",
        timeout: Positive = 8.0,
    ) -> None:
        if find_spec("swanlab") is None:
            raise ConfigError("logger.swanlab: not installed; pip install healsg[swanlab]")
        super().__init__(project, group, name, timeout)
        self.mode = mode

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        if self.mode == "disabled":
            return
        init = self.prepare(folder, record)
        self.upload = f"swanlab sync {shlex.quote(str(shown(folder) / 'swanlab'))}/run-*-{init['id']}"
        url, trouble = self.open({**init, "mode": self.mode}, self.timeout if self.mode == "online" else 60.0)
        if trouble and self.mode == "online":
            log.warning("swanlab continues offline (%s); to upload later: %s", trouble, self.upload)
            url, trouble = self.open({**init, "mode": "offline"}, 60.0)
        if trouble:
            raise RuntimeError(trouble)
        if url:
            log.info("swanlab: %s", url)
        self.catch_up(folder)


class SwanLabRun:
    """A run of SwanLab (``ClientRun``), opened with the settings in ``order``."""

    def __init__(self, order: dict[str, Any]) -> None:
        import swanlab

        init = dict(order["init"])
        init["log_dir"] = str(Path(init.pop("dir")) / "swanlab")
        self.swanlab = swanlab
        # a remote's address may hold secrets; what the run prints stands in train.log
        settings = swanlab.Settings(probe={"git": False}, terminal={"proxy_type": "none"})
        self.run = swanlab.init(**init, settings=settings)
        self.step = 0
        self.url = str(self.run.url) if init["mode"] == "online" else ""

    def log(self, numbers: dict[str, Any]) -> None:
        self.step = int(numbers.get("step", self.step))
        shown = {key: value for key, value in numbers.items() if key not in ("step", "epoch")}
        self.swanlab.log(shown, step=self.step)

    def media(self, entry: dict[str, Any], path: Path) -> None:
        step = self.step if entry["step"] is None else entry["step"]
        self.swanlab.log({key_of(entry): self._shown(entry, path)}, step=step)

    def _shown(self, entry: dict[str, Any], path: Path) -> Any:
        """An image as such, a table as Markdown, a plot as a picture."""
        caption = entry["caption"] or None
        if entry["kind"] == "image":
            return self.swanlab.Image(str(path), caption=caption)
        content = read_bytes(path, LARGEST)
        if entry["kind"] == "table":
            return self.swanlab.Text(markdown(content), caption=caption)
        return self.swanlab.Image(levels_of(drawn(content)), caption=caption)

    def finish(self, failed: bool) -> None:
        if failed:
            self.swanlab.finish(state="crashed", error="the run failed")
        else:
            self.swanlab.finish()


def serve_swanlab() -> None:
    """The program of the client's process."""
    serve(SwanLab.title, SwanLabRun)

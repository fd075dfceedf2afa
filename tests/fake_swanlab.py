"""A stand-in for SwanLab's client, of which a copy named ``swanlab.py`` is imported: what it is given goes into
``calls.jsonl`` of the run's log folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_folder = Path()


def _told(call: str, **values: Any) -> None:
    with (_folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"call": call, **values}, default=vars) + "\n")


class Image:
    def __init__(self, source: Any, caption: str | None = None) -> None:
        self.source = source if isinstance(source, str) else f"levels {source.shape}"
        self.caption = caption


class Text:
    def __init__(self, content: str, caption: str | None = None) -> None:
        self.content, self.caption = content, caption


def Settings(**values: Any) -> dict[str, Any]:  # noqa: N802 - the client's name
    return values


def init(**values: Any) -> Any:
    global _folder
    if values["mode"] == "online" and "SWANLAB_API_KEY" not in os.environ:
        raise RuntimeError("no API key was provided")
    _folder = Path(values["log_dir"])
    _told("init", **values)
    return SimpleNamespace(url="https://swanlab.example/run")


def log(data: dict[str, Any], step: int | None = None) -> None:
    _told("log", data=data, step=step)


def finish(state: str = "success", error: str | None = None) -> None:
    _told("finish", state=state)

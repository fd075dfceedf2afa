"""Start one run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from healsg import system
from healsg.config.schema import Composed
from healsg.errors import HealsgError
from healsg.runs.folder import RunFolder


def launch(composed: Composed, folder: Path, **plan: Any) -> bool:
    """Train, traced, in a fresh process; whether the run came to its end, and not to the kill that was planned.

    Args:
        composed: the run's configuration.
        folder: where the run lies, or will.
        plan: what ``Tracer`` follows: ``save``, ``settle``, ``kill``, ``share``, ``until``.

    Raises:
        BrokenError: it ended otherwise; the last line that it told is the message, those before it are shown.
    """
    values = composed.values | {"name": folder.name, "fresh": False, "quiet": True, "resume": {"force": False}}
    values |= {"use_wandb": False, "logger": None, "runner": composed.values["runner"] | {"max_time": None}}
    made = {**vars(composed), "values": values, "project": [str(path) for path in composed.project]}
    whole = dict.fromkeys(("save", "settle", "kill", "share", "until")) | plan
    whole |= {"composed": made, "folder": str(folder), "command": sys.argv, "parent": os.getpid()}
    program = "import sys; sys.path.append(sys.argv[1]); from healsg.commands.trace import main; sys.exit(main())"
    line = [sys.executable, "-P", "-c", program, str(Path(__file__).parents[2])]
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
        )
        try:
            child.communicate(yaml.safe_dump(whole).encode())
        finally:  # the child, and what it has started: loader workers
            system.kill_family(child)
            child.wait()
        told.seek(0)
        lines = told.read().decode(errors="replace").strip().splitlines()
    code = child.returncode
    finished = RunFolder(folder).record.get("status") == "finished"
    if code == 0 or (system.was_killed(code) and (finished or plan.get("kill"))):
        return code == 0 or finished
    print(*lines[:-1], sep="\n", end="\n" * (len(lines) > 1), file=sys.stderr)
    ended = f"{folder}: ended by {system.signal_name(-code)}" if code < 0 else f"{folder}: ended with status {code}"
    raise BrokenError(lines[-1].removeprefix("error: ") if lines and code > 0 else ended, code)


class BrokenError(HealsgError):
    """A process that was started ended as it should not have: with a mistake, a failure, or a signal."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.status = 128 - code if code < 0 else code

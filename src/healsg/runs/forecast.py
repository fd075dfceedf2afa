"""The forecast of a run, measured in a separate process, so that it cannot affect the run or its digest."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import yaml

from healsg import system
from healsg.config.schema import Composed
from healsg.errors import RunError

BUDGET = 3.0
"""Seconds of CPU time that the steps of a forecast are measured for."""


def forecast(composed: Composed, budget: float = BUDGET) -> dict[str, Any]:
    """Measure a few steps of a task in a new process and estimate the cost of the whole run, as plain values.

    Args:
        composed: the checked configuration.
        budget: seconds of training steps; an evaluation, saving and reading the data take additional time.

    Raises:
        RunError: the task cannot be built or trained; the message gives the reason.
    """
    request = yaml.safe_dump({"composed": composed.as_plain(), "budget": budget})
    command = system.program("healsg.commands.forecast.measure", "main")
    child = subprocess.run(command, input=request.encode(), capture_output=True, check=False)
    lines = child.stdout.decode(errors="replace").splitlines()
    try:
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise RunError(str(answer["error"]))
    except (IndexError, ValueError, TypeError):
        reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {child.returncode}"]
        raise RunError(f"forecast: the process that measures has ended: {reason[0]}") from None
    return dict(answer)

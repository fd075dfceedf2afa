"""The arguments of ``healsg predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from healsg.runs.folder import RunFolder

UNREADABLE = 3
"""The exit status where some samples cannot be read."""


@dataclass(frozen=True)
class Request:
    """The request.

    Args:
        runs: whose networks predict.
        paths: of the samples.
        overrides: of the runs' settings.
        out: the file; None is standard output.
        given: the value of ``--out``; None if not given.
        checkpoint: ``best`` or ``last``.
        tta: the test-time augmentation.
        features: whether features are wanted.
        batch_size: of a forward pass; None is the first run's.
        workers: threads that read samples.
        json: whether standard output gets JSON.
        explain: whether saliency maps are wanted.
    """

    runs: list[RunFolder]
    paths: list[str]
    overrides: list[str]
    out: Path | None
    given: str | None
    checkpoint: str
    tta: list[str]
    features: bool
    batch_size: int | None
    workers: int
    json: bool
    explain: bool = False

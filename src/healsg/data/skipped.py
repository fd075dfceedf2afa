"""The record of the samples that ``data.on_error=skip`` skipped: over all processes and epochs, each sample once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healsg import distributed
from healsg.data.foreign import AnyLoader
from healsg.data.loader import Loader
from healsg.data.source import Reading
from healsg.runs import redact

MOST_NAMED = 100
"""The most samples that ``run.json`` names; all are counted."""


def skipped_samples(loaders: Mapping[str, AnyLoader], reading: Reading, before: Any = None) -> dict[str, Any]:
    """The entry of ``run.json`` about skipped samples: their ``number``, and the ``first`` of them with causes.

    All processes call it together. A data set is identified by its position among the loaders, which is the same in
    every process.

    Args:
        loaders: by split.
        reading: that of this process.
        before: the entry in ``run.json`` before a resume; ignored if it is malformed.
    """
    positions: dict[int, int] = {}
    for loader in loaders.values():
        for source in loader.sources.values() if isinstance(loader, Loader) else ():
            positions.setdefault(id(getattr(source, "dataset", source)), len(positions))
    of_process = {
        (positions.get(dataset, -1), index): redact.text(message)
        for (dataset, index), message in reading.skipped.items()
    }
    skipped: dict[tuple[int, int], str] = {}
    for part in distributed.processes().gather(of_process):
        skipped |= {sample: message for sample, message in part.items() if sample not in skipped}
    entry = before if isinstance(before, dict) else {}
    number, first = entry.get("number"), entry.get("first")
    earlier = [message for message in first if isinstance(message, str)] if isinstance(first, list) else []
    messages = [*earlier, *(message for message in skipped.values() if message not in earlier)]
    # Earlier samples that are not named may be skipped again now: the maximum does not count them twice.
    earlier_number = number if type(number) is int else 0
    return {"number": max(earlier_number, len(messages), len(skipped)), "first": messages[:MOST_NAMED]}

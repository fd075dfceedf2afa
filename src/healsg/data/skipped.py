"""The record of the samples that ``data.on_error=skip`` left out: over all processes and epochs, each sample once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healsg import distributed
from healsg.data.foreign import AnyLoader
from healsg.data.loader import Loader
from healsg.data.source import Reading
from healsg.runs import redact

MOST_NAMED = 100
"""Samples that ``run.json`` names; it counts all."""


def skipped_samples(loaders: Mapping[str, AnyLoader], reading: Reading, before: Any = None) -> dict[str, Any]:
    """What ``run.json`` says of the samples left out so far: their ``number``, and the ``first`` of them with causes.

    All processes call it together. A data set is known by its place among the loaders, which is the same in each.

    Args:
        loaders: by split.
        reading: of this process.
        before: what ``run.json`` says already, for a run that goes on; anything else counts for nothing.
    """
    places: dict[int, int] = {}
    for loader in loaders.values():
        for source in loader.sources.values() if isinstance(loader, Loader) else ():
            places.setdefault(id(getattr(source, "dataset", source)), len(places))
    own = {
        (places.get(dataset, -1), index): redact.text(message) for (dataset, index), message in reading.skipped.items()
    }
    found: dict[tuple[int, int], str] = {}
    for part in distributed.processes().gather(own):
        found |= {sample: message for sample, message in part.items() if sample not in found}
    known = before if isinstance(before, dict) else {}
    number, first = known.get("number"), known.get("first")
    earlier = [message for message in first if isinstance(message, str)] if isinstance(first, list) else []
    messages = [*earlier, *(message for message in found.values() if message not in earlier)]
    # Samples of before that are not named may be among those found now: they are counted once.
    least = number if type(number) is int else 0
    return {"number": max(least, len(messages), len(found)), "first": messages[:MOST_NAMED]}

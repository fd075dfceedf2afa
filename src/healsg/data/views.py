"""Views: the network's inputs that transforms make from a batch of stored samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from healsg.data.source import Batch
from healsg.seeding import Draw

Transform = Callable[[Batch, Draw | None], Batch]
"""From a stored batch to the network's batch; without a draw it is deterministic.

A transform declares its properties: ``on_device = True``, it is called on whole batches on the run's device, after
workers have read them; ``on_cpu = True``, samples in memory must stay on the CPU; ``shares_geometry = True``, for
spatial targets it applies the same geometry to all views, by ``Draw.shared``. A module is moved to the device.

A transform with two stages, ``before_normalised(batch, draw)`` and ``normalised(input)``, is their composition. Workers
then send images as bytes, a fourth of the size of normalised ones, and the run's process normalises them on its device.
"""

Draws = Mapping[str, Draw | None]
"""The draws of one stream's samples, by view."""


def is_on_device(transform: Transform | None) -> bool:
    """Whether a transform declares that it runs on the run's device."""
    return getattr(transform, "on_device", False) is True


def has_stages(transform: Transform | None) -> bool:
    """Whether a transform has two stages; False if a subclass overrides ``__call__``."""
    for kind in type(transform).__mro__:
        if "__call__" in vars(kind):
            return "normalised" in vars(kind)
    return False


def make_views(views: Mapping[str, Transform | None], raw: Batch, draws: Draws, staged: Collection[str] = ()) -> Batch:
    """A stream's batch with all its views; those in ``staged`` after the first of their two stages.

    If the only view is ``input``, the batch is the transform's result. Of several views, the first gives the
    ``target``; any other one with a different target and geometry adds ``<view>_target``.
    """
    results = dict[str, Batch]()
    for view, transform in views.items():
        if view in staged:
            results[view] = transform.before_normalised(raw, draws[view])  # type: ignore[union-attr]
        else:
            results[view] = transform(raw, draws[view]) if transform else raw
    if list(views) == ["input"]:
        return results["input"]
    first, *others = views
    batch = {key: value for key, value in raw.items() if key != "input"}
    batch |= {view: result["input"] for view, result in results.items()}
    if "target" in raw:
        batch["target"] = results[first].get("target", raw["target"])
        first_shares = getattr(views[first], "shares_geometry", False)
        for view in others:
            target = results[view].get("target", raw["target"])
            same_geometry = first_shares and getattr(views[view], "shares_geometry", False)
            if target is not batch["target"] and not same_geometry:
                batch[f"{view}_target"] = target
    return batch

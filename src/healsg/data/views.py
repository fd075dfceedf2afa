"""Views: what a batch of samples, as it is stored, becomes for the network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from healsg.data.source import Batch
from healsg.seeding import Draw

Transform = Callable[[Batch, Draw | None], Batch]
"""From a batch as stored to a batch as the network sees it; without a draw nothing random happens.

What it is fit for, it declares: ``on_device = True``, that it is called on whole batches on the run's device, after
workers read them there; ``on_cpu = True``, that samples in memory must stay on the CPU; ``shares_geometry = True``,
that of samples whose targets have a place it moves all views alike, by ``Draw.shared``. A module moves to the device.

One in two stages, ``before_normalised(batch, draw)`` and ``normalised(input)``, is what these make one after the other.
Workers then send images of bytes, a fourth of what is normalised, and the run's process normalises them on its device.
"""

Draws = Mapping[str, Draw | None]
"""The draws of one stream's samples by view."""


def is_on_device(transform: Transform | None) -> bool:
    """Whether a transform declares that it is called on the run's device."""
    return getattr(transform, "on_device", False) is True


def has_stages(transform: Transform | None) -> bool:
    """Whether a transform works in two stages; not where a subclass calls them in its own way."""
    for kind in type(transform).__mro__:
        if "__call__" in vars(kind):
            return "normalised" in vars(kind)
    return False


def make_views(views: Mapping[str, Transform | None], raw: Batch, draws: Draws, staged: Collection[str] = ()) -> Batch:
    """A stream's batch with all its views; those in ``staged`` after the first of their two stages.

    A view called ``input`` alone is the transform's whole result. Of several, the first gives the ``target``; another
    whose target differs and that does not share its geometry adds ``<view>_target``.
    """
    made = dict[str, Batch]()
    for view, transform in views.items():
        if view in staged:
            made[view] = transform.before_normalised(raw, draws[view])  # type: ignore[union-attr]
        else:
            made[view] = transform(raw, draws[view]) if transform else raw
    if list(views) == ["input"]:
        return made["input"]
    first, *others = views
    batch = {key: value for key, value in raw.items() if key != "input"}
    batch |= {view: result["input"] for view, result in made.items()}
    if "target" in raw:
        batch["target"] = made[first].get("target", raw["target"])
        together = getattr(views[first], "shares_geometry", False)
        for view in others:
            target = made[view].get("target", raw["target"])
            alike = together and getattr(views[view], "shares_geometry", False)
            if target is not batch["target"] and not alike:
                batch[f"{view}_target"] = target
    return batch

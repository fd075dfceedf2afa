"""Which settings of a run have an effect when its weights are only used, and not trained further."""

from __future__ import annotations

from collections.abc import Sequence

from healsg.config.overrides import parse
from healsg.config.signature import constructor
from healsg.config.values import flat
from healsg.errors import ConfigError

RUNNER = ("device", "precision", "channels_last", "threads", "deterministic")
"""The arguments of TaskRunner that have an effect where nothing is trained."""

PASS = ("limit_batches", "timeout")
"""Those that have one on a pass over a split besides, as in ``healsg eval``."""

TOP = ("name", "init_from", "fresh", "search", "launcher")
"""Settings of the whole run that have none."""

BUILT = ("callbacks", "monitor", "mode")
"""Those that have none, but are built or checked with the runner: a callback may be missing on this machine, and the
monitor follows a change of the metrics."""


def require_effect(command: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that a command which trains nothing would ignore.

    These are the arguments that every method has (optimizer, schedule, averages, freezing), those for labelled samples
    of a step (mixup), and those of ``TaskRunner`` that only matter to the loop. The further arguments of a method may
    have an effect, such as the neighbours of a k-NN evaluation, and so may those of a user's own runner. Another
    ``_target_`` or ``method.scheduler=null`` is accepted, since the class of the run may be missing on this machine.

    Args:
        command: its name, for the message.
        overrides: changes of the run's settings.
    """
    acting = [*RUNNER, *PASS] if command == "eval" else list(RUNNER)
    without = {
        "method": arguments("healsg.methods.supervised.Supervised"),
        "runner": arguments("healsg.runner.TaskRunner") - {*acting, *BUILT},
    }
    for override in parse(overrides):
        values = dict(flat(override.value(), override.key_or_group))
        if any(key.endswith("._target_") for key in values) or values == {"method.scheduler": None}:
            continue
        for key in values:
            node, _, name = key.partition(".")
            if node in TOP or name.split(".")[0] in without.get(node, ()):
                has = f"; of runner, {', '.join(acting)} have one" if node == "runner" else ""
                raise ConfigError(f"{key}: has no effect in healsg {command}, which trains nothing{has}; leave it out")


def arguments(target: str) -> set[str]:
    """The names of the arguments of a constructor, those of its base classes included."""
    found = constructor(target)
    assert found is not None
    return set(found.parameters)

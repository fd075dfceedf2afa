"""Which runs can have their weights sharded (``runner.shard``); the check runs before they start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from healsg.errors import ConfigError
from healsg.parts import declares

if TYPE_CHECKING:
    from healsg.protocols import Method, Runner


def check(runner: Runner, method: Method) -> None:
    """Raise ConfigError, which names the key, if weights are to be sharded and a part needs the full weights."""
    if not runner.parallel.shards:
        return
    name = type(method).__name__
    if method.averages:
        raise ConfigError("runner.shard: averages of the weights are not sharded; set method.ema and method.swa to 0")
    if not declares(method, "takes_shards"):
        raise ConfigError(f"runner.shard: {name} needs unsharded weights, or was not tested; set it to false")
    optimizer = getattr(method.make_optimizer, "func", None)
    if not (isinstance(optimizer, type) and vars(optimizer).get("takes_shards", False)):
        class_name = getattr(optimizer, "__name__", "the optimizer")
        raise ConfigError(f"runner.shard: {class_name} was not tried with parts of weights; method/optimizer=adamw was")
    if runner.compile or runner.cuda_graph:
        raise ConfigError("runner.compile: was not tried with runner.shard; set one of them to false")
    if runner.precision == "fp16":
        raise ConfigError("runner.precision: fp16's loss scaling does not support sharded gradients; use bf16")
    if runner.device_setup.wanted_layout is True:
        raise ConfigError("runner.channels_last: runner.shard takes weights in torch's own format; set it to false")

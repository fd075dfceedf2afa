"""Which jobs fit one stack, as far as their configurations tell; answered without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from healsg import distributed
from healsg.checks import is_below
from healsg.checks.check import show
from healsg.claim import FREE
from healsg.config import Composed, flat
from healsg.errors import ConfigError

NUMBERS = (
    *("seed", "data.split_seed", "runner.clip_norm", "method.label_smoothing"),
    *("method.optimizer.lr", "method.optimizer.weight_decay", "method.optimizer.momentum"),
    *("method.optimizer.dampening", "method.optimizer.betas", "method.optimizer.eps"),
)
"""Keys in which the jobs of a stack may differ, as numbers; beside what no result depends on and the schedule."""

OWN = {
    "task": "healsg.task.BasicTask",
    "method": "healsg.methods.supervised.Supervised",
    "runner": "healsg.runner.TaskRunner",
}
"""Parts of which a stack writes out what they do."""

OPTIMIZERS = ("SGD", "Adam", "AdamW")
_HOMES = ("torch.optim", "healsg.optimizers.sgd", "healsg.optimizers.adam")

PLAIN: dict[str, tuple[Any, ...]] = {
    "runner.accumulate": (1,),
    "runner.precision": ("fp32", "tf32", "bf16", "fp64"),
    **dict.fromkeys(("method.mixup", "method.cutmix", "method.random_erasing", "method.ema", "method.swa"), (0,)),
    **dict.fromkeys(("method.freeze", "method.unfreeze_every"), (None, 0)),
    **dict.fromkeys(
        ("runner.auto_accumulate", "runner.compile", "runner.cuda_graph", "runner.channels_last"), (False,)
    ),
    **dict.fromkeys([f"method.optimizer.{key}" for key in ("amsgrad", "maximize", "capturable")], (False,)),
    **dict.fromkeys([f"method.optimizer.{key}" for key in ("differentiable", "decoupled_weight_decay")], (False,)),
}
"""Settings that a stack knows, by key; where one is absent it is what it is by default."""

INSTEAD = "sweep=serial trains such jobs one after the other"


def refuse(jobs: list[tuple[str, Composed]]) -> None:
    """Refuse jobs that cannot be trained as one stack. Raises ConfigError with the first reason, in one line."""
    if reason := next(_reasons([composed.values for _, composed in jobs]), None):
        raise ConfigError(f"sweep=vectorised: {reason}; {INSTEAD}")


def _reasons(jobs: list[dict[str, Any]]) -> Iterator[str]:
    if distributed.launched():
        yield "works in one process"
    rows = [dict(flat(values)) for values in jobs]
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if all(value == values[0] for value in values) or _may_differ(key, values):
            continue
        shown = ", ".join(dict.fromkeys(show(value) for value in values[:4]))
        yield f"{key} differs ({shown}), and the jobs of a stack differ in numbers such as seed and learning rate alone"
    first, nodes = rows[0], jobs[0]
    for group, target in OWN.items():
        node = nodes[group]
        if not isinstance(node, dict) or node.get("_target_") != target:
            yield f"{group}._target_ is not {target}, whose steps a stack knows"
    home, _, optimizer = str(first.get("method.optimizer._target_")).rpartition(".")
    if home not in _HOMES or optimizer not in OPTIMIZERS:
        yield f"method.optimizer: a stack knows {', '.join(OPTIMIZERS)}"
    for key, allowed in PLAIN.items():
        if key in first and first[key] not in allowed:
            yield f"{key}={show(first[key])}: a stack takes {' or '.join(map(show, allowed))}"


def _may_differ(key: str, values: list[Any]) -> bool:
    if is_below(key, ("method.scheduler", *FREE)):
        return True
    return key in NUMBERS and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)

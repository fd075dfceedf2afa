"""Checks of what builders, ``train_step`` and ``run_epoch`` return, which may be a user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from healsg.data.info import DataInfo
from healsg.errors import ConfigError, DataError, RunError
from healsg.metric import plain
from healsg.training.denominator import weighs_classes
from healsg.training.step import Loss


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def loaders(value: Any) -> dict[str, Any]:
    """The loaders that ``build_dataloader`` returned, by split. Raises DataError if there is none for training."""
    way = "return (train, val) or a dict by split"
    if not isinstance(value, (Mapping, tuple, list)):
        raise DataError(f"build_dataloader: returned one {type(value).__name__}; {way}")
    by_split = value if isinstance(value, Mapping) else dict(zip(("train", "val", "test"), value, strict=False))
    found = {split: loader for split, loader in by_split.items() if loader is not None}
    if "train" not in found:
        raise DataError(f"build_dataloader: there is no train loader; {way}")
    return found


def network(value: Any) -> nn.Module:
    """The network that ``build_model`` returned. Raises ConfigError if it is none, or its weights lack shapes."""
    if not isinstance(value, nn.Module):
        raise ConfigError(f"build_model: returned {_kind(value)}; return a torch.nn.Module")
    lazy = next((name for name, weight in value.named_parameters() if is_lazy(weight)), None)
    if lazy is not None:
        way = "call the network on one batch of inputs before it is returned"
        raise ConfigError(f"build_model: the shape of {lazy} is not known yet (a lazy module); {way}")
    return value


def criterion(value: Any) -> Any:
    """The criterion that ``build_criterion`` returned. Raises ConfigError if it cannot be called."""
    if isinstance(value, type) or not callable(value):
        way = "return a loss, such as torch.nn.CrossEntropyLoss()"
        raise ConfigError(f"build_criterion: returned {_kind(value)}; {way}")
    return value


def require_classes(loaders: Mapping[str, Any], info: DataInfo | None, criterion: Any) -> None:
    """Raise DataError for a target that is not a class index, if the criterion would fail on it: such a criterion takes
    only class indices and its ``ignore_index``, while metrics skip all other targets."""
    if info is None or info.kind != "multiclass" or not weighs_classes(criterion):
        return
    for split, loader in loaders.items():
        for source in getattr(loader, "sources", {}).values():
            targets = source.targets
            if targets is None or targets.dim() != 1 or targets.is_floating_point():
                continue
            wrong = (targets >= info.num_classes) & (targets != criterion.ignore_index)
            if bool(wrong.any()):
                index, last = int(wrong.nonzero()[0]), info.num_classes - 1
                found = f"the target of sample {index} of {split} is {int(targets[index])}"
                raise DataError(f"data: {found}; the classes are 0 to {last}")


def optimizer(value: Any, model: nn.Module, *others: Any) -> Optimizer:
    """The optimizer that ``build_optimizer`` returned.

    Args:
        value: the returned value.
        model: the network.
        others: other modules that may have trained parameters: the criterion, the method.

    Raises:
        ConfigError: it is no optimizer, it has no parameter of these modules, or a group of it has no learning rate or
            a setting that is not finite.
    """
    if isinstance(value, type) or not (hasattr(value, "param_groups") and hasattr(value, "step")):
        way = "for several, join their parameters as groups of one"
        raise ConfigError(f"build_optimizer: returned {_kind(value)}; return one torch.optim.Optimizer ({way})")
    parts = [part for part in (model, *others) if isinstance(part, nn.Module)]
    learned = {id(weight) for part in parts for weight in part.parameters()}
    held = [weight for group in value.param_groups for weight in group["params"]]
    if not any(id(weight) in learned for weight in held):
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ConfigError("build_model: the network has no parameter that is trained (requires_grad)")
        way = "give it self.model.parameters()"
        raise ConfigError(f"build_optimizer: none of its parameters belongs to the network; {way}")
    for group in value.param_groups:
        rate = group.get("lr")
        if not isinstance(rate, (Real, Tensor)):
            way = "leave it out of the group for that of the optimizer" if "lr" in group else "the loop logs it"
            raise ConfigError(f"build_optimizer: a group of parameters has lr={rate!r}, which is not a number; {way}")
        for name in ("lr", "weight_decay"):
            if isinstance(group.get(name), (int, float, Tensor)) and not math.isfinite(group[name]):
                raise ConfigError(f"build_optimizer: its {name} is {float(group[name])}, which is not a finite number")
    found: Optimizer = value
    return found


def scheduler(value: Any) -> Any:
    """The schedule that ``build_scheduler`` returned. Raises ConfigError if it is neither a schedule nor None."""
    if value is None:
        return None
    lacking = [name for name in ("step", "state_dict", "load_state_dict") if not hasattr(value, name)]
    if isinstance(value, type) or lacking:
        raise ConfigError(f"build_scheduler: returned {_kind(value)}; return one of torch.optim.lr_scheduler, or None")
    return value


def epoch_numbers(results: Any) -> dict[str, Any]:
    """The numbers that ``run_epoch`` returned, as plain values named ``<split>/<name>``. Raises RunError if it returned
    anything else than a dict of dicts of numbers."""
    shape = 'return {"train": self.train_epoch.run(), "val": self.val_epoch.run()}'
    if not isinstance(results, Mapping):
        raise RunError(f"run_epoch: returned {_kind(results)}; {shape}")
    rows: dict[str, Any] = {}
    for split, row in results.items():
        if not isinstance(row, Mapping):
            raise RunError(f"run_epoch: returned {_kind(row)} for {split!r}, not its numbers by name; {shape}")
        for name, value in row.items():
            rows[f"{split}/{name}"] = plain(value, f"run_epoch: {split}/{name}")
    return rows


def explain_step(logs: Any) -> None:
    """After an error in a step: raise RunError if what ``train_step`` returned is its cause."""
    way = 'return {"loss": loss}, a scalar tensor that has a gradient'
    if not isinstance(logs, Mapping):
        raise RunError(f"train_step: returned {_kind(logs)}; {way}")
    if "loss" not in logs:
        raise RunError(f"train_step: returned {', '.join(map(str, logs)) or 'nothing'}, and no loss; {way}")
    terms = [term.value for term in logs["loss"].terms] if isinstance(logs["loss"], Loss) else [logs["loss"]]
    for term in terms:
        if not isinstance(term, Tensor):
            raise RunError(f"the loss: is {_kind(term)}; the criterion, or train_step, returns a scalar tensor")
        if term.numel() != 1:
            way = "return its mean over the batch (the default, reduction='mean')"
            raise RunError(f"the loss: has the shape {tuple(term.shape)}; {way}")
    if not any(term.requires_grad for term in terms):
        causes = "it is detached or made without autograd, or no parameter of the network is trained"
        raise RunError(f"the loss: has no gradient, so that nothing can be learned; {causes}")


def explain_scalars(logs: Mapping[str, Any]) -> None:
    """After an error in reading scalars: raise RunError for one that is not a number."""
    for name, value in logs.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise RunError(f"train_step: {name!r} has the shape {tuple(value.shape)}; give scalars, such as its mean")
        if not isinstance(value, (Tensor, int, float)):
            raise RunError(f"train_step: {name!r} is {_kind(value)}; give scalars alone")


def explain_types(batch: Mapping[str, Any], error: Exception) -> None:
    """After an error in a step: raise DataError if the type of a batch's input or target is its cause."""
    input = batch.get("input")
    target = batch.get("target")
    message = str(error)
    if isinstance(input, Tensor) and input.dtype is torch.float64 and "dtype" in message and "Double" in message:
        raise DataError("the input of the batch is float64, and the weights are not; give float32 samples") from error
    if isinstance(target, Tensor) and target.is_floating_point() and "to be Long" in message:
        way = "give int64 targets, or another criterion (data.kind=regression, torch.nn.MSELoss)"
        raise DataError(f"the target of the batch is {target.dtype}, and the loss takes classes; {way}") from error


def explain_key(batch: Mapping[str, Any], error: KeyError) -> None:
    """After an error in a step: raise DataError if a user's loader gives batches without ``input`` or ``target``."""
    key = error.args[0] if error.args else None
    if key in ("input", "target") and key not in batch:
        names = ", ".join(map(str, batch))
        raise DataError(f"the batch has {names}, and no {key}; a loader gives (input, target) or a dict of these names")

"""A network as layers from the input to the head: freezing, gradual unfreezing, layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from torch import nn
from torch.optim import Optimizer

from healsg.errors import ConfigError
from healsg.torch_private import BatchNorm

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""The modules that hold chains of layers."""


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of ``model`` by layer, from the input on, in the order in which its modules were created.

    A layer is an element of a container (``Sequential``, ``ModuleList``, ``ModuleDict``), such as a residual block, a
    transformer block or a convolution; or else a submodule of the network. A module that only has vectors (a norm)
    belongs to the layer before it, and so do parameters between layers (class tokens, position embeddings).
    """
    found: list[list[nn.Parameter]] = [[]]
    seen: set[nn.Parameter] = set()
    has_layer = False
    for parameters, is_layer in _pieces(model, None):
        new = [parameter for parameter in parameters if parameter not in seen]
        seen.update(new)
        starts_layer = is_layer and any(parameter.dim() >= 2 for parameter in new)
        if starts_layer and has_layer:
            found.append([])
        has_layer = has_layer or starts_layer
        found[-1] += new
    return found


def _pieces(module: nn.Module, parent: nn.Module | None) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """The parameters of a module in order, in groups, with whether a group is a whole layer.

    A module is split further if it is a container, contains a chain of blocks, or has most of its parent's parameters,
    as the backbone inside a wrapper has.
    """
    most = parent is not None and not isinstance(parent, CONTAINERS) and 2 * _size(module) > _size(parent)
    if parent is None or isinstance(module, CONTAINERS) or _holds_chain(module) or (most and any(module.children())):
        yield list(module.parameters(recurse=False)), False
        for child in module.children():
            yield from _pieces(child, module)
    else:
        yield list(module.parameters()), True


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _holds_chain(module: nn.Module) -> bool:
    """Whether a container anywhere in a module holds at least two blocks."""
    chains = [inner.children() for inner in module.modules() if isinstance(inner, CONTAINERS)]
    return any(sum(map(_is_block, elements)) >= 2 for elements in chains)


def _is_block(module: nn.Module) -> bool:
    """Whether a module with parameters is composed of others, without being a container."""
    return not isinstance(module, CONTAINERS) and any(True for _ in module.children()) and _size(module) > 0


def freeze(model: nn.Module, patterns: str) -> None:
    """Exclude parameters from training, in place.

    Args:
        model: the network.
        patterns: ``body`` (all but ``model.head``), or names of modules and parameters as in ``state_dict``, with
            ``*`` and ``?`` as on a command line, several of them joined by ``|``: ``stem|stages.0|*.bias``.

    Raises:
        ConfigError: a pattern matches nothing, or no trainable parameter is left.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns.split("|"):
        if pattern == "body":
            names = [name for name in parameters if not name.startswith("head.")]
            names = names if len(names) < len(parameters) else []
        else:
            names = [name for name in parameters if any(fnmatchcase(part, pattern) for part in _parts(name))]
        if not names:
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
            raise ConfigError(f"method.freeze: {pattern!r} matches nothing in this network; its modules are {known}")
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"method.freeze: {patterns!r} leaves nothing that learns")


def head_of(model: nn.Module, method: str) -> nn.Linear:
    """``model.head``. Raises ConfigError, which names the method, if it is not a linear layer."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"method: {method} needs a network that ends in a linear layer `head`; model=cnn has one")
    return head


def _parts(name: str) -> list[str]:
    """``a.b.c`` as ``a``, ``a.b``, ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))


def scaled_groups(model: nn.Module, decay: float, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """Parameter groups by layer, each with ``lr_scale``: 1 for the last layer, and for any other one ``decay`` times
    that of the layer after it (Clark et al. 2020, arXiv 2003.10555; Bao et al. 2022, arXiv 2106.08254).

    The last layer comes first, so that its learning rate is the one that is shown.
    """
    groups = []
    for height, layer in enumerate(reversed(layers(model))):
        trainable = [parameter for parameter in layer if parameter.requires_grad]
        undecayed = [] if decay_norms_and_biases else [parameter for parameter in trainable if parameter.dim() < 2]
        decayed = trainable if decay_norms_and_biases else [value for value in trainable if value.dim() >= 2]
        groups += [{"params": decayed, "lr_scale": decay**height}]
        groups += [{"params": undecayed, "lr_scale": decay**height, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def scale_rates(optimizer: Optimizer) -> Optimizer:
    """Multiply each group's learning rate by its ``lr_scale``, before a schedule records it as the initial one."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, without those of its children, and all of them are frozen."""
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def frozen_norms(model: nn.Module) -> list[str]:
    """The names of the frozen BatchNorm modules."""
    return [name for name, module in model.named_modules() if isinstance(module, BatchNorm) and frozen(module)]


class Freezing:
    """Keeps frozen parts fixed in every step: their BatchNorm stays in evaluation mode, so that its running statistics
    do not change either. With ``unfreeze_every`` layers are unfrozen one by one, from the last one on.

    Args:
        model: the trained model; ``requires_grad`` is already False for its frozen parameters.
        network: the part of it whose layers are unfrozen one by one.
        unfreeze_every: epochs after which one more layer is unfrozen (Howard and Ruder 2018, arXiv 1801.06146, section
            3.3); 0 unfreezes none.
        modules: the names of the modules of ``model`` that stay in evaluation mode, such as frozen BatchNorm.
    """

    def __init__(self, model: nn.Module, network: nn.Module, unfreeze_every: int, modules: Sequence[str]) -> None:
        self.model = model
        self.copies: list[nn.Module] = []
        self.unfreeze_every = unfreeze_every
        trainable = ([parameter for parameter in layer if parameter.requires_grad] for layer in layers(network))
        self.layers = [layer for layer in trainable if layer] if unfreeze_every else []
        self.stage = -1
        self.names = list(modules)
        self.modules = self.corresponding()

    def include(self, copied: nn.Module) -> None:
        """Treat a copy of the model, such as a momentum encoder, in the same way."""
        self.copies.append(copied)
        self.modules = self.corresponding()

    def before_step(self, epoch: int) -> None:
        """Unfreeze the layers of this epoch, counted from 0, and put the frozen modules back into evaluation mode:
        ``train()`` of the whole network has changed it at the start of the epoch."""
        if self.unfreeze_every and self.stage != (stage := epoch // self.unfreeze_every):
            self.unfreeze(stage)
        for module in self.modules:
            module.eval()

    def unfreeze(self, stage: int) -> None:
        """Make the last ``stage + 1`` layers trainable, and no others."""
        for height, layer in enumerate(reversed(self.layers)):
            for parameter in layer:
                parameter.requires_grad_(height <= stage)
        for module in self.modules:
            module.train()
        self.names = frozen_norms(self.model)
        self.modules = self.corresponding()
        self.stage = stage

    def corresponding(self) -> list[nn.Module]:
        """The modules of these names in the model and its copies."""
        return [network.get_submodule(name) for network in (self.model, *self.copies) for name in self.names]

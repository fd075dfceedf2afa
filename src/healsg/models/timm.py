"""Any of timm's networks by its name (Wightman 2019), pretrained or not, optionally with weights from a file."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.data.source import line
from healsg.errors import ConfigError, RunError
from healsg.model import TaskModel, takes_any
from healsg.models.torchvision import TorchvisionNetwork
from healsg.parts import copied
from healsg.paths import current_folder

HEADS = ("head", "head.fc", "fc", "classifier")
"""What checkpoints call the last layer, where timm does not say."""


def set_apart(network: Any, info: DataInfo, name: str) -> TorchvisionNetwork:
    """Split a timm network into a body, which pools, and its last linear layer, re-initialised if it has another
    number of outputs. A network that does not end in one linear layer is left unchanged and has no features."""
    last, classes = network.get_classifier(), network.num_classes
    head = as_linear(last)
    if head is not None:
        where = next(name for name, module in network.named_modules() if module is last)
        network.set_submodule(where, nn.Identity())
    elif classes:
        if classes != info.num_classes:
            network.reset_classifier(info.num_classes)
        return TorchvisionNetwork(network, None, name)
    if head is None or head.out_features != info.num_classes:
        width = head.in_features if head is not None else try_out(network, info).shape[1]
        head = nn.Linear(width, info.num_classes)
    return TorchvisionNetwork(network, head, name)


def as_linear(layer: Any) -> nn.Linear | None:
    """A network's last layer as a linear one; None if it is neither that nor a convolution of one pixel."""
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.groups != 1:
        return layer if isinstance(layer, nn.Linear) else None
    made = nn.Linear(layer.in_channels, layer.out_channels, layer.bias is not None)
    made.load_state_dict({name: value.reshape(value.shape[:2]) for name, value in layer.state_dict().items()})
    return made


def try_out(network: nn.Module, info: DataInfo) -> Tensor:
    """The output for one image of zeros, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        output: Tensor = network(torch.zeros(1, *info.input_shape))
    network.train()
    return output


def reason(error: Exception) -> str:
    """Why something of timm's failed, in one line that is not long."""
    return line(error)[:300]


class Timm(TaskModel):
    """One of timm's networks for images of any number of channels.

    Args:
        name: as in ``timm.list_models()``, for example ``resnet18``, ``vit_tiny_patch16_224``; ``resnet18.a1_in1k``
            also names which pretrained weights are meant.
        pretrained: begin with the published weights, from timm's cache or the network; a method for trained networks
            (``finetune``, ``linear_probe``, ``lora``) does so by itself, without ``init_from``. The last layer is
            re-initialised where the number of classes differs, the first is adapted to the number of channels.
        weights: a file with weights (safetensors, or a torch file with tensors only) instead of the published ones.
        options: further arguments of timm's builder by name, such as ``drop_path_rate``.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool = False,
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name = name
        self.use_published = pretrained
        self.weights = weights
        self.options = dict(options or {})
        self.file = current_folder() / Path(weights).expanduser() if weights else None

    def pretrained(self) -> Timm | None:
        if self.weights or self.use_published:
            return self
        if not self._published().has_weights:
            return None
        return copied(self, {"use_published": True, "weights": None, "file": None})

    def untrained(self) -> Timm:
        return copied(self, {"use_published": False, "weights": None, "file": None})

    def check(self, info: DataInfo) -> None:
        super().check(info)
        shape = info.input_shape
        if len(shape) != 3:
            raise ConfigError(
                f"model: timm's networks take images (channels, height, width), not {shape}; {takes_any(info)}"
            )
        if importlib.util.find_spec("timm") is None:
            raise ConfigError("model: timm is not installed; install it with: pip install 'healsg[timm]'")
        if self.file and not self.file.is_file():
            raise ConfigError(f"model.weights: there is no file {self.weights}")
        self._published()

    def build(self, info: DataInfo) -> nn.Module:
        import timm

        published = self._published()
        options: dict[str, Any] = {"in_chans": info.input_shape[0]}
        if published.fixed_input_size:
            options["img_size"] = tuple(info.input_shape[1:])
        source: dict[str, Any] = {}
        if self.weights:
            options["num_classes"], source = self._read(published)
        elif not self.use_published:
            options["num_classes"] = info.num_classes
        options |= self.options
        loading = bool(source) or self.use_published
        try:
            network: Any = timm.create_model(self.name, loading, pretrained_cfg_overlay=source or None, **options)
        except Exception as error:
            settings = isinstance(error, (TypeError, ValueError, AssertionError)) and not isinstance(error, OSError)
            unloaded = self.weights or (loading and not settings)
            raise (self._unloaded(error) if unloaded else self._refused(info, error)) from error
        network.pretrained_cfg.pop("state_dict", None)  # or every copy of the network would hold it
        try:
            made = set_apart(network, info, self.name)
            try_out(made, info)
        except Exception as error:
            raise self._refused(info, error) from error
        return made

    def _published(self) -> Any:
        """What timm says of the network's pretrained weights. Raises ConfigError for a name it does not know."""
        import timm

        stem = self.name.split(".")[0]
        if not timm.is_model(stem):
            known = timm.list_models()
            near = difflib.get_close_matches(stem, known, n=3, cutoff=0.4) or known[:3]
            raise ConfigError(f"model.name: timm has no {self.name!r}; the nearest are {', '.join(near)}")
        tags = timm.list_models(f"{stem}.*", pretrained=True)
        try:
            published: Any = timm.models.get_pretrained_cfg(self.name, allow_unregistered=False)
        except RuntimeError:
            there_are = f"there are {', '.join(tags[:5])}" if tags else "there are none"
            raise ConfigError(f"model.name: timm has no weights {self.name!r}; {there_are}") from None
        if self.use_published and not self.weights and not published.has_weights:
            raise ConfigError(f"model.pretrained: timm has no weights for {self.name}; give a file: model.weights=FILE")
        return published

    def _read(self, published: Any) -> tuple[int, dict[str, Any]]:
        """The number of classes of the weights' file, 0 without a last layer, and the pretrained configuration passed
        to timm."""
        from timm.models import load_state_dict

        path = self.file
        try:
            state = load_state_dict(str(path), device="cpu", weights_only=True)
            sizes = {key: len(value) for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
        except Exception as error:
            raise RunError(f"model.weights: {path} cannot be read as a file of weights: {reason(error)}") from error
        named = published.classifier
        names = [*([named] if isinstance(named, str) else named or ()), *HEADS]
        classes = next((sizes[f"{name}.weight"] for name in names if f"{name}.weight" in sizes), 0)
        return classes, {"state_dict": state, "num_classes": classes, "label_offset": 0, "custom_load": False}

    def _unloaded(self, error: Exception) -> RunError:
        if self.weights:
            return RunError(f"model.weights: {self.weights} does not fit timm's {self.name}: {reason(error)}")
        return RunError(
            f"model.pretrained: the weights of timm's {self.name} cannot be loaded ({reason(error)}); "
            "give a file of them: model.weights=FILE, init_from=RUN or init_from=FILE"
        )

    def _refused(self, info: DataInfo, error: Exception) -> ConfigError:
        given = f" and model.options={self.options}" if self.options else ""
        return ConfigError(f"model: timm's {self.name} cannot take {info.input_shape}{given}: {reason(error)}")

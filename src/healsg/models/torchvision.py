"""Any of torchvision's classifiers by its name, with or without pretrained weights."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from healsg.build import weights_only
from healsg.data.base import DataInfo
from healsg.errors import ConfigError, RunError
from healsg.model import Network, TaskModel, takes_any
from healsg.parts import copied
from healsg.runs.weights import bare_names, fitting, read_weights

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with further classifiers in training, which are left out: a network here has one output."""

COUNTER = "num_batches_tracked"
"""BatchNorm's counter, which weights from before PyTorch 0.4.1 lack, and which is not used with a fixed momentum."""


class TorchvisionNetwork(Network):
    """A torchvision classifier, its last linear layer set apart as the head.

    Args:
        body: the network with its last linear layer replaced by the identity, or the whole network.
        head: that layer; None if a network does not end in one (SqueezeNet), which then has no features.
        name: what torchvision calls the network.
    """

    def __init__(self, body: nn.Module, head: nn.Linear | None, name: str) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Identity() if head is None else head
        self.num_features = 0 if head is None else head.in_features
        self.name = name

    def features(self, input: Tensor) -> Tensor:
        """(N, 3, height, width) to (N, num_features). Raises ConfigError if the network has none."""
        if not self.num_features:
            raise ConfigError(
                f"model.name: {self.name} does not end in a linear layer, so it has no features for this method; "
                "model.name=resnet18 has"
            )
        hidden: Tensor = self.body(input)
        return hidden

    def forward(self, input: Tensor, features: bool = False) -> Tensor:
        if features:
            return self.features(input)
        output: Tensor = self.head(self.body(input))
        return output


def last_linear(network: nn.Module) -> str | None:
    """The name of the last linear layer, which is a classifier's head; None if there is none."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def set_apart(network: nn.Module, classes: int, name: str) -> TorchvisionNetwork:
    """Split ``network`` into body and head, with a new head if the number of outputs differs."""
    where = last_linear(network)
    if where is None:
        return TorchvisionNetwork(_last_convolution(network, classes), None, name)
    head: Any = network.get_submodule(where)
    network.set_submodule(where, nn.Identity())
    if head.out_features != classes:
        head = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    return TorchvisionNetwork(network, head, name)


def _last_convolution(network: Any, classes: int) -> nn.Module:
    """SqueezeNet with another number of outputs: its classifier is a 1x1 convolution."""
    old = network.classifier[1]
    if old.out_channels != classes:
        network.classifier[1] = nn.Conv2d(old.in_channels, classes, 1)
    whole: nn.Module = network
    return whole


def _one_of(key: str, name: str, names: list[str]) -> None:
    """Refuse what is not known, with the nearest names."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ConfigError(f"{key}: torchvision has no {name!r}; the nearest are {', '.join(near)}")


class Torchvision(TaskModel):
    """One of torchvision's classifiers for images of three channels.

    Args:
        name: as in torchvision's list of classification models, for example ``resnet18``, ``vit_b_16``, ``swin_t``.
        weights: the name of its pretrained weights, such as ``DEFAULT`` or ``IMAGENET1K_V1``, or a file of weights
            under torchvision's names (a state dict of PyTorch, safetensors). None initialises at random; under a method
            for trained networks (``finetune``, ``linear_probe``, ``lora``) it is ``DEFAULT``, unless ``init_from``
            gives some. The last layer is re-initialised where the number of classes differs.
        options: further arguments of torchvision's builder by name.
        common: the arguments of TaskModel.
    """

    leaves_weights = True
    draws_only_from_torch = True

    def __init__(
        self,
        name: str = "resnet18",
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name = name
        self.weights = weights
        self.options = dict(options or {})
        self.empty = False
        """Whether the weights are left out, though the network is built as with them."""

    def pretrained(self) -> Torchvision | None:
        self._check_names()
        if self.weights:
            return self
        from torchvision import models

        if not len(models.get_model_weights(self.name)):
            return None
        return copied(self, {"weights": "DEFAULT", "empty": False})

    def untrained(self) -> Torchvision:
        return copied(self, {"empty": True})

    def check(self, info: DataInfo) -> None:
        super().check(info)
        shape = info.input_shape
        if len(shape) != 3:
            raise ConfigError(
                f"model: torchvision's networks take images (3, height, width), not {shape}; {takes_any(info)}"
            )
        if shape[0] != 3:
            raise ConfigError(
                f"model: torchvision's networks take images of 3 channels, not {shape[0]}; "
                "model=resnet takes any number of channels"
            )
        self._check_names()

    def build(self, info: DataInfo) -> nn.Module:
        self._check_names()
        network = self._made(info)
        if getattr(network, "aux_logits", False):
            network.aux_logits, network.AuxLogits = False, None
        made = set_apart(network, info.num_classes, self.name)
        self._try_out(made, info)
        return made

    def _check_names(self) -> None:
        from torchvision import models

        _one_of("model.name", self.name, models.list_models(module=models))
        known = list(models.get_model_weights(self.name).__members__)
        if self.weights and self.weights not in known and not self._file.is_file():
            if self._file.suffix or self._file.parent != Path():
                raise ConfigError(f"model.weights: there is no file {self.weights}")
            _one_of("model.weights", self.weights, known)

    @property
    def _file(self) -> Path:
        """The file that ``weights`` names if it is not torchvision's name of some."""
        return Path(self.weights or "").expanduser()

    def _made(self, info: DataInfo) -> Any:
        """The network with the requested weights, built by torchvision."""
        from torchvision import models

        if not self.weights:
            return self._draw(info)
        published = models.get_model_weights(self.name)
        named = published[self.weights] if self.weights in published.__members__ else None
        if self.empty:
            return self._draw(info, self._implied(named))
        return self._read(info) if named is None else self._load(named)

    def _implied(self, named: Any) -> dict[str, Any]:
        """The options with which torchvision builds the network for pretrained weights."""
        implied: dict[str, Any] = {"transform_input": True} if self.name in AUXILIARY else {}
        if self.name.startswith("vit_"):
            implied["image_size"] = 224 if named is None else named.meta["min_size"][0]
        return implied

    def _read(self, info: DataInfo) -> Any:
        """The network with the weights of a file, and with as many outputs as these have, or as are wanted."""
        tensors, _ = bare_names(read_weights(self._file).tensors)
        where = last_linear(self._draw(info, self._implied(None))) or "classifier.1"
        outputs = tensors.get(f"{where}.weight")
        classes = info.num_classes if outputs is None else len(outputs)
        network = self._draw(info, {**self._implied(None), "num_classes": classes})
        own = network.state_dict()
        missing = [key for key in own if key not in tensors]
        missing = [key for key in missing if not key.startswith(f"{where}.") and not key.endswith(COUNTER)]
        others = [key for key in tensors if own.get(key, tensors[key]).shape != tensors[key].shape]
        if missing or others:
            detail = f"has no {missing[0]}" if missing else f"has {others[0]} in another shape"
            raise RunError(f"model.weights: {self.weights} does not fit torchvision's {self.name}: it {detail}")
        network.load_state_dict(fitting(tensors, own), strict=False)
        return network

    def _draw(self, info: DataInfo, implied: Mapping[str, Any] | None = None) -> Any:
        """The network with random weights; ``implied`` are the builder's arguments that its pretrained weights
        require."""
        from torchvision import models

        options = {"num_classes": info.num_classes, **(implied or {})} | self.options
        if self.name in AUXILIARY:
            options = {"aux_logits": False, "init_weights": True} | options
        if self.name.startswith("vit_"):
            options.setdefault("image_size", info.input_shape[-1])
        try:
            return models.get_model(self.name, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise self._refused(info, error) from error

    def _load(self, weights: Any) -> Any:
        """The network with its pretrained weights, from torch's cache or the network."""
        from torchvision import models

        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        try:
            with weights_only():
                return models.get_model(self.name, weights=weights, **self.options)
        except OSError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(
                f"model.weights: {weights.url} cannot be loaded ({reason}); give weights of your own "
                f"(model.weights=FILE, init_from=RUN or init_from=FILE), or put the file at {file}"
            ) from error
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise RunError(
                f"model.weights: {file} is damaged or not the file of {weights.url}; delete it or put that file there"
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.options: {self.name} with weights refuses them: {error}") from error

    def _try_out(self, network: nn.Module, info: DataInfo) -> None:
        """Run one image of zeros through the network, so that unsupported sizes are found before training."""
        network.eval()
        try:
            with torch.no_grad():
                network(torch.zeros(1, *info.input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise self._refused(info, error) from error
        finally:
            network.train()

    def _refused(self, info: DataInfo, error: Exception) -> ConfigError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        given = f" and model.options={self.options}" if self.options else ""
        return ConfigError(f"model: torchvision's {self.name} cannot take {info.input_shape}{given}: {reason}")

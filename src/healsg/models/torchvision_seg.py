"""Any of torchvision's segmentation networks by its name: DeepLabV3, FCN, LR-ASPP."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from healsg.build import weights_only
from healsg.data.info import DataInfo
from healsg.data.source import line
from healsg.errors import ConfigError, RunError
from healsg.models.foreign_dense import ForeignDense, require_masks
from healsg.models.smp import file_of
from healsg.models.unet import DenseModel, refuse_samples
from healsg.parts import copied
from healsg.runs.weights import initialise


class TorchvisionSegmentation(DenseModel):
    """One of torchvision's segmentation networks for images of three channels.

    Args:
        name: as torchvision lists it: ``deeplabv3_resnet50``, ``fcn_resnet50``, ``lraspp_mobilenet_v3_large``, ...
            DeepLabV3 takes at least two samples in a training batch, since it normalises one pixel of each.
        weights: published weights by name, such as ``DEFAULT``, from torch's cache or the network; or a file under
            torchvision's names, of which what fits is loaded. None initialises at random. Layers for other classes are
            re-initialised.
        aux: a second output from an earlier layer in training, with half the weight of the first; LR-ASPP has none.
        options: further arguments of torchvision's builder by name.
        common: the arguments of DenseModel.
    """

    def __init__(
        self,
        name: str = "deeplabv3_resnet50",
        weights: str | None = None,
        aux: bool = False,
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name = name
        self.weights = weights
        self.aux = aux
        self.options = dict(options or {})
        self.file = file_of(weights)
        self.deeply_supervised = aux

    def pretrained(self) -> TorchvisionSegmentation | None:
        return self if self.weights else None

    def untrained(self) -> TorchvisionSegmentation:
        return copied(self, {"weights": None, "file": None})

    def check(self, info: DataInfo) -> None:
        refuse_samples(self, info)
        super().check(info)
        if len(info.input_shape) != 3 or info.input_shape[0] != 3:
            raise ConfigError(
                f"model: torchvision's networks take images (3, height, width), not {info.input_shape}; "
                "model=smp and model=unet take any number of channels"
            )
        self._check_names()

    def _check_names(self) -> None:
        from torchvision import models

        known = models.list_models(module=models.segmentation)
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=3, cutoff=0.4) or known[:3]
            raise ConfigError(f"model.name: torchvision has no {self.name!r}; the nearest are {', '.join(near)}")
        if self.aux and self.name.startswith("lraspp"):
            raise ConfigError(f"model.aux: {self.name} has no second output; leave it out")
        if self.file is not None and not self.file.is_file():
            raise ConfigError(f"model.weights: there is no file {self.weights}")
        names = list(models.get_model_weights(self.name).__members__)
        if self.weights and self.file is None and self.weights not in names:
            raise ConfigError(f"model.weights: torchvision has no {self.weights!r} for {self.name}; it has {names}")

    def build(self, info: DataInfo) -> nn.Module:
        self._check_names()
        body = self._published() if self.weights and self.file is None else self._drawn(info)
        heads = _heads(body)
        for prefix in heads:
            _fit(body, prefix.rstrip("."), info.num_classes)
        if self.file is not None:
            initialise(body, self.file, key="model.weights")
        network = ForeignDense(body, f"torchvision's {self.name}", info.input_shape[1:], heads)
        try:
            return require_masks(network, info)
        except (RuntimeError, ValueError) as error:
            raise self._refused(info, error) from error

    def _drawn(self, info: DataInfo) -> Any:
        from torchvision import models

        aux: dict[str, Any] = {} if self.name.startswith("lraspp") else {"aux_loss": self.aux}
        options = {"num_classes": info.num_classes, **aux} | self.options
        try:
            return models.get_model(self.name, weights=None, weights_backbone=None, **options)
        except (TypeError, ValueError) as error:
            raise self._refused(info, error) from error

    def _published(self) -> Any:
        """The network with torchvision's weights, which have a second output if there is one."""
        from torchvision import models

        try:
            with weights_only():
                body: Any = models.get_model(self.name, weights=self.weights, **self.options)
        except OSError as error:
            raise RunError(
                f"model.weights: {self.weights} of {self.name} cannot be loaded ({line(error)[:200]}); "
                "give weights of your own: model.weights=FILE, init_from=RUN or init_from=FILE"
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.options: {self.name} with weights refuses them: {line(error)[:200]}") from error
        if not self.aux and hasattr(body, "aux_classifier"):
            body.aux_classifier = None
        return body

    def _refused(self, info: DataInfo, error: Exception) -> ConfigError:
        given = f" and model.options={self.options}" if self.options else ""
        return ConfigError(
            f"model: torchvision's {self.name} cannot take {info.input_shape}{given}: {line(error)[:200]}"
        )


def _heads(body: nn.Module) -> tuple[str, ...]:
    """The prefixes of the layers that make scores: the last of each classifier, or both of LR-ASPP."""
    if not hasattr(body, "aux_classifier"):
        return ("classifier.low_classifier.", "classifier.high_classifier.")
    parts = [("classifier", body.classifier), ("aux_classifier", body.aux_classifier)]
    return tuple(f"{name}.{len(part) - 1}." for name, part in parts if part is not None)  # type: ignore[arg-type]


def _fit(body: nn.Module, name: str, classes: int) -> None:
    """Replace a layer of scores by one with ``classes`` outputs, unless it has as many."""
    old: Any = body.get_submodule(name)
    if old.out_channels != classes:
        body.set_submodule(name, nn.Conv2d(old.in_channels, classes, old.kernel_size))

"""Any network of segmentation_models_pytorch by the names of its architecture and encoder
(https://smp.readthedocs.io)."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from healsg.data.info import DataInfo
from healsg.data.source import line
from healsg.errors import ConfigError, RunError
from healsg.models.foreign_dense import ForeignDense, require_masks
from healsg.models.unet import DenseModel, refuse_samples
from healsg.parts import copied
from healsg.paths import current_folder
from healsg.runs.weights import initialise


class Smp(DenseModel):
    """A network of segmentation_models_pytorch for images of any number of channels.

    Args:
        name: of the architecture: ``Unet``, ``UnetPlusPlus``, ``FPN``, ``DeepLabV3Plus``, ``Segformer``, ...
        encoder: as the package calls it, such as ``resnet34``, ``mit_b0``, ``tu-convnext_tiny`` (``tu-``: any of
            timm's).
        weights: published weights of the encoder by name, such as ``imagenet``, from the cache or the network; or a
            file of weights of the encoder or of the whole network, of which what fits is loaded. None initialises at
            random.
        options: further arguments of the architecture by name, such as ``{decoder_channels: [64, 32, 16, 8, 4]}``.
        common: the arguments of DenseModel.
    """

    deeply_supervised = False

    def __init__(
        self,
        name: str = "Unet",
        encoder: str = "resnet34",
        weights: str | None = None,
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name = name
        self.encoder = encoder
        self.weights = weights
        self.options = dict(options or {})
        self.file = file_of(weights)

    def pretrained(self) -> Smp | None:
        return self if self.weights else None

    def untrained(self) -> Smp:
        return copied(self, {"weights": None, "file": None})

    def check(self, info: DataInfo) -> None:
        if importlib.util.find_spec("segmentation_models_pytorch") is None:
            raise ConfigError(
                "model: segmentation_models_pytorch is not installed; install it with: pip install 'healsg[smp]'"
            )
        refuse_samples(self, info)
        super().check(info)
        if len(info.input_shape) != 3:
            raise ConfigError(
                f"model: segmentation_models_pytorch takes images (channels, height, width), not {info.input_shape}; "
                "model=unet and model=monai take volumes"
            )
        self._check_names()

    def _check_names(self) -> None:
        import segmentation_models_pytorch as smp

        architectures = [kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()]
        _one_of("model.name", self.name, architectures)
        if not self.encoder.startswith("tu-"):
            _one_of("model.encoder", self.encoder, smp.encoders.get_encoder_names())
        if self.file is not None and not self.file.is_file():
            raise ConfigError(f"model.weights: there is no file {self.weights}")

    def build(self, info: DataInfo) -> nn.Module:
        import segmentation_models_pytorch as smp

        channels, classes = info.input_shape[0], info.num_classes
        published = self.weights if self.file is None else None
        try:
            body: Any = smp.create_model(self.name, self.encoder, published, channels, classes, **self.options)
        except Exception as error:
            if published and isinstance(error, OSError):
                raise RunError(
                    f"model.weights: {published} of {self.encoder}: cannot be loaded ({_said(error)})"
                ) from None
            raise self._refused(info, error) from error
        if self.file is not None:
            initialise(body, self.file, key="model.weights")
        network = ForeignDense(body, f"smp's {self.name}", info.input_shape[1:], ("segmentation_head.",))
        try:
            return require_masks(network, info)
        except ConfigError:
            raise
        except Exception as error:
            raise self._refused(info, error) from error

    def _refused(self, info: DataInfo, error: Exception) -> ConfigError:
        given = f" and model.options={self.options}" if self.options else ""
        return ConfigError(
            f"model: smp's {self.name} with {self.encoder} cannot take {info.input_shape}{given}: {_said(error)}"
        )


def _said(error: Exception) -> str:
    return line(" ".join(str(error).split()) or type(error).__name__)[:300]


def file_of(weights: str | None) -> Path | None:
    """The file that ``weights`` names; None if it is a name of published ones."""
    if not weights:
        return None
    path = current_folder() / Path(weights).expanduser()
    return path if path.is_file() or path.suffix or "/" in weights else None


def _one_of(key: str, name: str, names: list[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ConfigError(f"{key}: smp has no {name!r}; the nearest are {', '.join(near)}")

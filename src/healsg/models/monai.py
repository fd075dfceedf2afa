"""Any of MONAI's networks by its name (https://monai.io): MedNeXt, SegResNet, DynUNet, VNet, UNETR, SwinUNETR, and its
classifiers of volumes."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from typing import Any

from torch import Tensor, nn

from healsg.data.base import DataInfo
from healsg.data.source import line
from healsg.errors import ConfigError
from healsg.model import TaskModel
from healsg.models.foreign_dense import ForeignDense, last_head, require_masks, try_out
from healsg.models.torchvision import set_apart
from healsg.models.unet import DenseModel

ALIASES = {
    "spatial_dims": "dim",
    "dimensions": "dim",
    "in_channels": "channels",
    "n_channels": "channels",
    "out_channels": "outputs",
    "num_classes": "outputs",
    "n_classes": "outputs",
    "img_size": "sides",
}
"""The names of MONAI's arguments that are filled in from the data."""

USUAL: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [32, 64, 128, 256], "strides": [2, 2, 2], "num_res_units": 2},
    "AttentionUnet": {"channels": [32, 64, 128, 256], "strides": [2, 2, 2]},
    "DynUNet": {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
}
"""Arguments without a default in MONAI, where ``options`` does not give them."""


class Monai(DenseModel):
    """One of MONAI's networks for images and volumes of any number of channels.

    The number of dimensions, channels and outputs and the size of an image are filled in from the data.

    Args:
        name: of a class in ``monai.networks.nets``, for example ``MedNeXtS``, ``SegResNet``, ``DynUNet``, ``VNet``,
            ``UNETR``, ``SwinUNETR``, ``UNet``; for one class a volume ``DenseNet121``.
        options: further arguments of that class by name, such as ``{deep_supervision: true}``.
        common: the arguments of DenseModel.
    """

    def __init__(
        self,
        name: str = "SegResNet",
        options: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.name, self.options = name, dict(options or {})

    def check(self, info: DataInfo) -> None:
        if importlib.util.find_spec("monai") is None:
            raise ConfigError("model: MONAI is not installed; install it with: pip install 'healsg[seg]'")
        super().check(info)
        if len(info.input_shape) not in (3, 4):
            raise ConfigError(
                f"model: MONAI's networks take images (channels, height, width) or volumes (channels, depth, height, "
                f"width), not {info.input_shape}"
            )
        self._arguments(info)

    def criterion(self, info: DataInfo) -> nn.Module:
        if info.kind != "segmentation":
            return self.loss or TaskModel.criterion(self, info)
        return super().criterion(info)

    def build(self, info: DataInfo) -> nn.Module:
        arguments = self._arguments(info)
        try:
            body = self._class()(**arguments)
            output = try_out(body, info)
        except Exception as error:
            raise self._refused(info, error) from error
        if info.kind != "segmentation":
            if isinstance(output, Tensor) and output.dim() == 2:
                return set_apart(body, info.num_classes, self.name)
            raise ConfigError(f"model.name: MONAI's {self.name} has an output for each pixel; this task is {info.kind}")
        heads = last_head(body, info.num_classes)
        return require_masks(ForeignDense(body, f"MONAI's {self.name}", info.input_shape[1:], heads), info)

    def _class(self) -> Any:
        """The network's class. Raises ConfigError for a name that MONAI does not have."""
        import monai.networks.nets as nets

        classes = {key: value for key, value in vars(nets).items() if inspect.isclass(value)}
        known = sorted(key for key, value in classes.items() if issubclass(value, nn.Module))
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=3, cutoff=0.4) or known[:3]
            raise ConfigError(f"model.name: MONAI has no {self.name!r}; the nearest are {', '.join(near)}")
        return getattr(nets, self.name)

    def _arguments(self, info: DataInfo) -> dict[str, Any]:
        """What its constructor is given. Raises ConfigError for an option that it does not know, or one it needs."""
        parameters = inspect.signature(self._class()).parameters
        channels, *sides = info.input_shape
        facts = {"dim": len(sides), "channels": channels, "outputs": info.num_classes, "sides": tuple(sides)}
        given = {key: facts[fact] for key, fact in ALIASES.items() if key in parameters}
        given |= {key: value for key, value in USUAL.get(self.name, {}).items() if key in parameters}
        open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        if open_ended:  # such as MedNeXtS and DenseNet121, which pass their arguments on
            given = {"spatial_dims": len(sides), "in_channels": channels, "out_channels": info.num_classes} | given
        unknown = [key for key in self.options if key not in parameters and not open_ended]
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(parameters), n=3, cutoff=0.4)
            detail = f"; the nearest are {', '.join(near)}" if near else ""
            raise ConfigError(f"model.options.{unknown[0]}: MONAI's {self.name} has no such argument{detail}")
        given |= self.options
        needed = [
            key
            for key, one in parameters.items()
            if one.default is one.empty and key not in given and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        if needed:
            raise ConfigError(f"model.options.{needed[0]}: MONAI's {self.name} needs it; give its value")
        return given

    def _refused(self, info: DataInfo, error: Exception) -> ConfigError:
        given = f" and model.options={self.options}" if self.options else ""
        if isinstance(error, ImportError) or type(error).__name__ == "OptionalImportError":
            message = line(str(error).splitlines()[0])
            return ConfigError(
                f"model: MONAI's {self.name} needs a package ({message}); pip install 'healsg[seg]' has most"
            )
        message = line(error)[:300]
        return ConfigError(f"model: MONAI's {self.name} cannot take {info.input_shape}{given}: {message}")

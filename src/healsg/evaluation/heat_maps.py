"""Heat maps of a network's decision: Grad-CAM for convolutional networks, occlusion for vision transformers.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the map of a class is ``relu(sum_k w_k A_k)``, where ``A_k`` are the
channels of the last convolutional feature map and ``w_k`` is the mean over space of the class score's gradient with
respect to ``A_k``.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): how much the log-probability of the class decreases when a patch of
the image is hidden. It is used for transformers because the tokens of their last layers do not correspond to positions:
attention has mixed them, and only the class token may reach the output, so that Grad-CAM would highlight wrong regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.errors import ConfigError

MOST_WINDOWS = 8
"""The most windows along a side that are occluded one after the other: at most 64 forward passes per image."""

Predict = Callable[[Tensor], Tensor]
"""From inputs (N, C, H, W) to outputs (N, classes)."""


class Explainer(Protocol):
    """Computes heat maps."""

    def __call__(self, input: Tensor, classes: Tensor) -> Tensor:
        """Heat maps in 0..1, each with 1 at its largest value unless it is 0 everywhere.

        Args:
            input: (N, C, H, W), on the network's device.
            classes: (N,) the index of the output that each map explains.

        Returns:
            (N, H, W) float32, on the CPU.
        """
        ...


class GradCam:
    """Grad-CAM; see the top of this file.

    Args:
        module: the module whose output is the feature map.
        predict: calls the network that contains it.
        channels_last: whether the map is (N, H, W, C), as in some transformers with windows.
    """

    def __init__(self, module: nn.Module, predict: Predict, channels_last: bool = False) -> None:
        self.module = module
        self.predict = predict
        self.channels_last = channels_last

    def __call__(self, input: Tensor, classes: Tensor) -> Tensor:
        outputs, recorded = _forward([self.module], self.predict, input)
        features = [output for _, output in recorded if _is_feature_map(output)][-1]
        score = outputs.float().gather(1, classes.to(outputs.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features)
        order = (0, 3, 1, 2) if self.channels_last else (0, 1, 2, 3)
        maps, gradients = (value.detach().float().permute(order) for value in (features, gradient))
        heat = (gradients.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True).relu()
        return _scaled(heat, input)


class Occlusion:
    """Occlusion; see the top of this file. A hidden window has the mean colour of its image.

    Args:
        predict: calls the network.
        grid: windows along the height and the width.
    """

    def __init__(self, predict: Predict, grid: tuple[int, int]) -> None:
        self.predict = predict
        self.grid = grid

    @torch.no_grad()
    def __call__(self, input: Tensor, classes: Tensor) -> Tensor:
        rows, columns = self.grid
        heights, widths = (_ends(size, parts) for size, parts in zip(input.shape[2:], self.grid, strict=True))
        mean = input.mean(dim=(2, 3), keepdim=True)
        unoccluded = self._score(input, classes)
        heat = torch.zeros(len(input), 1, rows, columns, device=input.device)
        for row in range(rows):
            for column in range(columns):
                hidden = input.clone()
                hidden[:, :, heights[row] : heights[row + 1], widths[column] : widths[column + 1]] = mean
                heat[:, 0, row, column] = (unoccluded - self._score(hidden, classes)).relu()
        return _scaled(heat, input)

    def _score(self, input: Tensor, classes: Tensor) -> Tensor:
        outputs = self.predict(input).float()
        scores = outputs.log_softmax(dim=1) if outputs.shape[1] > 1 else outputs
        return scores.gather(1, classes.to(outputs.device)[:, None])[:, 0]


def explainer_of(network: nn.Module, predict: Predict, example: Tensor) -> Explainer:
    """Grad-CAM of the last feature map before pooling; occlusion if it is followed by layers on tokens of patches.

    Args:
        network: in evaluation mode.
        predict: calls the network.
        example: inputs of the same shape as those to explain, on the network's device.

    Raises:
        ConfigError: the network has no feature map.
    """
    recorded = _forward(list(network.modules()), predict, example)[1]
    maps = [number for number, (_, output) in enumerate(recorded) if _is_feature_map(output)]
    if not maps:
        raise ConfigError(
            f"--explain: {type(network).__name__} has no feature map with height and width; what is explained are "
            "convolutional networks and vision transformers, such as model=cnn, model=resnet, model=vit"
        )
    module, features = recorded[maps[-1]]
    normalised = [output for module, output in recorded[maps[-1] :] if isinstance(module, nn.LayerNorm)]
    if any(isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] > 1 for output in normalised):
        convolved = [recorded[number][1] for number in maps if isinstance(recorded[number][0], nn.Conv2d)]
        rows, columns = convolved[-1].shape[2:] if convolved else example.shape[2:]
        return Occlusion(predict, (min(int(rows), MOST_WINDOWS), min(int(columns), MOST_WINDOWS)))
    # A LayerNorm over the last dimension alone shows that the feature map has its channels last.
    normalized_shape = module.normalized_shape if isinstance(module, nn.LayerNorm) else ()
    return GradCam(module, predict, tuple(normalized_shape) == (features.shape[3],) != (features.shape[1],))


def _forward(modules: list[nn.Module], predict: Predict, input: Tensor) -> tuple[Tensor, list[tuple[nn.Module, Any]]]:
    """The outputs of the network, and those of each of ``modules`` in order of completion, with gradients."""
    recorded: list[tuple[nn.Module, Any]] = []

    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        recorded.append((module, output))

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        with torch.enable_grad():
            return predict(input.detach().clone().requires_grad_()), recorded
    finally:
        for handle in handles:
            handle.remove()


def _is_feature_map(output: Any) -> bool:
    """Whether an output is a feature map with height and width, and with gradients."""
    four_dimensional = isinstance(output, Tensor) and output.dim() == 4 and output.requires_grad
    return four_dimensional and output[0].numel() > max(output.shape[1], output.shape[3])


def _ends(size: int, parts: int) -> list[int]:
    """The boundaries of ``parts`` almost equal pieces of ``size`` pixels, from 0 to ``size``."""
    return [size * part // parts for part in range(parts + 1)]


def _scaled(heat: Tensor, input: Tensor) -> Tensor:
    """(N, 1, h, w) resized to the (N, H, W) of the input and divided by the maximum of each map, on the CPU."""
    resized = F.interpolate(heat, input.shape[2:], mode="bilinear")[:, 0]
    largest = resized.amax(dim=(1, 2), keepdim=True)
    return (resized / largest.where(largest > 0, torch.ones_like(largest))).cpu()

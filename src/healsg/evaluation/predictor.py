"""Predictor: the network of a run for new samples, built from its configuration and checkpoint, without its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from healsg.build import build_task
from healsg.config.schema import Composed
from healsg.data.info import DataInfo, saved_info
from healsg.data.loader import Loader
from healsg.errors import ConfigError, RunError, one_line
from healsg.evaluation.evaluator import evaluating, in_units, without_half
from healsg.evaluation.heat_maps import Explainer, explainer_of
from healsg.model import Network, TaskModel
from healsg.runs.folder import RunFolder
from healsg.runs.restoring import weights_state
from healsg.task import BasicTask
from healsg.training.device import DeviceSetup


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for N samples, on the CPU.

    Args:
        outputs: (N, C) or (N, ...), the network's outputs; those of a regression are in the unit of their targets.
        probabilities: (N, C) of each class or label; (N, C, *spatial) for a segmentation; None for a regression.
        classes: the name of each sample's most probable class, or its index as text if classes have no names; for
            multilabel tasks the names of all labels with a probability above 1/2. None for a regression or a
            segmentation.
        features: (N, F), the inputs of the head, if requested.
        masks: (N, *spatial) int64 for a segmentation, the label of each pixel; with regions (N, R, *spatial) bool,
            which pixels are in each region.
    """

    outputs: Tensor
    probabilities: Tensor | None
    classes: list[str] | list[list[str]] | None
    features: Tensor | None = None
    masks: Tensor | None = None


class Predictor:
    """The network of a run for new samples, which are preprocessed as in evaluation.

    The outputs are bitwise those of an evaluation with the same batches; with other batch sizes they differ by
    rounding.

    Args:
        network: with its weights.
        task_model: the model whose ``predict`` calls it.
        device_setup: the device and the precision.
        info: the meaning of its inputs and outputs.
    """

    def __init__(self, network: nn.Module, task_model: TaskModel, device_setup: DeviceSetup, info: DataInfo) -> None:
        self.network = network
        self.task_model = task_model
        self.device_setup = device_setup
        self.info = info
        device_setup.choose_layout(network)
        device_setup.move_module(network)

    def __call__(self, given: Any, batch_size: int = 64, features: bool = False) -> Prediction:
        """Predict.

        Args:
            given: an array or tensor (N, ...) of samples as the data set stores them (uint8 images, numbers as in the
                table); a table as a dict of columns; the path of an image, of a folder or of a .csv file, or a list of
                images.
            batch_size: samples of one forward pass.
            features: whether to return features too.

        Raises:
            DataError: the samples cannot be read, or do not fit the network.
            ConfigError: features are requested of a network that has none.
        """
        from healsg.datasets.new_samples import prepared

        if features and not isinstance(self.network, Network):
            raise ConfigError(f"predictor: {type(self.network).__name__} has no features; a healsg.Network does")
        source, view = prepared.source_of(given, self.info), prepared.transform_of(self.info)
        loader = Loader({"labelled": source}, {"labelled": {"input": view}}, batch_size, shuffle=False)
        outputs, hidden = [], []
        with evaluating(self.network), torch.no_grad():
            for batch, _ in loader.batches(0):
                batch = self.device_setup.move(batch)
                with self.device_setup.autocast():
                    outputs.append(without_half(self.task_model.predict(self.network, batch)).cpu())
                    if isinstance(self.network, Network) and features:
                        hidden.append(without_half(self.network.features(batch["input"])).cpu())
        output = in_units(torch.cat(outputs), self.info)
        found = torch.cat(hidden) if features else None
        if self.info.dense:
            overlapping = bool(self.info.regions)
            probabilities = output.sigmoid() if overlapping else output.softmax(dim=1)
            return Prediction(output, probabilities, None, found, output > 0 if overlapping else output.argmax(dim=1))
        return Prediction(output, *self._classified(output), found)

    def explainer(self) -> Explainer:
        """Makes saliency maps of this network's inputs; see ``heat_maps``.

        Raises:
            ConfigError: the network does not classify images, or is neither convolutional nor a vision transformer.
        """
        if self.info.dense or self.info.input_names or len(self.info.input_shape) != 3:
            takes = f"{', '.join(self.info.input_names[:3])}, ..." if self.info.input_names else self.info.input_shape
            what = "a segmentation says where itself" if self.info.dense else f"this network takes {takes}"
            raise ConfigError(f"--explain: is for classes of pictures (channels, height, width); {what}")
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, *self.info.input_shape, generator=generator)
        if self.device_setup.double:
            example = example.double()

        def predict(input: Tensor) -> Tensor:
            with self.device_setup.autocast():
                output: Tensor = self.task_model.predict(self.network, {"input": input})
            return output

        with evaluating(self.network):
            return explainer_of(self.network, predict, self.device_setup.move({"input": example})["input"])

    def heat_maps(self, given: Any, classes: Tensor, explainer: Explainer) -> Tensor:
        """The saliency map of each sample of one batch: (N, H, W) in [0, 1], on the CPU.

        Args:
            given: samples as the data set stores them, (N, C, H, W).
            classes: (N,) the index of the output to explain.
            explainer: of this predictor.
        """
        from healsg.datasets.new_samples import prepared

        source, view = prepared.source_of(given, self.info), prepared.transform_of(self.info)
        loader = Loader({"labelled": source}, {"labelled": {"input": view}}, len(given), shuffle=False)
        ((batch, _),) = loader.batches(0)
        with evaluating(self.network):
            return explainer(self.device_setup.move(batch)["input"], classes)

    def scores(self, input: Tensor) -> Tensor:
        """The network's outputs for preprocessed inputs, in float32 or wider, on the device.

        Args:
            input: (N, C, *spatial), on any device.
        """
        batch = self.device_setup.move({"input": input})
        with evaluating(self.network), torch.no_grad(), self.device_setup.autocast():
            output: Tensor = self.task_model.predict(self.network, batch)
        return without_half(output)

    def _classified(self, output: Tensor) -> tuple[Tensor | None, list[str] | list[list[str]] | None]:
        """The probabilities and the predicted classes of outputs (N, C); None for a regression."""
        names = self.info.class_names or tuple(map(str, range(self.info.num_classes)))
        if self.info.kind == "multiclass":
            return output.softmax(dim=1), [names[index] for index in output.argmax(dim=1).flatten().tolist()]
        if self.info.kind == "multilabel":
            chosen = (output > 0).tolist()
            return output.sigmoid(), [[name for name, one in zip(names, row, strict=True) if one] for row in chosen]
        return None, None


def network_of_run(
    composed: Composed, info: DataInfo, state: dict[str, Any], samples: bool = False
) -> tuple[BasicTask, nn.Module]:
    """The task of a run without its data, and the network that is evaluated, with the weights of a checkpoint.

    Args:
        composed: the run's configuration.
        info: the description of the data that the weights were trained on.
        state: the content of ``best.pt`` or ``last.pt``.
        samples: whether the task gets the data set of ``composed``, so that an evaluation can read a split of it.

    Returns:
        The task, without loaders, and the network on the CPU, in evaluation mode, without gradients.

    Raises:
        RunError: the weights do not fit, e.g. because a user's method changes the network but not in ``evaluated``.
        ConfigError: a part cannot be made.
    """
    task = build_task(composed, info, samples)
    task.choose_weights(fresh_weights=False)
    with torch.random.fork_rng(devices=[]):
        built = task.build_model() if task.custom_network else task.task_model.build(info)
        network = task.task_method.evaluated(built)
    if task.runner.device_setup.double:
        network.double()  # before the weights, which a float32 network would round
    try:
        network.load_state_dict(_evaluated_weights(task, state))
    except RuntimeError as error:
        reason = one_line(error)[:200]
        raise RunError(f"the weights do not fit the network of {type(task.task_method).__name__}: {reason}") from error
    return task, network.eval().requires_grad_(False)


def _evaluated_weights(task: BasicTask, state: dict[str, Any]) -> dict[str, Any]:
    """The weights that are evaluated: those of ``best.pt``, or the part of ``last.pt`` that the method selects. Raises
    RunError."""
    weights: dict[str, Any] | None = state["model"]
    if "method" in state:
        weights = task.task_method.evaluated_weights(state["model"], state["method"])
    if weights is None:
        raise RunError(f"{type(task.task_method).__name__} does not say which weights of last.pt are evaluated")
    return weights


def best_of(folder: RunFolder) -> tuple[DataInfo | None, dict[str, Any]]:
    """The description of the data of a run's best weights, None if there is none, and their checkpoint. Raises
    RunError."""
    state = weights_state(folder, "best")
    try:
        return saved_info(state), state
    except RunError as error:
        raise RunError(f"{folder.best}: {error}") from error

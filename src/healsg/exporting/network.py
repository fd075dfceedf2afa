"""The network of a run with its pre- and postprocessing, and the file formats of its export."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from healsg.data.info import DataInfo
from healsg.datasets.new_samples.prepared import transform_of
from healsg.datasets.segmentation import region_labels
from healsg.errors import ConfigError, RunError, one_line
from healsg.evaluation.evaluator import in_units
from healsg.evaluation.predictor import Predictor
from healsg.evaluation.sliding_window import mirrored
from healsg.model import TaskModel
from healsg.models.unet import DenseModel
from healsg.transforms.image import ImageTransform, scaling
from healsg.transforms.standard import Standardise

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "pt2": (), "safetensors": ("safetensors",)}
"""Packages that a format needs, in addition to HEALSg."""

FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "model.safetensors"}
"""By format the file with the network."""

KINDS = ("multiclass", "multilabel", "regression")
"""Tasks with one output a sample, which can be exported; so can masks."""

LARGEST_FILE = 3 << 29
"""Bytes of weights from which an ONNX file, which holds at most 2 GiB, has them in a file beside it."""


def check_packages(to: str) -> None:
    """Refuse a format that needs a package which is not installed. Raises ConfigError."""
    missing = [name for name in PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--to {to}: {', '.join(missing)} is not installed; install it with: pip install 'healsg[export]'"
        )


class Prepared(nn.Module):
    """Stored samples, (N, ...) float32, as the network takes them.

    Args:
        info: what the network was trained on.
    """

    factor: Tensor | None
    offset: Tensor
    centre: Tensor | None
    spread: Tensor

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        transform = transform_of(info)
        factor = None
        offset = None
        centre = None
        spread = None
        if isinstance(transform, ImageTransform):
            example = torch.zeros(1, *info.input_shape)
            factor, offset = scaling(example, transform.mean, transform.std, transform.maximum)
        elif isinstance(transform, Standardise):
            centre, spread = transform.centre.float(), transform.spread.float()
        for name, value in {"factor": factor, "offset": offset, "centre": centre, "spread": spread}.items():
            self.register_buffer(name, value)

    def forward(self, input: Tensor) -> Tensor:
        if self.factor is not None:
            return input * self.factor + self.offset
        if self.centre is not None:
            scaled = (input - self.centre) / self.spread
            return torch.where(scaled.isnan(), torch.zeros_like(scaled), scaled)
        return input


class Exported(nn.Module):
    """From stored samples to probabilities, to numbers in the unit of a regression's targets, or from windows of
    pictures or volumes to the scores of their pixels.

    Args:
        predictor: the network of a run, on the CPU in float32.

    Raises:
        ConfigError: another kind of task.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        if predictor.info.kind not in KINDS and not predictor.info.dense:
            kinds = ", ".join(KINDS)
            raise ConfigError(f"healsg export: a {predictor.info.kind} task cannot be exported; {kinds} can")
        self.prepared = Prepared(predictor.info)
        self.network = predictor.network
        self.task_model = predictor.task_model
        self.info = predictor.info

    def forward(self, input: Tensor) -> Tensor:
        if self.info.dense:
            model = self.task_model
            spatial = tuple(range(len(self.info.input_shape) - 1))
            axes = spatial if isinstance(model, DenseModel) and model.mirror else ()
            return mirrored(self.network, axes)(self.prepared(input))
        output: Tensor = self.task_model.predict(self.network, {"input": self.prepared(input)})
        if self.info.kind == "multiclass":
            return output.softmax(dim=1)
        return output.sigmoid() if self.info.kind == "multilabel" else in_units(output, self.info)


def write_network(predictor: Predictor, to: str, folder: Path) -> None:
    """Write the network into ``folder`` as ``FILES`` names it.

    Args:
        predictor: the network of a run, on the CPU in float32.
        to: the format.
        folder: that exists.

    Raises:
        ConfigError: the kind of task cannot be exported.
        RunError: the network does something that the format cannot express.
    """
    exported = Exported(predictor).eval()
    path = folder / FILES[to]
    if to == "safetensors":
        _write_weights(predictor, path)
        return
    example = torch.zeros(2, *predictor.info.input_shape)
    write = _write_onnx if to == "onnx" else _write_pt2
    try:
        with torch.no_grad(), _quietly():
            write(exported, example, path)
    except Exception as error:  # exporters raise many kinds of errors
        name = type(predictor.network).__name__
        raise RunError(f"healsg export: {name} cannot be written as {to}: {one_line(error)[:300]}") from error


def _write_onnx(exported: nn.Module, example: Tensor, path: Path) -> None:
    size = sum(value.nbytes for value in exported.state_dict().values())
    torch.onnx.export(
        exported,
        (example,),
        path,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
        external_data=size > LARGEST_FILE,
        dynamo=True,
        verbose=False,
    )


def _write_pt2(exported: nn.Module, example: Tensor, path: Path) -> None:
    program = torch.export.export(exported, (example,), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
    torch.export.save(program, path)


def _write_weights(predictor: Predictor, path: Path) -> None:
    """Save weights under the names of the network's state, and a list of them next to the file. Raises RunError."""
    from safetensors.torch import load_file, save_file

    state = {name: value.detach().clone().contiguous() for name, value in predictor.network.state_dict().items()}
    save_file(state, path)
    read = load_file(path)
    if read.keys() != state.keys() or not all(torch.equal(read[name], state[name]) for name in state):
        raise RunError(f"healsg export: {path.name} does not hold the weights that were written")
    names: dict[str, Any] = {
        "network": f"{type(predictor.network).__module__}.{type(predictor.network).__qualname__}",
        "tensors": {name: {"shape": list(one.shape), "dtype": str(one.dtype)[6:]} for name, one in state.items()},
    }
    path.with_suffix(".json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the exporters' progress, deprecation warnings and advice."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def about(info: DataInfo, model: TaskModel | None = None) -> dict[str, Any]:
    """What ``classes.json`` holds: the meaning of inputs and outputs, as plain values; of masks also how ``model``
    takes a picture apart, and the label that each region writes."""
    state = info.state_dict()
    of_masks: dict[str, Any] = {}
    if info.dense:
        own = model if isinstance(model, DenseModel) else DenseModel()
        of_masks = {
            "windows": {"rule": own.windows, "overlap": own.overlap},
            "written": [list(pair) for pair in region_labels(info.regions)],
        }
    return {
        "kind": info.kind,
        "classes": info.names,
        "class_order": info.class_order,
        "shape": list(info.input_shape),
        "columns": list(info.input_names),
        "preprocessing": state["preprocessing"],
        **of_masks,
    }

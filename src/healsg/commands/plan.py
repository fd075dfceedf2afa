"""``healsg plan``: spacing, patch, batch and stages of a U-Net for a segmentation set, by nnU-Net's published rules."""

from __future__ import annotations

import math
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.config.compose import Composer
from healsg.console import visible
from healsg.errors import ConfigError
from healsg.runs import redact
from healsg.safefiles import make_folders, replacing

if TYPE_CHECKING:
    from healsg.config.schema import Composed
    from healsg.data.info import DataInfo
    from healsg.datasets.masks.survey import Survey
    from healsg.datasets.segmentation import Segmentation
    from healsg.models.planning import Layout
    from healsg.models.unet import PyramidModel

EXAMPLES = """\
  healsg plan data=nifti data.folder=DIR --memory 10
  healsg plan data=nifti data.folder=DIR --out my_conf/recipe/vessels.yaml
  healsg train --config-dir my_conf recipe=vessels

model is unet, resenc_unet or resenc_unet_l. What is set is kept:
data.spacing=[1,1,1], data.intensity=..., model.width=16."""

SCHEMA = 1
"""Version of the ``--json`` output; incremented when a key changes its meaning."""

Settings = dict[str, tuple[Any, str]]
"""A value and its reason, by dotted key."""


def run(arguments: list[str]) -> int:
    """``data=... [overrides] [--memory GB] [--out FILE] [--json] [--config-dir DIR]``."""
    args = _read(arguments)
    overrides, out = args.settings, args.out
    directory = args.config_dir
    composer = Composer(directory)
    given = [override.key_or_group for override in composer.parse(overrides)]
    if "model" not in given and "recipe" not in given:
        overrides = [*overrides, "model=unet"]
    composed = composer.compose(overrides)
    answer = plan(composed, given, args.memory)
    options = ["--config-dir", directory] if directory else []
    settings = answer.pop("why")
    shown = [redact.override(one) for one in overrides if one.partition("=")[0] not in settings]
    planned = [f"{key}={flow(value)}" for key, (value, _) in settings.items()]
    answer["command"] = _joined("healsg train", *options, *shown, *planned)
    if out is not None and out.parent.name == "recipe" and not directory:
        folder = out.parent.parent
        answer["command"] = _joined("healsg train --config-dir", str(folder), f"recipe={out.stem}")
    made = _joined("healsg plan", *options, *map(redact.override, overrides), "--memory", f"{answer['memory']:g}")
    text = as_yaml(composed, answer, settings, given, made)
    if out is not None:
        make_folders(out.parent, "--out")
        with replacing(out) as file:
            file.write(text.encode())
    if args.json:
        show_json(answer)
    elif out is not None:
        print(f"{visible(str(out))}: written; train with:\n{visible(answer['command'])}")
    else:
        print(text, end="")
    return 0


def _read(arguments: list[str]) -> Namespace:
    flags = Flags(
        "plan",
        "Read all training cases of a segmentation data set once, and choose the spacing, patch size, batch size, "
        "intensity normalisation and stages of a U-Net by nnU-Net's published rules.",
        EXAMPLES,
    )
    flags.add_settings("data=... model=... and their settings")
    flags.add_argument(
        "--memory", type=_memory, metavar="GB", help="memory of the GPU (default: nnU-Net's 8; 24 for resenc_unet_l)"
    )
    flags.add_argument(
        "--out",
        type=_out,
        metavar="FILE.yaml",
        help="write the plan there; in a folder named recipe it is an option of recipe=",
    )
    flags.add_json()
    flags.add_config_dir()
    return flags.read(arguments)


def _memory(text: str) -> float:
    """The value of ``--memory``. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--memory: {text}; give the memory of the GPU in GB, such as 10")
    return value


def _out(text: str) -> Path:
    """The file of ``--out``. Raises ConfigError."""
    path = Path(text)
    if path.suffix != ".yaml":
        raise ConfigError(f"--out: {text} is no .yaml file")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(f"--out: {nearest} is no folder")
    return path


def plan(composed: Composed, overrides: list[str], memory: float | None) -> dict[str, Any]:
    """The plan as plain values; ``why`` has the settings by key with their reasons.

    Args:
        composed: the configuration.
        overrides: the keys that the command line sets, which are kept.
        memory: of the device in GB; None takes the model's own.

    Raises:
        ConfigError: the data set is not for segmentation, the model is no U-Net, or the memory is too small.
        DataError: a case cannot be read.
    """
    from healsg.build import make
    from healsg.data.base import TaskData
    from healsg.datasets.segmentation import Segmentation
    from healsg.model import TaskModel
    from healsg.models.planning import planned
    from healsg.models.unet import PyramidModel

    names = composed.choices
    data: Any = make(composed.values["data"], "data", composed, TaskData)
    model: Any = make(composed.values["model"], "model", composed, TaskModel)
    if not isinstance(data, Segmentation):
        raise ConfigError(f"data: {names.get('data')} has no masks; a plan is for segmentation, such as data=nifti")
    if not isinstance(model, PyramidModel):
        raise ConfigError(
            f"model: {names.get('model')} has no stages that could be planned; model=unet and model=resenc_unet have"
        )
    survey, info = data.survey(), data.info
    memory = model.budget.memory if memory is None else memory
    spacing = composed.values["data"].get("spacing") if "data.spacing" in overrides else None
    if spacing is not None and min(spacing) <= 0:
        raise ConfigError(f"data.spacing: {spacing}; a plan needs one for each axis, or none")
    layout = planned(
        survey.spacings,
        survey.shapes,
        lambda one: model.values(model.laid_out(one.strides, one.kernels), one.patch, info.num_classes),
        model.budget,
        memory,
        None if spacing is None else tuple(spacing),
    )
    settings = _settings(data, survey, layout, model, memory, spacing is not None)
    settings = {key: setting for key, setting in settings.items() if key not in overrides or key in _PLANNED}
    return _answer(composed, info, survey, layout, model, memory) | {"why": settings}


_PLANNED = ("data.spacing", "data.patch", "data.batch_size", "model.strides", "model.kernels", "model.stages")
"""The settings that a plan always contains; others that are given are kept."""


def _settings(
    data: Segmentation, survey: Survey, layout: Layout, model: PyramidModel, memory: float, given: bool
) -> Settings:
    """The settings of data and model by key, with their reasons."""
    from healsg.datasets.nifti import Volumes

    found = layout.topology
    made: Settings = {f"data.{key}": setting for key, setting in survey.settings.items()}
    if isinstance(data, Volumes):
        rule = "the median of the cases"
        if layout.coarsest is not None:
            rule += f"; along axis {layout.coarsest}, of thick slices, the 10th percentile"
        made["data.spacing"] = ([round(one, 6) for one in layout.spacing], "as given" if given else f"{rule}, in mm")
    median_size = "x".join(f"{side:g}" for side in layout.median)
    patch = list(found.patch)
    if "data.image_size" in made and patch[0] >= layout.median[0]:
        made["data.image_size"] = (patch[0], f"{made['data.image_size'][1]}, rounded to what the strides divide")
        made["data.patch"] = (None, "whole pictures fit")
    else:
        made["data.patch"] = (patch, f"of a median case of {median_size}; the largest that fits into {memory:g} GB")
    bounds = {
        "memory": f"as many as fit into {memory:g} GB",
        "data": f"{model.budget.covered:.0%} of the voxels of the training cases",
        "least": "the least",
    }
    made["data.batch_size"] = (layout.batch, bounds[layout.limited])
    strides = "an axis is halved while 4 pixels are left and its spacing is within twice the finest"
    made["model.strides"] = ([list(one) for one in found.strides], strides)
    kernels = "1 along an axis until its spacing is within twice the finest"
    made["model.kernels"] = ([list(one) for one in found.kernels], kernels)
    return made


def _answer(
    composed: Composed, info: DataInfo, survey: Survey, layout: Layout, model: PyramidModel, memory: float
) -> dict[str, Any]:
    from healsg.models.planning import LOW_RESOLUTION

    found = layout.topology
    shape = model.laid_out(found.strides, found.kernels)
    cascade = len(found.patch) == 3 and layout.covered < LOW_RESOLUTION
    return {
        "schema": SCHEMA,
        "parts": {group: composed.choices.get(group) for group in ("data", "model")},
        "cases": len(survey.shapes),
        "channels": info.input_shape[0],
        "classes": info.names,
        "memory": memory,
        "spacing": [round(one, 6) for one in layout.spacing],
        "median_shape": list(layout.median),
        "patch": list(found.patch),
        "batch_size": layout.batch,
        "strides": [list(one) for one in found.strides],
        "kernels": [list(one) for one in found.kernels],
        "features": list(shape.channels),
        "sides": [list(one) for one in shape.sides(found.patch)],
        "values": layout.values,
        "covered": round(layout.covered, 4),
        "low_resolution": cascade,
        "intensity": {key: value for key, (value, _) in survey.settings.items()},
    }


# --- the file --------------------------------------------------------------------------------------------------------


def as_yaml(
    composed: Composed, answer: Mapping[str, Any], settings: Settings, overrides: list[str], command: str
) -> str:
    """An option of ``recipe``: the plan with a comment at each setting."""
    data, model = answer["parts"]["data"], answer["parts"]["model"]
    head = [
        "# @package _global_",
        f"# A plan by nnU-Net's rules: data={data} ({answer['cases']} cases), model={model}, {answer['memory']:g} GB.",
        f"#   train:  {answer['command']}",
        f"#   made:   {command}",
        f"#   stages: {' '.join(map(str, answer['features']))} channels, "
        f"from {_sides(answer['sides'][0])} to {_sides(answer['sides'][-1])}; "
        f"{answer['values'] / 1e6:.0f} million numbers in the maps of a sample",
    ]
    if answer["low_resolution"]:
        head.append(
            f"#   note:   a patch has {answer['covered']:.0%} of a median case; nnU-Net would also train a cascade "
            "that begins at a low resolution, which is not planned here"
        )
    lines = [*head, "defaults:", f"  - override /data: {data}", f"  - override /model: {model}"]
    for group in ("data", "model"):
        lines += ["", f"{group}:"]
        kept = dict.fromkeys(key.split(".")[1] for key in overrides if key.startswith(f"{group}."))
        values = composed.values[group]
        lines += [f"  {key}: {flow(values[key])}" for key in kept if f"{group}.{key}" not in settings]
        setting = {key: one for key, one in settings.items() if key.startswith(f"{group}.")}
        lines += [f"  {key.split('.')[1]}: {flow(value)} # {why}" for key, (value, why) in setting.items()]
    return "\n".join(map(visible, lines)) + "\n"  # names from a list may hold line breaks


def _sides(sides: list[int]) -> str:
    return "x".join(map(str, sides))


def flow(value: Any) -> str:
    """A plain value in one line, as YAML and Hydra's grammar both read it."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.partition("\n...")[0].strip()


def _joined(program: str, *arguments: str) -> str:
    return " ".join([program, *map(shlex.quote, arguments)])

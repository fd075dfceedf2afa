"""The model card of an export: the network, its training data, its accuracy, and its intended use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healsg.data.info import DataInfo
from healsg.evaluation.predictor import Predictor
from healsg.exporting.check import Agreement
from healsg.metrics.interval import wilson

UNFILLED = "To be filled in by whoever passes this network on"
"""The start of a section that only a person can write."""

USES = {
    "onnx": (
        "`model.onnx` takes stored samples (float32, any number of them) and gives {outputs}; normalisation{post} lie "
        "within.\n`predict.py` reads files as the training did; it needs numpy, pillow and onnxruntime:\n\n"
        "    pip install numpy pillow onnxruntime\n    python predict.py {example} > predictions.csv"
    ),
    "pt2": (
        "`model.pt2` (torch.export) takes stored samples (float32, any number of them) and gives {outputs}; "
        "normalisation{post}\nlie within. `predict.py` reads files as the training did; it needs numpy, pillow and "
        "torch:\n\n    python predict.py {example} > predictions.csv"
    ),
    "safetensors": (
        "`model.safetensors` holds the weights alone, `model.json` their names and shapes and the network's class. How "
        "samples are prepared stands in `classes.json` under `preprocessing`; nothing of it lies in the weights."
    ),
}
"""Usage instructions of an export, by format."""


@dataclass(frozen=True)
class Facts:
    """The facts of a model card.

    Args:
        run: the name of the run in messages.
        record: what its ``run.json`` holds.
        values: its configuration, without secrets.
        checkpoint: ``best`` or ``last``.
        digest: the SHA-256 of the checkpoint's file.
        info: what inputs and outputs mean.
        to: the format.
        versions: of what the export was made with, by package.
        agreement: how well a fresh process reproduced the validation split; None if weights alone were written.
        accuracy: of the exported network on the validation split; None for tasks without accuracy.
        test_samples: of the test split; None if they are not known.
        licences: a line for each source of published weights.
    """

    run: str
    record: Mapping[str, Any]
    values: Mapping[str, Any]
    checkpoint: str
    digest: str
    info: DataInfo
    to: str
    versions: Mapping[str, str]
    agreement: Agreement | None
    accuracy: float | None
    test_samples: int | None
    licences: Sequence[str]


def card(facts: Facts) -> str:
    """The card as Markdown."""
    sections = [
        f"# {facts.run}",
        _summary(facts),
        "## Use\n\n" + _use(facts),
        "## Metrics\n\n" + _metrics(facts),
        "## Data\n\n" + _data(facts),
        "## How it was made\n\n" + _origin(facts),
        "## Licences\n\n" + "\n".join(f"* {line}" for line in facts.licences),
        f"## Intended use\n\n{UNFILLED}: for which purpose, by whom and on what kind of samples this network is meant "
        "to be used, and for what it must not be used. Nothing of this was known when the card was written.",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(facts: Facts) -> str:
    info = facts.info
    names = info.class_names or tuple(map(str, range(info.num_classes)))
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more (`classes.json`)" if len(names) > 20 else "")
    what = "numbers" if info.kind == "regression" else "classes"
    inputs = f"the columns {', '.join(info.input_names)}" if info.input_names else f"samples of {info.input_shape}"
    choices = facts.record.get("choices")
    chosen = choices if isinstance(choices, dict) else {}
    parts = " ".join(f"{group}={chosen[group]}" for group in ("data", "model", "method") if group in chosen)
    return f"A {info.kind} network ({parts or facts.run}) of {inputs}; {len(names)} {what}: {shown}."


def _use_of_masks(facts: Facts) -> str:
    """How masks are made with the archive."""
    if len(facts.info.input_shape) == 4:
        used = (
            "`python volumes.py scans/ --out masks` in this folder writes the mask of each NIfTI file (.nii, .nii.gz) "
            "with the file's affine and header and the labels of the training files; it needs numpy, nibabel, pillow "
            f"and {'onnxruntime' if facts.to == 'onnx' else 'torch'}. The network takes windows of "
            f"{' x '.join(map(str, facts.info.input_shape[1:]))} voxels of the space and the intensities that "
            "`classes.json` has under `preprocessing`, and gives the scores of their voxels; `volumes.py` averages "
            "overlapping ones."
        )
    else:
        used = _use_of_pictures(facts)
    what = "volumes" if len(facts.info.input_shape) == 4 else "pictures"
    if facts.agreement is None:
        return USES[facts.to].format(outputs="the scores of the pixels", post="", example=f"{what}/")
    return (
        f"{used}\n\nA process of its own, in which {'neither torch nor ' if facts.to == 'onnx' else 'no '}healsg could "
        f"be imported, reproduced all {facts.agreement.samples} masks of the\nvalidation split from the raw {what}: "
        f"at most a share of {facts.agreement.largest:.1e} of the pixels of a mask has another label."
    )


def _use_of_pictures(facts: Facts) -> str:
    return (
        "`python segment.py pictures/ --out masks` in this folder writes the mask of each picture in the picture's own "
        "size, with the labels of the training files. The network takes windows of "
        f"{' x '.join(map(str, facts.info.input_shape[1:]))} pixels as they are stored and gives the scores of their "
        "pixels; `segment.py` averages overlapping ones."
    )


def _use(facts: Facts) -> str:
    if facts.info.dense:
        return _use_of_masks(facts)
    kind = facts.info.kind
    outputs = "the probability of each class" if kind == "multiclass" else "the probability of each label"
    post = ", softmax and the order of classes" if kind == "multiclass" else " and sigmoid"
    if kind == "regression":
        outputs, post = "the predicted numbers in their own unit", " and the scaling of the result"
    pictures = len(facts.info.input_shape) == 3 and not facts.info.input_names
    example = "pictures/" if pictures else "table.csv" if facts.info.input_names else "samples.npz"
    used = USES[facts.to].format(outputs=outputs, post=post, example=example)
    if facts.agreement is None:
        return used
    return (
        f"{used}\n\nA process of its own, in which {'neither torch nor ' if facts.to == 'onnx' else 'no '}healsg could "
        f"be imported, reproduced all {facts.agreement.samples} predictions of the\nvalidation split from the raw "
        f"samples: the same classes, numbers at most {facts.agreement.largest:.1e} off."
    )


def _metrics(facts: Facts) -> str:
    rows: list[tuple[str, Any, int | None]] = []
    if facts.agreement is not None and facts.accuracy is not None:
        rows.append(("val/acc, of this export", facts.accuracy, facts.agreement.samples))
    if facts.checkpoint == "best":
        best = facts.record.get("best") or {}
        rows += [(name, value, None) for name, value in (best.get("metrics") or {}).items() if name.startswith("val/")]
        test = facts.record.get("test") or {}
        rows += [(name, value, facts.test_samples if name == "test/acc" else None) for name, value in test.items()]
    lines = ["| metric | value | 95 % interval | samples |", "|---|---|---|---|"]
    for name, value, count in rows:
        if not isinstance(value, (int, float)):
            continue
        between = "{:.4f} to {:.4f}".format(*wilson(value * count, count)) if count else ""
        lines.append(f"| {name} | {value:.4f} | {between} | {count or ''} |")
    notes = "Intervals are Wilson's, for independent samples. They do not cover the choice of the best epoch on val."
    if facts.record.get("val_is_test"):
        notes += "\nThe test part also served for validation, so that its numbers are too good."
    return "\n".join(lines) + f"\n\n{notes}" if len(lines) > 2 else "None are known of this checkpoint."


def _data(facts: Facts) -> str:
    data = facts.values.get("data")
    settings = data if isinstance(data, dict) else {}
    samples = facts.record.get("samples") or {}
    lines = [f"* data set: `{settings.get('_target_')}`"]
    lines += [f"* {key}: `{settings[key]}`" for key in ("folder", "file", "name") if settings.get(key)]
    lines += [f"* training samples: {samples['labelled']}"] if "labelled" in samples else []
    lines.append(f"* digest of the data: `{facts.record.get('data_digest')}`")
    if facts.info.class_order != "published":
        lines.append(f"* order of the classes: {facts.info.class_order}")
    return "\n".join(lines)


def _origin(facts: Facts) -> str:
    record = facts.record
    versions = record.get("versions") or {}
    lines = [
        f"* command: `{record.get('command')}`",
        f"* seed: {record.get('seed')}, commit: {record.get('commit')}",
        f"* trained from {record.get('begin')} to {record.get('end')} on {record.get('device')}",
        f"* with {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"* digest of the configuration: `{record.get('config_digest')}`",
        f"* checkpoint: {facts.checkpoint}, SHA-256 `{facts.digest}`",
        f"* exported with {', '.join(f'{name} {version}' for name, version in facts.versions.items())}",
    ]
    return "\n".join(lines)


def licences(values: Mapping[str, Any], predictor: Predictor, starts_from_weights: bool) -> list[str]:
    """A line for each source of published weights that a configuration names, and what is known of its licence.

    Args:
        values: the configuration.
        predictor: the network.
        starts_from_weights: whether the method starts from published weights by default.
    """
    node = values.get("model")
    model: Mapping[str, Any] = node if isinstance(node, dict) else {}
    target, name = str(model.get("_target_")), model.get("name")
    pretrained = bool(model.get("weights")) or starts_from_weights
    lines = []
    if values.get("init_from"):
        lines.append(f"training began with the weights of `{values['init_from']}`: their licence is not known here")
    elif target.startswith("healsg.models.torchvision") and pretrained:
        lines.append(
            f"training began with torchvision's weights {model.get('weights') or 'DEFAULT'} of {name}. torchvision "
            "states no licence for them and refers to the terms of the data that they were trained on: "
            "https://github.com/pytorch/vision#pre-trained-model-license"
        )
    elif target.startswith("healsg.models.timm") and (model.get("pretrained") or pretrained):
        known = _timm_licence(predictor)
        source = f"the file `{model['weights']}`" if model.get("weights") else f"timm's weights of {name}"
        lines.append(f"training began with {source}: {known}")
    if not lines:
        lines.append("the configuration names no published weights")
    return [*lines, f"of this network itself: {UNFILLED[0].lower()}{UNFILLED[1:]}"]


def _timm_licence(predictor: Predictor) -> str:
    for module in predictor.network.modules():
        published = getattr(module, "pretrained_cfg", None)
        if isinstance(published, dict) and published.get("license"):
            return f"licence {published['license']}, as timm states"
    return "timm states no licence; see the card of these weights on https://huggingface.co/timm"

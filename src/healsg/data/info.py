"""DataInfo: the properties of a data set and the meaning of its numbers. It is saved with the weights and checked
wherever weights are used: an output means a class only together with the ordered names of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from healsg.errors import ConfigError, DataError, RunError

ClassOrder = Literal["published", "given", "numeric", "alphabetical"]
"""What the order of classes is: that of the data set, of ``data.classes``, of their names as numbers, or as text."""

SEGMENTATION = "segmentation"
"""The kind of task whose target gives each pixel or voxel of the input a class."""

SHOWN = 5
"""The most names in a message, which then gives the number of the others."""


@dataclass(frozen=True)
class DataInfo:
    """The properties of a data set: enough to build a network, its loss and metrics, and to prepare new samples.

    Args:
        input_shape: one sample's shape as the network sees it, ``(channels, *spatial)`` or ``(features,)``.
        num_classes: the number of classes, or of outputs.
        kind: ``multiclass``, ``multilabel``, ``regression`` or ``segmentation``. Targets of a segmentation are masks
            (N, *spatial) with one label per pixel.
        class_names: the names of the classes in the order of their indices, if they have names.
        class_order: where that order comes from. ``alphabetical`` does not imply that classes are ordinal.
        input_names: the input columns in order, if the samples come from a table.
        preprocessing: how stored samples become inputs of ``input_shape``, as plain values: ``resize`` and ``crop`` of
            images, ``mean`` and ``std`` of each channel (full intensity is 1) or column, ``missing``, the replacement
            for missing values; ``target_mean`` and ``target_std`` of each predicted number, by which a regression's
            targets are scaled for the loss.
        ignore: the label of pixels whose class is unknown, such as 255; losses and metrics ignore them.
        regions: for a segmentation with overlapping outputs, the labels of each output by name, such as
            ``{"whole": (1, 2, 3), "core": (2, 3)}``. The outputs are then one score per region, in this order, and
            ``num_classes`` is their number; a label in no region, such as 0, is background.

    Raises ConfigError for another number of names than of classes, an ``ignore`` that is also a class, or regions that
    do not match the outputs.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    kind: str = "multiclass"
    class_names: tuple[str, ...] = ()
    class_order: ClassOrder = "published"
    input_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    ignore: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names and self.kind != "regression" and len(self.class_names) != self.num_classes:
            raise ConfigError(f"DataInfo: {len(self.class_names)} class_names for num_classes={self.num_classes}")
        if self.ignore is not None and self.ignore in self.labels:
            raise ConfigError(f"data.ignore: {self.ignore} is a class too; give the pixels to be ignored another label")
        if self.regions and (self.kind != SEGMENTATION or len(self.regions) != self.num_classes):
            count = f"{len(self.regions)} regions for {self.num_classes} outputs of a {self.kind} task"
            raise ConfigError(f"data.regions: {count}; a segmentation has one output a region")

    @property
    def dense(self) -> bool:
        """Whether targets are spatial, so that geometric transforms of the input apply to them too."""
        return self.kind == SEGMENTATION

    @property
    def names(self) -> list[str]:
        """The names of the classes, or of the outputs; the indices as text if they have no names."""
        return list(self.class_names) or [str(index) for index in range(self.num_classes)]

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that a mask may contain besides ``ignore``: the classes, or 0 and the labels of the regions."""
        if self.regions:
            return tuple(sorted({0, *(label for labels in self.regions.values() for label in labels)}))
        return tuple(range(self.num_classes)) if self.dense else ()

    def scaled_as(self, other: DataInfo) -> DataInfo:
        """The same with the target scale of ``other``, which weights that were trained on ``other`` need."""
        keys = ("target_mean", "target_std")
        kept = {key: value for key, value in self.preprocessing.items() if key not in keys}
        return replace(
            self, preprocessing=kept | {key: other.preprocessing[key] for key in keys if key in other.preprocessing}
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for ``from_state``. ``ignore`` and ``regions`` are included only if they are set."""
        plain: dict[str, Any] = _plain({field.name: getattr(self, field.name) for field in fields(self)})
        for key in ("ignore", "regions"):
            if plain[key] in (None, {}):
                del plain[key]
        return plain

    @classmethod
    def from_state(cls, state: Any) -> DataInfo:
        """The inverse of ``state_dict``. Raises RunError for anything else: the file may come from anybody."""
        try:
            info = cls(
                input_shape=_tuple(state["input_shape"], int),
                num_classes=state["num_classes"],
                kind=state["kind"],
                class_names=_tuple(state["class_names"], str),
                class_order=state["class_order"],
                input_names=_tuple(state["input_names"], str),
                preprocessing=_checked(dict(state["preprocessing"])),
                ignore=_whole_number(state.get("ignore")),
                regions={str(name): _tuple(labels, int) for name, labels in state.get("regions", {}).items()},
            )
        except (TypeError, KeyError, ValueError, AttributeError, ConfigError) as error:
            raise RunError("data_info: does not describe a data set") from error
        valid_types = type(info.num_classes) is int and info.num_classes > 0 and type(info.kind) is str
        valid_names = info.kind == "regression" or len(info.class_names) in (0, info.num_classes)
        if not valid_types or not valid_names or info.class_order not in get_args(ClassOrder):
            raise RunError("data_info: does not describe a data set")
        return info


def require_outputs(outputs: int, info: DataInfo) -> None:
    """Raise ConfigError unless a network's number of outputs a sample is that of the classes: an output without a name
    cannot be predicted, shown or exported."""
    if outputs != info.num_classes:
        raise ConfigError(
            f"model: the network gives {outputs} outputs a sample, and the data have {info.num_classes} classes"
        )


def saved_info(state: Mapping[str, Any]) -> DataInfo | None:
    """The ``DataInfo`` in a checkpoint; None for a task that builds its own loaders. Raises RunError."""
    return DataInfo.from_state(state["data_info"]) if state.get("data_info") is not None else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _checked(value: Any) -> Any:
    """``value`` itself. Raises TypeError if it contains anything but plain values."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _checked(inner)
    if type(value) not in (dict, list, str, int, float, bool, type(None)):
        raise TypeError(type(value).__name__)
    return value


def _whole_number(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError("not a whole number")
    return value


def _tuple(values: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)) or any(type(value) is not kind for value in values):
        raise TypeError(f"not a list of {kind.__name__}")
    return tuple(values)


# --- the order of classes --------------------------------------------------------------------------------------------


def order_classes(names: Iterable[str]) -> tuple[tuple[str, ...], ClassOrder]:
    """The names of classes in order, and the kind of order: numeric if all are numbers (10 after 9), else alphabetical.

    Names of the same number, such as 1 and 01, are in alphabetical order.
    """
    ordered = sorted(set(names))
    keys = {name: _number(name) for name in ordered}
    if ordered and all(key is not None for key in keys.values()):
        return tuple(sorted(ordered, key=lambda name: (keys[name], name))), "numeric"
    return tuple(ordered), "alphabetical"


def _number(text: str) -> int | float | None:
    """The finite number that a text represents, or None. Integers stay exact, so that long ones remain distinct."""
    digits = text.removeprefix("-").removeprefix("+")
    if digits.isascii() and digits.isdecimal() and len(digits) < 1000:
        return int(text)
    plain = digits.replace(".", "", 1)
    return float(text) if plain.isascii() and plain.isdecimal() and len(plain) < 300 else None


def given_order(values: Sequence[Any], present: Iterable[str]) -> tuple[str, ...]:
    """The order of classes in ``data.classes``. Raises ConfigError if these are not exactly the classes present.

    Numbers in the list are converted to text, since class names are texts.
    """
    names = tuple(str(name).strip() for name in values)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"data.classes: names {twice!r} twice")
    existing = set(present)
    if missing := sorted(existing - set(names)):
        raise ConfigError(f"data.classes: does not name {listed(missing)}, which the training samples have")
    if unknown := [name for name in names if name not in existing]:
        known = listed(order_classes(existing)[0])
        raise ConfigError(f"data.classes: names {listed(unknown)}, but the training samples have {known} alone")
    return names


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first five, and the number of others."""
    others = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {others} more" if others > 0 else "")


# --- comparing ------------------------------------------------------------------------------------------------------


def differing_classes(saved: DataInfo, current: DataInfo) -> str:
    """Describe how the classes of two data sets differ, with "there" for ``saved`` and "here" for ``current``; empty if
    they do not. A set without class names agrees with any other that has the same number of classes.
    """
    if saved.kind != current.kind:
        return f"a {saved.kind} task there, a {current.kind} task here"
    if saved.num_classes != current.num_classes and not (saved.class_names and current.class_names):
        return f"{saved.num_classes} classes there, {current.num_classes} here"
    if dict(saved.regions) != dict(current.regions):
        return f"regions {_plain(saved.regions) or 'none'} there, {_plain(current.regions) or 'none'} here"
    if not saved.class_names or not current.class_names or saved.class_names == current.class_names:
        return ""
    unknown = [name for name in current.class_names if name not in set(saved.class_names)]
    absent = [name for name in saved.class_names if name not in set(current.class_names)]
    if not unknown and not absent:
        return (
            f"the same classes in another order: {listed(saved.class_names)} there, {listed(current.class_names)} here"
        )
    parts = [f"{listed(absent)} there alone"] * bool(absent) + [f"{listed(unknown)} here alone"] * bool(unknown)
    return "other classes: " + ", ".join(parts)


def refuse_unknown_classes(saved: Sequence[str], present: Sequence[str], where: str) -> None:
    """Raise DataError if samples have classes that the network was not trained on.

    Args:
        saved: the classes that the weights were trained on.
        present: the classes of the samples; they may be fewer.
        where: the file or the key for the message.
    """
    known = set(saved)
    if unknown := [name for name in present if name not in known]:
        few = f"the class {listed(unknown)} is" if len(unknown) == 1 else f"the classes {listed(unknown)} are"
        raise DataError(f"{where}: {few} not among those that the weights were trained on: {listed(saved)}")


def differing_inputs(saved: DataInfo, current: DataInfo) -> Iterator[str]:
    """Describe how the inputs of two data sets differ: shape, columns, and the preprocessing that both declare."""
    if saved.input_shape != current.input_shape:
        yield f"input shape {saved.input_shape} there, {current.input_shape} here"
    if saved.input_names and current.input_names and saved.input_names != current.input_names:
        yield f"input columns {listed(saved.input_names)} there, {listed(current.input_names)} here"
    before, now = _plain(saved.preprocessing), _plain(current.preprocessing)
    for key in before:
        if key in now and before[key] != now[key]:
            yield f"{key} {_short(before[key])} there, {_short(now[key])} here"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > SHOWN:
        return f"[{', '.join(map(_short, value[:SHOWN]))}, ...]"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

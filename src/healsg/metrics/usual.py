"""The metrics of each kind of task: the default ones and those chosen in the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from healsg.data.base import DataInfo
from healsg.errors import ConfigError
from healsg.metric import Accuracy, Metric


def usual(info: DataInfo | None) -> dict[str, Metric]:
    """The default metrics of a task by name, in addition to the loss; those of multiclass if the kind of task is
    unknown."""
    kind = info.kind if info else "multiclass"
    if info is not None and info.dense:
        from healsg.metrics.segmentation import Dice, IoU

        return {**({} if info.regions else {"acc": Accuracy()}), "dice": Dice(), "iou": IoU()}
    if kind == "multiclass":
        return {"acc": Accuracy()}
    if kind == "multilabel":
        from healsg.metrics.multilabel import LabelAccuracy
        from healsg.metrics.ranking import AUROC

        return {"acc": LabelAccuracy(), "auroc": AUROC()}
    if kind == "regression":
        from healsg.metrics.regression import R2, MeanAbsoluteError, RootMeanSquaredError

        return {"mae": MeanAbsoluteError(), "rmse": RootMeanSquaredError(), "r2": R2()}
    return {}


def with_chosen(info: DataInfo | None, chosen: Mapping[str, Metric]) -> dict[str, Metric]:
    """New metrics for one evaluation: the default ones and those ``chosen``, which override one of the same name.

    Those of ``omissions`` are not among them. ``info`` is None if it is not known. Raises ConfigError for what is no
    metric or is for another kind of task.
    """
    kind = info.kind if info else "multiclass"
    for name, metric in chosen.items():
        if not isinstance(metric, Metric):
            raise ConfigError(f"model.metrics.{name}: {type(metric).__name__} is no Metric")
        if info and metric.kinds and kind not in metric.kinds:
            kinds = " or ".join(metric.kinds)
            raise ConfigError(f"model.metrics.{name}: is for a {kinds} task, and this one is {kind}")
        if info:
            try:
                metric.check(info)
            except ConfigError as error:
                raise ConfigError(f"model.metrics.{name}.{error}") from None
    made = {name: metric.for_task(info) for name, metric in {**usual(info), **chosen}.items()}
    return {name: metric for name, metric in made.items() if not (info and metric.omitted(info))}


def omissions(info: DataInfo, chosen: Mapping[str, Metric]) -> list[str]:
    """A line for each of the usual and chosen metrics that is left out of this task, such as for too many classes."""
    made = {**usual(info), **chosen}
    return [f"model.metrics.{name}: {why}" for name, metric in made.items() if (why := metric.omitted(info))]

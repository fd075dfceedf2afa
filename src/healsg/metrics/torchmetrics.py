"""Any of torchmetrics' metrics of classes, labels or numbers by its name (pip install "healsg[torchmetrics]")."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from healsg.data.base import DataInfo
from healsg.data.info import listed
from healsg.data.source import line
from healsg.errors import ConfigError
from healsg.losses.usual import fitted
from healsg.metric import precise
from healsg.metrics.classification import MOST_ROWS
from healsg.metrics.gathered import Gathered
from healsg.types import Count

log = logging.getLogger("healsg")


class TorchMetric(Gathered):
    """A metric of ``torchmetrics.classification`` (those for several classes or labels) or ``torchmetrics.regression``,
    computed on all samples at once, and so exact over batches and processes.

    It is given probabilities: the softmax, or of labels the sigmoid, of the outputs. By default torchmetrics treats
    outputs that happen to lie in 0..1 as probabilities. A class outside 0..C-1 is left out unless ``options`` has an
    ``ignore_index``; an output that is nan makes the value nan. A list of more than 100 numbers is left out.

    Args:
        name: its class there, such as ``MulticlassCohenKappa``, ``MultilabelJaccardIndex`` or ``SpearmanCorrCoef``.
        options: its arguments by name, such as ``num_classes``.
        max_mib: see ``Gathered``; it keeps 8 bytes a sample and class.
    """

    def __init__(
        self,
        name: str = "MulticlassCohenKappa",
        options: Mapping[str, Any] | None = None,
        max_mib: Count = 1024,
    ) -> None:
        super().__init__(max_mib)
        if find_spec("torchmetrics") is None:
            raise ConfigError("model.metrics: torchmetrics is not installed; pip install 'healsg[torchmetrics]'")
        from torchmetrics import classification, regression

        known = dict.fromkeys(regression.__all__, regression)
        known |= {one: classification for one in classification.__all__ if one.startswith(("Multiclass", "Multilabel"))}
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ConfigError(f"model.metrics: torchmetrics has no {name!r}; the nearest are {', '.join(near)}")
        self.kinds = (name[:10].lower() if known[name] is classification else "regression",)  # type: ignore[misc]
        self.name = name
        self.options = dict(options or {})
        # Cohen's kappa with weights, as of ordered classes, takes a neighbouring class for a smaller mistake.
        self.ordered = name == "MulticlassCohenKappa" and self.options.get("weights") in ("linear", "quadratic")
        try:
            self.metric = getattr(known[name], name)(**self.options)
        except Exception as error:
            raise ConfigError(f"model.metrics: torchmetrics' {name} refuses {self.options}: {line(error)}") from None
        self.higher_is_better = self.metric.higher_is_better  # type: ignore[misc]

    def check(self, info: DataInfo) -> None:
        """Refuse another number of classes or labels than the task has, or classes whose order means nothing where the
        metric weighs mistakes by it. Raises ConfigError."""
        for key in ("num_classes", "num_labels"):
            if (given := self.options.get(key, info.num_classes)) != info.num_classes:
                raise ConfigError(f"options.{key}: {given}, and this task has {info.num_classes}")
        if self.ordered and info.class_order == "alphabetical" and info.num_classes > 2:
            names = listed(info.class_names)
            raise ConfigError(
                f"options.weights: needs classes in their order, and {names} is only that of the alphabet; "
                "data.classes=[...] gives it"
            )

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        if self.kinds == ("regression",):
            return fitted(precise(output), target)
        if self.kinds == ("multilabel",):
            return precise(output).sigmoid(), target.long()
        return precise(output).softmax(dim=1), target.long()

    def value(self, state: tuple[Tensor, Tensor]) -> Any:
        output, target = state
        if self.kinds == ("multiclass",) and "ignore_index" not in self.options:
            samples = (target >= 0) & (target < output.shape[1])
            if not bool(samples.all()):
                output, target = output.movedim(1, -1)[samples], target[samples]
        if not target.numel() or bool(output.isnan().any()):
            return math.nan
        self.metric.reset()
        self.metric.update(output, target)
        value: Tensor = self.metric.compute()
        if value.dim() and max(value.shape) > MOST_ROWS:
            log.warning("%s: its value of %s numbers is left out", self.name, " x ".join(map(str, value.shape)))
            return math.nan
        return value.tolist()

"""Metrics of 10,000 classes and of 5,000 labels against plain evaluation: python -m benchmarks.many_classes [rounds]

Plain is a hand-written pass over the same outputs of one linear layer: forward, loss, and the share that is right; the
other side is the same forward pass with our loss and metrics: the usual ones, and with those of ``model/metrics`` that
count by class or label. CPU seconds, the sides by turns; medians and ranges of the ratios.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bars import Bar, bar_of, keep
from healsg.data.base import DataInfo
from healsg.evaluation.evaluator import Loss, collect
from healsg.metric import Metric
from healsg.metrics.classification import F1, BalancedAccuracy, TopK
from healsg.metrics.usual import with_chosen

MOST = 1.2
"""Of plain evaluation."""

Batches = list[tuple[Tensor, Tensor]]


def plain(net: nn.Module, batches: Batches, labels: bool) -> list[float]:
    sums = torch.zeros(3, dtype=torch.float64)
    for input, target in batches:
        output = net(input)
        loss = (F.binary_cross_entropy_with_logits if labels else F.cross_entropy)(output, target)
        right = ((output > 0) == (target > 0.5)).sum() if labels else (output.argmax(dim=1) == target).sum()
        sums += torch.stack([loss.double() * len(input), right.double(), torch.tensor(float(len(input)))])
    return sums.tolist()


def ours(net: nn.Module, batches: Batches, labels: bool, more: dict[str, Metric]) -> dict[str, float]:
    info = DataInfo((512,), net.out_features, "multilabel" if labels else "multiclass")  # type: ignore[arg-type]
    criterion = nn.BCEWithLogitsLoss() if labels else nn.CrossEntropyLoss()
    metrics: dict[str, Metric] = {"loss": Loss(criterion), **with_chosen(info, more)}
    for input, target in batches:
        output = net(input)
        for metric in metrics.values():
            metric.update(output, target)
    return collect(metrics)


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bars: list[Bar] = []
    for labels, width in ((False, 10_000), (True, 5_000)):
        net = nn.Linear(512, width)
        batches = []
        for _ in range(8):
            target = (torch.rand(256, width) < 0.01).float() if labels else torch.randint(0, width, (256,))
            batches.append((torch.randn(256, 512), target))
        chosen = {
            "usual": {},
            "by class": {"f1": F1()} if labels else {"bal": BalancedAccuracy(), "f1": F1(), "top5": TopK()},
        }
        ratios: dict[str, list[float]] = {name: [] for name in chosen}
        with torch.no_grad():
            for _ in range(rounds + 1):
                for name, more in chosen.items():
                    base = seconds(partial(plain, net, batches, labels))
                    own = seconds(partial(ours, net, batches, labels, more))
                    ratios[name].append(own / base)
        for name, values in ratios.items():
            title = f"metrics of {width:,} {'labels' if labels else 'classes'}, {name}, x plain evaluation"
            bars.append(bar_of("W11", title, values[1:], MOST))
            print(f"{title}: {bars[-1].value:.3f} ({bars[-1].least:.3f} to {bars[-1].most:.3f})", flush=True)
    keep(f"python -m benchmarks.many_classes {rounds}", f"torch {torch.__version__}, one thread, {rounds} rounds", bars)


if __name__ == "__main__":
    main()

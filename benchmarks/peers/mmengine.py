"""MMEngine's Runner as it comes: its default hooks log every ten steps and save each epoch."""

from __future__ import annotations

from typing import Any

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from benchmarks.peers.work import Clock, Work


class Model(BaseModel):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.criterion = network, nn.CrossEntropyLoss()

    def forward(self, input: Tensor, target: Tensor, mode: str) -> Any:
        output = self.network(input)
        return {"loss": self.criterion(output, target)} if mode == "loss" else (output, target)


class Numbers(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        output, target = data_samples
        loss = nn.functional.cross_entropy(output, target) * len(target)
        self.results.append((len(target), float((output.argmax(1) == target).sum()), float(loss)))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        rows, hits, loss = (sum(column) for column in zip(*results, strict=True))
        return {"acc": hits / rows, "loss": loss / rows}


def train(work: Work, clock: Clock) -> nn.Module:
    train_loader, val_loader = work.loaders(clock)
    model = Model(work.network())
    runner = Runner(
        model=model,
        work_dir=f"mmengine_{work.name}_{clock.counting}",
        experiment_name=f"{work.name}_{clock.counting}",
        train_dataloader=train_loader,
        val_dataloader=val_loader,
        train_cfg={"by_epoch": True, "max_epochs": work.epochs},
        optim_wrapper={"optimizer": work.optimizer(model)},
        val_cfg={},
        val_evaluator=Evaluator(Numbers()),
    )
    runner.train()
    return model.network

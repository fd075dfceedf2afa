"""Hugging Face's Trainer: a log line and an evaluation each epoch, no clipping (its default would clip), no saves."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from benchmarks.peers.work import Clock, Work


class Named(Dataset[Any]):
    """Samples with the names that the Trainer goes by."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        input, target = self.dataset[index]
        return {"input": input, "labels": target}


class WithLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.criterion = network, nn.CrossEntropyLoss()

    def forward(self, input: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.network(input)
        return {"loss": self.criterion(output, labels), "logits": output}


class Ordered(Trainer):
    """With the given order."""

    def get_train_dataloader(self) -> Any:
        loader = DataLoader(self.train_dataset, self.args.per_device_train_batch_size, sampler=self.given)
        return self.accelerator.prepare(loader)


def accuracy(predicted: Any) -> dict[str, float]:
    return {"acc": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def train(work: Work, clock: Clock) -> nn.Module:
    train_set, val_set = (Named(dataset) for dataset in work.datasets())
    model = WithLoss(work.network())
    arguments = TrainingArguments(
        output_dir="trainer",
        num_train_epochs=work.epochs,
        per_device_train_batch_size=work.batch_size,
        per_device_eval_batch_size=work.batch_size,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    optimizer = work.optimizer(model)
    trainer = Ordered(
        model,
        arguments,
        train_dataset=train_set,
        eval_dataset=val_set,
        compute_metrics=accuracy,
        optimizers=(optimizer, None),
    )
    trainer.given = work.sampler(clock)
    trainer.train()
    return model.network

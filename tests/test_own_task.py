"""The task that the design prints, word for word, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import Program, command

MY_TASK = """
import torch
from torch.utils.data import DataLoader, Dataset

from healsg import BasicTask


class CustomDataset(Dataset):
    def __init__(self, config, train):
        rows = 256 if train else 64
        generator = torch.Generator().manual_seed(config.seed + (0 if train else 1))
        self.input = torch.randn(rows, 8, generator=generator)
        self.target = (self.input.sum(dim=1) > 0).long()

    def __len__(self):
        return len(self.input)

    def __getitem__(self, index):
        return self.input[index], self.target[index]


class CustomModel(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))


class MyTask(BasicTask):
    def build_dataloader(self):          # returns (train_loader, val_loader), or a dict of loaders by split
        train = CustomDataset(self.config, train=True)
        val = CustomDataset(self.config, train=False)
        return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)

    def build_model(self):
        return CustomModel()

    def build_criterion(self):
        return torch.nn.CrossEntropyLoss()

    def build_optimizer(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.args.learning_rate)

    def build_scheduler(self):
        return torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=10, gamma=0.1)

    def run_epoch(self):
        return {"train": self.train_epoch.run(), "val": self.val_epoch.run()}
"""


def test_design_example_trains_as_it_stands(tmp_path: Path, program: Program) -> None:
    (tmp_path / "my_task.py").write_text(MY_TASK)
    line = ["task._target_=my_task.MyTask", "+args.learning_rate=0.001", "runner.epochs=12", "name=mine"]
    done = program(command(*line))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in lines if row["event"] == "epoch"]
    assert [row["step"] for row in epochs] == [4 * n for n in range(1, 13)]
    assert [round(row["lr"], 9) for row in epochs] == [0.001] * 10 + [0.0001] * 2, "StepLR moves once an epoch"
    assert epochs[-1]["train/loss"] < epochs[0]["train/loss"]
    assert 0.5 < epochs[-1]["val/acc"] <= 1
    assert "test" not in {row["event"] for row in lines}
    resumed = program(command(*line, "runner.epochs=13"))
    assert resumed.returncode == 0, resumed.stderr
    assert "going on at step 48 of 52" in resumed.stdout


def test_own_task_mistakes_are_one_line(tmp_path: Path, program: Program) -> None:
    (tmp_path / "my_task.py").write_text(MY_TASK)
    done = program(command("task._target_=my_task.MyTaks"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "MyTask" in done.stderr
    assert not (tmp_path / "runs").exists()

"""The default run as a bare script: the same network, data, optimizer, schedule and evaluation, without a framework.

    python benchmarks/bare.py [cnn|mlp] [epochs]

Prints the CPU seconds to the end of the first step and to the end, and the test accuracy, as JSON.
"""

import json
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def network(kind: str) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        convolution(1, 24),
        convolution(24, 24),
        nn.MaxPool2d(2),
        convolution(24, 48),
        nn.MaxPool2d(2),
        convolution(48, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def digits() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    input = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    input = (input - input.mean()) / input.std()
    target = torch.tensor(labels)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    parts = order[:1167], order[1167:1297], order[1297:]
    train, val, test = (TensorDataset(input[part], target[part]) for part in parts)
    return train, val, test


def shifted(input: torch.Tensor) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions."""
    size = input.shape[0]
    windows = nn.functional.pad(input, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    return windows[torch.arange(size), :, torch.randint(3, (size,)), torch.randint(3, (size,))]


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    hits = sum((model(input).argmax(1) == target).sum() for input, target in loader)
    return float(hits) / len(loader.dataset)


def main() -> None:
    kind, epochs = (sys.argv[1:] + ["cnn", "60"][len(sys.argv) - 1 :])[:2]
    torch.manual_seed(0)
    train, val, test = digits()
    train_loader, val_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    model, criterion = network(kind), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    total = int(epochs) * len(train_loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / total))
    first, best, folder = 0.0, -1.0, Path(tempfile.mkdtemp())
    for _ in range(int(epochs)):
        model.train()
        losses = []
        for input, target in train_loader:
            loss = criterion(model(shifted(input)), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
            first = first or time.process_time()
        print(f"loss {torch.stack(losses).mean():.4f}", file=sys.stderr)
        if (reached := accuracy(model, val_loader)) > best:
            best = reached
            torch.save(model.state_dict(), folder / "best.pt")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pt")
    model.load_state_dict(torch.load(folder / "best.pt"))
    tested = accuracy(model, DataLoader(test, batch_size=64))
    print(json.dumps({"first": round(first, 3), "end": round(time.process_time(), 3), "test/acc": tested}))


if __name__ == "__main__":
    main()

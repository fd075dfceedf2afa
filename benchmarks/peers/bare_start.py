"""A whole bare script, for start-up and memory: python -m benchmarks.peers.bare_start ROLE digits|cifar OUT [ROOT]

The script imports torch and NumPy; a HEALSg run also imports PyYAML, Hydra and OmegaConf. With ROLE ``direct`` it
imports PyYAML as well and reads scikit-learn's file of digits without importing scikit-learn, as HEALSg does; with
``usual`` it calls scikit-learn's ``load_digits``. The CPU seconds to the end of the first step are written to OUT, and
the script ends there. With ``-`` as OUT it continues: three epochs of digits, or three batches of each split of CIFAR's
files under ROOT, with evaluation and ``torch.save``.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROLE, KIND, OUT, ROOT = (*sys.argv[1:], "")[:4] if len(sys.argv) > 3 else ("usual", "digits", "-", "")
if ROLE == "direct":
    import yaml  # noqa: F401

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

from benchmarks.peers.bare import evaluate  # noqa: E402
from benchmarks.peers.work import Images, Pairs, mlp, resnet  # noqa: E402

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))


def digits() -> tuple[Any, Any, Any]:
    if ROLE == "direct":
        home = importlib.util.find_spec("sklearn").submodule_search_locations[0]  # type: ignore[union-attr,index]
        table = np.loadtxt(Path(home) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        images, labels = table[:, :-1], table[:, -1].astype(int)
    else:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
    whole = Pairs(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    train, val, test = (Pairs(*whole[part]) for part in (order[:1167], order[1167:1297], order[1297:]))
    return train, val, test


class Stored(Images):
    """Images with a random flip and crop."""

    def __init__(self, input: torch.Tensor, target: torch.Tensor, training: bool) -> None:
        from torchvision.transforms.v2 import functional

        self.functional, self.input, self.target, self.training = functional, input, target, training
        self.factor, self.offset = 1 / (255 * STD), -MEAN / STD

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.randint(0, 18, (2,)).tolist()
        self.epoch, self.draws = (
            0,
            {0: {place: (draws[0] % 2, draws[0] // 2, draws[1] // 2)}} if self.training else None,
        )
        return super().__getitem__(place)


def cifar() -> tuple[Any, Any, Any]:
    folder, parts = Path(ROOT) / "cifar-10-batches-py", {}
    for part, names in {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.items():
        files = [pickle.loads((folder / name).read_bytes()) for name in names]
        images = torch.from_numpy(np.concatenate([file["data"] for file in files]).reshape(-1, 3, 32, 32))
        parts[part] = images, torch.tensor([label for file in files for label in file["labels"]])
    order = torch.randperm(len(parts["train"][1]), generator=torch.Generator().manual_seed(0))
    held = len(order) // 10
    train, val = Stored(*parts["train"], training=True), Stored(*parts["train"], training=False)
    return Subset(train, order[held:].tolist()), Subset(val, order[:held].tolist()), Stored(*parts["test"], False)


def main() -> None:
    torch.manual_seed(0)
    train, val, test = digits() if KIND == "digits" else cifar()
    network, criterion = (mlp() if KIND == "digits" else resnet()), nn.CrossEntropyLoss()
    size, epochs, most = (64, 3, None) if KIND == "digits" else (128, 1, 3)
    loader = DataLoader(train, size, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    for _ in range(epochs):
        network.train()
        for input, target in islice(loader, most):
            loss = criterion(network(input), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if OUT != "-":
                Path(OUT).write_text(f"{time.process_time()}")
                os._exit(0)
        evaluate(network, islice(DataLoader(val, size), most), criterion)
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
        torch.save(network.state_dict(), "best.pt")
    network.load_state_dict(torch.load("best.pt", weights_only=True))
    print(evaluate(network, islice(DataLoader(test, size), most), criterion))


if __name__ == "__main__":
    main()

"""Random images in CIFAR-10's own files: python -m benchmarks.peers.cifar_files ROOT IMAGES"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np


def write_cifar(root: Path, images: int, seed: int = 0) -> None:
    """Images of random bytes and random labels: ``images`` to train with in five parts, a tenth as many to test."""
    random, folder = np.random.default_rng(seed), root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        rows = images // 10 if name == "test_batch" else images // 5
        labels = random.integers(0, 10, rows)
        data = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels.tolist()}, protocol=2))


if __name__ == "__main__":
    write_cifar(Path(sys.argv[1]), int(sys.argv[2]))

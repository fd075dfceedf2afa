"""Small data sets with invented samples in the true forms of MedMNIST's files, of tables and of the hub's parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from healsg.datasets.published.medmnist_info import SETS

PARTS = {"train": 60, "val": 20, "test": 20}


def write_medmnist(root: Path | str, name: str = "pathmnist", size: int = 28, seed: int = 0) -> Path:
    """The npz file of a set in ``root/medmnist``: uint8 images (N, H, W), (N, H, W, 3) or (N, D, H, W), labels (N, L).

    The label shows in the brightness. Returns the file.
    """
    published, rng = SETS[name], np.random.default_rng(seed)
    sides = (size,) * (3 if name.endswith("3d") else 2) + (3,) * (published.channels == 3)
    classes, arrays = len(published.labels), {}
    for part, count in PARTS.items():
        if published.kind == "multilabel":
            labels = rng.integers(0, 2, (count, classes)).astype(np.uint8)
            level = labels[:, 0] * 150
        else:
            labels = rng.permutation(np.arange(count) % classes).astype(np.uint8)[:, None]
            level = labels[:, 0].astype(int) * 180 // (classes - 1)
        noise = rng.integers(0, 56, (count, *sides))
        arrays[f"{part}_images"] = (level.reshape(-1, *[1] * len(sides)) + noise).astype(np.uint8)
        arrays[f"{part}_labels"] = labels
    path = Path(root) / "medmnist" / (name + (f"_{size}" if size != 28 else "") + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def rows(count: int = 120, seed: int = 0) -> dict[str, list[Any]]:
    """A table of patients: four numbers, some of which are missing or constant, and what depends on them."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(count, 3)) * [1, 10, 100] + [0, 5, -300]
    score = numbers[:, 0] + (numbers[:, 1] - 5) / 10
    table: dict[str, list[Any]] = {name: numbers[:, place].tolist() for place, name in enumerate(("a", "b", "c"))}
    table["d"] = [None if row % 7 == 0 else 3.0 for row in range(count)]
    table["label"] = [("low", "mid", "high")[int(value > -0.5) + int(value > 0.5)] for value in score]
    table["old"], table["ill"] = (score > 0).astype(int).tolist(), (numbers[:, 0] > 0).astype(int).tolist()
    table["risk"], table["dose"] = score.tolist(), (2 * numbers[:, 0] + 1).tolist()
    table["patient"] = [f"p{row // 4}" for row in range(count)]
    table["part"] = [("train", "train", "train", "validation", "test")[row // 4 % 5] for row in range(count)]
    return table


def write_csv(path: Path | str, table: dict[str, list[Any]], delimiter: str = ",") -> Path:
    """A file with the names of the columns in its first row; what is None is left empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(table)
        writer.writerows(["" if value is None else value for value in row] for row in zip(*table.values(), strict=True))
    return path


def picture(label: int, rng: np.random.Generator, size: int = 12) -> bytes:
    """A PNG file of a picture whose brightness is the label's."""
    from PIL import Image

    pixels = (label * 90 + rng.integers(0, 60, (size, size + 2, 3))).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def write_picture_csv(folder: Path | str, count: int = 36, seed: int = 0) -> Path:
    """A table of PNG files beside it, their labels and two numbers. Returns the table."""
    rng, folder = np.random.default_rng(seed), Path(folder)
    labels = rng.permutation(np.arange(count) % 3).tolist()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row, label in enumerate(labels):
        (folder / "images" / f"{row}.png").write_bytes(picture(label, rng))
    names = [f"images/{row}.png" for row in range(count)]
    table = {
        "path": names,
        "label": labels,
        "bright": [int(x > 0) for x in labels],
        "dark": [int(x < 2) for x in labels],
    }
    return write_csv(folder / "table.csv", table | {"level": [x / 2 for x in labels]})


def write_parquet(path: Path | str, table: dict[str, list[Any]], names: dict[str, list[str]] | None = None) -> Path:
    """A parquet file as the hub has them; ``names`` are those of the classes by column, told beside the columns."""
    import pyarrow
    from pyarrow import parquet

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pyarrow.table(table)
    features = {column: {"names": list(known), "_type": "ClassLabel"} for column, known in (names or {}).items()}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(made.replace_schema_metadata(told), path)
    return path


def write_pictures_parquet(folder: Path | str, seed: int = 0) -> Path:
    """``folder/data/train-00000-of-00002.parquet`` and so on: pictures as ``{bytes, path}`` and labels 0 to 2."""
    rng, folder = np.random.default_rng(seed), Path(folder)
    for part, shards in (("train", 2), ("test", 1)):
        for shard in range(shards):
            labels = rng.permutation(np.arange(18) % 3).tolist()
            images = [{"bytes": picture(label, rng), "path": None} for label in labels]
            file = folder / "data" / f"{part}-{shard:05d}-of-{shards:05d}.parquet"
            write_parquet(file, {"image": images, "label": labels}, {"label": ["zebra", "ant", "cat"]})
    return folder

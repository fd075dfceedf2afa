"""Fingerprints of data: which files or tensors a run is trained on, so that it notices when they change.

A fingerprint is a dict of plain values for each part of a data set. Files are identified by name, size, time of
modification and label, and by their contents if reading them is cheap. Nothing is decoded. Paths are relative to the
common folder of all files of a part, so that a data set may be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from healsg.data.source import DatasetSource, Source, TensorSource

WHOLE_TENSOR = 1 << 26
"""The most bytes of a tensor that are hashed by SHA-256; a larger one is hashed by CRC-32, three times as fast."""

WHOLE_FILES, MANY = 1 << 24, 1000
"""The most bytes, and the largest number, of a part's files for which all contents are read."""

SAMPLED, SAMPLED_BYTES = 64, 1 << 16
"""For larger parts: the number of files that are sampled, and the bytes read of each."""

Fingerprint = dict[str, Any]

MEANING = {
    "count": "another number of samples",
    "chosen": "other samples of the same files",
    "names": "files of other names",
    "sizes": "files of other sizes",
    "labels": "other labels",
    "contents": "other contents",
    "times": "files written at other times",
    "split": "another split",
}
"""What a difference in an entry means; these entries form the digest, in the order of messages."""


def of_source(source: Source) -> Fingerprint:
    """The fingerprint of one part as its data set provides it, before it is split or cached."""
    if isinstance(source, TensorSource):
        return {"count": len(source), "contents": _of_tensor(source.input), "labels": _of_tensor(source.target)}
    fingerprint: Fingerprint = {"count": len(source)}
    if isinstance(source, DatasetSource):
        fingerprint |= _of_dataset(source.dataset)
        if source.indices is not None:
            fingerprint["chosen"] = _of_tensor(source.indices)
    if source.targets is not None:
        fingerprint["labels"] = _of_tensor(source.targets)
    return fingerprint


def of_loader(loader: Any) -> Fingerprint:
    """The fingerprint of the data set of a user's loader; empty if its kind is unknown."""
    sources = getattr(loader, "sources", None)
    if isinstance(sources, Mapping):
        return {name: of_source(source) for name, source in sources.items()}
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    return {} if dataset is None else _of_dataset(dataset)


def _of_dataset(dataset: Any) -> Fingerprint:
    """The fingerprint of a map-style data set, without reading its samples.

    A data set may have a method ``fingerprint`` that returns a text, ``files`` that contain its samples, or a method
    ``every_path`` if a sample has several files, such as a mask; otherwise its files are taken from ``paths``, or from
    ``samples`` as in torchvision. For any other kind only the length and the labels are compared.
    """
    if callable(method := getattr(dataset, "fingerprint", None)):
        return {"contents": str(method())}
    if isinstance(files := getattr(dataset, "files", None), Sequence) and files:
        return _of_files([str(file) for file in files])
    if callable(every_path := getattr(dataset, "every_path", None)):
        return _of_files(every_path())
    if isinstance(dataset, Subset):
        return _of_dataset(dataset.dataset) | {"chosen": _of_tensor(torch.tensor(list(dataset.indices)))}
    if isinstance(dataset, ConcatDataset):
        return {str(number): _of_dataset(inner) for number, inner in enumerate(dataset.datasets)}
    if isinstance(dataset, TensorDataset):
        return {"contents": _joined(map(_of_tensor, dataset.tensors))}
    pairs: Any = getattr(dataset, "samples", None)
    if _are_pairs(pairs):
        return _of_files([str(path) for path, _ in pairs]) | {"labels": _joined(str(label) for _, label in pairs)}
    paths = getattr(dataset, "paths", None)
    if isinstance(paths, Sequence) and len(paths) and isinstance(paths[0], (str, Path)):
        labels = getattr(dataset, "targets", None)
        known = {} if labels is None else {"labels": _of_tensor(torch.as_tensor(labels))}
        return _of_files(paths if isinstance(paths[0], str) else [str(path) for path in paths]) | known
    return {}


def _are_pairs(value: Any) -> bool:
    """Whether a value is the list of paths and labels that torchvision's folders keep."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], (str, Path))


def _of_tensor(tensor: Tensor) -> str:
    bare = tensor.detach().cpu().contiguous()
    content = memoryview(bare.flatten().view(torch.uint8).numpy() if bare.numel() else b"")  # type: ignore[arg-type]
    head = f"{bare.dtype}{tuple(bare.shape)}"
    if bare.nbytes > WHOLE_TENSOR:
        return _joined([head, str(zlib.crc32(content))])
    total = hashlib.sha256(head.encode() + b"\0")
    total.update(content)
    return total.hexdigest()


def _of_files(paths: Sequence[str]) -> Fingerprint:
    """Names, sizes and times of files, and the contents of all or of some; missing files are included."""
    common = _common_folder(paths)
    facts = np.fromiter((fact for path in paths for fact in _stat(path)), dtype=np.int64, count=4 * len(paths))
    sizes, times, changes, regular = (np.ascontiguousarray(column) for column in facts.reshape(-1, 4).T)
    newest = int(changes.argmax())
    fingerprint: Fingerprint = {
        "names": _joined(path[len(common) :] for path in paths),
        "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "times": hashlib.sha256(times.tobytes()).hexdigest(),
        "newest": [int(changes[newest]), paths[newest]],
    }
    if len(paths) <= MANY and int(sizes.sum()) <= WHOLE_FILES:
        fingerprint["contents"] = _joined(
            _content(path if is_regular else "", None) for path, is_regular in zip(paths, regular, strict=True)
        )
    else:
        sampled = np.linspace(0, len(paths) - 1, min(SAMPLED, len(paths))).round().astype(int).tolist()
        fingerprint["sample"] = [
            [int(times[number]), _content(paths[number] if regular[number] else "", SAMPLED_BYTES)]
            for number in sampled
        ]
    return fingerprint


def _common_folder(paths: Sequence[str]) -> str:
    """The common folder of all files; empty if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))])  # noqa: PTH120
    except ValueError:  # some are relative
        return ""


def _stat(path: str) -> tuple[int, int, int, int]:
    """A file's size, time of modification, time of the last change of any kind, and whether it is a regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116, a Path for each of a million is slow
    except OSError:
        return -1, 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, int(S_ISREG(status.st_mode))


def _content(path: str, limit: int | None) -> str:
    """The SHA-256 of the first ``limit`` bytes of a regular file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123, a Path for each is slow
            return hashlib.sha256(file.read(limit if limit is not None else WHOLE_FILES)).hexdigest()
    except OSError:
        return ""


def _joined(texts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode(errors="surrogateescape") + b"\0")
    return total.hexdigest()


def digest(data: Fingerprint) -> str:
    """The SHA-256 of a fingerprint; times are ignored if the contents are known."""
    return hashlib.sha256(json.dumps(_digested(data), sort_keys=True).encode()).hexdigest()


def _digested(data: Fingerprint) -> Fingerprint:
    ignored = {"newest", "sample"} | ({"times"} if "contents" in data else set())
    return {
        key: _digested(value) if isinstance(value, dict) else value for key, value in data.items() if key not in ignored
    }


def differences(old: Fingerprint, new: Fingerprint, since: float) -> list[str]:
    """Describe the differences between data, one text for each part; empty if they are the same, or certainly a copy.

    Args:
        old: the fingerprint at the start of the run.
        new: the current fingerprint.
        since: the start of the run, as a Unix time; a file that was changed later is named.
    """
    of_parts = []
    parts = {key for data in (old, new) for key, value in data.items() if isinstance(value, dict)}
    for key in sorted(parts):
        of_parts += [f"{key}: {text}" for text in differences(_as_dict(old.get(key)), _as_dict(new.get(key)), since)]
    differing = [key for key in MEANING if key not in parts and old.get(key) != new.get(key)]
    if "times" in differing and ("contents" in old or _copied(old.get("sample"), new.get("sample"))):
        differing.remove("times")
    if not differing:
        return of_parts
    text = ", ".join(MEANING[key] for key in differing)
    changed, path = new.get("newest") or (0, "")
    if changed > since * 1e9:
        text += f"; {path} was changed since"
    return [text, *of_parts]


def _as_dict(value: Any) -> Fingerprint:
    return value if isinstance(value, dict) else {}


def _copied(old: Any, new: Any) -> bool:
    """Whether files with different times are a copy: all sampled files have another time and the same content. If only
    some times differ, these files were replaced."""
    if not old or not new or len(old) != len(new):
        return False
    return all(before[0] != now[0] and before[1] == now[1] != "" for before, now in zip(old, new, strict=True))

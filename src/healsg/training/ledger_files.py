"""The common parts of all ledgers: the columns of an epoch, and the files in a run's folder with all epochs and a
description of the samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from healsg import safefiles
from healsg.data.source import Source, files_of
from healsg.runs.folder import write_text

SCHEMA = 1
"""Version of ``ledger.json`` and the files beside it."""

UNSEEN = b"\xff"
"""The byte for a sample that did not occur in an epoch: -1 as an integer, 255 as a byte, nan as a float."""


class EpochColumns:
    """The columns of the current epoch: one value per sample and column.

    Args:
        samples: their number, N.
        kinds: by column, its type and the value of a sample that did not occur in the epoch.
        device: of the columns.
    """

    def __init__(self, samples: int, kinds: Mapping[str, tuple[torch.dtype, int]], device: torch.device) -> None:
        self.kinds = kinds
        self.tensors = {
            name: torch.full((samples,), unseen, dtype=kind, device=device) for name, (kind, unseen) in kinds.items()
        }
        """By name, (N,)."""
        self.begun = False
        """Whether any sample of the epoch has been recorded."""

    def put(self, index: Tensor, values: Iterable[Tensor]) -> None:
        """Record (n,) values of each column for the (n,) samples of ``index``."""
        self.begun = True
        for column, new in zip(self.tensors.values(), values, strict=True):
            column.index_copy_(0, index, new)

    def replace(self, values: Mapping[str, Tensor]) -> None:
        """Record the (N,) values of all samples, by column."""
        self.begun = True
        for name, new in values.items():
            self.tensors[name].copy_(new)

    def clear(self) -> None:
        """Start an epoch, in which no sample has occurred."""
        self.begun = False
        for name, (_, unseen) in self.kinds.items():
            self.tensors[name].fill_(unseen)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty between two epochs, so that the final state of a run does not depend on whether it kept a ledger."""
        return dict(self.tensors) if self.begun else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.clear()
        if state:
            self.replace(state)


@dataclass(frozen=True)
class LedgerFiles:
    """The description of a ledger's samples, and the file of its epochs.

    Args:
        source: the samples.
        targets: (N,) their classes on the CPU; None if unknown.
        facts: further content of ``ledger.json``, such as the names of the classes.
    """

    source: Source
    targets: Tensor | None
    facts: Mapping[str, Any]
    waiting: list[list[Tensor]] = field(default_factory=list, init=False)
    """The columns of complete epochs that are not in the file yet."""

    def add(self, columns: Iterable[Tensor]) -> None:
        """Add the (N,) columns of a complete epoch; they may change after this call."""
        self.waiting.append([column.clone() for column in columns])

    def clear(self) -> None:
        """Discard the pending epochs, which the resumed run does not have."""
        self.waiting.clear()

    def write(self, folder: Path, epoch: int) -> None:
        """Append the pending epochs to the file in the run's folder: little-endian, without a header.

        Later epochs in the file, from a run that was killed after its last save or while writing, are truncated.
        Missing earlier epochs are filled with samples that did not occur.

        Args:
            folder: of the run.
            epoch: the number of the last pending epoch, from 1.

        Raises:
            OSError, IrregularFileError: the file cannot be written, or is a link or shared with another folder.
        """
        if not self.waiting:
            return
        ledger_folder = folder / "ledger"
        safefiles.make_folder(ledger_folder)
        if not (ledger_folder / "ledger.json").exists():
            self._describe(ledger_folder)
        content = b"".join(_little_endian(column.cpu().numpy()) for columns in self.waiting for column in columns)
        before = len(content) // len(self.waiting) * (epoch - len(self.waiting))
        with safefiles.open_to_append(ledger_folder / "epochs.bin") as file:
            size = file.seek(0, os.SEEK_END)
            if size > before:
                file.truncate(before)
            while size < before:
                size += file.write(UNSEEN * min(len(content), before - size))
            file.write(content)
        self.waiting.clear()

    def _describe(self, ledger_folder: Path) -> None:
        """Write the number of samples, the classes, the labels and, if the samples are files, their names."""
        count = len(self.source)
        labels = np.full(count, -1) if self.targets is None else self.targets.numpy()
        with safefiles.replacing(ledger_folder / "targets.bin") as file:
            file.write(labels.astype("<i4").tobytes())
        if (files := files_of(self.source)) is not None:
            write_text(ledger_folder / "names.txt", "".join(f"{files[number]}\n" for number in range(count)))
        facts = {"schema": SCHEMA, "samples": count, **self.facts}
        write_text(ledger_folder / "ledger.json", json.dumps(facts) + "\n")


def _little_endian(values: np.ndarray[Any, Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()

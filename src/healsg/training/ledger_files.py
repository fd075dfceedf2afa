"""The files of a ledger below a run's folder: an epoch's columns, and once what the samples are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from healsg import safefiles
from healsg.data.source import Source, files_of
from healsg.runs.folder import write_text

SCHEMA = 1
"""Of ``ledger.json`` and the files beside it."""


@dataclass(frozen=True)
class LedgerFiles:
    """What a ledger's samples are, and where its epochs go.

    Args:
        source: the samples.
        targets: (N,) their classes on the CPU; None where these are not known.
        facts: what ``ledger.json`` says beside their number, such as the names of the classes.
    """

    source: Source
    targets: Tensor | None
    facts: Mapping[str, Any]

    def write(self, folder: Path, epoch: int, columns: Iterable[Tensor]) -> None:
        """Write the (N,) ``columns`` of ``epoch``, from 1, below the run's folder: little-endian, without a header.

        Raises OSError.
        """
        place = folder / "ledger"
        safefiles.make_folder(place)
        if not (place / "ledger.json").exists():
            self._describe(place)
        values = [column.cpu().numpy() for column in columns]
        with safefiles.replacing(place / f"{epoch:04}.bin") as file:
            for column in values:
                file.write(column.astype(column.dtype.newbyteorder("<")).tobytes())

    def _describe(self, place: Path) -> None:
        """Write the samples' number, classes, labels and, where they are files, their names."""
        count = len(self.source)
        labels = np.full(count, -1) if self.targets is None else self.targets.numpy()
        with safefiles.replacing(place / "targets.bin") as file:
            file.write(labels.astype("<i4").tobytes())
        if (files := files_of(self.source)) is not None:
            write_text(place / "names.txt", "".join(f"{files[number]}\n" for number in range(count)))
        facts = {"schema": SCHEMA, "samples": count, **self.facts}
        write_text(place / "ledger.json", json.dumps(facts) + "\n")

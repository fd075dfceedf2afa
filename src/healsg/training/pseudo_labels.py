"""The ledger of semi-supervised methods: the pseudo-label of each unlabelled sample in every epoch, its confidence and
its weight (``runner.ledger=true``).

A method passes the scores of its pseudo-labels to ``runner.record_pseudo_labels``, so that they cost no forward pass.
The true classes, if the data set knows them, are written from the source directly into a file next to the
pseudo-labels, and are compared when the ledger is read: no batch and no step contains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from healsg.data.loader import Loader
from healsg.data.source import DatasetSource, TensorSource
from healsg.errors import ConfigError
from healsg.training.ledger import PENDING, Ledger, require_whole_batches
from healsg.training.ledger_files import EpochColumns, LedgerFiles

if TYPE_CHECKING:
    from healsg.protocols import Task

COLUMNS = {"confidence": (torch.float16, -1), "weight": (torch.float16, -1), "label": (torch.int32, -1)}
"""What is recorded of each sample, and the value if it did not occur in this epoch."""


def ledger_of(task: Task) -> Ledger | PseudoLabelLedger:
    """The ledger for the task's method. Raises ConfigError if the method or the data do not support one."""
    if getattr(task.task_method, "records_pseudo_labels", False):
        return PseudoLabelLedger(task)
    ledger = Ledger(task)
    ledger.watch(task.net)
    return ledger


class PseudoLabelLedger:
    """The pseudo-labels of the unlabelled samples in one epoch.

    ``ledger/epochs.bin`` holds one epoch after the other, little-endian and without a header: for each, N float16
    confidences (the probability of the pseudo-label), N float16 weights (from 0: not used, to 1: fully used in the
    loss), N int32 classes; -1 for a sample that did not occur. If a sample occurred several times in an epoch, its last
    pseudo-label is recorded.

    Args:
        task: the trained task, with its loaders.

    Raises:
        ConfigError: the samples have no index, or not one class each.
    """

    def __init__(self, task: Task) -> None:
        loader = task.train_loader
        require_whole_batches(task)
        if task.info is None or task.info.kind != "multiclass" or not isinstance(loader, Loader):
            raise ConfigError("runner.ledger: needs one class a sample, and HEALSg's own loaders")
        self.source = loader.sources["unlabelled"]
        source = self.source
        known = source.about.hidden if isinstance(source, (TensorSource, DatasetSource)) else None
        self.files = LedgerFiles(source, known, {"kind": "guesses", "classes": task.info.names})
        self.columns = EpochColumns(len(source), COLUMNS, task.device)
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.waiting = 0

    def start_batch(self, batch: Mapping[str, Any]) -> None:
        """Does nothing: the method reports the pseudo-labels of a batch itself, by ``add``."""

    def add(self, index: Tensor, scores: Tensor, weight: Tensor | None) -> None:
        """Record a batch's pseudo-labels.

        Args:
            index: (N,) indices of the samples.
            scores: (N, C) logits.
            weight: (N,) weight of each pseudo-label in the loss; None is 1.
        """
        weights = scores.new_ones(len(scores)) if weight is None else weight.detach()
        self.pending.append((index, scores.detach().clone(), weights))
        self.waiting += scores.numel()
        if self.waiting > PENDING:
            self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Convert the pending scores into the columns by sample; nothing is read from the device."""
        if not self.pending:
            return
        index, scores, weight = (torch.cat(column) for column in zip(*self.pending, strict=True))
        self.pending.clear()
        self.waiting = 0
        confidence, label = scores.float().softmax(dim=1).max(dim=1)
        index = index.to(scores.device)
        order = torch.arange(len(index), device=index.device)
        columns = self.columns.tensors
        none = torch.full_like(columns["label"], -1, dtype=torch.int64)
        last = none.scatter_reduce_(0, index, order, "amax")  # of each sample: its last row, or -1
        values = {"confidence": confidence, "weight": weight, "label": label}
        self.columns.replace(
            {
                name: torch.where(last >= 0, new[last.clamp(min=0)].to(columns[name].dtype), columns[name])
                for name, new in values.items()
            }
        )

    def end_epoch(self) -> None:
        """The epoch is complete; the next ``write`` writes it."""
        self.flush()
        self.files.add(self.columns.tensors.values())
        self.columns.clear()

    def write(self, folder: Path, epoch: int) -> None:
        """Write the complete epochs, the last of which is ``epoch``, from 1, below the run's folder. Raises OSError."""
        self.files.write(folder, epoch)

    # --- state: of an epoch that is not complete ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        self.flush()
        return self.columns.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.pending.clear()
        self.waiting = 0
        self.files.clear()
        self.columns.load_state_dict(state)

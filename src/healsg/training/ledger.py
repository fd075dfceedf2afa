"""Ledger: loss, confidence and correctness of every training sample in every epoch (``runner.ledger=true``).

They are taken from the forward pass of the training step, at no extra cost: they refer to the sample as the network saw
it, augmented and in training mode. Each step keeps a copy of the network's outputs on the device. The copies are
converted into values by sample at the next save, or when many are pending, since for small batches most of the time
would be spent on calls. A save first writes the complete epochs and includes the values of the current epoch, so that a
run that was killed writes the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.loader import Loader
from healsg.errors import ConfigError
from healsg.training.ledger_files import EpochColumns, LedgerFiles

if TYPE_CHECKING:
    from healsg.protocols import Task

PENDING = 1 << 20
"""The most elements of pending outputs."""

HIGHEST = 65504.0
"""The largest finite value of float16, for losses."""

FEW = 32
"""The largest number of classes for which softmax is faster on the transposed outputs."""

COLUMNS = {"loss": (torch.float16, -1), "confidence": (torch.float16, -1), "correct": (torch.uint8, 255)}
"""The recorded values of each sample, and the value if it did not occur in this epoch."""


def require_whole_batches(task: Task) -> None:
    """Raise ConfigError if batches are split, over processes or by ``auto_accumulate``: a ledger needs whole ones."""
    task.runner.parallel.require_single_process("runner.ledger: works in one process")
    if task.runner.auto_accumulate:
        raise ConfigError("runner.ledger: runner.auto_accumulate splits batches; set one of them to false")


class Ledger:
    """The recorded values of one epoch, by sample.

    ``ledger/epochs.bin`` holds one epoch after the other, little-endian and without a header: for each, N float16
    losses (cross entropy), N float16 confidences (the probability of the sample's own class), N uint8 (1: that class
    has the largest output, 0: another has, 255: the sample did not occur).

    Args:
        task: the trained task, with its loaders and network.

    Raises:
        ConfigError: the samples have no index, or not one class each.
    """

    def __init__(self, task: Task) -> None:
        loader = task.train_loader
        self._check(task, loader)
        assert isinstance(loader, Loader)
        self.source = next(iter(loader.sources.values()))
        targets = self.source.targets
        classes = list(task.info.class_names) if task.info is not None else []
        self.files = LedgerFiles(self.source, None if targets is None else targets.cpu(), {"classes": classes})
        self.columns = EpochColumns(len(self.source), COLUMNS, task.device)
        self.current: Mapping[str, Any] | None = None
        """The batch of the next forward pass."""
        self.pending: list[list[tuple[Tensor, Tensor, Tensor]]] = [[]]
        """By epoch, of which the last is not complete: the indices, targets and outputs of batches."""
        self.waiting = 0

    @staticmethod
    def _check(task: Task, loader: Any) -> None:
        require_whole_batches(task)
        flat = task.task_method.needs.flat  # type: ignore[attr-defined]
        if task.info is None or task.info.kind != "multiclass" or not flat or not isinstance(loader, Loader):
            raise ConfigError("runner.ledger: needs one class a sample, and a method that takes labelled samples alone")

    def watch(self, net: nn.Module) -> None:
        """Register a forward hook on ``net``."""
        net.register_forward_hook(self._output)

    def start_batch(self, batch: Mapping[str, Any]) -> None:
        """A batch is about to be trained on."""
        self.current = batch

    def _output(self, net: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook: keep the first output after ``start_batch``; outputs of an evaluation are ignored."""
        batch, self.current = self.current, None
        if batch is None or not isinstance(output, Tensor) or output.dim() != 2:
            return
        target = batch["target"]
        rows, classes = output.shape  # in a sixth of the time of len(output)
        if rows == target.shape[0]:
            self.pending[-1].append((batch["index"], target, output.detach().clone()))
            self.waiting += rows * classes
            if self.waiting > PENDING:
                self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Convert the pending outputs into the columns by sample; nothing is read from the device."""
        epochs = self.pending
        self.pending = [[]]
        if self.waiting:
            self.waiting = 0
            index, target, outputs = (torch.cat(column) for column in zip(*itertools.chain(*epochs), strict=True))
            values = _by_row(outputs.float(), target.long())
            lengths = [sum(output.shape[0] for _, _, output in batches) for batches in epochs]
            parts = [torch.split(column, lengths) for column in (index.to(outputs.device), *values)]
        for number, batches in enumerate(epochs):
            if batches:
                rows, *columns = (part[number] for part in parts)
                self.columns.put(rows, columns)
            if number < len(epochs) - 1:
                self.files.add(self.columns.tensors.values())
                self.columns.clear()

    def end_epoch(self) -> None:
        """The epoch is complete; the next ``write`` writes it."""
        self.pending.append([])

    def write(self, folder: Path, epoch: int) -> None:
        """Write the complete epochs, the last of which is ``epoch``, from 1, below the run's folder. Raises OSError."""
        self.flush()
        self.files.write(folder, epoch)

    # --- state: of an epoch that is not complete ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        self.flush()
        return self.columns.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.pending = [[]]
        self.waiting = 0
        self.current = None
        self.files.clear()
        self.columns.load_state_dict(state)


def _by_row(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, confidence and correctness, each (N,), of (N, C) float32 outputs for (N,) int64 classes."""
    if output.shape[1] <= FEW and output.device.type == "cpu":  # along the memory, in a sixth of the time
        columns = output.T.contiguous().unsqueeze(0)
        loss = F.cross_entropy(columns, target.unsqueeze(0), reduction="none")[0]
    else:
        loss = F.cross_entropy(output, target, reduction="none")
    correct = output.argmax(dim=1) == target
    return loss.clamp(max=HIGHEST).half(), (-loss).exp().half(), correct.to(torch.uint8)

"""Ledger: loss, confidence and correctness of every training sample in every epoch (``runner.ledger=true``).

They are those of the forward pass of the training step, so that they cost none of their own: of the sample as the
network saw it, augmented and in training mode. A step keeps a copy of the network's outputs on the device; these become
numbers by sample at the end of the epoch, or when many have gathered. A save holds the numbers of the epoch so far, so
that a run that was killed writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from healsg.data.loader import Loader
from healsg.errors import ConfigError
from healsg.training.ledger_files import LedgerFiles

if TYPE_CHECKING:
    from healsg.protocols import Task

PENDING = 1 << 20
"""Numbers of outputs that wait to become numbers by sample."""

HIGHEST = 65504.0
"""The largest loss that float16 holds."""

FEW = 32
"""Classes up to which the softmax of many samples takes less time along the samples than along the classes."""

UNSEEN = 255
"""As correctness: the sample was not dealt in this epoch."""


class Ledger:
    """The numbers of one epoch by sample.

    ``ledger/NNNN.bin`` holds those of epoch N, little-endian and without a header: N float16 losses (cross entropy), N
    float16 confidences (the probability of the sample's own class), N uint8 (1: that class has the largest output, 0:
    it has not, 255: not dealt).

    Args:
        task: what is trained; its loaders and its network are there.

    Raises:
        ConfigError: the samples have no index, or no class each.
    """

    def __init__(self, task: Task) -> None:
        loader = task.train_loader
        self._check(task, loader)
        assert isinstance(loader, Loader)
        self.source = next(iter(loader.sources.values()))
        targets = self.source.targets
        classes = list(task.info.class_names) if task.info is not None else []
        self.files = LedgerFiles(self.source, None if targets is None else targets.cpu(), {"classes": classes})
        count, device = len(self.source), task.device
        self.loss = torch.full((count,), -1.0, dtype=torch.float16, device=device)
        self.confidence = torch.full((count,), -1.0, dtype=torch.float16, device=device)
        self.correct = torch.full((count,), UNSEEN, dtype=torch.uint8, device=device)
        self.current: Mapping[str, Any] | None = None
        """The batch whose outputs are waited for."""
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.waiting = 0
        self.begun = False
        """Whether the epoch has numbers already."""

    @staticmethod
    def _check(task: Task, loader: Any) -> None:
        task.runner.parallel.require_one("runner.ledger: works in one process")
        flat = task.task_method.needs.flat  # type: ignore[attr-defined]
        if task.info is None or task.info.kind != "multiclass" or not flat or not isinstance(loader, Loader):
            raise ConfigError("runner.ledger: needs one class a sample, and a method that takes labelled samples alone")
        if task.runner.auto_accumulate:
            raise ConfigError("runner.ledger: runner.auto_accumulate takes batches apart; set one of them to false")

    def watch(self, net: nn.Module) -> None:
        """Let the outputs of ``net`` be seen."""
        net.register_forward_hook(self._output)

    def deal(self, batch: Mapping[str, Any]) -> None:
        """A batch is trained on next."""
        self.current = batch

    def _output(self, net: nn.Module, inputs: Any, output: Any) -> None:
        """The first output for the batch that was dealt; those of an evaluation are nobody's."""
        batch, self.current = self.current, None
        if batch is None or not isinstance(output, Tensor) or output.dim() != 2:
            return
        target = batch["target"]
        if len(output) == len(target):
            self.pending.append((batch["index"], target, output.detach().clone()))
            self.waiting += output.numel()
            if self.waiting > PENDING:
                self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Let the outputs so far become numbers by sample; nothing is read from the device."""
        if not self.pending:
            return
        index, target, output = (torch.cat(column) for column in zip(*self.pending, strict=True))
        self.pending.clear()
        self.waiting = 0
        self.begun = True
        output = output.float()
        index = index.to(output.device)
        target = target.long()
        if output.shape[1] <= FEW and output.device.type == "cpu":  # along the memory, in a sixth of the time
            columns = output.T.contiguous().unsqueeze(0)
            loss = F.cross_entropy(columns, target.unsqueeze(0), reduction="none")[0]
        else:
            loss = F.cross_entropy(output, target, reduction="none")
        self.loss.index_copy_(0, index, loss.clamp(max=HIGHEST).half())
        self.confidence.index_copy_(0, index, (-loss).exp().half())
        self.correct.index_copy_(0, index, (output.argmax(dim=1) == target).to(torch.uint8))

    def write(self, folder: Path, epoch: int) -> None:
        """Write the numbers of ``epoch``, from 1, below the run's folder, and begin the next one. Raises OSError."""
        self.flush()
        self.files.write(folder, epoch, (self.loss, self.confidence, self.correct))
        self.loss.fill_(-1.0)
        self.confidence.fill_(-1.0)
        self.correct.fill_(UNSEEN)
        self.begun = False

    # --- state: of an epoch that is not complete ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Empty between two epochs, so that the final state of a run does not depend on whether it kept a ledger."""
        self.flush()
        if not self.begun:
            return {}
        return {"loss": self.loss, "confidence": self.confidence, "correct": self.correct}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.pending.clear()
        self.waiting = 0
        self.current = None
        self.begun = bool(state)
        for name, initial in (("loss", -1.0), ("confidence", -1.0), ("correct", UNSEEN)):
            held = getattr(self, name)
            held.copy_(state[name]) if state else held.fill_(initial)

"""Writer: a thread that writes checkpoints from a copy of the state, while training continues.

The part of the state that the next forward pass may change (BatchNorm's statistics, counters) is copied before ``save``
returns. The part that stays constant until the next update (weights, optimizer state) may be copied by the thread,
during the forward and backward pass before that update.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from healsg.errors import RunError
from healsg.runs import checkpoint
from healsg.torch_private import foreach_copy_, versions_of

Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the copy of the first part of a state and returns the whole state, whose other tensors are not copied yet."""

_PLAIN = frozenset({int, float, str, bool, type(None)})


class Writer:
    """Copies a state into host memory, which is reused from save to save, and has a thread write the copy.

    There is one save at a time. An exception in the thread is raised by the next call of a method here.

    Args:
        write: called by the thread with the copy.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.seconds = 0.0
        """The duration of the last save."""
        self._write = write
        self._saving = _thread.allocate_lock()  # held from the start of a save to its end
        self._copying = _thread.allocate_lock()  # held while the thread copies
        self._failure: BaseException | None = None
        self._host: list[Tensor] = []
        self._saves: SimpleQueue[_Save | None] | None = None  # the thread's queue; None before the first save

    def save(self, state: dict[str, Any], complete: Complete | None = None, watched: Sequence[Tensor] = ()) -> None:
        """Start to write ``state``, which may change as soon as this returns.

        Args:
            state: tensors and plain values in dicts and lists.
            complete: called by the thread to add the second part of the state, which it then copies. That part may
                change only after ``snapshot_done`` has returned.
            watched: tensors of the second part; their version counters are compared to detect a change before that.
        """
        self.wait()
        save = _Save(self._host, complete, watched)
        save.copy_now(state)
        if self._saves is None:
            saves = SimpleQueue[_Save | None]()
            _thread.start_new_thread(self._run, (saves,))  # threading.Thread.start would wait for it
            self._saves = saves
        self._saves.put(save)
        self._saving, self._copying = save.saving, save.copying  # only now: the thread releases them

    def snapshot_done(self) -> None:
        """Wait until all of the state is copied; called before the weights change."""
        with self._copying:
            pass

    def check(self) -> None:
        """Raise the exception of a save that has failed, without waiting for one in progress."""
        if not self._saving.locked():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress, if there is one; raises its exception."""
        with self._saving:
            pass
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the thread after the save in progress; its exception is dropped."""
        with self._saving:
            pass
        if self._saves is not None:
            self._saves.put(None)
            self._saves = None
        self._host.clear()

    def _run(self, saves: SimpleQueue[_Save | None]) -> None:
        while (save := saves.get()) is not None:
            self._finish(save)
            del save  # frees its tensors before the next one comes

    def _finish(self, save: _Save) -> None:
        try:
            self._copy_rest(save)
            self._write(save.copied())
        except BaseException as error:
            self._failure = error
        finally:
            self.seconds = time.monotonic() - save.began
            save.saving.release()

    def _copy_rest(self, save: _Save) -> None:
        """Copy the second part of the state, then release the training loop."""
        if save.complete:
            try:
                save.copy_rest()
            finally:
                save.copying.release()
                time.sleep(1e-4)  # yields, so that a loop that waits for the lock runs first


class _Save:
    """One save: a state and its copy.

    Args:
        buffers: the tensors in host memory of earlier saves, reused in order; one that does not fit is replaced.
        complete, watched: see ``Writer.save``.
    """

    def __init__(self, buffers: list[Tensor], complete: Complete | None, watched: Sequence[Tensor]) -> None:
        self.began = time.monotonic()
        self.buffers = buffers
        self.complete = complete
        self.watched = watched
        self.versions = versions_of(watched)
        self.state: dict[str, Any] = {}
        self.arrived: torch.cuda.Event | None = None
        """The event on the GPU's stream after the last copy."""
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """For each tensor of the state: its copy in host memory, and the tensor."""
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        """The same pairs by the address of the tensor."""
        self.saving = _thread.allocate_lock()
        self.copying = _thread.allocate_lock()
        self.saving.acquire()
        if complete:
            self.copying.acquire()

    def copy_now(self, state: dict[str, Any]) -> None:
        """Copy the first part. Copies from a GPU are asynchronous; ``copied`` waits for them."""
        self.state = self._copy_of(state)
        device = next((own.device for _, own in self.pairs if own.is_cuda), None)
        _fill(self.pairs, waits=device is None)
        self.arrived = torch.cuda.current_stream(device).record_event() if device else None

    def copy_rest(self) -> None:
        """Copy the second part. Raises RunError if it has changed meanwhile."""
        assert self.complete is not None
        taken = len(self.pairs)
        self.seen |= {host.data_ptr(): (host, host) for host, _ in self.pairs}
        self.state = self._copy_of(self.complete(self.state))
        _fill(self.pairs[taken:])
        if versions_of(self.watched) != self.versions:
            way = "set the method's class attribute leaves_weights = False"
            raise RunError(f"a checkpoint was being copied when train_step changed weights; {way}")

    def copied(self) -> dict[str, Any]:
        """The copy; waits for the GPU."""
        if self.arrived is not None:
            torch.cuda.set_device(self.arrived.device)  # a new thread starts on the first GPU
            self.arrived.synchronize()
        return self.state

    def _copy_of(self, value: Any) -> Any:
        """``value`` with new containers, and with host tensors, yet to be filled, instead of its tensors.

        A tensor that occurs twice, such as weights that are also those of the best epoch, is copied once. A value that
        a checkpoint cannot hold is left as it is, and ``checkpoint.save`` refuses it by name.
        """
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            return value if value.is_meta or value.layout is not torch.strided else self._memory(value)
        if isinstance(value, dict):
            copied = dict(value)
            for key, inner in copied.items():
                if type(inner) not in _PLAIN:
                    copied[key] = self._copy_of(inner)
            return copied if kind is dict else checkpoint.like(value, copied)
        if isinstance(value, (list, tuple)):
            inside = [inner if type(inner) in _PLAIN else self._copy_of(inner) for inner in value]
            return inside if isinstance(value, list) else tuple(inside)
        return value

    def _memory(self, tensor: Tensor) -> Tensor:
        """The host tensor for a tensor: that of its first occurrence, or the next one of ``buffers``."""
        known = self.seen.get(tensor.data_ptr())
        if known and _form(known[1]) == _form(tensor):
            return known[0]
        number = len(self.pairs)
        host = self.buffers[number] if number < len(self.buffers) else None
        if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
            host = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            self.buffers[number : number + 1] = [host]
        self.seen[tensor.data_ptr()] = host, tensor
        self.pairs.append((host, tensor))
        return host


def _fill(pairs: list[tuple[Tensor, Tensor]], waits: bool = True) -> None:
    """Copy the second tensor of each pair into the first."""
    if pairs:
        with torch.no_grad():
            foreach_copy_([host for host, _ in pairs], [own for _, own in pairs], non_blocking=not waits)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()

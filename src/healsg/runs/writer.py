"""Writer: a thread writes checkpoints, from a copy of the state.

What the next forward pass may change is copied before ``save`` returns. What stays as it is until the next update may
be left to the thread, which copies it while that forward pass and its backward pass go on.
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
from healsg.torch_private import foreach_copy_, version_of

Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""From the copy of a part of a state to the whole state, whose further tensors are not copied yet."""

_PLAIN = frozenset({int, float, str, bool, type(None)})


class Writer:
    """Copies a state into host memory, which is kept from save to save, and lets a thread write the copy.

    One save is under way at a time. What the thread raises is raised by the next call here.

    Args:
        write: what the thread does with the copy.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.seconds = 0.0
        """What the last save took from beginning to end."""
        self._write = write
        self._saving = _thread.allocate_lock()  # held while a save is under way
        self._copying = _thread.allocate_lock()  # held while the thread copies
        self._failure: BaseException | None = None
        self._host: list[Tensor] = []
        self._saves: SimpleQueue[_Save | None] | None = None  # what the thread takes from, from the first save on

    def save(self, state: dict[str, Any], complete: Complete | None = None, watched: Sequence[Tensor] = ()) -> None:
        """Begin to write ``state``, tensors and plain values in dicts and lists; it may change once this returns.

        Args:
            complete: called by the thread; what it adds to the copy of ``state`` is copied then, and may change once
                ``snapshot_done`` returns.
            watched: tensors among what it adds; that they do not change too early is checked by their version counters.
        """
        self.wait()
        save = _Save(self._host, complete, watched)
        save.copy_now(state)
        if self._saves is None:
            saves = SimpleQueue[_Save | None]()
            _thread.start_new_thread(self._run, (saves,))  # threading would wait for it to begin
            self._saves = saves
        self._saves.put(save)
        self._saving, self._copying = save.saving, save.copying  # only now: the thread releases them

    def snapshot_done(self) -> None:
        """Wait until all of the state is copied."""
        with self._copying:
            pass

    def check(self) -> None:
        """Raise what the thread raised, without waiting for it."""
        if not self._saving.locked():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way, if there is one."""
        with self._saving:
            pass
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let the thread end, whatever comes of what it is writing."""
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
        """Let the thread's part of the copy be made, then let the loop go on."""
        if save.complete:
            try:
                save.copy_rest()
            finally:
                save.copying.release()
                time.sleep(1e-4)  # a loop that waits for this goes first


class _Save:
    """One save: a state that is copied into kept memory.

    Args:
        kept: the memory, tensor by tensor; it is replaced where one does not fit.
        complete, watched: see ``Writer.save``.
    """

    def __init__(self, kept: list[Tensor], complete: Complete | None, watched: Sequence[Tensor]) -> None:
        self.began = time.monotonic()
        self.kept = kept
        self.complete = complete
        self.versions = [(value, version_of(value)) for value in watched]
        self.state: dict[str, Any] = {}
        self.arrived: torch.cuda.Event | None = None
        """When all tensors of a GPU are copied."""
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """The copy of each tensor, and the tensor."""
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        """The same by the address of the tensor."""
        self.saving = _thread.allocate_lock()
        self.copying = _thread.allocate_lock()
        self.saving.acquire()
        if complete:
            self.copying.acquire()

    def copy_now(self, state: dict[str, Any]) -> None:
        """Copy a state. Copies from a GPU are only begun; ``copied`` waits for them."""
        self.state = self._copy_of(state)
        device = next((own.device for _, own in self.pairs if own.is_cuda), None)
        _fill(self.pairs, waits=device is None)
        self.arrived = torch.cuda.current_stream(device).record_event() if device else None

    def copy_rest(self) -> None:
        """Copy what completes the state. Raises RunError where that has changed meanwhile."""
        assert self.complete is not None
        taken = len(self.pairs)
        self.seen |= {host.data_ptr(): (host, host) for host, _ in self.pairs}
        self.state = self._copy_of(self.complete(self.state))
        _fill(self.pairs[taken:])
        if any(version_of(own) != version for own, version in self.versions):
            way = "set the method's class attribute leaves_weights = False"
            raise RunError(f"a checkpoint was being copied when train_step changed weights; {way}")

    def copied(self) -> dict[str, Any]:
        """The copy, once all of it is there."""
        if self.arrived is not None:
            torch.cuda.set_device(self.arrived.device)  # a thread begins with the first
            self.arrived.synchronize()
        return self.state

    def _copy_of(self, value: Any) -> Any:
        """``value`` with containers of its own, and with kept memory in the place of tensors, yet to be filled.

        A tensor that comes twice, as the weights of the best epoch do, is copied once. What a checkpoint cannot hold
        stays, to be refused by name.
        """
        kind = type(value)
        if isinstance(value, dict):
            copied = {key: inner if type(inner) in _PLAIN else self._copy_of(inner) for key, inner in value.items()}
            return copied if kind is dict else checkpoint.like(value, copied)
        if kind is Tensor or kind is nn.Parameter:
            return value if value.is_meta or value.layout != torch.strided else self._memory(value)
        if isinstance(value, (list, tuple)):
            inside = [inner if type(inner) in _PLAIN else self._copy_of(inner) for inner in value]
            return inside if isinstance(value, list) else tuple(inside)
        return value

    def _memory(self, own: Tensor) -> Tensor:
        """The kept memory of a tensor: the next, or the one that it has already."""
        known = self.seen.get(own.data_ptr())
        if known and _form(known[1]) == _form(own):
            return known[0]
        place = len(self.pairs)
        host = self.kept[place] if place < len(self.kept) else None
        if host is None or host.shape != own.shape or host.dtype != own.dtype:
            host = torch.empty_like(own, device="cpu", requires_grad=False, pin_memory=own.is_cuda)
            self.kept[place : place + 1] = [host]
        self.seen[own.data_ptr()] = host, own
        self.pairs.append((host, own))
        return host


def _fill(pairs: list[tuple[Tensor, Tensor]], waits: bool = True) -> None:
    """Copy the second of each pair into the first."""
    if pairs:
        with torch.no_grad():
            foreach_copy_([host for host, _ in pairs], [own for _, own in pairs], non_blocking=not waits)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()

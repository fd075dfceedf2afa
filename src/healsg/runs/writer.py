"""Writer: checkpoints written by a thread, from a copy of the state.

What may change with the next forward pass is copied at once. What stays as it is until the next update is copied by
the thread, while that forward pass and its backward pass go on.
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

Whole = Callable[[dict[str, Any]], dict[str, Any]]
"""From the copy of a state to what is written."""

_PLAIN = frozenset({int, float, str, bool, type(None)})
_KNOWN = frozenset({"healsg", "torch", "torchvision", "timm"})
"""Packages whose modules change no parameter in a forward pass, but for what ``steady`` looks at."""


class Writer:
    """Copies a state into host memory that is kept from save to save, and lets a thread write the copy.

    One save is under way at a time. What the thread raises is raised by the next call here.

    Args:
        write: what the thread does with the copy.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.seconds = 0.0
        """What the last save took from beginning to end."""
        self._write = write
        self._resting = _thread.allocate_lock()  # held while a save is under way
        self._landing = _thread.allocate_lock()  # held while its thread copies
        self._failure: BaseException | None = None
        self._host: list[Tensor] = []
        self._saves: SimpleQueue[_Save | None] | None = None  # what the thread takes from, from the first save on

    def save(self, state: dict[str, Any], whole: Whole | None = None, watched: Sequence[Tensor] = ()) -> None:
        """Begin to write ``state``, tensors and plain values in dicts and lists; it may change once this returns.

        Args:
            whole: called by the thread, makes of the copy of ``state`` what is written; what it adds is copied then and
                may change once ``snapshot_done`` returns.
            watched: of what it adds, tensors that tell whether they have changed too early.
        """
        self.wait()
        save = _Save(self._host, whole, watched)
        save.take(state)
        if self._saves is None:
            saves = SimpleQueue[_Save | None]()
            _thread.start_new_thread(self._run, (saves,))  # threading would wait for it to begin
            self._saves = saves
        self._saves.put(save)
        self._resting, self._landing = save.resting, save.landing  # only now: nobody else would let go of them

    def snapshot_done(self) -> None:
        """Wait until all of the state is copied."""
        with self._landing:
            pass

    def check(self) -> None:
        """Raise what the thread raised, without waiting for it."""
        if not self._resting.locked():
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way, if there is one."""
        with self._resting:
            pass
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let the thread end, whatever comes of what it is writing."""
        with self._resting:
            pass
        if self._saves is not None:
            self._saves.put(None)
            self._saves = None
        self._host.clear()

    def _run(self, saves: SimpleQueue[_Save | None]) -> None:
        while (save := saves.get()) is not None:
            self._finish(save)
            del save  # its tensors shall not wait for the next one

    def _finish(self, save: _Save) -> None:
        try:
            self._land(save)
            if save.arrived is not None:
                torch.cuda.set_device(save.arrived.device)  # a thread begins with the first
                save.arrived.synchronize()
            self._write(save.state)
        except BaseException as error:
            self._failure = error
        finally:
            self.seconds = time.monotonic() - save.began
            save.resting.release()

    def _land(self, save: _Save) -> None:
        """Let ``take_rest`` be, then let the loop go on."""
        if save.whole:
            try:
                save.take_rest()
            finally:
                save.landing.release()
                time.sleep(1e-4)  # a loop that waits for this goes first


class _Save:
    """A state on its way into kept memory.

    ``kept`` is the memory, by place; made anew where a tensor does not fit. The others are those of ``Writer.save``.
    """

    def __init__(self, kept: list[Tensor], whole: Whole | None, watched: Sequence[Tensor]) -> None:
        self.began, self.kept, self.whole = time.monotonic(), kept, whole
        self.versions = [(value, value._version) for value in watched]
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.resting, self.landing = _thread.allocate_lock(), _thread.allocate_lock()
        self.resting.acquire()
        if whole:
            self.landing.acquire()

    def take(self, state: dict[str, Any]) -> None:
        """Copy a state. From a GPU it waits for nothing: ``arrived`` tells when all is there."""
        self.state: dict[str, Any] = self._copied(state)
        device = next((own.device for _, own in self.pairs if own.is_cuda), None)
        _fill(self.pairs, waits=device is None)
        self.arrived = torch.cuda.current_stream(device).record_event() if device else None

    def take_rest(self) -> None:
        """Copy what makes it whole. Raises RunError where that has changed meanwhile."""
        assert self.whole is not None
        taken = len(self.pairs)
        self.seen |= {host.data_ptr(): (host, host) for host, _ in self.pairs}
        self.state = self._copied(self.whole(self.state))
        _fill(self.pairs[taken:])
        if any(own._version != version for own, version in self.versions):
            way = "set the method's class attribute leaves_weights = False"
            raise RunError(f"a checkpoint was being copied when train_step changed weights; {way}")

    def _copied(self, value: Any) -> Any:
        """``value`` with containers of its own, and with kept memory in the place of tensors, yet to be filled.

        A tensor that comes twice, as the weights of the best epoch do, is copied once. What a checkpoint cannot hold
        stays, to be refused by name.
        """
        kind = type(value)
        if isinstance(value, dict):
            copied = {key: inner if type(inner) in _PLAIN else self._copied(inner) for key, inner in value.items()}
            return copied if kind is dict else checkpoint.like(value, copied)
        if kind is Tensor or kind is nn.Parameter:
            return value if value.is_meta or value.layout != torch.strided else self._memory(value)
        if isinstance(value, (list, tuple)):
            inside = [inner if type(inner) in _PLAIN else self._copied(inner) for inner in value]
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
            torch._foreach_copy_([host for host, _ in pairs], [own for _, own in pairs], non_blocking=not waits)


def steady(module: nn.Module) -> bool:
    """Whether a module surely changes no parameter in a forward pass, and has the usual ``state_dict``."""
    kind, buffers = type(module), module._buffers
    known = all(base.__module__.partition(".")[0] in _KNOWN for base in kind.__mro__[: kind.__mro__.index(nn.Module)])
    plain = kind.get_extra_state is nn.Module.get_extra_state and isinstance(buffers, dict)  # TorchScript has another
    hooks = module._forward_pre_hooks, module._forward_hooks, module._state_dict_pre_hooks, module._state_dict_hooks
    return known and plain and not any(hooks) and getattr(module, "max_norm", None) is None  # that of an embedding


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()

"""Writer: checkpoints written by a thread, from a copy of the state.

What may change with the next forward pass is copied at once. What stays as it is until the next update is copied by
the thread, while that forward pass and its backward pass go on.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from healsg import checkpoint
from healsg.errors import RunError

_PLAIN = frozenset({int, float, str, bool, type(None)})


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

    def save(self, state: dict[str, Any], late: Sequence[Any] = ()) -> None:
        """Begin to write ``state``, tensors and plain values in dicts and lists; it may change once this returns.

        Args:
            late: those of its tensors and containers that the thread copies; they may change once ``landed`` returns.
        """
        self.wait()
        began, copy = time.monotonic(), _Copy(self._host, late)
        state = copy.of(state)
        arrived, resting, landing = copy.fill(), _thread.allocate_lock(), _thread.allocate_lock()
        if self._saves is None:
            self._saves = SimpleQueue()
            _thread.start_new_thread(self._run, (self._saves,))  # threading would wait for it to begin
        resting.acquire()
        if late:
            landing.acquire()
        self._resting, self._landing = resting, landing
        self._saves.put(_Save(began, copy, state, arrived, resting, landing))

    def landed(self) -> None:
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

    def _run(self, saves: SimpleQueue[_Save | None]) -> None:
        while (save := saves.get()) is not None:
            self._finish(save)
            del save  # its tensors shall not wait for the next one

    def _finish(self, save: _Save) -> None:
        try:
            state = self._land(save)
            if save.arrived is not None:
                torch.cuda.set_device(save.arrived.device)  # a thread begins with the first
                save.arrived.synchronize()
            self._write(state)
        except BaseException as error:
            self._failure = error
        finally:
            self.seconds = time.monotonic() - save.began
            save.resting.release()

    def _land(self, save: _Save) -> dict[str, Any]:
        """Copy what was left to the thread. Raises RunError where it was not left alone meanwhile."""
        if not save.copy.late:
            return save.state
        try:
            return save.copy.rest(save.state)
        finally:
            save.landing.release()


class _Copy:
    """A state's way into kept memory.

    Args:
        kept: the memory, by place; made anew where a tensor does not fit.
        late: the tensors and containers that ``of`` passes over and ``rest`` copies.
    """

    def __init__(self, kept: list[Tensor], late: Sequence[Any]) -> None:
        self.kept, self.late = kept, {id(value): value for value in late}
        self.versions = [(value, value._version) for value in late if isinstance(value, Tensor)]
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.filled = 0

    def of(self, value: Any) -> Any:
        """``value`` with containers of its own, and with kept memory in the place of tensors, which ``fill`` fills.

        A tensor that comes twice, as the weights of the best epoch do, is copied once. What a checkpoint cannot hold
        stays, to be refused by name.
        """
        kind, late = type(value), self.late
        if kind is Tensor or kind is nn.Parameter:
            return value if value.is_meta or value.layout != torch.strided else self._memory(value)
        if isinstance(value, dict):
            copied = {
                key: inner if type(inner) in _PLAIN or id(inner) in late else self.of(inner)
                for key, inner in value.items()
            }
            return checkpoint.like(value, copied)
        if isinstance(value, (list, tuple)):
            inside = [inner if type(inner) in _PLAIN or id(inner) in late else self.of(inner) for inner in value]
            return inside if isinstance(value, list) else tuple(inside)
        return value

    def fill(self) -> torch.cuda.Event | None:
        """Copy what ``of`` came by. From a GPU it waits for nothing; the event tells when all has arrived."""
        pairs, self.filled = self.pairs[self.filled :], len(self.pairs)
        device = next((own.device for _, own in pairs if own.is_cuda), None)
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([host for host, _ in pairs], [own for _, own in pairs], non_blocking=bool(device))
        return torch.cuda.current_stream(device).record_event() if device else None

    def rest(self, state: dict[str, Any]) -> dict[str, Any]:
        """What ``of`` gave, with copies of what it passed over. Raises RunError where that has changed meanwhile."""
        self.late = {}
        self.seen |= {host.data_ptr(): (host, host) for host, _ in self.pairs}
        whole: dict[str, Any] = self.of(state)
        self.fill()
        if any(own._version != version for own, version in self.versions):
            raise RunError(
                "a checkpoint was being copied when train_step changed weights; set the method's class attribute "
                "leaves_weights = False"
            )
        return whole

    def _memory(self, own: Tensor) -> Tensor:
        """The kept memory of a tensor: the next, or the one that it has already."""
        known = self.seen.get(own.data_ptr())
        if known and _form(known[1]) == _form(own):
            return known[0]
        place = len(self.pairs)
        host = self.kept[place] if place < len(self.kept) else None
        if host is None or host.shape != own.shape or host.dtype != own.dtype:
            host = torch.empty_like(own, device="cpu", requires_grad=False, pin_memory=own.is_cuda)
            self.kept[place:] = [host, *self.kept[place + 1 :]]
        self.seen[own.data_ptr()] = host, own
        self.pairs.append((host, own))
        return host


class _Save(NamedTuple):
    """What the thread is given: when the save began, the copy, what it holds, when all has arrived, and its locks."""

    began: float
    copy: _Copy
    state: dict[str, Any]
    arrived: torch.cuda.Event | None
    resting: Any
    landing: Any


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()

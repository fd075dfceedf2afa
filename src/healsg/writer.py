"""Writer: checkpoints written by a thread, from a copy of the state.

What may change with the next forward pass is copied at once. What stays as it is until the next update is copied by
the thread, while that forward pass and its backward pass go on.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Iterable
from typing import Any

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

    def save(self, state: dict[str, Any], late: Iterable[Tensor] = ()) -> None:
        """Begin to write ``state``, tensors and plain values in dicts and lists; it may change once this returns.

        Args:
            late: those of its tensors that the thread copies; they may change once ``landed`` returns.
        """
        self.wait()
        began, pairs = time.monotonic(), list[tuple[Tensor, Tensor]]()
        copied = self._copied(state, pairs, {})
        left = {value.data_ptr(): (value, value._version) for value in late}
        device = next((own.device for _, own in pairs if own.is_cuda), None)
        _copy([pair for pair in pairs if pair[1].data_ptr() not in left], device)
        arrived = torch.cuda.current_stream(device).record_event() if device else None
        resting, landing = _thread.allocate_lock(), _thread.allocate_lock()
        resting.acquire()
        rest = [pair for pair in pairs if pair[1].data_ptr() in left], list(left.values()), landing
        if rest[0]:
            landing.acquire()
        _thread.start_new_thread(self._run, (copied, arrived, device, began, resting, rest))  # threading would wait
        self._resting, self._landing = resting, landing

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
        self.close()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Let the thread end, whatever comes of what it is writing."""
        with self._resting:
            pass

    def _run(
        self,
        copied: Any,
        arrived: torch.cuda.Event | None,
        device: torch.device | None,
        began: float,
        resting: Any,
        rest: Any,
    ) -> None:
        try:
            if rest[0]:
                self._land(*rest)
            if arrived is not None:
                torch.cuda.set_device(device)  # a thread begins with the first
                arrived.synchronize()
            self._write(copied)
        except BaseException as error:
            self._failure = error
        finally:
            self.seconds = time.monotonic() - began
            resting.release()

    def _land(self, pairs: list[tuple[Tensor, Tensor]], versions: list[tuple[Tensor, int]], landing: Any) -> None:
        """Copy what was left to the thread. Raises RunError where it was not left alone meanwhile."""
        try:
            _copy(pairs, None)
            if any(value._version != version for value, version in versions):
                raise RunError(
                    "a checkpoint was being copied when train_step changed weights; set the method's class attribute "
                    "leaves_weights = False"
                )
        finally:
            landing.release()

    def _copied(self, value: Any, pairs: list[tuple[Tensor, Tensor]], seen: dict[int, tuple[Tensor, Tensor]]) -> Any:
        """``value`` with containers of its own, and with kept memory in the place of tensors.

        ``pairs`` takes each such memory with the tensor that is to be copied there; one that comes twice, as the
        weights of the best epoch do, is copied once. What a checkpoint cannot hold stays, to be refused by name.
        """
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            if value.is_meta or value.layout != torch.strided:
                return value
            known = seen.get(value.data_ptr())
            if known and (known[1].shape, known[1].dtype, known[1].stride()) == (
                value.shape,
                value.dtype,
                value.stride(),
            ):
                return known[0]
            pair = seen[value.data_ptr()] = (self._memory(len(pairs), value), value)
            pairs.append(pair)
            return pair[0]
        if isinstance(value, dict):
            return checkpoint.like(
                value,
                {k: inner if type(inner) in _PLAIN else self._copied(inner, pairs, seen) for k, inner in value.items()},
            )
        if isinstance(value, (list, tuple)):
            copied = [inner if type(inner) in _PLAIN else self._copied(inner, pairs, seen) for inner in value]
            return copied if isinstance(value, list) else tuple(copied)
        return value

    def _memory(self, place: int, like: Tensor) -> Tensor:
        """The kept memory of the tensor that is copied as number ``place``, made anew where it does not fit."""
        kept = self._host[place] if place < len(self._host) else None
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype:
            kept = torch.empty_like(like, device="cpu", requires_grad=False, pin_memory=like.is_cuda)
            self._host[place:] = [kept, *self._host[place + 1 :]]
        return kept


def _copy(pairs: list[tuple[Tensor, Tensor]], device: torch.device | None) -> None:
    """Fill each kept memory; from a GPU, ``device``, without waiting for it."""
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([host for host, _ in pairs], [own for _, own in pairs], non_blocking=bool(device))

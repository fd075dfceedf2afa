"""A GPU that is not there: run real code on the CPU, and be told what would go wrong, or wait, on a device.

Inside ``PretendDevice`` the device ``cuda:0`` (or ``mps:0``) seems to exist. Every tensor stays an ordinary CPU tensor
with ordinary values, so that control flow, losses and digests are real; only its *storage* carries a tag that says
"this lies on the device". Two of torch's own hooks keep the tags and look at what happens:

* a ``TorchFunctionMode`` answers ``.device``, ``.is_cuda``, ``.is_cpu``, carries out ``.to(device)``, ``.cpu()``,
  ``zeros(device=...)`` and the like, and sees the doors to Python (``.item()``, ``.tolist()``, ``bool(t)``, ...);
* a ``TorchDispatchMode`` sees every operator, those of the backward pass too, compares the tags of its tensors by the
  rules of CUDA and hands the tag on to what is made.

What is reported (``events``), each with the file and line of the caller's own code and the region it lies in:

============== =====================================================================================================
``mixed``      tensors of both devices in one operator (a CPU scalar of no dimensions is allowed, as on CUDA)
``generator``  a generator of another device than the numbers that are drawn
``layout``     a fused optimizer kernel on tensors of unequal strides, which its CUDA kernel refuses
``float64``    a float64 tensor made on mps, which has none
``sync``       the host waits: ``item``, ``tolist``, truth values, ``nonzero``, boolean masks, ``unique``; copies off
               it, or onto it from ordinary memory without ``non_blocking`` (also ``torch.tensor(x, device=...)``)
``pageable``   an asynchronous copy onto the device from memory that is not pinned: it is staged, the host waits
``slow``       a list operator that falls back to one kernel a tensor (unequal strides, or a scalar tensor of another
               type), and fused operators that are called for one tensor alone
============== =====================================================================================================

``launches`` counts operators on device tensors by region: about how many kernels the host has to start.

What it cannot tell: numbers of real kernels, races of streams, memory, operators that a device lacks, determinism,
cuDNN, NCCL, graph capture. torch functions written in Python that ask for a tensor's device within themselves see the
CPU there. Numbers are those of the CPU: a run under it must give the digest of a plain CPU run, which is the tool's own
check that it changes nothing.

Use in a test::

    with PretendDevice("cuda") as device:
        device.stay_in("mypackage")            # whose lines are reported
        with device.region("step"):
            loss = train_step(model, batch)
    assert not device.found("mixed", "generator", "layout")
    assert not device.found("sync", region="step")
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # what a mode imports anyway at its first operator, and which must not see the patches
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten

# --- tags: they lie on the storage, so that views, parameters and ``.data`` share them ------------------------------


def tagged(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "_pretended", False)


def either(tensor: Tensor) -> bool:
    """Made by torch's own C++ in a backward pass, of nothing: it would have been made where it is wanted."""
    return getattr(tensor.untyped_storage(), "_either", False)


def tag(tensor: Tensor, on: bool) -> Tensor:
    tensor.untyped_storage()._pretended = on  # type: ignore[attr-defined]
    return tensor


def pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "_pinned", False)


@dataclass(frozen=True)
class Event:
    kind: str
    what: str
    where: str
    region: str

    def __str__(self) -> str:
        return f"{self.kind:9} {self.region:8} {self.where}: {self.what}"


# --- rules ----------------------------------------------------------------------------------------------------------

_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::_foreach_copy"}
_WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"}
_WAITING |= {"aten::unique_consecutive", "aten::bincount", "aten::equal", "aten::is_nonzero", "aten::repeat_interleave"}
_NO_SCALARS = {"aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm", "aten::index_copy", "aten::gather"}
_NO_SCALARS |= {"aten::scatter", "aten::scatter_add", "aten::index_select", "aten::index_copy_"}
_DOORS = {"tolist", "numpy", "__array__"}
_PLAIN = "zeros ones empty full rand randn randint randperm arange linspace logspace eye tensor as_tensor asarray"
_SHAPED = "scalar_tensor empty_strided normal tril_indices triu_indices"
_LIKE = "zeros_like ones_like empty_like full_like rand_like randn_like randint_like"
_NEW = "new_zeros new_ones new_empty new_full new_tensor"
_FACTORIES = {*_PLAIN.split(), *_SHAPED.split(), *_LIKE.split(), *_NEW.split()}
_FROM_PYTHON = {"tensor", "as_tensor", "asarray", "new_tensor"}


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"{func.__self__.__name__}.{name}"
    return str(name)


class PretendDevice:
    """See the module's text. ``kind`` is ``cuda`` or ``mps``."""

    def __init__(self, kind: str = "cuda") -> None:
        self.device, self.kind = torch.device(kind, 0), kind
        self.events: list[Event] = []
        self.launches: Counter[str] = Counter()
        self.package, self.regions = "", ["-"]
        self._stack = contextlib.ExitStack()

    # --- what a test uses -------------------------------------------------------------------------------------------

    def stay_in(self, package: str) -> None:
        """Report the innermost line that lies in a file with this in its path."""
        self.package = package

    @contextlib.contextmanager
    def region(self, name: str) -> Iterator[None]:
        self.regions.append(name)
        try:
            yield
        finally:
            self.regions.pop()

    def found(self, *kinds: str, region: str | None = None) -> Counter[str]:
        """Events of these kinds (and that region), counted by text."""
        chosen = (event for event in self.events if not kinds or event.kind in kinds)
        return Counter(str(event) for event in chosen if region in (None, event.region))

    # --- context ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> PretendDevice:
        self._ops, self._functions = _Operators(self), _Functions(self)
        for patch in _patches(self):
            self._stack.enter_context(patch)
        self._stack.enter_context(self._ops)
        self._stack.enter_context(self._functions)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # --- used by the modes ------------------------------------------------------------------------------------------

    def note(self, kind: str, what: str) -> None:
        self.events.append(Event(kind, what, self._where(), self.regions[-1]))

    def _where(self) -> str:
        frame, first = sys._getframe(2), ""
        while frame is not None:
            file = frame.f_code.co_filename
            if file != __file__ and "/torch/" not in file and "contextlib" not in file:
                here = f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}"
                first = first or here
                if self.package and f"/{self.package}/" in file:
                    return here
            frame = frame.f_back  # type: ignore[assignment]
        return first

    def ours(self, device: Any) -> bool:
        """Whether a device that code asks for is the pretended one."""
        if device is None:
            return False
        if isinstance(device, int):
            return True
        return torch.device(device).type == self.kind

    def arrives(self, source: Tensor, what: str, non_blocking: bool) -> None:
        """A copy from the host onto the device."""
        if not non_blocking:
            self.note("sync", f"{what}: host to device, blocking")
        elif not pinned(source):
            self.note("pageable", f"{what}: host to device from memory that is not pinned")

    def leaves(self, what: str, non_blocking: bool) -> None:
        if not non_blocking:
            self.note("sync", f"{what}: device to host")

    def made(self, tensor: Tensor, on: bool) -> Tensor:
        if on and self.kind == "mps" and tensor.dtype == torch.float64:
            self.note("float64", "a float64 tensor on mps")
        return tag(tensor, on)


# --- operators ------------------------------------------------------------------------------------------------------


class _Operators(TorchDispatchMode):
    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, self.device
        name = func._schema.name
        flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        on = [tagged(value) for value in flat]
        known = {value.untyped_storage()._cdata for value in flat}
        if any(on):
            device.launches[device.regions[-1]] += 1
            self.look(func, name, args, kwargs, flat, on)
        result = func(*args, **kwargs)
        if not flat and isinstance(result, Tensor) and torch._C._current_autograd_node() is not None:
            result.untyped_storage()._either = True  # type: ignore[attr-defined]
        if any(on) and name not in ("aten::_local_scalar_dense",):
            for value in tree_flatten(result)[0]:
                if isinstance(value, Tensor) and value.untyped_storage()._cdata not in known:
                    device.made(value, name not in ("aten::_foreach_copy",))
        return result

    def look(self, func: Any, name: str, args: Any, kwargs: Any, flat: list[Tensor], on: list[bool]) -> None:
        device = self.device
        if name in _COPIES:
            self.copies(name, args, kwargs)
            return
        if name in _WAITING:
            device.note("sync", name.removeprefix("aten::"))
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            self.indices(name, args)
            return
        flat, on = zip(*[(v, o) for v, o in zip(flat, on, strict=True) if not either(v)], strict=True)  # type: ignore[assignment]
        if not all(on):
            bad = [
                value for value, own in zip(flat, on, strict=True) if not own and (value.dim() or name in _NO_SCALARS)
            ]
            scalars_only = not any(value.dim() for value, own in zip(flat, on, strict=True) if own)
            if bad or (scalars_only and any(value.dim() for value, own in zip(flat, on, strict=True) if not own)):
                shapes = [tuple(value.shape) for value in bad]
                device.note("mixed", f"{func}: tensors of the CPU {shapes} among those of {device.device}")
        if name.startswith(("aten::_fused_", "aten::_foreach_", "aten::_amp_foreach_")):
            self.lists(name, args)

    def copies(self, name: str, args: Any, kwargs: Any) -> None:
        """``copy_`` between devices; ``_to_copy`` never changes the device here, since the function mode does that."""
        if name == "aten::copy_":
            pairs = [(args[0], args[1])]
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        elif name == "aten::_foreach_copy_":
            pairs, waits = (
                list(zip(args[0], args[1], strict=True)),
                not (kwargs.get("non_blocking") or args[2:3] == (True,)),
            )
        else:
            return
        for own, other in pairs:
            if tagged(own) != tagged(other):
                if tagged(own):
                    self.device.arrives(other, name.removeprefix("aten::"), not waits)
                else:
                    self.device.leaves(name.removeprefix("aten::"), not waits)

    def indices(self, name: str, args: Any) -> None:
        device, own = self.device, args[0]
        given = [index for index in args[1] if index is not None]
        for index in given:
            if index.dtype in (torch.bool, torch.uint8):
                masked_fill = name != "aten::index" and len(given) == 1 and args[2].numel() == 1 and args[2].dim() == 0
                if not masked_fill and (tagged(own) or tagged(index)):
                    device.note("sync", f"{name}: a boolean mask, whose places are counted first")
            if tagged(index) and not tagged(own):
                device.note("mixed", f"{name}: indices of {device.device} into a tensor of the CPU")
            elif tagged(own) and not tagged(index):
                device.note("sync", f"{name}: indices of the CPU, copied to the device first")
        if len(args) > 2 and isinstance(args[2], Tensor) and tagged(args[2]) != tagged(own) and args[2].dim():
            device.note("mixed", f"{name}: values of another device than what they are put into")

    def lists(self, name: str, args: Any) -> None:
        lists = [value for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)]
        same = {len(value) for value in lists}
        if not lists or len(same) != 1:
            return
        like = list(zip(*lists, strict=True))
        uneven = sum(len({_strides(one) for one in row if one.shape == row[0].shape and one.dim()}) > 1 for row in like)
        sparse = sum(any(not _dense(one) for one in row) for row in like)
        types = {one.dtype for one in lists[0]}
        if name.startswith("aten::_fused_"):
            if uneven or sparse:
                self.device.note("layout", f"{name}: {uneven + sparse} of {len(like)} tensors with unequal strides")
        elif (uneven or sparse) and len(lists) > 1:
            self.device.note("slow", f"{name}: {uneven + sparse} of {len(like)} tensors have unequal strides")
        scalar = args[1] if len(args) > 1 and isinstance(args[1], Tensor) and len(lists) == 1 else None
        if scalar is not None and {scalar.dtype} != types:
            self.device.note("slow", f"{name}: a scalar of {scalar.dtype} for tensors of {types}: a kernel each")


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Of the axes that are longer than 1."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor's values lie side by side, in any order of its axes."""
    length = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1
    ):
        if stride != length:
            return False
        length *= size
    return True


# --- functions ------------------------------------------------------------------------------------------------------


class _Functions(TorchFunctionMode):
    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device, name = dict(kwargs or {}), self.device, _name(func)
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if own is not None:
            if name == "device.__get__":
                return device.device if tagged(own) else func(*args)
            if name in ("is_cuda.__get__", "is_mps.__get__"):
                return tagged(own) and name.startswith(f"is_{device.kind}")
            if name == "is_cpu.__get__":
                return not tagged(own)
            if name in _DOORS and tagged(own):
                device.note("sync" if name == "tolist" else "mixed", f".{name}() of a tensor on {device.device}")
            if name == "pin_memory":
                copy = own.clone()
                copy.untyped_storage()._pinned = True
                return copy
            if name == "is_pinned":
                return pinned(own)
            if name in ("to", "cpu", "cuda"):
                return self.move(func, name, args, kwargs)
            if name in ("__deepcopy__", "__reduce_ex__"):
                return self.copied(func, name, args, kwargs)
            if name == "get_device" and tagged(own):
                return 0
        if name in _FACTORIES:
            return self.factory(func, name, args, kwargs)
        if isinstance(kwargs.get("generator"), torch.Generator) and own is not None and tagged(own):
            device.note("generator", f"{name}: a generator of the CPU for a tensor of {device.device}")
        return func(*args, **kwargs)

    def copied(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if name == "__deepcopy__" and isinstance(result, Tensor) and tagged(args[0]):
            tag(result, True)
        return result

    def move(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        device, own, rest = self.device, args[0], list(args[1:])
        wanted: Any = kwargs.pop("device", None)
        if name == "cpu":
            wanted = "cpu"
        elif name == "cuda":
            wanted = device.device
            rest = []
        elif rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
            wanted = device.device if tagged(other) else "cpu"
            rest.insert(0, other.dtype)
        elif rest and isinstance(rest[0], (str, torch.device, int)) and not isinstance(rest[0], bool):
            wanted = rest.pop(0)
        elif rest and rest[0] is None:
            rest.pop(0)
        here, there = tagged(own), tagged(own) if wanted is None else device.ours(wanted)
        non_blocking = bool(kwargs.get("non_blocking")) or (len(rest) > 1 and rest[1] is True) or rest[:1] == [True]
        rest = [one for one in rest if not isinstance(one, bool)]
        if here != there:
            device.arrives(own, f".{name}()", non_blocking) if there else device.leaves(f".{name}()", non_blocking)
            kwargs["copy"] = True
        kwargs.pop("non_blocking", None)
        if rest and isinstance(rest[0], torch.dtype):
            kwargs["dtype"] = rest.pop(0)
        if "memory_format" in kwargs and kwargs["memory_format"] is None:
            kwargs.pop("memory_format")
        if kwargs.get("dtype", 0) is None:
            kwargs.pop("dtype")
        result = own.to("cpu", **kwargs)
        return device.made(result, there) if result is not own else result

    def factory(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        device = self.device
        wanted = kwargs.pop("device", None)
        pin = kwargs.pop("pin_memory", False)
        kwargs = {**kwargs, "device": "cpu"} if wanted is not None else kwargs
        generator = kwargs.get("generator")
        there = device.ours(wanted)
        if generator is not None and there:
            device.note("generator", f"{name}: a generator of the CPU for numbers on {device.device}")
        given = args[0] if args and name in _FROM_PYTHON and not name.startswith("new_") else None
        result = func(*args, **kwargs)
        if wanted is None:
            return result
        if isinstance(given, Tensor):
            if tagged(given) == there:
                return result
            device.arrives(given, name, False) if there else device.leaves(name, False)
            result = result.clone() if result.untyped_storage()._cdata == given.untyped_storage()._cdata else result
        elif there and name in _FROM_PYTHON:
            device.note("sync", f"torch.{name}(a Python value, device=...): host to device, blocking")
        if there:
            device.launches[device.regions[-1]] += 1
        device.made(result, there)
        if pin:
            result.untyped_storage()._pinned = True
        return result


# --- torch.cuda and what asks for it --------------------------------------------------------------------------------


class _Event:
    device: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def record(self, *arguments: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, *arguments: Any) -> None: ...

    def query(self) -> bool:
        return True


class _Stream(_Event):
    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, other: Any) -> None: ...

    def is_capturing(self) -> bool:
        return False

    def record_event(self, event: Any = None) -> _Event:
        made = event or _Event()
        made.device = self.device
        return made


class _Generator:
    def __init__(self) -> None:
        self.seeds: list[int] = []

    def manual_seed(self, seed: int) -> _Generator:
        self.seeds.append(seed)
        return self


def _patches(device: PretendDevice) -> list[Any]:
    """A world in which the device is there. Random numbers "on the device" come from the CPU's default generator."""
    stream = _Stream()
    stream.device = device.device

    def waits(*_: Any) -> None:
        device.note("sync", "synchronize()")

    def emptied(*_: Any) -> None:
        device.note("sync", "empty_cache(): memory is given back, which waits, and must be claimed anew")

    autocast, scaler, cuda = torch.autocast, torch.amp.GradScaler, device.kind == "cuda"

    class Autocast(autocast):  # type: ignore[misc,valid-type]
        def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
            super().__init__("cpu" if device_type == device.kind else device_type, *arguments, **options)

    class Scaler(scaler):  # type: ignore[misc,valid-type]
        def __init__(self, device: str = "cuda", *arguments: Any, **options: Any) -> None:
            super().__init__("cpu", *arguments, **options)

    values: dict[str, Any] = {
        "is_available": lambda: cuda,
        "device_count": lambda: int(cuda),
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "Stream": lambda *_, **__: stream,
        "Event": _Event,
        "current_stream": lambda *_: stream,
        "stream": lambda *_: contextlib.nullcontext(),
        "mem_get_info": lambda *_: (64 << 30, 80 << 30),
        "empty_cache": emptied,
        "synchronize": waits,
        "default_generators": (_Generator(),),
        "manual_seed_all": lambda *_: None,
        "manual_seed": lambda *_: None,
        "is_current_stream_capturing": lambda: False,
    }
    grouped = torch.utils._foreach_utils._group_tensors_by_device_and_dtype

    def by_device(lists: Any, with_indices: bool = False) -> Any:
        found = {}
        for (home, kind), (rows, indices) in grouped(lists, with_indices).items():
            there = any(tagged(one) for one in rows[0] if one is not None)
            found[device.device if there else home, kind] = rows, indices
        return found

    patches: list[Any] = [mock.patch.object(torch.cuda, name, value) for name, value in values.items()]
    patches.append(mock.patch.object(torch.backends.mps, "is_available", return_value=not cuda))
    patches.append(mock.patch.object(torch.mps, "manual_seed"))
    for home in (torch.utils._foreach_utils, torch.nn.utils.clip_grad, sys.modules["torch.optim.optimizer"]):
        patches.append(mock.patch.object(home, "_group_tensors_by_device_and_dtype", by_device))
    patches.append(mock.patch.object(Tensor, "record_stream", create=True))
    patches.append(mock.patch.object(torch.accelerator, "current_stream", return_value=stream))
    patches.append(mock.patch.object(torch, "autocast", Autocast))
    patches.append(mock.patch.object(torch.amp, "GradScaler", Scaler))
    return patches

"""DeviceSetup: the device, precision (AMP), memory format, compilation and DDP wrapping of a run."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from healsg import system
from healsg.errors import ConfigError
from healsg.parts import defines
from healsg.torch_private import declare_unfused, is_compiled, prepare_compilation
from healsg.training.layout import image_dims, prefers_channels_last
from healsg.training.parallel import Parallel
from healsg.training.step import TrainBatch

log = logging.getLogger("healsg")

THREADS = torch.get_num_threads()
"""Torch's default number of CPU threads, for runs that set none, even after a run that set another one."""

_UNCHANGED = contextlib.nullcontext()
"""The context of forward passes that need none; one serves all of them, at each step."""

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
Compile = bool | Literal["regional"]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
KEPT = 1 << 30
"""Bytes of freed memory that a process on the CPU keeps for its next step: otherwise the system clears each page again,
which takes a sixth of the default network's step."""

compiled = weakref.WeakSet[nn.Module]()
"""The blocks that ``runner.compile=regional`` has compiled; evaluations run them eagerly."""


def choose_device(requested: str | int, parallel: Parallel) -> torch.device:
    """The device of this process. Raises ConfigError if it is not available.

    Args:
        requested: ``auto`` (cuda, else mps, else cpu), a name such as ``cuda:1``, or the index of a GPU.
        parallel: the processes of the run, each of which uses another GPU.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = f"cuda:{requested}" if isinstance(requested, int) or requested.isdigit() else requested
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"runner.device: {requested!r} is no device; give auto, cpu, mps, cuda or a GPU index"
        ) from None
    if device.index is not None and device.type != "cpu" and parallel.local_world > 1:
        way = f"give {device.type}, and choose GPUs by CUDA_VISIBLE_DEVICES"
        raise ConfigError(f"runner.device: {requested!r} puts all processes of this machine on one device; {way}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = parallel.local_rank if device.index is None else device.index
        if index >= count:
            raise ConfigError(f"runner.device: {requested!r} asks for GPU {index}, and this machine has {count} usable")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runner.device: 'mps' is not usable on this machine; give auto or cpu")
    return device


class DeviceSetup:
    """Moves modules and batches to the device and sets their precision and memory format.

    Args:
        device: see ``choose_device``.
        precision: ``fp32``; ``tf32`` in matrix products and convolutions; ``bf16`` or ``fp16`` (with loss scaling) by
            autocast; ``fp64``.
        channels_last: whether images, volumes and the weights of convolutions get that memory format; ``auto`` decides
            by the layers of the network, see ``choose_layout``.
        deterministic: whether kernels without reproducible results raise an error.
        parallel: the processes of the run; None is a single one.
    """

    def __init__(
        self,
        device: str | int,
        precision: Precision,
        channels_last: bool | Literal["auto"],
        deterministic: bool,
        parallel: Parallel | None = None,
    ) -> None:
        self.parallel = parallel or Parallel()
        self.device = choose_device(device, self.parallel)
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.tf32 = precision == "tf32"
        self.double = precision == "fp64"
        self.wanted_layout = channels_last
        self.image_dims: tuple[int, ...] = (4,) if channels_last is True else ()
        """Dimensions of the tensors that get the format: 4 for images and the weights of their convolutions, 5 for
        volumes; empty to keep the format. ``choose_layout`` sets it for a network."""
        self.deterministic = deterministic
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._copy_stream: Any = None
        """The CUDA stream that copies batches, created by ``activate``."""

    def activate(self, threads: int | None) -> None:
        """Set torch's process-wide switches and start to use the device.

        Args:
            threads: CPU threads; None for torch's default. Their number affects how sums are rounded.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self._copy_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.device.type == "cuda" and self.dtype is None and not self.tf32 and not self.double:
            log.info("fp32: TF32 is off, also in convolutions, where torch by itself has it on; runner.precision=tf32")
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler
            torch.use_deterministic_algorithms(self.deterministic)
        torch.set_num_threads(threads or THREADS)

    def keep_freed_memory(self) -> None:
        """Make steps on the CPU reuse the memory of the previous step. Called after the data have been read, whose
        temporary copies would be kept otherwise."""
        if self.device.type == "cpu":
            system.keep_freed_memory(KEPT)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else _UNCHANGED

    def choose_layout(self, network: nn.Module) -> None:
        """Choose the memory format of images and weights for this network, before anything is moved.

        It must be called for every network that is run. The choice depends only on its layers, the device, the
        precision and the number of threads (``layout.prefers_channels_last``), so that training and evaluation agree.
        """
        wanted = self.wanted_layout
        if wanted == "auto" and self.parallel.shards:
            wanted = False  # FSDP2 only supports weights in torch's default format
        elif wanted == "auto":
            reduced = self.dtype is not None or self.tf32
            wanted = prefers_channels_last(network, self.device.type, reduced, torch.get_num_threads())
        self.image_dims = image_dims(network) if wanted else ()

    def move_module(self, module: nn.Module) -> None:
        """Move a module to the device, in place."""
        module.to(device=self.device, dtype=torch.float64 if self.double else None)
        for parameter in module.parameters():
            if parameter.dim() in self.image_dims:
                parameter.data = parameter.data.to(memory_format=FORMATS[parameter.dim()])

    @overload
    def move(self, batch: TrainBatch) -> TrainBatch: ...

    @overload
    def move(self, batch: dict[str, Any]) -> dict[str, Any]: ...

    def move(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch, or a batch of streams, on the device."""
        if self.dtype is None and not self.double and not self.image_dims and self.device.type == "cpu":
            return batch
        moved = {key: self._moved(value) for key, value in batch.items()}
        return TrainBatch(moved, batch.samples) if isinstance(batch, TrainBatch) else moved

    def _moved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.move(value)
        if not isinstance(value, Tensor):
            return value
        if self._copy_stream and value.is_cpu:  # copied while the GPU is still working on the previous batch
            here = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self._copy_stream):
                value = value.to(self.device, non_blocking=True)
            here.wait_stream(self._copy_stream)
            value.record_stream(here)
        dtype = torch.float64 if self.double and value.is_floating_point() else value.dtype
        memory_format = FORMATS[value.dim()] if value.dim() in self.image_dims else torch.preserve_format
        return value.to(self.device, dtype, memory_format=memory_format)

    def wrap(self, model: nn.Module, compile: Compile, cuda_graph: bool, find_unused_parameters: bool) -> nn.Module:
        """The network as a training step calls it: wrapped in DDP for several processes, and compiled if requested.

        Raises ConfigError if that is not possible.
        """
        if cuda_graph and self.device.type != "cuda":
            raise ConfigError(f"runner.cuda_graph: needs a GPU that has CUDA, and this run is on {self.device}")
        sharded_blocks = repeated(model) if self.parallel.shards else []
        net = self.parallel.wrap(model, self.device, find_unused_parameters, sharded_blocks)
        if compile or cuda_graph:
            torch.compiler.reset()  # compilations by an earlier run of this process count towards torch's limit
            if is_compiled(model):
                raise ConfigError("runner.compile: the network is compiled already; set runner.compile=false")
            blocks = repeated(model) if compile == "regional" else []
            prepare_compilation(len(blocks))
            log.info("compiling %s: the first steps take a while", f"{len(blocks)} blocks" if blocks else "the network")
            if not blocks:
                return torch.compile(net, mode="reduce-overhead" if cuda_graph else None, dynamic=False)  # type: ignore[return-value]
            for block in blocks:
                block.compile(dynamic=False)
            compiled.update(blocks)
        return net

    def unfuse_scaled_sgd(self, optimizer: Optimizer) -> None:
        """Disable the fused kernel of torch's SGD under a loss scaler, which then skips an update by not calling it.

        With torch 2.11 to 2.15 the fused kernel leaves the momentum buffer uninitialised if the first update is
        skipped.
        """
        if self.scaler and isinstance(optimizer, torch.optim.SGD):
            declare_unfused(optimizer)


def repeated(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, as in residual networks: several children of one class in a Sequential,
    ModuleList or ModuleDict. Of nested blocks, only the innermost.
    """
    blocks = dict[nn.Module, None]()
    for container in (module for module in model.modules() if isinstance(module, ROWS)):
        children = [child for child in container.children() if any(child.children()) and not isinstance(child, ROWS)]
        kinds = Counter(type(child) for child in children if not defines(child, nn.Module, "compile"))
        blocks |= dict.fromkeys(child for child in children if kinds[type(child)] > 1)
    return [block for block in blocks if not any(inner in blocks for inner in [*block.modules()][1:])]


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the optimizer's state of each weight, such as its momentum, the memory layout of the weight.

    A loaded state keeps the memory format in which it was saved. torch's fused kernels read weight, gradient and state
    in the order of their memory, and would combine the wrong elements if the layouts differed.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[key] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def clear_gradients(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad()`` without its overhead of 30 calls: gradients are None until the next backward."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@contextlib.contextmanager
def both(
    outer: contextlib.AbstractContextManager[Any], inner: contextlib.AbstractContextManager[Any]
) -> Iterator[None]:
    """Two context managers as one."""
    with outer, inner:
        yield

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
from healsg.torch_private import is_compiled, prepare_compilation
from healsg.training.layout import image_dims, prefers_channels_last
from healsg.training.parallel import Parallel
from healsg.training.step import TrainBatch

log = logging.getLogger("healsg")

THREADS = torch.get_num_threads()
"""Torch's own choice of CPU threads: what a run that names none gets, whatever the one before it had."""

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
Compile = bool | Literal["regional"]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
KEPT = 1 << 30
"""Bytes of freed memory that a process which computes on the CPU keeps for its next step: a system that clears each
page anew takes a sixth of the default network's step for it."""

compiled = weakref.WeakSet[nn.Module]()
"""The blocks that ``runner.compile=regional`` has compiled; an evaluation takes them as they are written."""


def choose_device(wanted: str | int, parallel: Parallel) -> torch.device:
    """``auto`` (cuda, else mps, else cpu), a name such as ``cuda:1``, or the index of a GPU. Raises ConfigError.

    Args:
        parallel: the processes, each of which gets a GPU of its own.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = f"cuda:{wanted}" if isinstance(wanted, int) or wanted.isdigit() else wanted
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runner.device: {wanted!r} is no device; give auto, cpu, mps, cuda or a GPU index") from None
    if device.index is not None and device.type != "cpu" and parallel.local_world > 1:
        way = f"give {device.type}, and choose GPUs by CUDA_VISIBLE_DEVICES"
        raise ConfigError(f"runner.device: {wanted!r} puts all processes of this machine on one device; {way}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = parallel.local_rank if device.index is None else device.index
        if index >= count:
            raise ConfigError(f"runner.device: {wanted!r} asks for GPU {index}, and this machine has {count} usable")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runner.device: 'mps' is not usable on this machine; give auto or cpu")
    return device


class DeviceSetup:
    """Moves modules and batches to the device, and knows the precision in which they run.

    Args:
        device: see ``choose_device``.
        precision: ``fp32``; ``tf32`` in matrix products and convolutions; ``bf16`` or ``fp16`` (with loss scaling) by
            autocast; ``fp64``.
        channels_last: whether pictures, volumes and the weights of convolutions get that memory format; ``auto`` by
            the layers of the network, see ``choose_layout``.
        deterministic: whether kernels whose result is not reproducible are refused.
        parallel: the processes of the run; one alone where it is None.
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
        """Dimensions of the tensors that get the format: 4 for pictures and the weights of their convolutions, 5 for
        volumes; none where the format stays. ``choose_layout`` looks at the network."""
        self.deterministic = deterministic
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._copy_stream: Any = None
        """The CUDA stream on which batches are copied, once ``activate`` has made it."""

    def activate(self, threads: int | None) -> None:
        """Set torch's process-wide switches, and start to use the device.

        Args:
            threads: CPU threads; None for torch's choice. Sums are rounded differently with another number.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            self._copy_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.device.type == "cuda" and self.dtype is None and not self.tf32 and not self.double:
            log.info("fp32: TF32 is off, also in convolutions, where torch by itself has it on; runner.precision=tf32")
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # which else imports torch's compiler
            torch.use_deterministic_algorithms(self.deterministic)
        torch.set_num_threads(threads or THREADS)

    def keep_freed_memory(self) -> None:
        """Let a step on the CPU use the memory of the one before again. It is for when data have been read, whose
        passing copies would else be kept too."""
        if self.device.type == "cpu":
            system.keep_freed_memory(KEPT)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    def choose_layout(self, network: nn.Module) -> None:
        """Choose the memory format of pictures and weights for this network, before anything is moved.

        It must be called wherever a network is to be run; the choice depends on nothing but its layers, the device, the
        precision and the number of threads (``layout.prefers_channels_last``), so that training and evaluation agree.
        """
        wanted = self.wanted_layout
        if wanted == "auto" and self.parallel.shards:
            wanted = False  # FSDP2 takes weights in torch's own format alone
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
        if self._copy_stream and value.is_cpu:  # copied while the GPU still works on the batch before
            here = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self._copy_stream):
                value = value.to(self.device, non_blocking=True)
            here.wait_stream(self._copy_stream)
            value.record_stream(here)
        dtype = torch.float64 if self.double and value.is_floating_point() else value.dtype
        memory_format = FORMATS[value.dim()] if value.dim() in self.image_dims else torch.preserve_format
        return value.to(self.device, dtype, memory_format=memory_format)

    def wrap(self, model: nn.Module, compile: Compile, cuda_graph: bool, find_unused_parameters: bool) -> nn.Module:
        """The network as a training step calls it: under DDP where there are several processes, compiled as asked.

        Raises ConfigError where that is not possible.
        """
        if cuda_graph and self.device.type != "cuda":
            raise ConfigError(f"runner.cuda_graph: needs a GPU that has CUDA, and this run is on {self.device}")
        own_blocks = repeated(model) if self.parallel.shards else []
        net = self.parallel.wrap(model, self.device, find_unused_parameters, own_blocks)
        if compile or cuda_graph:
            torch.compiler.reset()  # what another run of this process compiled counts against torch's limit
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
        """Let the loss scaler skip an update of torch's SGD by not calling it, in the place of its fused kernel.

        With torch 2.11 to 2.15 the fused kernel leaves the momentum buffer uninitialised where the first update is
        skipped.
        """
        if self.scaler and isinstance(optimizer, torch.optim.SGD):
            optimizer._step_supports_amp_scaling = False
            for group in optimizer.param_groups:
                group["fused"] = False


def repeated(model: nn.Module) -> list[nn.Module]:
    """The blocks of which a Sequential, ModuleList or ModuleDict holds several of one class, as in residual networks.

    Of blocks within blocks, the innermost.
    """
    blocks = dict[nn.Module, None]()
    for row in (module for module in model.modules() if isinstance(module, ROWS)):
        own = [child for child in row.children() if any(child.children()) and not isinstance(child, ROWS)]
        kinds = Counter(type(child) for child in own if type(child).compile is nn.Module.compile)
        blocks |= dict.fromkeys(child for child in own if kinds[type(child)] > 1)
    return [block for block in blocks if not any(inner in blocks for inner in [*block.modules()][1:])]


def lay_out_state(optimizer: Optimizer) -> None:
    """Give the optimizer's state of each weight, such as its momentum, the weight's memory layout.

    A loaded state keeps the memory format in which it was saved. torch's fused kernels read weight, gradient and state
    in the order of their memory, and would combine the wrong elements where the layouts differ.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[key] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def clear_gradients(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad()`` without its 30 calls: gradients are None until the next backward."""
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

"""What torch has under private names, and the public way that is taken where a version of torch has no such name.

The operators over lists of tensors (``foreach_mul_`` and others) launch one kernel for many parameters, and the fused
updates one for a whole optimizer; the public way is a loop over the tensors, with the same mathematics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.optim import optimizer as every_optimizer

# --- operators over lists of tensors ---------------------------------------------------------------------------------


def _one_by_one(operation: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """``operation`` over lists of tensors; an argument that is a list or tuple is taken element by element."""

    def over(tensors: Sequence[Tensor], *others: Any, **settings: Any) -> list[Tensor]:
        results = []
        for place, tensor in enumerate(tensors):
            own = [other[place] if isinstance(other, (list, tuple)) else other for other in others]
            results.append(operation(tensor, *own, **settings))
        return results

    return over


def _norm(tensor: Tensor, order: float = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, order)
    return norm


def _list_operator(name: str, public: Callable[..., Tensor]) -> Callable[..., Any]:
    found: Callable[..., Any] | None = getattr(torch, f"_foreach_{name}", None)
    return found or _one_by_one(public)


foreach_add = _list_operator("add", torch.add)
foreach_add_ = _list_operator("add_", Tensor.add_)
foreach_addcdiv_ = _list_operator("addcdiv_", Tensor.addcdiv_)
foreach_addcmul = _list_operator("addcmul", torch.addcmul)
foreach_addcmul_ = _list_operator("addcmul_", Tensor.addcmul_)
foreach_clone = _list_operator("clone", torch.clone)
foreach_copy_ = _list_operator("copy_", Tensor.copy_)
foreach_div = _list_operator("div", torch.div)
foreach_div_ = _list_operator("div_", Tensor.div_)
foreach_lerp = _list_operator("lerp", torch.lerp)
foreach_lerp_ = _list_operator("lerp_", Tensor.lerp_)
foreach_mul = _list_operator("mul", torch.mul)
foreach_mul_ = _list_operator("mul_", Tensor.mul_)
foreach_norm = _list_operator("norm", _norm)
foreach_sign_ = _list_operator("sign_", Tensor.sign_)
foreach_sqrt = _list_operator("sqrt", torch.sqrt)
foreach_sqrt_ = _list_operator("sqrt_", Tensor.sqrt_)
foreach_sub_ = _list_operator("sub_", Tensor.sub_)


# --- fused updates ---------------------------------------------------------------------------------------------------


def _unscaled(
    weights: list[Tensor], gradients: list[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None
) -> Iterator[tuple[int, Tensor, Callable[[Tensor, Tensor], None]]]:
    """By place of a weight its gradient without fp16's scale, and what writes a value where no update is skipped."""
    for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        skipped = None if found_inf is None else found_inf.to(weight.device) > 0
        if grad_scale is not None:
            gradient = gradient / grad_scale.to(gradient.dtype)

        def write(target: Tensor, value: Tensor, skipped: Tensor | None = skipped) -> None:
            target.copy_(value if skipped is None else torch.where(skipped, target, value))

        yield place, gradient, write


def _sgd(
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """What ``torch._fused_sgd_`` does."""
    for place, gradient, write in _unscaled(weights, gradients, grad_scale, found_inf):
        weight = weights[place]
        step = -gradient if maximize else gradient
        if weight_decay:
            step = step + weight_decay * weight
        if momentum:
            buffer = step.clone() if is_first_step else momentum * buffers[place] + (1 - dampening) * step
            write(buffers[place], buffer)
            step = step + momentum * buffer if nesterov else buffer
        write(weight, weight - lr * step)


def _adam_kernel(decoupled: bool) -> Callable[..., None]:
    def update(
        weights: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        largest: list[Tensor],
        steps: list[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        weight_decay: float,
        eps: float,
        amsgrad: bool,
        maximize: bool,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """What ``torch._fused_adam_`` and ``torch._fused_adamw_`` do; ``steps`` count the update already."""
        for place, gradient, write in _unscaled(weights, gradients, grad_scale, found_inf):
            weight = weights[place]
            gradient = -gradient if maximize else gradient
            start = weight
            if weight_decay and decoupled:
                start = weight * (1 - lr * weight_decay)
            elif weight_decay:
                gradient = gradient + weight_decay * weight
            mean = torch.lerp(means[place], gradient, 1 - beta1)
            square = beta2 * squares[place] + (1 - beta2) * gradient * gradient
            spread = square
            if amsgrad:
                spread = torch.maximum(largest[place], square)
                write(largest[place], spread)
            bias1 = 1 - beta1 ** steps[place]
            bias2 = 1 - beta2 ** steps[place]
            write(means[place], mean)
            write(squares[place], square)
            write(weight, start - (lr / bias1) * mean / (spread.sqrt() / bias2.sqrt() + eps))

    return update


fused_sgd_: Callable[..., None] = getattr(torch, "_fused_sgd_", _sgd)
fused_adam_: Callable[..., None] = getattr(torch, "_fused_adam_", _adam_kernel(decoupled=False))
fused_adamw_: Callable[..., None] = getattr(torch, "_fused_adamw_", _adam_kernel(decoupled=True))


# --- who watches an optimizer's step ---------------------------------------------------------------------------------


def step_is_watched(optimizer: Any) -> bool:
    """Whether hooks or a profiler want to see an optimizer's step; yes where torch does not tell."""
    try:
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        hooks = hooks or every_optimizer._global_optimizer_pre_hooks or every_optimizer._global_optimizer_post_hooks
        return bool(hooks or profiler._is_profiler_enabled or torch._C._autograd._profiler_enabled())
    except AttributeError:
        return True


# --- compilation -----------------------------------------------------------------------------------------------------


def is_compiled(model: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` returned."""
    return hasattr(model, "_orig_mod")


@contextlib.contextmanager
def uncompiled(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules that ``module.compile()`` has compiled run as they are written for a while."""
    aside = {block: block._compiled_call_impl for block in blocks if hasattr(block, "_compiled_call_impl")}
    try:
        for block in aside:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in aside.items():
            block._compiled_call_impl = call


def prepare_compilation(blocks: int) -> None:
    """Let each of ``blocks`` be compiled as often as torch lets one, and be compiled anew where a hook is added.

    A version of torch without these settings compiles with its own.
    """
    config: Any = getattr(getattr(torch, "_dynamo", None), "config", None)
    if hasattr(config, "recompile_limit"):
        config.recompile_limit = 8 * max(1, blocks)  # 8 is torch's own
    if hasattr(config, "skip_nnmodule_hook_guards"):
        config.skip_nnmodule_hook_guards = False  # else a hook of one block is not seen in others


# --- modules and loader workers --------------------------------------------------------------------------------------


BatchNorm: Any = getattr(
    nn.modules.batchnorm, "_BatchNorm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)
"""What ``isinstance`` takes for a BatchNorm of any dimension."""


def version_of(tensor: Tensor) -> int:
    """A number that grows with each change of a tensor in place; 0 in any case where torch does not count."""
    return int(getattr(tensor, "_version", 0))


def saved_buffers(module: nn.Module) -> list[tuple[dict[str, Tensor | None], str]]:
    """The buffers of one module, without its children's, that its ``state_dict`` holds: the dict they lie in, and
    their names."""
    left_out: set[str] = getattr(module, "_non_persistent_buffers_set", set())
    return [(module._buffers, name) for name in module._buffers if name not in left_out]


def become_worker(number: int, workers: int, dataset: Any) -> None:
    """Let ``torch.utils.data.get_worker_info`` tell a data set that this process is a loader's worker."""
    try:
        from torch.utils.data._utils import worker
    except ImportError:  # data sets then take this for a process of its own
        return
    worker._worker_info = worker.WorkerInfo(id=number, num_workers=workers, seed=0, dataset=dataset)


# --- interpolation into given memory ----------------------------------------------------------------------------------


def interpolate_into(made: Tensor, given: Tensor) -> None:
    """Write into ``made`` (N, C, X, Y, Z) what F.interpolate makes of ``given`` by trilinear interpolation, without
    aligned corners. Without the private name the result is in memory first."""
    size = list(made.shape[2:])
    try:
        kernel: Any = torch._C._nn.upsample_trilinear3d
    except AttributeError:
        made.copy_(torch.nn.functional.interpolate(given, size, mode="trilinear", align_corners=False))
        return
    kernel(given, size, False, None, None, None, out=made)


# --- torchvision's decoder --------------------------------------------------------------------------------------------


@cache
def jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """What makes of a JPEG's bytes, (N,) uint8, its pixels, (C, H, W) uint8; None where torchvision has no decoder.

    The operator is called by its own name because ``torchvision.io.decode_jpeg`` warns at each call that it will go, in
    favour of TorchCodec. It raises RuntimeError for what it cannot decode.
    """
    try:
        import torchvision.io  # noqa: F401 - which registers the operator

        operator: Any = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None
    return lambda content: operator(content, 0, False)

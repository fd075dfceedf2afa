"""Private functions of torch, each with a public fallback for versions of torch that do not have it.

The operators over lists of tensors (``foreach_mul_`` and others) launch one kernel for many parameters, and the fused
updates one for a whole optimizer; the fallback is a loop over the tensors, with the same mathematics.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.optim import optimizer as every_optimizer
from torch.overrides import TorchFunctionMode

# --- operators over lists of tensors ---------------------------------------------------------------------------------


def _one_by_one(operation: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """``operation`` over lists of tensors; an argument that is a list or tuple is taken element by element."""

    def over(tensors: Sequence[Tensor], *others: Any, **settings: Any) -> list[Tensor]:
        results = []
        for index, tensor in enumerate(tensors):
            arguments = [other[index] if isinstance(other, (list, tuple)) else other for other in others]
            results.append(operation(tensor, *arguments, **settings))
        return results

    return over


def _norm(tensor: Tensor, order: float = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, order)
    return norm


def _list_operator(name: str, public: Callable[..., Tensor]) -> Callable[..., Any]:
    private: Callable[..., Any] | None = getattr(torch, f"_foreach_{name}", None)
    return private or _one_by_one(public)


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
    """For each weight its index, its gradient without the gradient scale of fp16, and a function that writes a value
    unless the update is skipped."""
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        skipped = None if found_inf is None else found_inf.to(weight.device) > 0
        if grad_scale is not None:
            gradient = gradient / grad_scale.to(gradient.dtype)

        def write(target: Tensor, value: Tensor, skipped: Tensor | None = skipped) -> None:
            target.copy_(value if skipped is None else torch.where(skipped, target, value))

        yield index, gradient, write


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
    """The fallback for ``torch._fused_sgd_``."""
    for index, gradient, write in _unscaled(weights, gradients, grad_scale, found_inf):
        weight = weights[index]
        step = -gradient if maximize else gradient
        if weight_decay:
            step = step + weight_decay * weight
        if momentum:
            buffer = step.clone() if is_first_step else momentum * buffers[index] + (1 - dampening) * step
            write(buffers[index], buffer)
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
        """The fallback for ``torch._fused_adam_`` and ``torch._fused_adamw_``; ``steps`` already count this update."""
        for index, gradient, write in _unscaled(weights, gradients, grad_scale, found_inf):
            weight = weights[index]
            gradient = -gradient if maximize else gradient
            start = weight
            if weight_decay and decoupled:
                start = weight * (1 - lr * weight_decay)
            elif weight_decay:
                gradient = gradient + weight_decay * weight
            mean = torch.lerp(means[index], gradient, 1 - beta1)
            square = beta2 * squares[index] + (1 - beta2) * gradient * gradient
            spread = square
            if amsgrad:
                spread = torch.maximum(largest[index], square)
                write(largest[index], spread)
            bias1 = 1 - beta1 ** steps[index]
            bias2 = 1 - beta2 ** steps[index]
            write(means[index], mean)
            write(squares[index], square)
            write(weight, start - (lr / bias1) * mean / (spread.sqrt() / bias2.sqrt() + eps))

    return update


fused_sgd_: Callable[..., None] = getattr(torch, "_fused_sgd_", _sgd)
fused_adam_: Callable[..., None] = getattr(torch, "_fused_adam_", _adam_kernel(decoupled=False))
fused_adamw_: Callable[..., None] = getattr(torch, "_fused_adamw_", _adam_kernel(decoupled=True))


# --- hooks and profilers of an optimizer's step ----------------------------------------------------------------------


def step_is_watched(optimizer: Any) -> bool:
    """Whether hooks or a profiler observe an optimizer's step; True if torch does not provide this."""
    try:
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        hooks = hooks or every_optimizer._global_optimizer_pre_hooks or every_optimizer._global_optimizer_post_hooks
        return bool(hooks or profiler._is_profiler_enabled or torch._C._autograd._profiler_enabled())
    except AttributeError:
        return True


def declare_unfused(optimizer: Any) -> None:
    """Make an optimizer of torch's use kernels that are not fused. A ``GradScaler`` then unscales the gradients itself
    and skips an update by not calling the step."""
    optimizer._step_supports_amp_scaling = False
    for group in optimizer.param_groups:
        group["fused"] = False


# --- compilation -----------------------------------------------------------------------------------------------------


def is_compiled(model: nn.Module) -> bool:
    """Whether a module is what ``torch.compile`` returned."""
    return hasattr(model, "_orig_mod")


@contextlib.contextmanager
def uncompiled(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which modules compiled by ``module.compile()`` run eagerly."""
    compiled = {block: block._compiled_call_impl for block in blocks if hasattr(block, "_compiled_call_impl")}
    try:
        for block in compiled:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in compiled.items():
            block._compiled_call_impl = call


def prepare_compilation(blocks: int) -> None:
    """Allow each of ``blocks`` torch's default number of recompilations, and recompile when a hook is added.

    In versions of torch without these settings this does nothing.
    """
    config: Any = getattr(getattr(torch, "_dynamo", None), "config", None)
    if hasattr(config, "recompile_limit"):
        config.recompile_limit = 8 * max(1, blocks)  # 8 is torch's default
    if hasattr(config, "skip_nnmodule_hook_guards"):
        config.skip_nnmodule_hook_guards = False  # otherwise a hook on one block is ignored in the others


# --- modules and loader workers --------------------------------------------------------------------------------------


BatchNorm: Any = getattr(
    nn.modules.batchnorm, "_BatchNorm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)
"""The class or classes of BatchNorm in any number of dimensions, for ``isinstance``."""


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """A number for each tensor that grows with each in-place change of it; always 0 if torch does not count them."""
    try:
        return [tensor._version for tensor in tensors]
    except AttributeError:
        return [0 for _ in tensors]


def saved_buffers(module: nn.Module) -> list[tuple[dict[str, Tensor | None], str]]:
    """The persistent buffers of one module, without its children's: for each the dict that holds it, and its name."""
    non_persistent: set[str] = getattr(module, "_non_persistent_buffers_set", set())
    return [(module._buffers, name) for name in module._buffers if name not in non_persistent]


def become_worker(number: int, workers: int, dataset: Any) -> None:
    """Make ``torch.utils.data.get_worker_info`` report that this process is a loader's worker."""
    try:
        from torch.utils.data._utils import worker
    except ImportError:  # get_worker_info then returns None, as in the main process
        return
    worker._worker_info = worker.WorkerInfo(id=number, num_workers=workers, seed=0, dataset=dataset)


# --- convolutions of one volume ---------------------------------------------------------------------------------------


class OneVolumeConvolutions(TorchFunctionMode):
    """A context in which 3D convolutions of a single volume on the CPU are computed by oneDNN, without gradients.

    torch itself takes oneDNN for two or more volumes. For one it does so only if channels * depth * height exceeds
    20,480 (torch 2.15, ``use_mkldnn`` in ATen's Convolution.cpp); otherwise it first unfolds the volume, into 27 times
    its size for a 3 x 3 x 3 kernel, which takes up to 7 times as long. Here one volume gets, bit for bit, the output
    that it has in a batch of two. Without oneDNN, or where torch does not offer the function, nothing changes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is torch.conv3d and _computes_without_gradients():
            return _convolved(*args, **given)
        return func(*args, **given)


def _computes_without_gradients() -> bool:
    """Whether kernels run at once, in the precision of their inputs, and nothing is kept for a backward pass."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.conv3d``, by oneDNN for a single volume."""
    kernel: Any = getattr(torch, "mkldnn_convolution", None)
    is_one_volume = type(input) is Tensor and input.dim() == 5 and len(input) == 1 and input.numel() > 0
    fits = is_one_volume and weight.dim() == 5 and input.shape[1] == weight.shape[1] * groups
    is_float = all(one is None or (one.is_cpu and one.dtype == torch.float32) for one in (input, weight, bias))
    unfolds = fits and math.prod(weight.shape[2:]) > 1  # for 1 x 1 x 1 kernels torch has reasons to prefer its own
    if not (kernel and onednn_is_enabled() and is_float and unfolds) or isinstance(padding, str):
        return torch.conv3d(input, weight, bias, stride, padding, dilation, groups)
    result: Tensor = kernel(input, weight, bias, _triple(padding), _triple(stride), _triple(dilation), groups)
    return result


def _triple(value: int | Sequence[int]) -> tuple[int, ...]:
    entries = (value,) if isinstance(value, int) else tuple(value)
    return entries * 3 if len(entries) == 1 else entries


def onednn_is_enabled() -> bool:
    """Whether torch was built with oneDNN, and the user has not switched it off."""
    settings: Any = torch.backends.mkldnn
    return bool(settings.is_available() and getattr(settings, "enabled", True))


# --- interpolation into an output tensor ------------------------------------------------------------------------------


def interpolate_into(output: Tensor, volume: Tensor) -> None:
    """Resize ``volume`` into ``output`` (N, C, X, Y, Z), as ``F.interpolate`` in mode ``trilinear`` without aligned
    corners. The fallback allocates the result first."""
    size = list(output.shape[2:])
    try:
        kernel: Any = torch._C._nn.upsample_trilinear3d
    except AttributeError:
        output.copy_(torch.nn.functional.interpolate(volume, size, mode="trilinear", align_corners=False))
        return
    kernel(volume, size, False, None, None, None, out=output)


# --- torchvision's decoder --------------------------------------------------------------------------------------------


@cache
def jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """A function from a JPEG's bytes, (N,) uint8, to its pixels, (C, H, W) uint8; None if torchvision has no decoder.

    The operator is called directly because ``torchvision.io.decode_jpeg`` warns at each call that it is deprecated in
    favour of TorchCodec. It raises RuntimeError for what it cannot decode.
    """
    try:
        import torchvision.io  # noqa: F401 - which registers the operator

        operator: Any = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None
    return lambda content: operator(content, 0, False)


# --- the versions of tensors ------------------------------------------------------------------------------------------


def times_written(value: Any) -> int:
    """How often a tensor has been written to, as autograd counts it; no value is read. 0 for what is no tensor, and for
    a tensor of inference mode, of which it is not counted."""
    try:
        return value._version  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError):
        return 0

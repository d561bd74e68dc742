"""Registered operators: `radconv_ext::conv` and `radconv_ext::conv_backward`.

`Library.impl` rather than `torch.library.custom_op`: a third of the host cost, the same guarantees (dispatcher, fake
tensors, autocast, profiler).  Static options travel as one canonical string (see `problem.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .problem import RadialConvProblem, build_problem, problem_of

__all__ = ["conv", "conv_backward", "conv_decomposed", "conv_transformed", "differentiating"]

_library = torch.library.Library("radconv_ext", "DEF")
# Compiled code must hand the kernels the very strides that were traced: the output's layout follows the input's.
_tags = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
_library.define("conv(Tensor x, Tensor w, Tensor? p, Tensor? bias, str spec) -> Tensor", tags=_tags)
_library.define(
    "conv_backward(Tensor grad, Tensor x, Tensor w, Tensor? p, str spec, bool[] wanted) -> Tensor[]", tags=_tags
)

conv = torch.ops.radconv_ext.conv.default
conv_backward = torch.ops.radconv_ext.conv_backward.default

from .autograd import RadialConv, RadialConvBackward, nested_forward_mode  # noqa: E402  (needs the operators above)

# --- any device: look the problem up, let its engine work ------------------------------------------------------------


def _conv(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
    problem = problem_of(spec, x, w, p, bias)
    return problem.engine.forward(problem, x, w, problem.sigma(p), bias)


def _conv_backward(
    grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: Sequence[bool]
) -> list[Tensor]:
    problem = problem_of(spec, x, w, p, None)
    _check_gradient(problem, grad)
    grads = problem.engine.backward(problem, grad, x, w, problem.sigma(p), wanted)
    grads[2] = problem.sigma_gradient(p, grads[2])
    return [g for g in grads if g is not None]


def _check_gradient(problem: RadialConvProblem, grad: Tensor) -> None:
    if tuple(grad.shape) != problem.output_shape or grad.dtype != problem.dtype or grad.device != problem.device:
        raise ValueError(
            f"grad: expected {problem.output_shape} {problem.dtype} on {problem.device}, like the output, got "
            f"{tuple(grad.shape)} {grad.dtype} on {grad.device}"
        )


_library.impl("conv", _conv, "CompositeExplicitAutograd")
_library.impl("conv_backward", _conv_backward, "CompositeExplicitAutograd")


# --- fake tensors: the same checks, shapes and strides, no data -------------------------------------------------------


def _conv_fake(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
    problem = build_problem(spec, x, w, p, bias)
    return torch.empty(problem.output_shape, dtype=x.dtype, device=x.device, memory_format=problem.memory_format)


def _conv_backward_fake(
    grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: Sequence[bool]
) -> list[Tensor]:
    problem = build_problem(spec, x, w, p, None)
    _check_gradient(problem, grad)
    all_four = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=problem.memory_format),
        torch.empty(w.shape, dtype=w.dtype, device=x.device),
        None if p is None else torch.empty(p.shape, dtype=p.dtype, device=x.device),
        torch.empty((problem.out_channels,), dtype=problem.sum_dtype, device=x.device),
    )
    return [g for g, want in zip(all_four, wanted, strict=True) if want and g is not None]


torch.library.register_fake("radconv_ext::conv", _conv_fake, lib=_library)
torch.library.register_fake("radconv_ext::conv_backward", _conv_backward_fake, lib=_library)


# --- autograd ---------------------------------------------------------------------------------------------------------


def differentiating() -> bool:
    """Whether something other than reverse-mode recording may be under way: forward mode or a torch.func transform.

    Tensors don't show it, and passing below autograd would drop the derivative without a word.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _recording(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return differentiating()


def _conv_autograd(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
    if _recording(x, w, p, bias):
        return RadialConv.record(x, w, p, bias, spec)
    with torch._C._AutoDispatchBelowAutograd():
        return conv(x, w, p, bias, spec)


def _conv_backward_autograd(
    grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: list[bool]
) -> list[Tensor]:
    if _recording(grad, x, w, p):
        return list(RadialConvBackward.record(grad, x, w, p, spec, wanted))
    with torch._C._AutoDispatchBelowAutograd():
        return conv_backward(grad, x, w, p, spec, wanted)


_library.impl("conv", _conv_autograd, "Autograd")
_library.impl("conv_backward", _conv_backward_autograd, "Autograd")


# --- autocast: x and the output follow convolution's policy, w and sigma stay as they are until folded ----------------


def _beside(x: Tensor, t: Tensor) -> Tensor:
    """As it is where it may stand beside x, else (the other half type) in float32."""
    return t if t.dtype in (x.dtype, torch.float32, torch.float64) else t.float()


def _autocast(
    device_type: str, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or x.device.type != device_type:
        return x, w, p, bias
    x = x.to(torch.get_autocast_dtype(device_type))
    return x, _beside(x, w), None if p is None else _beside(x, p), None if bias is None else _beside(x, bias)


def _register_autocast(device_type: str, key: str) -> None:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def conv_autocast(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
        x, w, p, bias = _autocast(device_type, x, w, p, bias)
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return conv(x, w, p, bias, spec)

    _library.impl("conv", conv_autocast, key)


for _device_type, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _register_autocast(_device_type, _key)


def conv_decomposed(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
    """The operator written out in torch's own."""
    problem = build_problem(spec, x, w, p, bias)
    return reference.forward(problem, x, w, problem.differentiable_sigma(p), bias)


def conv_transformed(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
    """The operator under torch.func's transforms, which reach a Function's rules, but not an operator's in Python."""
    if nested_forward_mode():
        return conv_decomposed(x, w, p, bias, spec)
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        x, w, p, bias = _autocast(device_type, x, w, p, bias)
        with torch.autocast(device_type, enabled=False):
            return RadialConv.apply(x, w, p, bias, spec)
    return RadialConv.apply(x, w, p, bias, spec)


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def _mixing_flops(o_shape: Sequence[int], w_shape: Sequence[int]) -> int:
    outputs = o_shape[0]
    for size in o_shape[2:]:
        outputs *= size
    return 2 * outputs * w_shape[0] * w_shape[1] * w_shape[2]


def _register_flops() -> None:
    from torch.utils.flop_counter import register_flop_formula

    @register_flop_formula(torch.ops.radconv_ext.conv)
    def conv_flop(x: Any, w: Any, p: Any, bias: Any, spec: str, *, out_shape: Any = None, **_: Any) -> int:
        """Mixing FLOPs, `2 * pixels * O * C/groups * n`; the ring stage is additions and not counted."""
        return _mixing_flops(out_shape, w)

    @register_flop_formula(torch.ops.radconv_ext.conv_backward)
    def conv_backward_flop(
        grad: Any, x: Any, w: Any, p: Any, spec: str, wanted: Sequence[bool], *, out_shape: Any = None, **_: Any
    ) -> int:
        return _mixing_flops(grad, w) * (int(wanted[0]) + int(wanted[1] or wanted[2]))


_register_flops()

"""The native CPU engine: `radconv_ext._C` on raw pointers.

Tensors with NaN or Inf in them are answered by the dense form: the factored sum `(x * Q) * (w L)` would turn an Inf
into a NaN, and taps outside the support would not see it, so the result would not be that of a convolution.  So are
results that overflow, which a sum of rings may do where the dense one does not.  The kernels notice, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..build_info import native, native_reason
from ..problem import RadialConvProblem
from ..profiles import SIGMA_MIN, ring_centres, sigma_max

__all__ = ["CpuEngine"]

_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_HALO = 2**21  # elements, 8 MiB: beyond, by huge dilation, the copy costs more than it saves
_NATIVE_FAMILY = {
    "gaussian": "gaussian",
    "banded": "banded",
    "binary": "identity",
    "shell": "identity",
    "custom": "custom",
}


class CpuEngine:
    """Ring stage and mixing in one native pass, tile by tile."""

    name = "cpu"

    def why_missing(self) -> str | None:
        return native_reason()

    def why_not(self, problem: RadialConvProblem) -> str | None:
        if problem.device.type != "cpu":
            return f"needs tensors on the CPU, these are on {problem.device}"
        if problem.dtype not in _DTYPES:
            return f"serves float32 and bfloat16, this is {str(problem.dtype).removeprefix('torch.')}"
        if problem.channelwise:
            return "channel-wise sigma can't be written as shared rings, only as a dense kernel"
        if problem.options.family not in _NATIVE_FAMILY:
            return f"has no native profile of family {problem.options.family!r}"
        halo = math.prod(reach + 1 for reach in problem.options.reach)
        if halo > _LARGEST_HALO:
            return (
                f"one output needs a window of {halo} elements, more than the {_LARGEST_HALO} that are copied at once"
            )
        return self.why_missing()

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        # empty_like takes half the time of empty
        y = torch.empty_like(x) if problem.output_is_like_x else _empty(problem, problem.output_shape)
        if problem.batch == 0:
            return y
        p_floats = None if p is None else _floats(p)
        bias_floats = None if bias is None else _floats(bias)
        if _conv(_plan(problem, "forward"), x, None, _floats(w), p_floats, bias_floats, y):
            return y
        return reference.forward(problem, x, w, p, bias)

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        want_x, want_w, want_p, want_bias = wanted
        w_floats, p_floats = _floats(w), None if p is None else _floats(p)
        finite = True
        grad_x = grad_w = grad_p = None
        if want_x:
            grad_x = _input_gradient(problem, grad, w_floats, p_floats)
            finite = grad_x is not None
        if finite and (want_w or want_p):
            grad_w = torch.empty_like(w_floats) if want_w else None
            grad_p = torch.empty_like(p_floats) if want_p and p_floats is not None else None
            finite = _plan(problem, "forward").weight_gradient(
                x.data_ptr(), grad.data_ptr(), grad.stride(), w_floats.data_ptr(), _address(p_floats),
                _address(grad_w), _address(grad_p), torch.get_num_threads(),
            )  # fmt: skip
        if not finite:
            return reference.backward(problem, grad, x, w, p, wanted)
        grad_bias = grad.sum((0, *range(2, grad.dim())), dtype=problem.sum_dtype) if want_bias else None
        return [grad_x, _like(grad_w, w), _like(grad_p, p), grad_bias]


def _floats(t: Tensor) -> Tensor:
    """Contiguous float32: what the native core reads weights, parameters and bias as."""
    return t if t.dtype is torch.float32 and t.is_contiguous() else t.to(torch.float32).contiguous()


def _like(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
    """A float32 gradient in the dtype of its tensor."""
    return grad if grad is None or t is None or t.dtype is torch.float32 else grad.to(t.dtype)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _empty(problem: RadialConvProblem, shape: tuple[int, ...]) -> Tensor:
    if problem.channels_last:
        return torch.empty(shape, dtype=problem.dtype, memory_format=problem.memory_format)
    return torch.empty(shape, dtype=problem.dtype)


def _conv(
    plan: Any,
    x: Tensor,
    strides: tuple[int, ...] | None,  # None: those of the problem's x
    w: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
) -> bool:
    """True unless something was NaN or Inf."""
    return plan.conv(
        x.data_ptr(),
        strides,
        w.data_ptr(),
        0 if p is None else p.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )


def _input_gradient(problem: RadialConvProblem, grad: Tensor, w: Tensor, p: Tensor | None) -> Tensor | None:
    """Gradient by x: the adjoint convolution; None when something was NaN or Inf."""
    grad_x = _empty(problem, problem.gradient_shape)
    if problem.batch and not _conv(_plan(problem, "adjoint"), grad, grad.stride(), w, p, None, grad_x):
        return None
    return reference.folded_gradient(problem, grad_x)


def _plan(problem: RadialConvProblem, direction: str) -> Any:
    """The native plan of a problem, made once."""
    plan = problem.engine_state.get(direction)
    if plan is None:
        plan = problem.engine_state[direction] = _make_plan(problem, direction == "adjoint")
    return plan


def _make_plan(problem: RadialConvProblem, adjoint: bool) -> Any:
    c, o = native(), problem.options
    assert c is not None
    geometry = o.geometry
    model = c.RingModel(
        family=getattr(c.Family, _NATIVE_FAMILY[o.family]),
        rings=o.rings,
        buckets=geometry.buckets,
        bucket=geometry.bucket,
        centre=ring_centres(o.kernel_size, o.rings),
        radius=geometry.radii,
        sigma_min=SIGMA_MIN,
        sigma_max=sigma_max(o.rings),
    )
    core = problem.adjoint_core if adjoint else problem.core
    channels = (problem.in_channels // o.groups, problem.out_channels // o.groups)
    return c.CpuPlan(
        model=model,
        kernel_size=o.kernel_size,
        in_size=core.in_size,
        out_size=core.out_size,
        stride=core.stride,
        upsample=core.upsample,
        dilation=core.dilation,
        low=core.low,
        wrap=core.wrap,
        batch=problem.batch,
        groups=o.groups,
        in_per_group=channels[adjoint],
        out_per_group=channels[not adjoint],
        dtype=c.DType.float32 if problem.dtype is torch.float32 else c.DType.bfloat16,
        transpose=o.transposed != adjoint,
        x_strides=problem.x_strides,
        channels_last=problem.channels_last,
    )

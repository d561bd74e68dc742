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
from .native import conv_shape, empty, no_native_profile, reads_transposed, ring_model

__all__ = ["CpuEngine"]

_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_HALO = 2**21  # elements, 8 MiB: beyond, by huge dilation, the copy costs more than it saves


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
        if (reason := no_native_profile(problem)) is not None:
            return reason
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
        y = torch.empty_like(x) if problem.output_is_like_x else empty(problem, problem.output_shape)
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
    grad_x = empty(problem, problem.gradient_shape)
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
    c = native()
    assert c is not None
    return c.CpuPlan(
        model=ring_model(c, problem.options),
        shape=conv_shape(c, problem, adjoint),
        transpose=reads_transposed(problem, adjoint),
        x_strides=problem.x_strides,
        channels_last=problem.channels_last,
    )

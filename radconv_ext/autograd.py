"""Autograd for every engine and dimension: one Function for the operator, one for its backward.

The backward is a registered operator too.  Its own backward differentiates the reference formulas, which are built of
differentiable torch operators, so derivatives of any order exist in eager mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .problem import build_problem

__all__ = ["RadialConv", "RadialConvBackward"]

_forward_op = torch.ops.radconv_ext.conv.default
_backward_op = torch.ops.radconv_ext.conv_backward.default


class RadialConv(torch.autograd.Function):
    """The operator; gradients for x, w, p (sigma or profile) and bias, only those that are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
        ctx.save_for_backward(x, w, p)
        ctx.spec = spec
        with torch._C._AutoDispatchBelowAutograd():
            return _forward_op(x, w, p, bias, spec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, p = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            found = _backward_op(grads[0], x, w, p, ctx.spec, wanted)
        else:
            # nothing is recorded: enter the dispatcher below autograd, which would only pass the call on
            with torch._C._AutoDispatchBelowAutograd():
                found = _backward_op(grads[0], x, w, p, ctx.spec, wanted)
        rest = iter(found)
        return (*[next(rest) if want else None for want in wanted], None)


class RadialConvBackward(torch.autograd.Function):
    """The operator's backward, differentiable through the reference formulas."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: list[bool]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, w, p)
        ctx.spec = spec
        ctx.wanted = wanted
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_backward_op(grad, x, w, p, spec, wanted))

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, w, p = ctx.saved_tensors
        problem = build_problem(ctx.spec, x, w, p, None)

        def formulas(grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None = None) -> tuple[Tensor, ...]:
            firsts = reference.backward(problem, grad, x, w, p, ctx.wanted)
            return tuple(f for f in firsts if f is not None)

        # torch.func differentiates by these arguments alone: `grad` may depend on the others, and torch.autograd
        # would follow that path and count it twice
        inputs = (grad, x, w) if p is None else (grad, x, w, p)
        found = torch.func.vjp(formulas, *inputs)[1](seconds)
        return (*found, *(None,) * (6 - len(found)))

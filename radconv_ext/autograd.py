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
        found = iter(_backward_op(grads[0], x, w, p, ctx.spec, wanted))
        return (*(next(found) if want else None for want in wanted), None)


class RadialConvBackward(torch.autograd.Function):
    """The operator's backward, differentiable through the reference formulas."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: list[bool]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, x, w, p)
        ctx.spec = spec
        ctx.wanted = wanted
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_backward_op(grad, x, w, p, spec, wanted))

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, x, w, p = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        needed = [t for t, need in zip((grad, x, w, p), ctx.needs_input_grad, strict=False) if need]
        with torch.enable_grad():
            problem = build_problem(ctx.spec, x, w, p, None)
            firsts = [f for f in reference.backward(problem, grad, x, w, p, ctx.wanted) if f is not None]
            pairs = [(f, s) for f, s in zip(firsts, seconds, strict=True) if s is not None and f.requires_grad]
            outputs, weights = [f for f, _ in pairs], [s for _, s in pairs]
            found = torch.autograd.grad(outputs, needed, weights, create_graph=create_graph, allow_unused=True)
        rest = iter(found)
        return (*(next(rest) if need else None for need in ctx.needs_input_grad[:4]), None, None)

"""Autograd for every engine and dimension: one Function for the operator, one for its backward.

The backward is a registered operator too.  What comes after it (its own backward, and tangents of forward mode) is
differentiated through the reference formulas, which are built of differentiable torch operators, so derivatives of any
order exist.  Both Functions have rules for torch.func's transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import Function

from . import reference
from .problem import build_problem

__all__ = ["RadialConv", "RadialConvBackward", "nested_forward_mode"]

_forward_op = torch.ops.radconv_ext.conv.default
_backward_op = torch.ops.radconv_ext.conv_backward.default


def nested_forward_mode() -> bool:
    """Whether one torch.func.jvp runs within another: a Function's own tangent would lose the outer one's."""
    return eager_transforms.JVP_NESTING > 1


class _Rule(Function):
    """What both Functions share.  Arguments are tensors or None, then constants; tensors come first."""

    @classmethod
    def record(cls, *args: Any) -> Any:
        """As `apply`, which binds arguments by name first: several microseconds, wanted by torch.func alone."""
        if torch._C._are_functorch_transforms_active():
            return cls.apply(*args)
        return super(Function, cls).apply(*args)  # type: ignore[misc]


def _each(function: Callable[..., Any], size: int, in_dims: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The function's results for one element of the batch after the other."""

    def element(i: int) -> list[Any]:
        return [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]

    return [function(*element(i)) for i in range(size)]


def _merged(t: Tensor, dim: int | None, size: int) -> Tensor:
    """The batch of vmap as part of the first axis."""
    batched = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return batched.flatten(0, 1)


def _rows(t: Tensor, dim: int | None) -> int:
    """Length of the first axis without the batch of vmap."""
    return t.shape[0] if dim is None else t.movedim(dim, 0).shape[1]


class RadialConv(_Rule):
    """The operator; gradients for x, w, p (sigma or profile) and bias, only those that are needed."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, spec: str) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return _forward_op(x, w, p, bias, spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, w, p, _, ctx.spec = inputs
        ctx.save_for_backward(x, w, p)
        ctx.save_for_forward(x, w, p)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, p = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        if nested_forward_mode():
            found = _gradient_formula(ctx.spec, ctx.saved_tensors, wanted)(grads[0], x, w, p)
        elif torch._C._are_functorch_transforms_active():
            found = RadialConvBackward.apply(grads[0], x, w, p, ctx.spec, wanted)
        elif torch.is_grad_enabled():
            found = _backward_op(grads[0], x, w, p, ctx.spec, wanted)
        else:
            # nothing is recorded: enter the dispatcher below autograd, which would only pass the call on
            with torch._C._AutoDispatchBelowAutograd():
                found = _backward_op(grads[0], x, w, p, ctx.spec, wanted)
        rest = iter(found)
        return (*[next(rest) if want else None for want in wanted], None)

    @staticmethod
    def jvp(ctx: Any, x_t: Any, w_t: Any, p_t: Any, bias_t: Any, _: Any) -> Tensor:
        x, w, p = ctx.saved_tensors
        problem = build_problem(ctx.spec, x, w, p, None)

        def formula(x: Tensor, w: Tensor, p: Tensor | None = None) -> Tensor:
            return reference.forward(problem, x, w, problem.differentiable_sigma(p), None)

        y_t = _tangent(formula, (x, w, p), (x_t, w_t, p_t))
        return y_t if bias_t is None else y_t + bias_t.to(y_t.dtype).view(-1, *(1,) * problem.options.ndim)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        x, *rest = args
        size = info.batch_size
        if any(d is not None for d in in_dims[1:]):
            return torch.stack(_each(RadialConv.apply, size, in_dims, args)), 0
        return RadialConv.apply(_merged(x, in_dims[0], size), *rest).unflatten(0, (size, _rows(x, in_dims[0]))), 0


class RadialConvBackward(_Rule):
    """The operator's backward, differentiable through the reference formulas."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, spec: str, wanted: list[bool]
    ) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(_backward_op(grad, x, w, p, spec, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, x, w, p, ctx.spec, ctx.wanted = inputs
        ctx.save_for_backward(grad, x, w, p)
        ctx.save_for_forward(grad, x, w, p)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
        # torch.func differentiates by these arguments alone: `grad` may depend on the others, and torch.autograd
        # would follow that path and count it twice
        inputs = [t for t in ctx.saved_tensors if t is not None]
        formula = _gradient_formula(ctx.spec, ctx.saved_tensors[1:], ctx.wanted)
        found = torch.func.vjp(formula, *inputs)[1](seconds)
        return (*found, *(None,) * (6 - len(found)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        formula = _gradient_formula(ctx.spec, ctx.saved_tensors[1:], ctx.wanted)
        return _tangent(formula, ctx.saved_tensors, tangents[:4])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        grad, x, *rest, wanted = args
        size = info.batch_size
        if any(d is not None for d in in_dims[2:4]) or any(wanted[1:]):
            # a gradient for every element
            found = [
                torch.stack(parts) for parts in zip(*_each(RadialConvBackward.apply, size, in_dims, args), strict=True)
            ]
        else:
            merged = (_merged(t, d, size) for t, d in zip((grad, x), in_dims, strict=False))
            rows = (size, _rows(x, in_dims[1]))
            found = [g.unflatten(0, rows) for g in RadialConvBackward.apply(*merged, *rest, wanted)]
        return tuple(found), (0,) * len(found)


def _gradient_formula(spec: str, saved: Sequence[Any], wanted: Sequence[bool]) -> Callable[..., tuple[Tensor, ...]]:
    """The backward by the reference formulas, a function of grad, x, w and p."""
    x, w, p = saved
    problem = build_problem(spec, x, w, p, None)

    def formula(grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None = None) -> tuple[Tensor, ...]:
        firsts = reference.backward(problem, grad, x, w, problem.differentiable_sigma(p), wanted)
        firsts[2] = problem.sigma_gradient(p, firsts[2])
        return tuple(f for f in firsts if f is not None)

    return formula


def _tangent(formula: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Tangent of the formula; an argument without tangent is a constant.

    The derivative of the backward by what it is given, as forward mode may be under way, and doesn't nest.
    """
    given = [
        (p, torch.zeros_like(p) if t is None else t) for p, t in zip(primals, tangents, strict=True) if p is not None
    ]
    values, directions = zip(*given, strict=True)
    y, backward, *_ = torch.func.vjp(formula, *values)
    return torch.func.vjp(backward, torch.utils._pytree.tree_map(torch.zeros_like, y))[1](directions)[0]

"""One peer's part of a problem, its steps, and whether they give what they should."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .problems import Problem

Parameters = dict[str, Tensor]
Step = Callable[[], Any]


@dataclass
class Work:
    """One peer's part of a problem.

    `definition` takes an input in float64 and the parameters likewise, and is differentiable by what it uses of them.
    """

    call: Callable[[Tensor], Tensor]  # (B, channels, *S) -> (B, outputs, *S)
    parameters: Parameters  # trained
    definition: Callable[[Tensor, Parameters], Tensor]
    channels: int
    outputs: int
    module: nn.Module | None = None  # whose training mode decides what `call` does
    input_gradient: bool = True

    def enter(self, mode: str) -> None:
        if self.module is not None:
            self.module.train(mode != "inference")


def recording(mode: str) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(mode in ("recording", "training"))


def step_of(work: Work, mode: str, x: Tensor, grad: Tensor) -> Step:
    """One call; training: the output and the gradients by x and all parameters.  Call it inside `recording(mode)`."""
    if mode != "training":
        return lambda: work.call(x)
    leaf = x.detach().requires_grad_(work.input_gradient)
    leaves = [*([leaf] if work.input_gradient else []), *work.parameters.values()]

    def step() -> tuple[Tensor, ...]:
        y = work.call(leaf)
        return y, *torch.autograd.grad(y, leaves, grad)

    return step


def corner(problem: Problem, flops: float, limit: float) -> tuple[slice, ...]:
    """The last pixels of an image, as many as the definition computes within the limit of FLOPs."""
    affordable = limit / (flops / problem.pixels)
    edge = max(int(affordable ** (1 / problem.ndim)), 1)
    return tuple(slice(max(side - edge, 0), side) for side in problem.size)


def disagreements(work: Work, problem: Problem, mode: str, device: str, at: tuple[slice, ...]) -> dict[str, float]:
    """Relative errors of the output and, in training, of all gradients against the definition in float64.

    The whole batch runs, as when it is timed; the last sample's last pixels, with the largest addresses, are compared.
    The output's gradient is zero elsewhere.
    """
    x, drawn = problem.data(work.channels, work.outputs, device)
    grad = torch.zeros_like(drawn)
    compared = (slice(-1, None), slice(None), *at)
    grad[compared] = drawn[compared]
    with recording(mode):
        got = step_of(work, mode, x, grad)()
    y, *gradients = got if mode == "training" else (got,)
    if not all(t.isfinite().all() for t in (y, *gradients)):
        return {"output": math.inf}

    halo = problem.kernel_size // 2
    crop = (*compared[:2], *(slice(max(s.start - halo, 0), s.stop) for s in at))
    inner = (..., *(slice(s.start - c.start, None) for s, c in zip(at, crop[2:], strict=True)))
    x64 = x[crop].double().requires_grad_()
    named = {name: t.detach().double().requires_grad_() for name, t in work.parameters.items()}
    leaves = {"x": x64, **named}
    with torch.enable_grad(), unsearched():
        y64 = work.definition(x64, named)[inner]
        if mode == "training":
            expected = torch.autograd.grad(y64, list(leaves.values()), grad[compared].double(), allow_unused=True)
    errors = {"output": relative(y[compared], y64)}
    if mode == "training":
        found = [gradients[0][crop], *gradients[1:]]
        for name, g, e in zip(leaves, found, expected, strict=True):
            if e is not None:  # the definition of a group's layer takes its kernel as given
                errors[f"gradient of {name}"] = relative(g, e)
    return errors


@contextmanager
def unsearched() -> Iterator[None]:
    """cuDNN doesn't search for the best float64 algorithm, which computes the definition once."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def by_norm(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative error of several tensors as one vector."""
    g, e = (torch.cat([t.detach().double().flatten() for t in tensors]) for tensors in (got, expected))
    return float((g - e).norm() / e.norm())


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value."""
    if got.shape != expected.shape:
        raise AssertionError(f"expected the shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    expected = expected.detach()
    return float((got.detach().double() - expected).abs().max() / expected.abs().max())

"""Engines, and `choose()`: which one serves a problem.

An engine is one file with `name`, `why_not`, `forward` and `backward`; adding one is that file and a line in `ENGINES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

from ..checks import expect_one_of
from ..problem import RadialConvProblem
from .cpu import CpuEngine
from .cuda import CudaEngine
from .reference import ReferenceEngine
from .triton import TritonEngine

__all__ = ["ENGINES", "Engine", "choose", "current_engine", "resolve_engine", "use_engine"]


class Engine(Protocol):
    """What the operators ask of an engine."""

    name: str

    def why_not(self, problem: RadialConvProblem) -> str | None:
        """One sentence why this engine can't serve the problem, or None when it can."""

    def why_missing(self) -> str | None:
        """One sentence why this engine can't run in this installation at all, or None."""

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Output tensor."""

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients by x, w, p and bias; None where not wanted."""


_cuda = CudaEngine()
# in the order in which choose() tries them
ENGINES: dict[str, Engine] = {engine.name: engine for engine in (CpuEngine(), _cuda, TritonEngine(), ReferenceEngine())}

_preferred: ContextVar[str] = ContextVar("radconv_ext_engine", default="auto")


def resolve_engine(engine: str | None) -> str:
    """Name of the engine to insist on: the argument, else the one of `use_engine`, else "auto"."""
    if engine is None:
        return _preferred.get()
    return expect_one_of("engine", engine, ("auto", *ENGINES))


def current_engine() -> str:
    """Engine that calls without an `engine` argument insist on; "auto" unless inside `use_engine`."""
    return _preferred.get()


@contextlib.contextmanager
def use_engine(engine: str) -> Iterator[None]:
    """Insist on one engine for every call inside the `with` block that names none.

    Args:
        engine: "cpu", "cuda", "triton", "reference", or "auto" for the choice by problem.

    Raises:
        ValueError: unknown engine; inside the block, a call that the engine can't serve, with its reason.
    """
    token = _preferred.set(resolve_engine(engine))
    try:
        yield
    finally:
        _preferred.reset(token)


def choose(problem: RadialConvProblem) -> Engine:
    """The engine that the problem insists on, or the first that can serve it.

    Where the native CUDA engine's cost model says that the dense convolution is faster (few channels, large images),
    that is the reference engine. The CPU engine needs no such model: see benchmarks/NOTES.md.
    """
    wanted = problem.options.engine
    if wanted != "auto":
        reason = ENGINES[wanted].why_not(problem)
        if reason is not None:
            raise ValueError(f"engine: {wanted!r} can't serve this call: {reason} ({problem})")
        return ENGINES[wanted]
    found = next(engine for engine in ENGINES.values() if engine.why_not(problem) is None)
    return ENGINES["reference"] if found is _cuda and _cuda.dense_is_faster(problem) else found

"""The reference engine: the definition itself, on any device and in any floating dtype."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..problem import RadialConvProblem

__all__ = ["ReferenceEngine"]


class ReferenceEngine:
    """Dense kernel, then torch's convolution."""

    name = "reference"

    def why_missing(self) -> str | None:
        return None

    def why_not(self, problem: RadialConvProblem) -> str | None:
        return None

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return reference.forward(problem, x, w, p, bias)

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        return reference.backward(problem, grad, x, w, p, wanted)

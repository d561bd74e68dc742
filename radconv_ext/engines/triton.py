"""The Triton engine: fused kernels in one portable source, compiled on first use for the card at hand.

NVIDIA cards from compute capability 8.0; the same source serves AMD and Intel GPUs, where nobody has run it yet.
With TRITON_INTERPRET=1 in the environment before the first import, Triton's interpreter runs the kernels on CPU
tensors: slow, for tests and for looking inside.

NaN and Inf: an output is NaN or Inf when an input of its support is, but an Inf may come out as NaN, since shells are
summed before they are weighted; a GPU can't tell the host in time to choose the dense form.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import reference
from ..build_info import in_one_line, triton_reason
from ..precision import interprets_triton
from ..problem import RadialConvProblem
from .native import empty, on_device

__all__ = ["TritonEngine"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_DEVICES = ("cuda", "xpu")  # cuda is AMD's name for its GPUs too
_LARGEST_PROFILE = 2**14  # ring times shells, both rounded up to powers of two: what one program holds


@functools.cache
def _plans() -> tuple[ModuleType | None, str | None]:
    """The module `triton_kernels.plan`, or None and why not."""
    if (reason := triton_reason()) is not None:
        return None, reason
    try:
        return importlib.import_module("radconv_ext.triton_kernels.plan"), None
    except ImportError as error:
        return None, f"Triton kernels: they fail to import: {error}"


@functools.cache
def host_reason() -> str | None:
    """Why Triton can't launch on this machine's GPU; it builds the host's part on first use, with a C compiler."""
    try:
        importlib.import_module("triton.runtime").driver.active.utils  # noqa: B018
    except Exception as error:  # whatever a compiler, a loader or a driver can say
        return f"Triton can't build or load its launcher: {in_one_line(error)}"
    return None


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class TritonEngine:
    """Shell sums, ring combination and mixing in one kernel, for 1D, 2D and 3D."""

    name = "triton"

    def why_missing(self) -> str | None:
        reason = _plans()[1]
        if reason is None and torch.cuda.is_available() and not interprets_triton():
            reason = host_reason()
        return reason

    def why_not(self, problem: RadialConvProblem) -> str | None:
        o, device = problem.options, problem.device
        dtype = str(problem.dtype).removeprefix("torch.")
        if problem.dtype not in _DTYPES:
            return f"serves float32, float16 and bfloat16, this is {dtype}"
        if problem.channelwise:
            return "channel-wise sigma can't be written as shared rings, only as a dense kernel"
        buckets = o.geometry.buckets
        if _power_of_two(o.rings) * _power_of_two(buckets) > _LARGEST_PROFILE:
            return f"a profile of {o.rings} rings by {buckets} shells is larger than one program holds"
        if device.type == "cpu":
            return self._why_not_interpreted(problem, dtype)
        if device.type not in _DEVICES:
            return f"needs tensors on a GPU, these are on {device}"
        if (reason := self.why_missing()) is not None:
            return reason
        if interprets_triton():
            return "TRITON_INTERPRET=1 is set: the interpreter takes tensors on the CPU"
        if device.type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(device)
            if capability < (8, 0):
                return f"needs compute capability 8.0, this card has {capability[0]}.{capability[1]}"
        return host_reason()

    def _why_not_interpreted(self, problem: RadialConvProblem, dtype: str) -> str | None:
        if not interprets_triton():
            return (
                "needs tensors on a GPU, these are on the CPU (TRITON_INTERPRET=1 runs the kernels in an interpreter)"
            )
        if problem.options.engine != self.name:
            return "the interpreter is slow and runs only when it is asked for by name"
        if problem.dtype is torch.bfloat16:
            return "the interpreter's bfloat16 products are wrong; it serves float32 and float16"
        if (reason := self.why_missing()) is not None:
            return reason
        plans, _ = _plans()
        assert plans is not None
        return None if plans.INTERPRETED else "TRITON_INTERPRET=1 was set after the kernels had been imported"

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        y = empty(problem, problem.output_shape)
        if problem.batch == 0:
            return y
        w, p = _dense(w), None if p is None else _dense(p)
        bias = None if bias is None else _dense(bias)
        precision = problem.precision
        key = ("forward", precision, x.data_ptr() % 4)
        with on_device(problem.device):
            plan = problem.engine_state.get(key)
            if plan is None:
                tune = _tune()
                plan = tune.forward(problem, x, w, p, bias, y, precision)
                if not tune.postponed(problem.device):
                    problem.engine_state[key] = plan
            plan.run(x, w, p, bias, y)
        return y

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        want_x, want_w, want_p, want_bias = wanted
        if problem.batch == 0:
            return reference.backward(problem, grad, x, w, p, wanted)
        w, p = _dense(w), None if p is None else _dense(p)
        precision = problem.precision
        key = ("backward", precision, *wanted, grad.stride(), x.data_ptr() % 4, grad.data_ptr() % 4)
        grad_x = empty(problem, problem.gradient_shape) if want_x else None
        with on_device(problem.device):
            plan = problem.engine_state.get(key)
            if plan is None:
                tune = _tune()
                plan = tune.backward(problem, x, grad, w, p, grad_x, wanted, precision)
                if not tune.postponed(problem.device):
                    problem.engine_state[key] = plan
            grad_w = torch.empty_like(w) if want_w else None
            grad_p = torch.empty_like(p) if want_p and p is not None else None
            grad_bias = None
            if plan.makes_bias:
                grad_bias = torch.empty(problem.out_channels, dtype=torch.float32, device=problem.device)
            plan.run(x, grad, w, p, grad_x, grad_w, grad_p, grad_bias)
        if want_bias and grad_bias is None:
            grad_bias = grad.sum((0, *range(2, grad.dim())), dtype=problem.sum_dtype)
        if grad_x is not None:
            grad_x = reference.folded_gradient(problem, grad_x)
        return [grad_x, grad_w, grad_p, grad_bias]


def _tune() -> ModuleType:
    """The module that makes plans, measured ones where that is asked for."""
    return importlib.import_module("radconv_ext.triton_kernels.tune")


def _dense(t: Tensor) -> Tensor:
    return t if t.is_contiguous() else t.contiguous()

"""The native CUDA engine: `radconv_ext._C` on raw pointers, for NVIDIA cards from compute capability 8.0.

Forward, the gradient by the input, and the gradients by w, sigma (or the profile) and bias together are fused kernels
(csrc/cuda), two launches each on the current stream.

With RADCONV_EMULATE_CUDA=1 in the environment, the same kernels, compiled for the CPU (`make emulation`), take tensors
on the CPU when the engine is asked for by name: slow, for tests and for looking inside.  Another value names the folder
of another such build.

NaN and Inf spread as with the Triton engine: over the kernel's support, and an Inf may come out as NaN.  Groups of few
channels share a product, and with it their NaN and Inf.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..build_info import build_info, native
from ..precision import emulates_cuda
from ..problem import RadialConvProblem
from .native import conv_shape, dtype_of, empty, no_native_profile, on_device, reads_transposed, ring_model

__all__ = ["CudaEngine"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEWEST_PIXELS = 32  # of a tile, for the automatic choice
_PACKAGE = __name__.rpartition(".engines.")[0]


@functools.cache
def _emulated(where: str) -> tuple[ModuleType | None, str | None]:
    """The emulated module, or None and why not."""
    if where == "1":
        try:
            return importlib.import_module(f"{_PACKAGE}._emulated"), None
        except ModuleNotFoundError:
            return None, "RADCONV_EMULATE_CUDA=1 is set, but the emulated kernels aren't built: run `make emulation`"
    for suffix in EXTENSION_SUFFIXES:
        if (path := Path(where, f"_emulated{suffix}")).exists():
            spec = importlib.util.spec_from_file_location("_emulated", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module, None
    return None, f"RADCONV_EMULATE_CUDA names {where}, where there are no emulated kernels"


def _kernels() -> tuple[ModuleType | None, str | None]:
    """The module that holds the kernels, emulated ones where asked for; or None and why not."""
    if emulates_cuda():
        return _emulated(os.environ["RADCONV_EMULATE_CUDA"])
    reason = _native_reason()
    return (None, reason) if reason is not None else (native(), None)


@functools.cache
def _native_reason() -> str | None:
    return build_info()["cuda"]["reason"]


@functools.cache
def _card_reason(c: ModuleType, device: int) -> str | None:
    return c.why_not_device(device) or None


_tables: dict[tuple[bytes, torch.device], Tensor] = {}
_tables_lock = threading.Lock()


def _tables_on(device: torch.device, tables: bytes) -> Tensor:
    """Tables of a plan.  Never given back: captured CUDA graphs know their addresses, and nobody else does.

    Made by a thread of their own: torch.compile may be sending this thread's allocations to the pool of a graph, which
    takes them back.
    """
    with _tables_lock:
        if (tables, device) not in _tables:
            host = torch.frombuffer(bytearray(tables), dtype=torch.int32)
            with ThreadPoolExecutor(1) as thread:
                _tables[tables, device] = thread.submit(host.to, device).result()
        return _tables[tables, device]


class _Plan:
    """One direction of a problem, ready to run."""

    def __init__(self, problem: RadialConvProblem, native_plan: Any) -> None:
        self.problem = problem
        self.native = native_plan
        self.types = {dtype: dtype_of(_module(), dtype) for dtype in _DTYPES}
        self.words = -(-native_plan.workspace // 4)
        self.tables: Tensor | None = None

    def run(self, *arguments: Any) -> None:
        """All launches, on the current stream of the current device, which is the tensors'."""
        device = self.problem.device
        if self.tables is None:
            self._load()
        assert self.tables is not None
        workspace = torch.empty(self.words, dtype=torch.int32, device=device)
        stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
        try:
            self.native.run(stream, *arguments, workspace.data_ptr(), self.tables.data_ptr())
        except RuntimeError as error:
            raise RuntimeError(f"engine 'cuda': {error} ({self.problem})") from error

    def small(self, t: Tensor | None) -> tuple[int, Any]:
        """Address and type."""
        return (0, self.types[torch.float32]) if t is None else (t.data_ptr(), self.types[t.dtype])

    def _load(self) -> None:
        """Kernels and tables onto the device."""
        if self.problem.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"engine 'cuda': the first call of a problem can't be captured in a CUDA graph: call once before "
                f"({self.problem})"
            )
        try:
            self.native.prepare()
        except RuntimeError as error:
            raise RuntimeError(f"engine 'cuda': {error} ({self.problem})") from error
        self.tables = _tables_on(self.problem.device, self.native.tables)


def _module() -> Any:
    c, _ = _kernels()
    assert c is not None
    return c


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _dense(t: Any) -> Any:
    return None if t is None else t.contiguous()


class CudaEngine:
    """Ring stage and mixing in one kernel, for 1D, 2D and 3D."""

    name = "cuda"

    def why_missing(self) -> str | None:
        return _kernels()[1]

    def why_not(self, problem: RadialConvProblem) -> str | None:
        o, device = problem.options, problem.device
        dtype = str(problem.dtype).removeprefix("torch.")
        if problem.dtype not in _DTYPES:
            return f"serves float32, float16 and bfloat16, this is {dtype}"
        if (reason := no_native_profile(problem)) is not None:
            return reason
        if emulates_cuda():
            if device.type != "cpu":
                return f"RADCONV_EMULATE_CUDA is set: the emulation takes tensors on the CPU, these are on {device}"
            if o.engine != self.name:
                return "the emulation is slow and runs only when it is asked for by name"
        elif device.type != "cuda" or torch.version.hip is not None:
            where = "an AMD GPU" if device.type == "cuda" else str(device)
            return f"needs tensors on an NVIDIA GPU, these are on {where}"
        if (reason := self.why_missing()) is not None:
            return reason
        c = _module()
        with on_device(device):
            if (reason := _card_reason(c, device.index or 0)) is not None:
                return reason
        try:
            plans = (
                self._plan(problem, False, problem.x_strides),
                self._plan(problem, True, problem.output_strides),
            )
            self._gradient_plan(problem, problem.output_strides)
        except c.Unservable as error:
            return str(error)
        for facts in (plan.native.facts() for plan in plans):
            pixels = math.prod(facts["tile"])
            if o.engine == "auto" and pixels < _FEWEST_PIXELS and math.prod(facts["tiles"]) > 1:
                return f"has shared memory for {pixels} output pixels at a time, and would take as long for 128"
        return None

    def dense_is_faster(self, problem: RadialConvProblem) -> bool:
        """What the cost model (csrc/cuda/cost.h) says of the dense convolution, for a problem that this one serves."""
        if _is_depthwise(problem):
            return False
        facts = self._plan(problem, False, problem.x_strides).native.facts()
        return facts["dense_clocks"] < facts["clocks"]

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        y = empty(problem, problem.output_shape)
        if problem.batch > 0:
            with on_device(problem.device):
                self._convolve(problem, False, x, _dense(w), _dense(p), _dense(bias), y)
        return y

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        want_x, want_w, want_p, want_bias = wanted
        if problem.batch == 0:
            return reference.backward(problem, grad, x, w, p, wanted)
        w, p = _dense(w), _dense(p)
        grad_x = grad_w = grad_p = grad_bias = None
        # with a transposed convolution, shells are summed around the output's gradient, whose pixels have no sums then
        bias_too = want_bias and not problem.options.transposed
        with on_device(problem.device):
            if want_x:
                grad_x = empty(problem, problem.gradient_shape)
                self._convolve(problem, True, grad, w, p, None, grad_x)
            if want_w or want_p:
                grad_w = torch.empty_like(w) if want_w else None
                grad_p = torch.empty_like(p) if want_p and p is not None else None
                if bias_too:
                    grad_bias = torch.empty(problem.out_channels, dtype=torch.float32, device=problem.device)
                self._weight_gradient(problem, x, grad, w, p, grad_w, grad_p, grad_bias)
            if want_bias and grad_bias is None:
                grad_bias = grad.sum((0, *range(2, grad.dim())), dtype=problem.sum_dtype)
        if grad_x is not None:
            grad_x = reference.folded_gradient(problem, grad_x)
        return [grad_x, grad_w, grad_p, grad_bias]

    def _convolve(
        self,
        problem: RadialConvProblem,
        adjoint: bool,
        x: Tensor,
        w: Tensor,
        p: Tensor | None,
        bias: Tensor | None,
        y: Tensor,
    ) -> None:
        x, plan = _laid_out(problem, x, lambda strides: self._plan(problem, adjoint, strides))
        plan.run(x.data_ptr(), *plan.small(w), *plan.small(p), *plan.small(bias), y.data_ptr())

    def _weight_gradient(
        self,
        problem: RadialConvProblem,
        x: Tensor,
        grad: Tensor,
        w: Tensor,
        p: Tensor | None,
        grad_w: Tensor | None,
        grad_p: Tensor | None,
        grad_bias: Tensor | None,
    ) -> None:
        """Writes the three; a transposed convolution's are those of its adjoint, with x and grad exchanged."""
        grad, plan = _laid_out(problem, grad, lambda strides: self._gradient_plan(problem, strides))
        one, other = (grad, x) if problem.options.transposed else (x, grad)
        plan.run(
            one.data_ptr(), other.data_ptr(), *plan.small(w), *plan.small(p), _address(grad_w), _address(grad_p),
            _address(grad_bias),
        )  # fmt: skip

    def _plan(self, problem: RadialConvProblem, adjoint: bool, x_strides: tuple[int, ...]) -> _Plan:
        """The plan of one direction, made once per layout."""
        return _kept(
            problem,
            ("adjoint" if adjoint else "forward", x_strides),
            lambda c: (c.DepthwisePlan if _is_depthwise(problem) else c.CudaPlan)(
                **_common(c, problem, adjoint), x_strides=x_strides, channels_last=problem.channels_last
            ),
        )

    def _gradient_plan(self, problem: RadialConvProblem, grad_strides: tuple[int, ...]) -> _Plan:
        """The plan of the weight gradient, made once per layout."""
        transposed = problem.options.transposed
        layouts = (problem.x_strides, grad_strides)
        return _kept(
            problem,
            ("weights", grad_strides),
            lambda c: (c.DepthwiseGradientPlan if _is_depthwise(problem) else c.CudaGradientPlan)(
                **_common(c, problem, transposed), x_strides=layouts[transposed], grad_strides=layouts[not transposed]
            ),
        )


def _is_depthwise(problem: RadialConvProblem) -> bool:
    return problem.in_channels == problem.out_channels == problem.options.groups


def _common(c: ModuleType, problem: RadialConvProblem, adjoint: bool) -> dict[str, Any]:
    return {
        "model": ring_model(c, problem.options),
        "shape": conv_shape(c, problem, adjoint),
        "transpose": reads_transposed(problem, adjoint),
        "exact": problem.precision != "tf32",
        "device": problem.device.index or 0,
    }


def _kept(problem: RadialConvProblem, key: Any, make: Callable[[ModuleType], Any]) -> _Plan:
    plan = problem.engine_state.get(key)
    if plan is None:
        plan = problem.engine_state[key] = _Plan(problem, make(_module()))
    return plan


def _laid_out(problem: RadialConvProblem, t: Tensor, plan: Callable[[tuple[int, ...]], _Plan]) -> tuple[Tensor, _Plan]:
    """A tensor and the plan for its layout; a copy in the output's layout where strides are too far apart."""
    try:
        return t, plan(t.stride())
    except _module().Unservable:
        t = t.contiguous(memory_format=problem.memory_format)
        return t, plan(t.stride())

"""The native CUDA engine: `radconv_ext._C` on raw pointers, for NVIDIA cards from compute capability 8.0.

Forward and the gradient by the input are its own fused kernels (csrc/cuda), two launches each on the current stream.
The gradients by w, sigma (or the profile) and bias come from the Triton engine, or from the reference where that can't
serve.

With RADCONV_EMULATE_CUDA=1 in the environment, the same kernels, compiled for the CPU (`make emulation`), take tensors
on the CPU when the engine is asked for by name: slow, for tests and for looking inside.  Another value names the folder
of another such build.

NaN and Inf spread as with the Triton engine: over the kernel's support, and an Inf may come out as NaN.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import reference
from ..build_info import build_info, native
from ..precision import emulates_cuda
from ..problem import RadialConvProblem
from .native import conv_shape, dtype_of, empty, no_native_profile, on_device, reads_transposed, ring_model

if TYPE_CHECKING:
    from . import Engine

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

    def __init__(self, problem: RadialConvProblem, adjoint: bool, x_strides: tuple[int, ...]) -> None:
        self.c, _ = _kernels()
        assert self.c is not None
        self.problem = problem
        self.native = self.c.CudaPlan(
            model=ring_model(self.c, problem.options),
            shape=conv_shape(self.c, problem, adjoint),
            transpose=reads_transposed(problem, adjoint),
            exact=problem.precision != "tf32",
            x_strides=x_strides,
            channels_last=problem.channels_last,
            device=problem.device.index or 0,
        )
        self.types = {dtype: dtype_of(self.c, dtype) for dtype in _DTYPES}
        self.words = -(-self.native.workspace // 4)
        self.tables: Tensor | None = None

    def run(self, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, y: Tensor) -> None:
        """Both launches, on the current stream of the current device, which is the tensors'."""
        device = self.problem.device
        if self.tables is None:
            self._load()
        assert self.tables is not None
        workspace = torch.empty(self.words, dtype=torch.int32, device=device)
        stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
        try:
            self.native.run(
                stream, x.data_ptr(), *self._small(w), *self._small(p), *self._small(bias), y.data_ptr(),
                workspace.data_ptr(), self.tables.data_ptr(),
            )  # fmt: skip
        except RuntimeError as error:
            raise RuntimeError(f"engine 'cuda': {error} ({self.problem})") from error

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

    def _small(self, t: Tensor | None) -> tuple[int, Any]:
        """Address and type."""
        return (0, self.types[torch.float32]) if t is None else (t.data_ptr(), self.types[t.dtype])


def _dense(t: Any) -> Any:
    return None if t is None else t.contiguous()


class CudaEngine:
    """Ring stage and mixing in one kernel, for 1D, 2D and 3D."""

    name = "cuda"

    def __init__(self, others: Sequence[Engine]) -> None:
        self._others = others  # for what this one doesn't do yet; the last serves everything

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
        ins, outs = problem.in_channels // o.groups, problem.out_channels // o.groups
        if o.engine == "auto" and o.groups > 1 and ins <= 2 and outs <= 8:
            return f"would multiply mostly zeros with groups of {ins} to {outs} channels"
        if (reason := self.why_missing()) is not None:
            return reason
        c, _ = _kernels()
        assert c is not None
        with on_device(device):
            if (reason := _card_reason(c, device.index or 0)) is not None:
                return reason
        try:
            plans = (
                self._plan(problem, False, problem.x_strides),
                self._plan(problem, True, problem.output_strides),
            )
        except c.Unservable as error:
            return str(error)
        for facts in (plan.native.facts() for plan in plans):
            pixels = math.prod(facts["tile"])
            if o.engine == "auto" and pixels < _FEWEST_PIXELS and math.prod(facts["tiles"]) > 1:
                return f"has shared memory for {pixels} output pixels at a time, and would take as long for 128"
        return None

    def forward(
        self, problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        y = empty(problem, problem.output_shape)
        if problem.batch > 0:
            with on_device(problem.device):
                self._plan(problem, False, problem.x_strides).run(x, _dense(w), _dense(p), _dense(bias), y)
        return y

    def backward(
        self, problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        want_x, want_w, want_p, want_bias = wanted
        found: list[Tensor | None] = [None] * 4
        if want_w or want_p:
            found = self._other(problem).backward(problem, grad, x, w, p, (False, want_w, want_p, want_bias))
        elif want_bias:
            found[3] = grad.sum((0, *range(2, grad.dim())), dtype=problem.sum_dtype)
        if want_x:
            grad_x = empty(problem, problem.gradient_shape)
            if problem.batch > 0:
                with on_device(problem.device):
                    plan, grad = self._adjoint(problem, grad)
                    plan.run(grad, _dense(w), _dense(p), None, grad_x)
            found[0] = reference.folded_gradient(problem, grad_x)
        return found

    def _adjoint(self, problem: RadialConvProblem, grad: Tensor) -> tuple[_Plan, Tensor]:
        """The plan for this gradient's layout; with a copy in the output's where strides are too far apart."""
        c, _ = _kernels()
        assert c is not None
        try:
            return self._plan(problem, True, grad.stride()), grad
        except c.Unservable:
            grad = grad.contiguous(memory_format=problem.memory_format)
            return self._plan(problem, True, grad.stride()), grad

    def _plan(self, problem: RadialConvProblem, adjoint: bool, x_strides: tuple[int, ...]) -> _Plan:
        """The plan of one direction, made once per layout."""
        key = ("adjoint" if adjoint else "forward", x_strides)
        plan = problem.engine_state.get(key)
        if plan is None:
            plan = problem.engine_state[key] = _Plan(problem, adjoint, x_strides)
        return plan

    def _other(self, problem: RadialConvProblem) -> Engine:
        """The engine that makes the gradients by w, its parameter and bias."""
        other = problem.engine_state.get("other")
        if other is None:
            other = next(engine for engine in self._others if engine.why_not(problem) is None)
            problem.engine_state["other"] = other
        return other

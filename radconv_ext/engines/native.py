"""What engines share: problems in the words of the native core, new tensors, the current device."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..problem import Options, RadialConvProblem
from ..profiles import SIGMA_MIN, ring_centres, sigma_max

__all__ = ["conv_shape", "dtype_of", "empty", "no_native_profile", "on_device", "reads_transposed", "ring_model"]

_FAMILY = {"gaussian": "gaussian", "banded": "banded", "binary": "identity", "shell": "identity", "custom": "custom"}


def no_native_profile(problem: RadialConvProblem) -> str | None:
    """Why the native core can't make this problem's profile, or None."""
    if problem.channelwise:
        return "channel-wise sigma can't be written as shared rings, only as a dense kernel"
    if problem.options.family not in _FAMILY:
        return f"has no native profile of family {problem.options.family!r}"
    return None


def dtype_of(c: ModuleType, dtype: torch.dtype) -> Any:
    return getattr(c.DType, str(dtype).removeprefix("torch."))


def empty(problem: RadialConvProblem, shape: tuple[int, ...]) -> Tensor:
    """An output or input gradient of this shape."""
    return torch.empty(shape, dtype=problem.dtype, device=problem.device, memory_format=problem.memory_format)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Launches go to the current device: make it the tensors'."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    module = getattr(torch, device.type)
    return contextlib.nullcontext() if module.current_device() == device.index else module.device(device)


def reads_transposed(problem: RadialConvProblem, adjoint: bool) -> bool:
    """Whether this direction reads w as (in, out)."""
    return problem.options.transposed != adjoint


def ring_model(c: ModuleType, o: Options) -> Any:
    geometry = o.geometry
    return c.RingModel(
        family=getattr(c.Family, _FAMILY[o.family]),
        rings=o.rings,
        buckets=geometry.buckets,
        bucket=geometry.bucket,
        centre=ring_centres(o.kernel_size, o.rings),
        radius=geometry.radii,
        sigma_min=SIGMA_MIN,
        sigma_max=sigma_max(o.rings),
    )


def conv_shape(c: ModuleType, problem: RadialConvProblem, adjoint: bool) -> Any:
    """Forward, or the convolution of output gradients that gives input gradients."""
    o = problem.options
    core = problem.adjoint_core if adjoint else problem.core
    channels = (problem.in_channels // o.groups, problem.out_channels // o.groups)
    return c.ConvShape(
        kernel_size=o.kernel_size,
        in_size=core.in_size,
        out_size=core.out_size,
        stride=core.stride,
        upsample=core.upsample,
        dilation=core.dilation,
        low=core.low,
        wrap=core.wrap,
        batch=problem.batch,
        groups=o.groups,
        in_per_group=channels[adjoint],
        out_per_group=channels[not adjoint],
        dtype=dtype_of(c, problem.dtype),
    )

"""The definition: dense kernel, then torch's convolution.  Any floating dtype, any device; every step differentiable.

    K[o, c, d] = sum_i w[o, c, i] * P[i, shell(d)]        y = convNd(x, K) + bias

The dense kernel is summed in float64 (float32 where the device has none) and rounded once, so this is also the most
accurate dense form of a projected, cancelling `w`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import OUTSIDE
from .problem import Options, RadialConvProblem

__all__ = ["backward", "dense_kernel", "folded_gradient", "forward"]


def _sum_dtype(w: Tensor) -> torch.dtype:
    return torch.float32 if w.device.type == "mps" else torch.float64


def _tap_buckets(o: Options, device: torch.device) -> Tensor:
    """Bucket of every tap, taps outside the support one past the last bucket: (k**ndim,)."""
    buckets = o.geometry.buckets
    return torch.tensor([buckets if b == OUTSIDE else b for b in o.geometry.bucket], device=device)


def _profile(o: Options, w: Tensor, p: Tensor | None) -> Tensor:
    """Profile in the summation dtype: (n, buckets), or (O, C/groups, n, buckets)."""
    dtype = _sum_dtype(w)
    sigma = None if p is None else p.to(dtype)
    return o.profile_family.profile(o.geometry, o.rings, sigma, dtype=dtype, device=w.device)


def dense_kernel(o: Options, w: Tensor, p: Tensor | None) -> Tensor:
    """Dense kernel in the summation dtype: (O, C/groups, k, ...)."""
    values = torch.matmul(w.to(_sum_dtype(w)).unsqueeze(-2), _profile(o, w, p)).squeeze(-2)  # (O, C/groups, buckets)
    taps = F.pad(values, (0, 1)).index_select(-1, _tap_buckets(o, w.device))
    return taps.reshape(*w.shape[:2], *(o.kernel_size,) * o.ndim)


def _pads(o: Options) -> tuple[int, ...]:
    return tuple(v for axis in reversed(range(o.ndim)) for v in (o.low[axis], o.high[axis]))


def _needs_explicit_padding(o: Options) -> bool:
    return o.padding_mode == "circular" or o.low != o.high


def _padded(o: Options, x: Tensor) -> Tensor:
    if not _needs_explicit_padding(o):
        return x
    return F.pad(x, _pads(o), mode="circular" if o.padding_mode == "circular" else "constant")


def _arguments(o: Options) -> tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]:
    padding = (0,) * o.ndim if _needs_explicit_padding(o) else o.low
    return o.stride, padding, o.dilation, o.transposed, o.output_padding, o.groups


def forward(problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None) -> Tensor:
    """Output (B, O, *out_size) in x's dtype and the problem's memory format."""
    o = problem.options
    kernel = dense_kernel(o, w, p).to(x.dtype)
    y = torch.convolution(_padded(o, x), kernel, None if bias is None else bias.to(x.dtype), *_arguments(o))
    return y.contiguous(memory_format=problem.memory_format)


def _fold_wrapped(padded: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
    """Adjoint of circular padding: margins added back to where they were copied from."""
    for axis, (a, b) in enumerate(zip(low, high, strict=True), start=2):
        size = padded.shape[axis] - a - b
        centre = padded.narrow(axis, a, size)
        pad = [0, 0] * (padded.dim() - axis - 1)
        if a:
            centre = centre + F.pad(padded.narrow(axis, 0, a), [*pad, size - a, 0])
        if b:
            centre = centre + F.pad(padded.narrow(axis, a + size, b), [*pad, 0, size - b])
        padded = centre
    return padded


def folded_gradient(problem: RadialConvProblem, grad_x: Tensor) -> Tensor:
    """Gradient by x from one of `gradient_shape`: as it is, unless circular padding copied margins."""
    if not problem.folds_gradient:
        return grad_x
    o = problem.options
    return _fold_wrapped(grad_x, o.low, o.high).contiguous(memory_format=problem.memory_format)


def _unpadded(o: Options, grad: Tensor) -> Tensor:
    if not _needs_explicit_padding(o):
        return grad
    if o.padding_mode == "circular":
        return _fold_wrapped(grad, o.low, o.high)
    return F.pad(grad, tuple(-v for v in _pads(o)))


def backward(
    problem: RadialConvProblem, grad: Tensor, x: Tensor, w: Tensor, p: Tensor | None, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients by x, w, p and bias, those not `wanted` None; built of differentiable operators."""
    o = problem.options
    want_x, want_w, want_p, want_bias = wanted
    want_kernel = want_w or want_p
    kernel = dense_kernel(o, w, p).to(x.dtype)
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad, _padded(o, x), kernel, None, *_arguments(o), [want_x, want_kernel, False]
    )
    grad_w = grad_p = None
    if want_kernel:
        buckets = o.geometry.buckets
        by_tap = grad_kernel.to(_sum_dtype(w)).reshape(*w.shape[:2], -1)
        # a padded column swallows the taps outside the support
        by_bucket = torch.zeros(*w.shape[:2], buckets + 1, dtype=by_tap.dtype, device=w.device).index_add(
            -1, _tap_buckets(o, w.device), by_tap
        )[..., :buckets]  # (O, C/groups, buckets)
        if want_w:
            profile = _profile(o, w, p)
            grad_w = torch.matmul(by_bucket.unsqueeze(-2), profile.mT).squeeze(-2).to(w.dtype)
        if want_p:
            assert p is not None
            grad_profile = w.to(by_bucket.dtype).unsqueeze(-1) * by_bucket.unsqueeze(-2)  # (O, C/groups, n, buckets)
            if not problem.channelwise:
                grad_profile = grad_profile.sum((0, 1))
            family = o.profile_family
            grad_p = family.sigma_gradient(o.geometry, o.rings, p.to(by_bucket.dtype), grad_profile).to(p.dtype)
    if want_x:
        grad_x = _unpadded(o, grad_x).contiguous(memory_format=problem.memory_format)
    grad_bias = grad.sum((0, *range(2, grad.dim())), dtype=problem.sum_dtype) if want_bias else None
    return [grad_x if want_x else None, grad_w, grad_p, grad_bias]

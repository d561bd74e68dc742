"""What a network of radial convolutions needs beside them, so that it commutes with flips and turns as they do.

Stride keeps the symmetry of an image at some sizes only, and so does every pooling layer that counts its windows from
one corner.  The layers here are centred on the image at every size.  Where that puts a window half a pixel off the
grid, the filter is placed there: an average over the two nearest windows, or a Gaussian sampled at half-integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import (
    HALF,
    IntOrInts,
    expect_dense,
    expect_floating,
    expect_integer,
    expect_one_of,
    expect_positive,
    expect_tensor,
    per_axis,
)
from ..docstrings import fill
from ..problem import PADDING_MODES

__all__ = [
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "CircularCrop",
    "Residual",
    "SymmetricAvgPool1d",
    "SymmetricAvgPool2d",
    "SymmetricAvgPool3d",
    "center_pad",
    "circular_crop",
]

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_AVG_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


# --- grids ------------------------------------------------------------------------------------------------------------


def squared_distance(size: Sequence[int], device: torch.device) -> Tensor:
    """`|2d|^2` of every point of a grid from its centre, (*size): integers, so that no tie is cut by rounding."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for axis, n in enumerate(size):
        d = torch.arange(1 - n, n, 2, device=device)
        total = total + (d * d).view(-1, *(1,) * (len(size) - 1 - axis))
    return total


def _crop(x: Tensor, margin: Sequence[int]) -> Tensor:
    """A view without `margin[axis]` elements at both ends of each spatial axis."""
    first = x.dim() - len(margin)
    for axis, m in enumerate(margin, start=first):
        if m:
            x = x.narrow(axis, m, x.shape[axis] - 2 * m)
    return x


def _pad(x: Tensor, margin: Sequence[int], mode: str) -> Tensor:
    """`margin[axis]` more elements at both ends of each spatial axis, by a mode of `torch.nn.functional.pad`."""
    if mode != "circular":
        # pad's order: last axis first
        return F.pad(x, [m for m in reversed(margin) for _ in range(2)], mode=mode)
    first = x.dim() - len(margin)
    for axis, m in enumerate(margin, start=first):
        if m:  # not F.pad, whose circular mode loses channels_last
            x = torch.cat((x.narrow(axis, x.shape[axis] - m, m), x, x.narrow(axis, 0, m)), axis)
    return x


# --- what the pooling layers share ------------------------------------------------------------------------------------


class _Pool(nn.Module):
    """Fills in the docstrings of the public classes, and checks their input."""

    ndim: ClassVar[int]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "ndim" in cls.__dict__:
            cls.__doc__ = fill(cls.__mro__[1].__doc__, cls.ndim, {})

    def _check(self, x: Tensor) -> None:
        expect_tensor("x", x)
        expect_dense("x", x)
        expect_floating("x", x)
        if x.dim() not in (self.ndim + 1, self.ndim + 2):
            raise ValueError(
                f"x: expected {self.ndim + 2} dimensions (B, C, {self.ndim} spatial), or {self.ndim + 1} without "
                f"batch, got {tuple(x.shape)}"
            )
        if any(n < 1 for n in x.shape[-self.ndim - 1 :]):
            raise ValueError(f"x: expected a channel at least, and no empty spatial axis, got {tuple(x.shape)}")


# --- average ----------------------------------------------------------------------------------------------------------


class _SymmetricAvgPool(_Pool):
    """Average pooling, {n}, that commutes with the symmetries of the grid at every input size.

    In place of stride: it commutes with flips, with exchanged axes (a transposed input gives the transposed output),
    and so with turns by 90 degrees.  `torch.nn.AvgPool{nd}` counts its windows from one corner and leaves
    `r = (N - kernel_size) % stride` elements at the other end of an axis; here, per axis,

    - `r = 0`: the same as `torch.nn.AvgPool{nd}`.
    - `r` even: the windows are centred, `r / 2` elements are left out at each end.
    - `r` odd: no window can be centred.  The two placements that are off by half a pixel, one to either side, are
      averaged: a moving average over 2 elements, then pooling of its `N - 1` values with centred windows.

    Args:
        kernel_size: window in elements, int or one per axis.
        stride: distance of windows in elements, int or one per axis. Default: `kernel_size`.

    With unequal ints per axis it commutes with flips alone (and the exchange of axes that have equal ones).

    Shape:
        - Input: `(B, C, {axes})`, or `(C, {axes})` without batch; floating point.
        - Output: `(B, C, {outs})`, per axis `floor((N - kernel_size) / stride) + 1`; x's dtype, memory format as
          `torch.nn.AvgPool{nd}` has it.

    Raises:
        ValueError: an int below 1 or a wrong number of them; in a call, a wrong rank, or an input smaller than the
            window.
        TypeError: not ints; in a call, not a dense floating-point tensor.
    """

    def __init__(self, kernel_size: IntOrInts, stride: IntOrInts | None = None) -> None:
        super().__init__()
        self.kernel_size = per_axis("kernel_size", kernel_size, self.ndim, 1)
        self.stride = self.kernel_size if stride is None else per_axis("stride", stride, self.ndim, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S')
        self._check(x)
        size = x.shape[-self.ndim :]
        if any(n < k for n, k in zip(size, self.kernel_size, strict=True)):
            raise ValueError(f"x: expected spatial sizes of at least kernel_size {self.kernel_size}, got {tuple(size)}")
        # index(): torch.compile specialises on remainders, and sizes stay dynamic
        left = [index((n - k) % s) for n, k, s in zip(size, self.kernel_size, self.stride, strict=True)]
        dtype = x.dtype
        if self.ndim == 3 and dtype in HALF and x.device.type == "cpu":
            x = x.float()  # torch has no avg_pool3d of half types there
        pool = _AVG_POOL[self.ndim - 1]
        if any(r % 2 for r in left):
            x = pool(x, [1 + r % 2 for r in left], 1)
        return pool(_crop(x, [r // 2 for r in left]), self.kernel_size, self.stride).to(dtype)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class SymmetricAvgPool1d(_SymmetricAvgPool):
    ndim = 1


class SymmetricAvgPool2d(_SymmetricAvgPool):
    ndim = 2


class SymmetricAvgPool3d(_SymmetricAvgPool):
    ndim = 3


# --- blur -------------------------------------------------------------------------------------------------------------

# Radius of the Gaussian's support, in standard deviations.  Damping then is that of the whole Gaussian to 0.02 in 1D,
# 2D and 3D, on the grid and between; at 2.5 the half-integer taps of stride 2 let 0.35 pass in place of 0.29.
_SUPPORT = 3.0


class _BlurPool(_Pool):
    """Subsampling, {n}, behind a Gaussian low-pass, centred on the image at every input size.

    In place of stride where aliasing hurts, as it does rotation and translation: each channel is smoothed by one
    normalised filter, then every `stride`-th sample is taken.  The filter is a Gaussian, the one filter that is
    isotropic and separable, cut off at the radius `3 sigma` (a disk or ball, so the support is isotropic too).  The
    outermost samples lie equally far, `((N - 1) % stride) / 2`, from both ends of an axis; where that is half a pixel
    off the grid, the taps are the Gaussian's values at half-integer offsets, an even number of them along that axis.
    So the layer commutes with flips, exchanged axes and turns by 90 degrees at every size.

    The default sigma is half the distance of the output's samples, by Lowe the least that prevents significant
    aliasing; at stride 2 it is that of the binomial filter (1, 4, 6, 4, 1).  Of a wave along an axis, at the output's
    Nyquist frequency `1 / (2 stride)` 0.29 to 0.31 of the amplitude passes, from 1.5 times that frequency on at most
    0.065, and at the sampling frequency `1 / stride`, which would appear as a constant, at most 0.026.

    Args:
        stride: distance of the output's samples in pixels, int or one per axis; with unequal ones the layer commutes
            with flips alone (and the exchange of axes that have equal ones). Default: 2.
        sigma: standard deviation of the Gaussian in pixels. Default: None, half of `stride` (of the largest).
        padding_mode: what lies outside the image. "replicate" and "reflect" (without repeating the border): a constant
            image stays constant. "circular": likewise, for a periodic image; as the samples are centred, they are
            evenly spaced around the period only where `stride` divides its size. "zeros": a constant fades at the
            border. Default: "replicate".

    There are no parameters and no buffers; any number of channels will do.

    Shape:
        - Input: `(B, C, {axes})`, or `(C, {axes})` without batch; floating point.
        - Output: `(B, C, {outs})`, per axis `ceil(N / stride)`; x's dtype (under autocast that of a convolution),
          channels_last where x is, if torch's convolution of that dtype keeps it.

    Raises:
        ValueError: a stride below 1 or a wrong number of them, a sigma that isn't positive, an unknown padding mode; in
            a call, a wrong rank, or an input too small for the margin that "reflect" or "circular" takes from it.
        TypeError: not ints, or sigma not a number; in a call, not a dense floating-point tensor.

    Source: low-pass before subsampling, Zhang 2019, arXiv 1904.11486; sigma, Lowe 2004 (IJCV 60), Sec. 3.3.
    """

    def __init__(self, stride: IntOrInts = 2, sigma: float | None = None, padding_mode: str = "replicate") -> None:
        super().__init__()
        self.stride = per_axis("stride", stride, self.ndim, 1)
        self.sigma = max(self.stride) / 2 if sigma is None else expect_positive("sigma", sigma)
        self.padding_mode = expect_one_of("padding_mode", padding_mode, PADDING_MODES)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S')
        self._check(x)
        channels, *size = x.shape[-self.ndim - 1 :]
        # twice the position of the first sample; odd where it falls between two pixels.  index(): torch.compile
        # specialises on it, as it decides the filter, and sizes stay dynamic
        doubled = [index((n - 1) % s) for n, s in zip(size, self.stride, strict=True)]
        kernel = self._filter([t % 2 for t in doubled], x)
        margin = [(k - 1 - t) // 2 for k, t in zip(kernel.shape, doubled, strict=True)]
        x = _crop(x, [max(-m, 0) for m in margin])
        margin = [max(m, 0) for m in margin]
        if self.padding_mode != "zeros":
            self._check_margin(x, margin)
            x, margin = _pad(x, margin, self.padding_mode), [0] * self.ndim
        weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
        return _CONV[self.ndim - 1](x, weight, stride=self.stride, padding=margin, groups=channels)

    def _filter(self, between: Sequence[int], x: Tensor) -> Tensor:
        """The filter, taps per axis; an even number of them where `between` is 1, odd where it is 0.

        Computed in every call: tensors kept between calls would be lost on the meta device, rounded by `module.half()`
        and owned by a CUDA graph's pool if captured in one.
        """
        # |2d|^2 of the outermost taps; those nearest to the centre are always in
        farthest = max((2 * _SUPPORT * self.sigma) ** 2, sum(between))
        reach = int(math.sqrt(farthest))
        taps = [reach + 1 - (reach + b) % 2 for b in between]
        distance = squared_distance(taps, x.device)
        # float32 at least, for half types; not float64 always, which some devices lack
        exponent = distance.to(torch.promote_types(x.dtype, torch.float32)) / (-8 * self.sigma**2)
        # softmax is the Gaussian normalised to 1, with no underflow at any sigma
        return exponent.masked_fill(distance > farthest, -math.inf).flatten().softmax(0).view(taps)

    def _check_margin(self, x: Tensor, margin: Sequence[int]) -> None:
        extra = {"circular": 0, "reflect": 1}.get(self.padding_mode)
        if extra is None:
            return
        size = x.shape[-self.ndim :]
        least = tuple(m + extra for m in margin)
        if any(n < at_least for n, at_least in zip(size, least, strict=True)):
            raise ValueError(
                f"x: expected spatial sizes of at least {least} for padding_mode {self.padding_mode!r} with stride "
                f"{self.stride} and sigma {self.sigma:g}, got {tuple(size)}"
            )

    def extra_repr(self) -> str:
        return f"stride={self.stride}, sigma={self.sigma:g}, padding_mode={self.padding_mode!r}"


class BlurPool1d(_BlurPool):
    ndim = 1


class BlurPool2d(_BlurPool):
    ndim = 2


class BlurPool3d(_BlurPool):
    ndim = 3


# --- residual connections ---------------------------------------------------------------------------------------------


def center_pad(x: Tensor, size: Sequence[int] | Tensor) -> Tensor:
    """Pad with zeros, or crop, equally at both ends of each spatial axis.

    For residual connections around convolutions with `padding="full"`, whose output is larger than their input (or with
    "valid", whose output is smaller).

    Args:
        x: `(B, C, *S)`; any dtype.
        size: the spatial size asked for, one int per spatial axis; or a tensor `(*, *, *size)`, whose values don't
            matter.

    Returns:
        `(B, C, *size)`, x's dtype; x itself where it has this size.

    Raises:
        ValueError: a difference of sizes is odd, so that no whole number of pixels centres x; `size` is negative, or
            its number of axes is not x's.
        TypeError: x is not a tensor, or `size` neither a tensor nor a sequence of ints.
    """
    expect_tensor("x", x)
    if isinstance(size, Tensor):
        size = size.shape[2:]
    elif not isinstance(size, Sequence):
        raise TypeError(f"size: expected a sequence of ints or a tensor, got {size!r}")
    else:
        size = [expect_integer("size", n, 0) for n in size]
    if x.dim() < 3 or x.dim() != len(size) + 2:
        raise ValueError(f"size: expected one int per spatial axis of x {tuple(x.shape)}, got {tuple(size)}")
    difference = [wanted - n for wanted, n in zip(size, x.shape[2:], strict=True)]
    if any(d % 2 for d in difference):
        raise ValueError(
            f"x: expected spatial sizes that differ by even numbers from {tuple(size)}, as half a pixel can't be "
            f"centred, got {tuple(x.shape[2:])}; use odd kernel sizes, or an even number of layers with an even one"
        )
    if not any(difference):
        return x
    # pad's order: last axis first; negative numbers crop
    return F.pad(x, [d // 2 for d in reversed(difference) for _ in range(2)])


class Residual(nn.Module):
    """`body(x) + shortcut(x)`, where the shortcut is padded with zeros or cropped around its centre to body's size.

    With `padding="full"` in all convolutions, no biases, and activations that keep zero, the sum of such blocks' output
    over positions does not depend on where content lies on a zero background.

    Args:
        body: `(B, C, *S)` to `(B, O, *S')`, where `S' - S` is even along every axis.
        shortcut: `(B, C, *S)` to `(B, O, *S'')`, likewise; commonly a 1x1 convolution. Default: None, x itself.

    Shape:
        - Input: `(B, C, *S)`, whatever body and shortcut take.
        - Output: `(B, O, *S')`, as body's.

    Raises:
        ValueError: the sizes of body's and the shortcut's output differ by an odd number, or their batch or channels
            differ.
        TypeError: body or shortcut is not a module.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("body", body), ("shortcut", shortcut)):
            if not isinstance(module, nn.Module) and (name, module) != ("shortcut", None):
                raise TypeError(f"{name}: expected a torch.nn.Module, got {type(module).__name__}")
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, O, *S')
        y = self.body(x)
        short = x if self.shortcut is None else self.shortcut(x)
        if short.shape[:2] != y.shape[:2]:  # addition would broadcast one channel
            raise ValueError(
                f"shortcut: expected batch and channels of body's output {tuple(y.shape)}, got {tuple(short.shape)}; "
                "pass a shortcut that maps the channels, such as a 1x1 convolution"
            )
        return y + center_pad(short, y)


# --- circular crop ----------------------------------------------------------------------------------------------------


def circular_crop(x: Tensor, radius: float | None = None) -> Tensor:
    """Zero outside a disk or ball about the image's centre, so that a rotation moves nothing in or out of the image.

    Args:
        x: `(B, C, *S)`, 1 to 3 spatial axes; any dtype.
        radius: in pixels; pixels whose centres lie within it stay. Default: None, half of the smallest spatial size.

    Returns:
        x's shape, dtype and memory format; exactly zero outside, whatever was there.

    Raises:
        ValueError: a wrong rank, or a radius that isn't positive.
        TypeError: x is not a tensor, or radius not a number.
    """
    expect_tensor("x", x)
    if x.dim() not in (3, 4, 5):
        raise ValueError(f"x: expected (B, C, *S) with 1 to 3 spatial axes, got {tuple(x.shape)}")
    size = x.shape[2:]
    radius = min(size) / 2 if radius is None else expect_positive("radius", radius)
    # not masked_fill, which loses channels_last; not a product, which would keep NaN
    return torch.where(squared_distance(size, x.device) <= (2 * radius) ** 2, x, x.new_zeros(()))


class CircularCrop(nn.Module):
    """`circular_crop` as a module.

    Args:
        radius: in pixels. Default: None, half of the smallest spatial size of each input.

    Shape:
        - Input: `(B, C, *S)`, 1 to 3 spatial axes.
        - Output: as the input.

    Raises:
        ValueError, TypeError: as `circular_crop`.
    """

    def __init__(self, radius: float | None = None) -> None:
        super().__init__()
        self.radius = None if radius is None else expect_positive("radius", radius)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *S) -> (B, C, *S)
        return circular_crop(x, self.radius)

    def extra_repr(self) -> str:
        return "" if self.radius is None else f"radius={self.radius:g}"

"""The definition as plain loops, in float64; they share nothing with the package.

K[o, c, d] = sum_i w[o, c, i] * P[i, shell(d)],    y = bias + cross-correlation of x with K.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support import BANDED

Array = NDArray[np.float64]
Index = tuple[int, ...]


def squared_distances(ndim: int, k: int) -> dict[Index, int]:
    """|2d|^2 of every tap."""
    return {tap: sum((2 * t - (k - 1)) ** 2 for t in tap) for tap in itertools.product(range(k), repeat=ndim)}


def support_of(ndim: int, k: int, circular: bool) -> dict[Index, int]:
    """Taps with |d| < k/2, or all, with their |2d|^2."""
    return {tap: square for tap, square in squared_distances(ndim, k).items() if not circular or square < k * k}


def shells_of(ndim: int, k: int, circular: bool) -> list[int]:
    """|2d|^2 of the shells, ascending."""
    return sorted(set(support_of(ndim, k, circular).values()))


def rings_of(family: str, ndim: int, k: int, circular: bool) -> int:
    """Default ring count."""
    if family in ("shell", "custom"):
        return len(shells_of(ndim, k, circular))
    return k // 2 + (2 if family in BANDED and not circular else 1)


def band_of(square: int, outermost: int, k: int, n: int, circular: bool) -> int:
    """Band of a radius: half-open between the edges; without circular support the last band is the largest radius."""
    radius, largest = math.sqrt(square) / 2, math.sqrt(outermost) / 2
    if not circular and radius == largest:
        return n - 1
    edges = np.linspace(0, k // 2 + 0.5, n + 1) if circular else np.linspace(0, largest, n)
    (band,) = [b for b in range(len(edges) - 1) if edges[b] <= radius < edges[b + 1]]
    return band


def profile_value(
    family: str, ndim: int, k: int, n: int, circular: bool, p: Array | None, i: int, square: int
) -> Array | float:
    """P[i, s]; an array (O, C/groups) where sigma is channel-wise."""
    shells = shells_of(ndim, k, circular)
    if family == "shell":
        return float(shells[i] == square)
    if family == "custom":
        assert p is not None
        return p[i, shells.index(square)]
    if family == "binary":
        return float(band_of(square, shells[-1], k, n, circular) == i)
    assert p is not None
    sigma = np.minimum(np.maximum(p[..., i], 1e-2), 2 * n)
    if family == "banded":
        band = band_of(square, shells[-1], k, n, circular)
        return np.exp(-0.5 * ((band - i) / sigma) ** 2) / (2.5066 * sigma)
    mu = i * k / (2 * (n - 1)) if n > 1 else 0.0
    return np.exp(-((math.sqrt(square) / 2 - mu) ** 2) / (2 * sigma**2))


def kernel_by_loops(family: str, ndim: int, k: int, circular: bool, w: Array, p: Array | None) -> Array:
    """K: (O, C/groups, k, ...)."""
    n = w.shape[2]
    values = {
        square: sum(w[:, :, i] * profile_value(family, ndim, k, n, circular, p, i, square) for i in range(n))
        for square in shells_of(ndim, k, circular)
    }
    kernel = np.zeros((*w.shape[:2], *(k,) * ndim))
    for tap, square in support_of(ndim, k, circular).items():
        kernel[(slice(None), slice(None), *tap)] = values[square]
    return kernel


def ungrouped(kernel: Array, groups: int) -> Array:
    """The same kernel, transposed or not, with zeros between the groups."""
    first, second = kernel.shape[:2]
    whole = np.zeros((first, second * groups, *kernel.shape[2:]))
    for a in range(first):
        group = a // (first // groups)
        whole[a, group * second : (group + 1) * second] = kernel[a]
    return whole


def read_from(position: int, size: int, mode: str) -> int | None:
    """Element of the input that a position of the padded axis repeats; None for a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "circular":
        return position % size
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    return -position if position < 0 else 2 * (size - 1) - position  # reflect


def padding_of(padding: Any, ndim: int, k: int, dilation: Index) -> tuple[Index, Index]:
    """Low and high padding per axis."""
    reach = tuple(d * (k - 1) for d in dilation)
    if padding == "same":
        return tuple(r // 2 for r in reach), tuple(r - r // 2 for r in reach)
    if padding == "full":
        return reach, reach
    low = (0,) * ndim if padding == "valid" else (padding,) * ndim if isinstance(padding, int) else tuple(padding)
    return low, low


def positions(size: Index) -> Iterator[Index]:
    return itertools.product(*map(range, size))


def conv_by_loops(
    x: Array, kernel: Array, stride: Index, low: Index, high: Index, dilation: Index, groups: int, mode: str
) -> Array:
    """Cross-correlation, without bias."""
    kernel = ungrouped(kernel, groups)
    size, taps = x.shape[2:], kernel.shape[2:]
    out = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, a, b, d, k, s in zip(size, low, high, dilation, taps, stride, strict=True)
    )
    y = np.zeros((x.shape[0], kernel.shape[0], *out))
    for j in positions(out):
        for tap in positions(taps):
            read = [
                read_from(s * at + d * t - a, n, mode)
                for at, t, s, d, a, n in zip(j, tap, stride, dilation, low, size, strict=True)
            ]
            if None not in read:
                y[(..., *j)] += x[(..., *read)] @ kernel[(..., *tap)].T
    return y


def scatter_by_loops(
    x: Array, kernel: Array, stride: Index, pad: Index, extra: Index, dilation: Index, groups: int
) -> Array:
    """Transposed convolution, without bias: every input value is added to the outputs that it reaches."""
    kernel = ungrouped(kernel, groups)
    size, taps = x.shape[2:], kernel.shape[2:]
    out = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, pad, dilation, taps, extra, strict=True)
    )
    y = np.zeros((x.shape[0], kernel.shape[1], *out))
    for i in positions(size):
        for tap in positions(taps):
            at = tuple(s * j + d * t - p for j, t, s, d, p in zip(i, tap, stride, dilation, pad, strict=True))
            if all(0 <= a < m for a, m in zip(at, out, strict=True)):
                y[(..., *at)] += x[(..., *i)] @ kernel[(..., *tap)]
    return y

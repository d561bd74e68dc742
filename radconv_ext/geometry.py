"""Taps, shells and bands of a radially symmetric kernel: integer geometry, any number of dimensions, computed once.

A kernel of size `k` has its taps at offsets `d` in `{-(k-1)/2 .. (k-1)/2}^ndim`, half-integers for even `k`.
Everything is decided on the integer `|2d|^2`, so two taps share a shell exactly when they lie at the same distance.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

from .checks import expect_flag, expect_integer

__all__ = ["OUTSIDE", "Geometry", "band_geometry", "shell_count", "shell_geometry"]

OUTSIDE = -1  # bucket of a tap that is outside the support


@dataclass(frozen=True)
class Geometry:
    """Which taps share one kernel value.

    `bucket[t]` is the bucket of tap `t` (taps in row-major order, `k**ndim` of them), or `OUTSIDE`.  A bucket is a
    shell (all taps at one distance) or a band (a run of neighbouring shells).
    """

    ndim: int
    kernel_size: int
    circular: bool
    buckets: int
    bucket: tuple[int, ...]  # (k**ndim,)
    radii: tuple[float, ...]  # (shells,) distance of each shell from the centre, in pixels, ascending


def _squared_distances(ndim: int, kernel_size: int) -> list[int]:
    """|2d|^2 of every tap, row-major: (k**ndim,)."""
    axis = [(2 * t - (kernel_size - 1)) ** 2 for t in range(kernel_size)]
    return [sum(square) for square in itertools.product(axis, repeat=ndim)]


def _support(ndim: int, kernel_size: int, circular: bool) -> tuple[list[int], tuple[int, ...]]:
    """|2d|^2 per tap and the ascending list of those in the support; circular means |d| < k/2, strictly."""
    distance = _squared_distances(ndim, kernel_size)
    return distance, tuple(sorted({s for s in distance if not circular or s < kernel_size**2}))


def shell_count(ndim: int, kernel_size: int, circular: bool = True) -> int:
    """Number of shells `D`: distinct tap distances in the support of an `ndim`-dimensional kernel.

    Raises:
        ValueError, TypeError: `ndim` or `kernel_size` is not a positive int, or `circular` not a bool.
    """
    expect_integer("ndim", ndim, 1)
    expect_integer("kernel_size", kernel_size, 1)
    expect_flag("circular", circular)
    return shell_geometry(ndim, kernel_size, circular).buckets


@lru_cache(maxsize=256)
def shell_geometry(ndim: int, kernel_size: int, circular: bool = True) -> Geometry:
    """Geometry with one bucket per shell.

    >>> shell_geometry(2, 9).buckets
    13
    """
    distance, squared = _support(ndim, kernel_size, circular)
    index = {s: i for i, s in enumerate(squared)}
    bucket = tuple(index.get(s, OUTSIDE) for s in distance)
    radii = tuple(math.sqrt(s) / 2 for s in squared)
    return Geometry(ndim, kernel_size, circular, len(squared), bucket, radii)


@lru_cache(maxsize=256)
def band_geometry(ndim: int, kernel_size: int, rings: int, circular: bool = True) -> Geometry:
    """Geometry with one bucket per band, odd `k`: the half-open bands of the released GMR-Conv and SRE-Conv layers.

    Circular support: `rings` bands cut at `linspace(0, k/2, rings + 1)`.  Whole square or cube: edges
    `linspace(0, r_max, rings)`, and the last band holds exactly `r_max`.
    """
    distance, squared = _support(ndim, kernel_size, circular)
    radii = tuple(math.sqrt(s) / 2 for s in squared)
    outer = kernel_size / 2 if circular else radii[-1]
    steps = rings if circular else rings - 1
    # float64 edges on purpose: a radius that ties with an edge must fall where the released layers put it
    edges = [j * (outer / steps) for j in range(steps)] if steps else []
    edges.append(outer)
    band_of = {s: sum(r >= e for e in edges[1:]) for s, r in zip(squared, radii, strict=True)}
    bucket = tuple(band_of.get(s, OUTSIDE) for s in distance)
    return Geometry(ndim, kernel_size, circular, rings, bucket, radii)

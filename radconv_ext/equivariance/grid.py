"""Symmetries of the pixel grid, rotation by any angle, and images to measure with."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import expect_floating, expect_integer, expect_tensor
from ..nn.pooling import squared_distance

__all__ = ["SmoothImage", "Symmetry", "ball", "needed", "relative_error", "rotate", "symmetries"]


def needed(module: str) -> ModuleType:
    """An optional package, imported when something needs it.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        message = f"radconv_ext.equivariance needs {package}: pip install 'radconv_ext[equivariance]'"
        raise ModuleNotFoundError(message, name=package) from error


# ---- the grid's own symmetries ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Symmetry:
    """A map of the pixel grid onto itself: the last axes of a tensor are permuted, then flipped.

    Called on a tensor `(..., *S)` it returns the transformed one, whose sizes are `S` in the order `order`.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def __call__(self, t: Tensor) -> Tensor:
        ndim = len(self.order)
        lead = t.dim() - ndim
        t = t.permute(*range(lead), *(lead + axis for axis in self.order))
        return t.flip([lead + axis for axis in range(ndim) if self.flipped[axis]])

    def __str__(self) -> str:
        if name := _NAMES.get((self.order, self.flipped)):
            return name
        ndim = len(self.order)
        words = []
        if self.order != tuple(range(ndim)):
            words.append(f"axes in order ({', '.join(str(axis - ndim) for axis in self.order)})")
        if axes := [str(axis - ndim) for axis in range(ndim) if self.flipped[axis]]:
            words.append(f"flip of axis {axes[0]}" if len(axes) == 1 else f"flip of axes {', '.join(axes)}")
        return ", ".join(words) or "identity"

    @property
    def is_rotation(self) -> bool:
        """Whether orientation is kept; otherwise the map is a reflection."""
        inversions = sum(a > b for a, b in itertools.combinations(self.order, 2))
        return (inversions + sum(self.flipped)) % 2 == 0


# those of the square that have a common name
_NAMES: dict[tuple[tuple[int, ...], tuple[bool, ...]], str] = {
    ((1, 0), (True, False)): "turn by 90 degrees",
    ((0, 1), (True, True)): "turn by 180 degrees",
    ((1, 0), (False, True)): "turn by 270 degrees",
    ((1, 0), (False, False)): "flip about the diagonal",
    ((1, 0), (True, True)): "flip about the other diagonal",
}


def symmetries(ndim: int) -> list[Symmetry]:
    """2 of the interval, 8 of the square, 48 of the cube; the identity first.

    Raises:
        TypeError, ValueError: `ndim` is not a positive int.
    """
    expect_integer("ndim", ndim, 1)
    return [
        Symmetry(order, flipped)
        for order in itertools.permutations(range(ndim))
        for flipped in itertools.product((False, True), repeat=ndim)
    ]


def ball(size: Sequence[int], radius: float) -> Tensor:
    """Pixels whose centre lies within `radius` of the image centre: interval, disk or ball.

    Args:
        size: pixels along each axis, `S`.
        radius: in pixels; `min(S) / 2` touches the border.

    Returns:
        `(*S,)`, bool.

    Raises:
        TypeError, ValueError: a size is not a positive int.
    """
    sizes = [expect_integer("size", n, 1) for n in size]
    return squared_distance(sizes, torch.device("cpu")) <= (2 * radius) ** 2


def offsets(size: Sequence[int]) -> list[Tensor]:
    """Positions of the pixels from the image centre, one tensor per axis, float64."""
    sizes = [expect_integer("size", n, 1) for n in size]
    return [torch.arange(n, dtype=torch.float64, device="cpu") - (n - 1) / 2 for n in sizes]


def relative_error(found: Tensor, expected: Tensor, inside: Tensor | None = None) -> float:
    """`||found - expected|| / ||expected||` over the pixels `inside` (bool, of the last axes; None: all), in float64.

    0 where both are zero, inf where only `expected` is or the shapes differ, NaN where one holds NaN or Inf.
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = (t.detach().cpu().double() for t in (found, expected))
    if inside is not None:
        found, expected = found[..., inside], expected[..., inside]
    difference, size = float((found - expected).norm()), float(expected.norm())
    if not (math.isfinite(difference) and math.isfinite(size)):
        return math.nan
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


# ---- any angle -------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, degrees: float, axes: tuple[int, int] = (-1, -2)) -> Tensor:
    """Rotate about the image centre, in the plane of two axes; zeros come in from outside.

    Multiples of 90 degrees are exact (pixels are moved; in a plane of two sizes, one even and one odd, only those of
    180).  Every other angle: splines of order 5 in float64, `scipy.ndimage.rotate(order=5, mode="reflect")`.  Relative
    error within 3/4 of the inscribed disk, worst of 3 random images of 64 x 64 pixels and 4 angles, by the largest
    frequency in cycles per pixel; *faded*: images that fade to 0 at the border (scipy 1.17.1, Pillow 13.0.0, torch
    2.13.0, the last two in float32 and float64):

    | method | 1/8, faded | 1/4, faded | 3/8, faded | 1/8 | 1/4 |
    |---|---|---|---|---|---|
    | `scipy.ndimage`, order 5, reflect (this one) | 5.2e-6 | 5.6e-4 | 1.5e-2 | 5.8e-6 | 5.0e-4 |
    | order 5, nearest | 5.2e-6 | 5.6e-4 | 1.5e-2 | 8.4e-6 | 5.0e-4 |
    | order 5, constant or grid-constant | 5.2e-6 | 5.6e-4 | 1.5e-2 | 1.7e-5, 3.7e-5 | 5.0e-4 |
    | order 3, any mode | 3.2e-4 | 7.0e-3 | 5.8e-2 | 3.0e-4 | 6.6e-3 |
    | order 3 without prefilter | 6.4e-2 | 2.1e-1 | 4.0e-1 | 5.9e-2 | 2.1e-1 |
    | `scipy.signal.resample`, twofold, then order 5 | 1.1e-6 | 4.8e-6 | 6.5e-5 | 9.8e-3 | 9.1e-3 |
    | `torch.nn.functional.grid_sample`, bicubic | 2.2e-2 | 3.1e-2 | 1.0e-1 | 2.0e-2 | 3.1e-2 |
    | `PIL.Image.rotate`, bicubic | 4.7e-2 | 8.5e-2 | 8.4e-2 | 4.3e-2 | 8.5e-2 |

    Oversampling is better for images that fade to 0, and fails on those that don't, as most feature maps.

    Args:
        x: `(..., H, W)`, any number of axes, floating point.
        degrees: angle; positive turns counter-clockwise as an image is shown (the first of the axes downwards).
        axes: the plane; the order of the two does not matter.

    Returns:
        x's shape, dtype and device, without gradient.

    Raises:
        TypeError, ValueError: an argument does not fit.
        ModuleNotFoundError: scipy is absent, and the angle is not a multiple of 90 degrees.
    """
    expect_tensor("x", x)
    expect_floating("x", x)
    if not math.isfinite(degrees):
        raise ValueError(f"degrees: expected a finite angle, got {degrees}")
    first, second = plane_axes("axes", axes, x.dim())
    moved = x.detach().movedim((first, second), (-2, -1))
    turns, rest = divmod(degrees, 90)
    height, width = moved.shape[-2:]
    if rest == 0 and (turns % 2 == 0 or (height - width) % 2 == 0):
        turned = torch.rot90(moved, int(turns), (-2, -1))
        if turns % 2:
            margin = (height - width) // 2  # of the turned image (width, height) in the plane (height, width)
            turned = F.pad(turned, (-margin, -margin, margin, margin))
    else:
        ndimage = needed("scipy.ndimage")
        pixels = moved.cpu().double().numpy()
        spline = ndimage.rotate(pixels, degrees, axes=(-1, -2), reshape=False, order=5, mode="reflect")
        turned = torch.from_numpy(spline) * _comes_from_inside(height, width, degrees)
    return turned.to(x.device, x.dtype).movedim((-2, -1), (first, second)).contiguous()


def plane_axes(name: str, axes: Sequence[int], dim: int) -> tuple[int, int]:
    """The two axes of a plane, ascending and non-negative."""
    try:
        first, second = axes
        ascending = sorted(range(dim)[axis] for axis in (first, second))
    except (IndexError, TypeError, ValueError):
        raise ValueError(f"{name}: expected two axes of a tensor with {dim}, got {axes!r}") from None
    if ascending[0] == ascending[1]:
        raise ValueError(f"{name}: expected two different axes, got {axes!r}")
    return ascending[0], ascending[1]


def _turned_back(down: Tensor, right: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Where the pixel at (down, right) of a rotated image comes from."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * down + s * right, c * right - s * down


def _comes_from_inside(height: int, width: int, degrees: float) -> Tensor:
    """Pixels of the rotated image that lie within the area of the original's pixels: (height, width)."""
    rows, columns = offsets((height, width))
    down, right = _turned_back(rows[:, None], columns, degrees)
    return (down.abs() <= height / 2) & (right.abs() <= width / 2)


# ---- images whose rotation is known ----------------------------------------------------------------------------------

WAVES = 24
LARGEST_FREQUENCY = 1 / 8  # cycles per pixel: interpolation is then exact to 1e-5, and nothing aliases at stride 2


@dataclass(frozen=True)
class SmoothImage:
    """Random waves that fade to 0 at the inscribed disk's border, given by a formula: its rotation is exact.

    24 plane waves per image, of frequencies uniform within 1/8 cycles per pixel (a wave takes at least 8 pixels), times
    `(1 - (r/R)^2)^3` within the radius `R = min(S) / 2`.
    """

    size: tuple[int, ...]  # (B, C, *S)
    seed: int

    def __call__(self, degrees: float = 0.0, axes: tuple[int, int] = (-1, -2)) -> Tensor:
        """The image, rotated as `rotate` does: (B, C, *S), float64."""
        spatial = self.size[2:]
        positions = list(torch.meshgrid(*offsets(spatial), indexing="ij"))
        if degrees:
            first, second = (axis - 2 for axis in plane_axes("axes", axes, len(self.size)))
            positions[first], positions[second] = _turned_back(positions[first], positions[second], degrees)
        p = torch.stack(positions).flatten(1)  # (ndim, pixels)

        draw = torch.Generator("cpu").manual_seed(self.seed)
        drawn: dict[str, Any] = {"generator": draw, "dtype": torch.float64, "device": "cpu"}
        directions = torch.randn(WAVES, len(spatial), **drawn)
        radii = torch.rand(WAVES, 1, **drawn) ** (1 / len(spatial))
        frequencies = LARGEST_FREQUENCY * radii * directions / directions.norm(dim=1, keepdim=True)
        strength = torch.randn(2, *self.size[:2], WAVES, **drawn) / WAVES**0.5
        phase = 2 * math.pi * frequencies @ p  # (waves, pixels)
        waves = strength[0] @ phase.cos() + strength[1] @ phase.sin()  # (B, C, pixels)
        inside = (1 - p.square().sum(0) / (min(spatial) / 2) ** 2).clamp_min(0)
        return (waves * inside**3).view(self.size)

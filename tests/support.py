"""What several test files share: the public functions by family and dimension, random operands, error measures, modules
as after training, the authors' released layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import radconv_ext
from radconv_ext.equivariance import Symmetry

FAMILIES = ("gaussian", "banded", "binary", "shell", "custom")
ENGINES = ("reference", "cpu")
BANDED = ("banded", "binary")  # odd kernel sizes only
PARAMETER_OF = {"gaussian": "sigma", "banded": "sigma", "custom": "profile"}  # the other families have none


class Operands(NamedTuple):
    """Tensors of one call; `p` is sigma, the profile, or None."""

    x: Tensor  # (B, C, *S)
    w: Tensor  # (O, C/groups, n); transposed: (C, O/groups, n)
    p: Tensor | None
    bias: Tensor | None  # (O,)


def call(family: str, ndim: int, operands: Operands, *, transposed: bool = False, **options: Any) -> Tensor:
    """The public convolution function of this family and dimension."""
    x, w, p, bias = operands
    suffix = f"{'conv_transpose' if transposed else 'conv'}{ndim}d"
    if family in ("gaussian", "banded"):
        return getattr(radconv_ext, f"gmr_{suffix}")(x, w, p, bias, family=family, **options)
    if family == "binary":
        return getattr(radconv_ext, f"sre_{suffix}")(x, w, bias, **options)
    return getattr(radconv_ext, f"radial_{suffix}")(x, w, p, bias, **options)


def dense_kernel(family: str, ndim: int, w: Tensor, p: Tensor | None, **options: Any) -> Tensor:
    """The public dense-kernel function of this family and dimension."""
    if family in ("gaussian", "banded"):
        return getattr(radconv_ext, f"gmr_kernel{ndim}d")(w, p, family=family, **options)
    if family == "binary":
        return getattr(radconv_ext, f"sre_kernel{ndim}d")(w, **options)
    return getattr(radconv_ext, f"radial_kernel{ndim}d")(w, p, **options)


def default_rings(family: str, ndim: int, kernel_size: int, circular: bool) -> int:
    """Ring count of a family when nothing else is asked for; a custom profile gets one less than it has shells."""
    shells = radconv_ext.shell_count(ndim, kernel_size, circular)
    if family == "shell":
        return shells
    if family == "custom":
        return max(shells - 1, 1)
    return kernel_size // 2 + (1 if circular or family == "gaussian" else 2)


def operands(
    family: str,
    ndim: int,
    kernel_size: int,
    size: Sequence[int],
    *,
    rings: int | None = None,
    circular: bool = True,
    batch: int = 2,
    in_channels: int = 3,
    out_channels: int = 4,
    groups: int = 1,
    transposed: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Operands:
    """Random operands; drawn in float64, so that every dtype sees the same numbers up to its rounding."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    n = default_rings(family, ndim, kernel_size, circular) if rings is None else rings
    first, second = (in_channels, out_channels) if transposed else (out_channels, in_channels)
    p = None
    if family == "custom":
        p = normal(n, radconv_ext.shell_count(ndim, kernel_size, circular))
    elif family in PARAMETER_OF:
        p = radconv_ext.default_sigma(kernel_size, n, dtype=torch.float64) * torch.exp(normal(n) / 2)
    drawn = Operands(
        normal(batch, in_channels, *size),
        normal(first, second // groups, n),
        p,
        normal(out_channels) if bias else None,
    )
    return Operands(*(None if t is None else t.to(dtype) for t in drawn))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected value; infinite where something isn't finite."""
    assert got.shape == expected.shape, f"shapes {tuple(got.shape)} and {tuple(expected.shape)} differ"
    expected = expected.detach().double()
    difference = (got.detach().double() - expected).abs().max()
    return float((difference / expected.abs().max()).nan_to_num(nan=float("inf")))


def gradients(output: Tensor, by: Iterable[Tensor | None], upstream: Tensor) -> list[Tensor]:
    """Gradients by those tensors that are there."""
    return list(torch.autograd.grad(output, [t for t in by if t is not None], upstream))


def largest_violation(f: Callable[[Tensor], Tensor], x: Tensor, among: Iterable[Symmetry]) -> float:
    """Largest difference between f(g x) and g f(x)."""
    y = f(x)
    return max(relative_error(f(g(x)), g(y)) for g in among)


def randomised(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Numbers as after training: every ring its own width."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in (t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()):
            t.add_(torch.randn(t.shape, generator=random, dtype=torch.float64).to(t.dtype), alpha=0.3)
    return layer


class Bumps(nn.Module):
    """A profile of the caller's, with a parameter of its own."""

    def __init__(self, rings: int, shells: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(rings, 1, dtype=dtype) + 0.5)
        self.register_buffer("shell", torch.arange(shells, dtype=dtype))

    def forward(self) -> Tensor:  # (n, D)
        rings = torch.arange(len(self.scale), dtype=self.scale.dtype, device=self.scale.device)
        return torch.cos(self.scale * self.shell + rings.unsqueeze(1))


def released_kernel(layer: nn.Module) -> Tensor:
    make = layer._make_weight_matrix if hasattr(layer, "_make_weight_matrix") else layer._make_conv_weight
    return make(layer.weight)

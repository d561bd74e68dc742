"""Profile families: what value ring `i` takes on shell `s`.

Each family is one `Family` object in `FAMILIES`; `profile` returns the matrix over the buckets of `geometry` (shells,
or bands for the families that are constant on a band), differentiable in sigma, in sigma's dtype and on its device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import expect_integer
from .geometry import Geometry, band_geometry, shell_count, shell_geometry

__all__ = ["FAMILIES", "SIGMA_MIN", "SQRT_2PI", "Family", "default_sigma", "fwhm_sigma", "ring_centres", "sigma_max"]

SIGMA_MIN = 1e-2
_FWHM = 2.355  # full width at half maximum of a Gaussian, in sigmas, as the paper rounds it
SQRT_2PI = 2.5066  # as the released package rounds it: its numbers depend on it


def sigma_max(rings: int) -> float:
    """Largest sigma; larger ones are clamped to it."""
    return 2.0 * rings


def ring_centres(kernel_size: int, rings: int) -> list[float]:
    """Centres `mu_i = i * k / (2 (n - 1))` of the Gaussian rings, in pixels; a single ring sits at 0."""
    return [i * _spacing(kernel_size, rings) for i in range(rings)]


def _spacing(kernel_size: int, rings: int) -> float:
    return kernel_size / (2 * max(rings - 1, 1))


def fwhm_sigma(kernel_size: int, rings: int) -> float:
    """Sigma whose full width at half maximum is the distance between two rings: where training starts."""
    return _spacing(kernel_size, rings) / _FWHM


def default_sigma(kernel_size: int, rings: int | None = None, **tensor_options: Any) -> Tensor:
    """Initial sigma of every ring, shape `(n,)`: `k / (2 (n - 1)) / 2.355`; `n` defaults to `k // 2 + 1`.

    Source: GMR-Conv paper, Sec. 3.2 (FWHM equal to the ring width).
    """
    size = expect_integer("kernel_size", kernel_size, 1)
    rings = size // 2 + 1 if rings is None else expect_integer("rings", rings, 1)
    return torch.full((rings,), fwhm_sigma(kernel_size, rings), **tensor_options)


@dataclass(frozen=True)
class Family:
    """One profile family.  Subclasses say what the profile is, and which kernel size a ring count implies."""

    name: str
    has_sigma: bool = False
    has_profile: bool = False  # the caller passes the profile matrix itself
    odd_only: bool = False  # bands are defined for odd kernel sizes only
    one_hot: bool = False  # constant on bands: buckets are bands, not shells

    def kernel_size_for(self, ndim: int, rings: int, circular: bool) -> int | None:
        """Odd kernel size that has `rings` rings by default: `k // 2 + 1`, one more for bands of a cube."""
        size = 2 * rings - (1 if circular or not self.one_hot else 3)
        return size if size >= 1 else None

    def rings_for(self, ndim: int, kernel_size: int, circular: bool) -> int:
        """Ring count of a kernel of this size when nothing else is asked for."""
        return kernel_size // 2 + (1 if circular or not self.one_hot else 2)

    def geometry(self, ndim: int, kernel_size: int, rings: int, circular: bool) -> Geometry:
        """Buckets on which this family's kernel is constant."""
        if self.one_hot:
            return band_geometry(ndim, kernel_size, rings, circular)
        return shell_geometry(ndim, kernel_size, circular)

    def profile(self, geometry: Geometry, rings: int, sigma: Tensor | None, **tensor_options: Any) -> Tensor:
        """Profile over the buckets of `geometry`: (n, buckets), or (O, C/groups, n, buckets) for channel-wise sigma."""
        raise NotImplementedError

    def sigma_gradient(self, geometry: Geometry, rings: int, sigma: Tensor, grad_profile: Tensor) -> Tensor:
        """Gradient by sigma from the gradient by the profile, written out so that it can be differentiated again."""
        raise NotImplementedError


def _clamped(sigma: Tensor, rings: int) -> Tensor:
    return sigma.clamp(SIGMA_MIN, sigma_max(rings)).unsqueeze(-1)


def _where_inside(sigma: Tensor, rings: int, gradient: Tensor) -> Tensor:
    """The gradient of the clamp: none outside its bounds, and none by a NaN, as torch.clamp has it."""
    return gradient.where((sigma >= SIGMA_MIN) & (sigma <= sigma_max(rings)), 0.0)


class _Gaussian(Family):
    """`P[i, s] = exp(-(r_s - mu_i)^2 / (2 sigma_i^2))`.  GMR-Conv paper, Sec. 3.2, Eq. 1-3."""

    def _squared_offset(self, geometry: Geometry, rings: int, sigma: Tensor) -> Tensor:
        mu = torch.tensor(ring_centres(geometry.kernel_size, rings), dtype=sigma.dtype, device=sigma.device)
        radius = torch.tensor(geometry.radii, dtype=sigma.dtype, device=sigma.device)
        return (radius - mu.unsqueeze(-1)) ** 2  # (n, D)

    def profile(self, geometry: Geometry, rings: int, sigma: Tensor | None, **tensor_options: Any) -> Tensor:
        assert sigma is not None
        return torch.exp(-self._squared_offset(geometry, rings, sigma) / (2 * _clamped(sigma, rings) ** 2))

    def sigma_gradient(self, geometry: Geometry, rings: int, sigma: Tensor, grad_profile: Tensor) -> Tensor:
        slope = self.profile(geometry, rings, sigma) * self._squared_offset(geometry, rings, sigma)
        return _where_inside(sigma, rings, (grad_profile * slope / _clamped(sigma, rings) ** 3).sum(-1))


class _Banded(Family):
    """`P[i, b] = exp(-0.5 ((b - i) / sigma_i)^2) / (2.5066 sigma_i)` over bands `b`: package GMR-Conv 1.0.3."""

    def _squared_offset(self, rings: int, sigma: Tensor) -> Tensor:
        index = torch.arange(rings, dtype=sigma.dtype, device=sigma.device)
        return (index - index.unsqueeze(-1)) ** 2  # (n, n)

    def profile(self, geometry: Geometry, rings: int, sigma: Tensor | None, **tensor_options: Any) -> Tensor:
        assert sigma is not None
        width = _clamped(sigma, rings)
        return torch.exp(-0.5 * self._squared_offset(rings, sigma) / width**2) / (SQRT_2PI * width)

    def sigma_gradient(self, geometry: Geometry, rings: int, sigma: Tensor, grad_profile: Tensor) -> Tensor:
        width = _clamped(sigma, rings)
        slope = self.profile(geometry, rings, sigma) * (self._squared_offset(rings, sigma) / width**2 - 1) / width
        return _where_inside(sigma, rings, (grad_profile * slope).sum(-1))


class _Identity(Family):
    """One free weight per bucket: identity profile."""

    def profile(self, geometry: Geometry, rings: int, sigma: Tensor | None, **tensor_options: Any) -> Tensor:
        return torch.eye(rings, **tensor_options)


class _Shell(_Identity):
    """One free weight per distance (Symm.-Conv, Dudar & Semenov 2019): `n = D`."""

    def kernel_size_for(self, ndim: int, rings: int, circular: bool) -> int | None:
        size = 1
        while (count := shell_count(ndim, size, circular)) < rings:
            size += 2
        return size if count == rings else None

    def rings_for(self, ndim: int, kernel_size: int, circular: bool) -> int:
        return shell_count(ndim, kernel_size, circular)


class _Custom(_Shell):
    """The caller's own `(n, D)` matrix; any `n`."""

    def profile(self, geometry: Geometry, rings: int, sigma: Tensor | None, **tensor_options: Any) -> Tensor:
        assert sigma is not None
        return sigma

    def sigma_gradient(self, geometry: Geometry, rings: int, sigma: Tensor, grad_profile: Tensor) -> Tensor:
        return grad_profile


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _Gaussian("gaussian", has_sigma=True),
        _Banded("banded", has_sigma=True, odd_only=True, one_hot=True),
        _Identity("binary", odd_only=True, one_hot=True),
        _Shell("shell"),
        _Custom("custom", has_profile=True),
    )
}

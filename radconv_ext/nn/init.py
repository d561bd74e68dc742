"""Initialisation: Kaiming's rule with the fan that a radial kernel really has.

The values of a radial kernel are not independent, so neither the number of its weights nor that of its taps is the fan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import expect_one_of
from ..geometry import OUTSIDE
from ..profiles import FAMILIES, fwhm_sigma

if TYPE_CHECKING:
    from .base import RadialConvNd

__all__ = ["INITS", "effective_fan", "kaiming_normal_", "kaiming_uniform_", "reset"]


def _energy(layer: RadialConvNd, p: Tensor | None) -> float:
    """`sum_{i, d} P[i, shell(d)]^2` over rings and taps."""
    geometry = layer.geometry
    taps = torch.tensor([b for b in geometry.bucket if b != OUTSIDE], device="cpu").bincount(minlength=geometry.buckets)
    p = None if p is None else p.detach().to("cpu", torch.float64)
    values = FAMILIES[layer.family].profile(geometry, layer.num_rings, p, dtype=torch.float64, device="cpu")
    energy = float((values.square() * taps).sum())
    if not 0 < energy < math.inf:
        raise ValueError(f"profile: expected finite values that are not all 0, got a sum of squares of {energy:g}")
    return energy


def effective_fan(layer: RadialConvNd) -> float:
    """Effective fan-in of a radial layer at its present sigma or profile.

    That is `C/groups * sum_{i, d} P[i, shell(d)]^2` over rings and taps; of a transposed layer, over the product of the
    strides. With independent inputs of variance v, an interior output pixel has the variance `Var(w) * fan * v`.

    Args:
        layer: any radial convolution of `radconv_ext.nn`, not lazy, not on the meta device.
    """
    return _fan(layer, layer._parameter())


def _fan(layer: RadialConvNd, p: Tensor | None) -> float:
    if layer.in_channels is None:
        raise ValueError("layer: expected one that knows its channels, got a lazy one; call it once before")
    fan = layer.in_channels // layer.groups * _energy(layer, p)
    return fan / math.prod(layer.stride) if layer.transposed else fan


def _started_fan(layer: RadialConvNd) -> float:
    """Effective fan at the sigma where training starts."""
    if layer.log_sigma is None:
        return effective_fan(layer)
    # not read from the parameter, which may be one rank's shard of it
    return _fan(layer, torch.full((layer.num_rings,), fwhm_sigma(layer.kernel_size[0], layer.num_rings), device="cpu"))


def _ring_fan(layer: RadialConvNd) -> float:
    return float(layer.weight.shape[1] * layer.num_rings)


def _tap_fan(layer: RadialConvNd) -> float:
    return float(layer.weight.shape[1] * math.prod(layer.kernel_size))


# rule -> the fans that weights and bias are drawn by
INITS: dict[str, tuple[Callable[[RadialConvNd], float], Callable[[RadialConvNd], float]]] = {
    "effective": (_started_fan, _started_fan),
    "paper": (_ring_fan, _ring_fan),  # GMR-Conv paper: as if (O, C, n) were the kernel
    "package": (_tap_fan, _ring_fan),  # package GMR-Conv 1.0.3: the dense kernel's; bias by the rings'
}


def reset(layer: RadialConvNd) -> None:
    """Draw weights and bias by the rule `layer.init`: uniformly with Kaiming's gain for `a = sqrt(5)`, as torch does.

    On the meta device, and in a lazy layer, there is nothing to draw.
    """
    if is_lazy(layer.weight) or layer.weight.is_meta:
        return
    weight_fan, bias_fan = (fan(layer) for fan in INITS[layer.init])
    _uniform(layer.weight, nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(weight_fan))
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -1 / math.sqrt(bias_fan), 1 / math.sqrt(bias_fan))


def _uniform(weight: Tensor, std: float) -> Tensor:
    return nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)


def _std(layer: RadialConvNd, nonlinearity: str, a: float) -> float:
    expect_one_of("nonlinearity", nonlinearity, ("linear", "relu", "leaky_relu", "selu", "sigmoid", "tanh"))
    gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    return gain / math.sqrt(effective_fan(layer))


def kaiming_normal_(layer: RadialConvNd, nonlinearity: str = "relu", a: float = 0.0) -> None:
    """Draw a layer's ring weights from a normal distribution, with the effective fan at its present sigma.

    `torch.nn.init.kaiming_normal_(layer.weight)` would take channels times rings for the fan.

    Args:
        layer: any radial convolution of `radconv_ext.nn`.
        nonlinearity: what follows the layer, as in `torch.nn.init.calculate_gain`. Default: "relu".
        a: negative slope of "leaky_relu". Default: 0.

    Raises:
        ValueError: an unknown nonlinearity.

    Source: He et al. 2015 (arXiv 1502.01852), Eq. 10, with the effective fan.
    """
    nn.init.normal_(layer.weight, std=_std(layer, nonlinearity, a))


def kaiming_uniform_(layer: RadialConvNd, nonlinearity: str = "relu", a: float = 0.0) -> None:
    """As `kaiming_normal_`, from a uniform distribution."""
    _uniform(layer.weight, _std(layer, nonlinearity, a))

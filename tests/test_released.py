"""Agreement with the authors' released layers: `banded` is GMR-Conv 1.0.3's kernel, `sre_conv` is SRE-Conv 1.0.2's.

The released 2D layer of GMR-Conv runs a depthwise form that ignores the padding mode and fails with groups, its
`dw_fwd=False` lands in the argument `clip_sigma`, and neither package can construct its 1D or transposed layers; where
that matters, the layer supplies its dense kernel and torch the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import ENGINES, gradients, relative_error, released_kernel
from torch import Tensor, nn

import radconv_ext
from benchmarks.third_party import gmr_module, sre_module

CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
SIZE = {2: (13, 12), 3: (6, 5, 7)}

# Largest difference over the largest value, output and every gradient.
TOLERANCE = {
    torch.float64: 1e-14,  # worst seen 3.3e-15, 3D k=11
    torch.float32: 5e-6,  # worst seen 2.4e-6, gradient by log-sigma at k=3: its terms cancel
}


@pytest.fixture(scope="module")
def gmr() -> ModuleType:
    return gmr_module()


@pytest.fixture(scope="module")
def sre() -> ModuleType:
    return sre_module()


def randomise(layer: nn.Module, seed: int) -> nn.Module:
    """Numbers as after training: every ring its own sigma, weights and bias of order one."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            parameter.copy_(parameter + drawn / 2 if name == "log_sigmas" else drawn)
    return layer


def gmr_layer(gmr: ModuleType, ndim: int, k: int, circular: bool, **options: Any) -> nn.Module:
    kind = {2: gmr.GMR_Conv2d, 3: gmr.GMR_Conv3d}[ndim]
    return randomise(kind(4, 6, k, force_circular=circular, **options), seed=k)


def sre_layer(sre: ModuleType, ndim: int, k: int, circular: bool, **options: Any) -> nn.Module:
    """SRE-Conv's layers don't pass `force_circular` on; their common base takes it."""
    kind = {2: sre.SRE_Conv2d, 3: sre.SRE_Conv3d}[ndim]
    layer = kind.__new__(kind)
    options = {"stride": 1, "padding": 0, "dilation": 1, **options}
    for name in ("stride", "padding", "dilation"):
        if isinstance(options[name], int):
            options[name] = (options[name],) * ndim
    sre._SRE_ConvNd.__init__(layer, 4, 6, (k,) * ndim, force_circular=circular, **options)
    return randomise(layer, seed=k)


def radial(layer: nn.Module, ndim: int, x: Tensor, engine: str, transposed: bool = False, **options: Any) -> Tensor:
    """This package on the layer's parameters."""
    name = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
    options = {"kernel_size": layer.kernel_size[0], "circular": layer.force_circular, "engine": engine, **options}
    if hasattr(layer, "log_sigmas"):
        sigma = layer.log_sigmas.exp()
        return getattr(radconv_ext, f"gmr_{name}")(x, layer.weight, sigma, layer.bias, family="banded", **options)
    return getattr(radconv_ext, f"sre_{name}")(x, layer.weight, layer.bias, **options)


def worst_difference(
    layer: nn.Module, x: Tensor, released: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]
) -> float:
    """Largest relative difference of the outputs and of the gradients by x, weight, log-sigma and bias."""
    x = x.clone().requires_grad_()
    by = [x, *layer.parameters()]
    expected = released(x)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(x.dtype)
    got = ours(x)
    pairs = zip((got, *gradients(got, by, upstream)), (expected, *gradients(expected, by, upstream)), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


def random_input(ndim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, *SIZE[ndim], generator=torch.Generator().manual_seed(1)).to(dtype)


PRECISIONS = [
    pytest.param("reference", torch.float64, id="reference-float64"),
    pytest.param("reference", torch.float32, id="reference-float32"),
    pytest.param("cpu", torch.float32, id="cpu-float32"),
]
SIZES = [pytest.param(ndim, k, id=f"{ndim}d-k{k}") for ndim in (2, 3) for k in (3, 5, 7, 9, 11)]
SUPPORTS = [pytest.param(True, id="circular"), pytest.param(False, id="full")]


@pytest.mark.parametrize("engine, dtype", PRECISIONS)
@pytest.mark.parametrize("circular", SUPPORTS)
@pytest.mark.parametrize("ndim, k", SIZES)
@pytest.mark.parametrize("package", ["gmr", "sre"])
def test_conv(
    request: pytest.FixtureRequest, package: str, ndim: int, k: int, circular: bool, engine: str, dtype: torch.dtype
) -> None:
    make = {"gmr": gmr_layer, "sre": sre_layer}[package]
    layer = make(request.getfixturevalue(package), ndim, k, circular, padding=k // 2).to(dtype)
    assert layer.weight.shape[-1] == k // 2 + (1 if circular else 2)
    found = worst_difference(
        layer, random_input(ndim, dtype), layer, lambda x: radial(layer, ndim, x, engine, padding="same")
    )
    assert found <= TOLERANCE[dtype]


@pytest.mark.parametrize("circular", SUPPORTS)
@pytest.mark.parametrize("ndim, k", SIZES)
def test_kernel(gmr: ModuleType, sre: ModuleType, ndim: int, k: int, circular: bool) -> None:
    ours = gmr_layer(gmr, ndim, k, circular).double()
    theirs = released_kernel(ours)
    options = {"kernel_size": k, "circular": circular}
    kernel = getattr(radconv_ext, f"gmr_kernel{ndim}d")(ours.weight, ours.log_sigmas.exp(), family="banded", **options)
    assert torch.equal(kernel == 0, theirs == 0)
    assert relative_error(kernel, theirs) <= 1e-15  # worst seen 2.0e-16

    layer = sre_layer(sre, ndim, k, circular)
    assert torch.equal(getattr(radconv_ext, f"sre_kernel{ndim}d")(layer.weight, **options), released_kernel(layer))


@pytest.mark.parametrize("ndim, k", SIZES)
@pytest.mark.parametrize("circular", SUPPORTS)
def test_ring_count_is_implied(gmr: ModuleType, sre: ModuleType, ndim: int, k: int, circular: bool) -> None:
    """The kernel size follows from the released layers' own ring count."""
    for layer in (gmr_layer(gmr, ndim, k, circular), sre_layer(sre, ndim, k, circular)):
        y = radial(layer, ndim, random_input(ndim), "reference", kernel_size=None, padding="full")
        assert tuple(y.shape[2:]) == tuple(s + k - 1 for s in SIZE[ndim])


@pytest.mark.parametrize("k", [3, 5, 9, 11], ids="k{}".format)
def test_initial_sigma(gmr: ModuleType, k: int) -> None:
    """An untrained layer's sigma is `default_sigma`."""
    layer = gmr.GMR_Conv2d(4, 6, k)
    assert relative_error(layer.log_sigmas.exp(), radconv_ext.default_sigma(k)) <= 2e-7  # worst seen 6.4e-8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim", [2, 3], ids="{}d".format)
def test_sigma_is_clamped(gmr: ModuleType, ndim: int, engine: str) -> None:
    """Sigmas beyond `[0.01, 2n]` act as the bounds, and get no gradient."""
    layer = gmr_layer(gmr, ndim, 7, True, padding=3)
    with torch.no_grad():
        layer.log_sigmas.copy_(torch.tensor([1e-3, 0.8, 50.0, 1e-2 / 3]).log())
    x = random_input(ndim)
    assert worst_difference(layer, x, layer, lambda t: radial(layer, ndim, t, engine, padding=3)) <= TOLERANCE[x.dtype]
    (by_sigma,) = torch.autograd.grad(radial(layer, ndim, x, engine, padding=3).square().sum(), layer.log_sigmas)
    assert by_sigma[1] != 0
    assert by_sigma[[0, 2, 3]].tolist() == [0, 0, 0]


RINGS = [
    pytest.param(k, n, id=f"k{k}-n{n}")
    for k, n in ((3, 3), (5, 2), (5, 5), (7, 2), (7, 3), (7, 7), (9, 3), (9, 9), (11, 4), (11, 11), (11, 13))
]


@pytest.mark.parametrize("k, n", RINGS)
@pytest.mark.parametrize("circular", SUPPORTS)
@pytest.mark.parametrize("ndim", [2, 3], ids="{}d".format)
def test_ring_count_is_free(gmr: ModuleType, sre: ModuleType, ndim: int, k: int, n: int, circular: bool) -> None:
    """Band edges fall on radii here (k=9, n=9: on every integer radius and a half), empty bands included."""
    options = {"kernel_size": k, "circular": circular}
    layer = gmr_layer(gmr, ndim, k, circular, num_rings=n).double()
    make = getattr(radconv_ext, f"gmr_kernel{ndim}d")
    kernel = make(layer.weight, layer.log_sigmas.exp(), family="banded", **options)
    assert relative_error(kernel, released_kernel(layer)) <= 1e-15  # worst seen 1.8e-16

    layer = sre_layer(sre, ndim, k, circular, sre_k=n)
    assert torch.equal(getattr(radconv_ext, f"sre_kernel{ndim}d")(layer.weight, **options), released_kernel(layer))


@dataclass(frozen=True)
class Variant:
    """Options beyond the default ones; the released layer's dense kernel and torch's convolution serve them all."""

    id: str
    layer: dict[str, Any] = field(default_factory=dict)  # of the released layer
    pad: int = 0  # explicit, with `mode`
    mode: str = "zeros"
    options: dict[str, Any] = field(default_factory=dict)  # of the convolution


VARIANTS = [
    Variant("valid"),
    Variant("no-bias", layer={"bias": False}),
    Variant("stride", options={"stride": 2, "padding": 2}),
    Variant("dilation", options={"dilation": 2, "padding": 3}),
    Variant("groups", layer={"groups": 2}, options={"groups": 2, "padding": 1}),
    Variant("all", layer={"groups": 2}, options={"stride": 3, "dilation": 2, "groups": 2, "padding": 4}),
    Variant("reflect", pad=2, mode="reflect"),
    Variant("replicate", pad=2, mode="replicate"),
    Variant("circular-padding", pad=2, mode="circular"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.id)
@pytest.mark.parametrize("package", ["gmr", "sre"])
@pytest.mark.parametrize("ndim, k", [pytest.param(2, 5, id="2d-k5"), pytest.param(3, 3, id="3d-k3")])
def test_options(
    request: pytest.FixtureRequest, package: str, ndim: int, k: int, variant: Variant, engine: str
) -> None:
    make = {"gmr": gmr_layer, "sre": sre_layer}[package]
    layer = make(request.getfixturevalue(package), ndim, k, True, **variant.layer)

    def released(x: Tensor) -> Tensor:
        if variant.mode != "zeros":
            x = F.pad(x, (variant.pad,) * 2 * ndim, mode=variant.mode)
        return CONV[ndim](x, released_kernel(layer), layer.bias, **variant.options)

    own = variant.options if variant.mode == "zeros" else {"padding": variant.pad, "padding_mode": variant.mode}
    found = worst_difference(layer, random_input(ndim), released, lambda x: radial(layer, ndim, x, engine, **own))
    assert found <= TOLERANCE[torch.float32]


LAYER_OPTIONS = [
    pytest.param({"stride": 2, "padding": 2}, id="stride"),
    pytest.param({"dilation": 2, "padding": 4}, id="dilation"),
    pytest.param({"padding": "same"}, id="same"),
    pytest.param({"padding": "valid"}, id="valid"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", LAYER_OPTIONS)
@pytest.mark.parametrize("package", ["gmr", "sre"])
def test_layer_options(request: pytest.FixtureRequest, package: str, options: dict[str, Any], engine: str) -> None:
    """The released 2D layers' own forward, where it serves the option: GMR-Conv's depthwise form among them."""
    layer = {"gmr": gmr_layer, "sre": sre_layer}[package](request.getfixturevalue(package), 2, 5, True, **options)
    found = worst_difference(layer, random_input(2), layer, lambda x: radial(layer, 2, x, engine, **options))
    assert found <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("package", ["gmr", "sre"])
@pytest.mark.parametrize("ndim", [2, 3], ids="{}d".format)
@pytest.mark.parametrize("engine", ENGINES)
def test_inference(request: pytest.FixtureRequest, package: str, ndim: int, engine: str) -> None:
    """The released layers in eval mode convolve with a dense kernel that they keep."""
    layer = {"gmr": gmr_layer, "sre": sre_layer}[package](request.getfixturevalue(package), ndim, 5, True, padding=2)
    layer.eval()
    with torch.inference_mode():
        x = random_input(ndim)
        assert relative_error(radial(layer, ndim, x, engine, padding=2), layer(x)) <= TOLERANCE[torch.float32]


TRANSPOSED = [
    pytest.param({"stride": 2, "padding": 1, "output_padding": 1}, id="stride"),
    pytest.param({"dilation": 2, "padding": 3}, id="dilation"),
    pytest.param({"groups": 2, "stride": 3}, id="groups"),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", TRANSPOSED)
@pytest.mark.parametrize("package", ["gmr", "sre"])
@pytest.mark.parametrize("ndim", [2, 3], ids="{}d".format)
def test_transposed(
    request: pytest.FixtureRequest, package: str, ndim: int, options: dict[str, Any], engine: str
) -> None:
    make = {"gmr": gmr_layer, "sre": sre_layer}[package]
    groups = options.get("groups", 1)
    layer = make(request.getfixturevalue(package), ndim, 5, True, transposed=True, groups=groups)
    found = worst_difference(
        layer,
        random_input(ndim),
        lambda x: CONV_TRANSPOSE[ndim](x, released_kernel(layer), layer.bias, **options),
        lambda x: radial(layer, ndim, x, engine, transposed=True, **options),
    )
    assert found <= TOLERANCE[torch.float32]

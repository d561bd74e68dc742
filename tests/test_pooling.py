"""Pooling that keeps the grid's symmetries at every size, center_pad and Residual, circular_crop.

The pooling layers are compared with their definitions, written down anew; each symmetry is tested beside a layer that
lacks it.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import largest_violation, relative_error
from test_equivariance import placed
from torch import Tensor, nn

import radconv_ext
from radconv_ext.equivariance import symmetries
from radconv_ext.nn import pooling
from radconv_ext.nn.pooling import CircularCrop, Residual, center_pad, circular_crop

EXACT = 1e-14  # float64, in units of the largest value; worst seen 2.1e-15

AVERAGE = {1: pooling.SymmetricAvgPool1d, 2: pooling.SymmetricAvgPool2d, 3: pooling.SymmetricAvgPool3d}
BLUR = {1: pooling.BlurPool1d, 2: pooling.BlurPool2d, 3: pooling.BlurPool3d}
TORCH_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MODES = ("replicate", "reflect", "circular", "zeros")


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def sizes(ndim: int, least: int, count: int) -> list[tuple[int, ...]]:
    """Spatial sizes, square or not, with `count` lengths from `least` on; in 3D only cyclic neighbours."""
    lengths = range(least, least + count)
    if ndim < 3:
        return list(itertools.product(lengths, repeat=ndim))
    return [(n, least + (n - least + 1) % count, n) for n in lengths]


# --- average ----------------------------------------------------------------------------------------------------------

# kernel_size, stride
WINDOWS = [(2, 2), (3, 2), (2, 3), (3, 3), (1, 2), (4, 3), (2, 4), (3, 1)]


@pytest.mark.parametrize("k, s", WINDOWS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_average(ndim: int, k: int, s: int) -> None:
    """By its definition: the mean over the nearest placements of the windows, one or two per axis."""
    pool, torch_pool = AVERAGE[ndim](k, s), TORCH_AVERAGE[ndim]
    for size in sizes(ndim, k, s + 2):
        x = image(2, 2, *size)
        starts = [sorted({r // 2, (r + 1) // 2}) for r in ((n - k) % s for n in size)]
        ends = [(n - k) // s * s + k for n in size]
        shown = [
            torch_pool(x[(..., *(slice(a, a + end) for a, end in zip(at, ends, strict=True)))], k, s)
            for at in itertools.product(*starts)
        ]
        y = pool(x)
        assert y.shape[2:] == tuple((n - k) // s + 1 for n in size)
        assert relative_error(y, torch.stack(shown).mean(0)) <= EXACT
        assert torch.equal(pool(x[0]), y[0])


@pytest.mark.parametrize("k, s", WINDOWS)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_average_commutes(ndim: int, k: int, s: int) -> None:
    """With every symmetry at every size; torch's pooling only where it leaves nothing out, and then they are equal."""
    pool = AVERAGE[ndim](k, s)
    torch_pool = lambda x: TORCH_AVERAGE[ndim](x, k, s)
    for size in sizes(ndim, k, s + 2):
        x = image(1, 2, *size)
        assert largest_violation(pool, x, symmetries(ndim)) <= EXACT
        if all((n - k) % s == 0 for n in size):
            assert torch.equal(pool(x), torch_pool(x))
            assert largest_violation(torch_pool, x, symmetries(ndim)) <= EXACT
        else:
            assert largest_violation(torch_pool, x, symmetries(ndim)) > 0.02  # least seen 0.079


def test_average_per_axis() -> None:
    """Each axis by itself; the default stride is the window."""
    x = image(2, 3, 7, 9)
    rows, columns = pooling.SymmetricAvgPool1d(2), pooling.SymmetricAvgPool1d(4, 3)
    by_axis = columns(rows(x.flatten(0, 1).mT).mT).reshape(2, 3, 3, 2)
    assert relative_error(pooling.SymmetricAvgPool2d((2, 4), (2, 3))(x), by_axis) <= EXACT
    assert torch.equal(pooling.SymmetricAvgPool2d((2, 4))(x), pooling.SymmetricAvgPool2d((2, 4), (2, 4))(x))
    flips = [g for g in symmetries(2) if g.order == (0, 1)]
    assert largest_violation(pooling.SymmetricAvgPool2d((2, 4), (2, 3)), x, flips) <= EXACT


# --- blur -------------------------------------------------------------------------------------------------------------


def defined_blur(x: Tensor, stride: Sequence[int], sigma: float, mode: str) -> Tensor:
    """The Gaussian of distance within 3 sigma (or the nearest pixels), normalised, at centred samples."""
    size, reach = x.shape[2:], math.ceil(3 * sigma) + 1
    ndim = len(size)
    distance = torch.zeros((1,) * (2 * ndim), dtype=torch.float64)  # samples of each axis, then pixels of each axis
    nearest = 0.0
    for axis, (n, s) in enumerate(zip(size, stride, strict=True)):
        samples = -(-n // s)
        first = (n - 1 - (samples - 1) * s) / 2
        centre = first + s * torch.arange(samples, dtype=torch.float64)
        pixel = torch.arange(-reach, n + reach)
        square = (centre[:, None] - pixel).square()
        ones = [1] * (ndim - 1)
        distance = distance + square.view(*ones[:axis], samples, *ones, -1, *ones[axis:])
        nearest += (first % 1) ** 2
        if mode == "zeros":
            x = F.pad(x.movedim(2 + axis, -1), (reach, reach)).movedim(-1, 2 + axis)
        else:
            inside = {
                "replicate": lambda p, n: min(max(p, 0), n - 1),
                "circular": lambda p, n: p % n,
                "reflect": lambda p, n: min(p % (2 * n - 2 or 1), -p % (2 * n - 2 or 1)),
            }[mode]
            x = x.index_select(2 + axis, torch.tensor([inside(int(p), n) for p in pixel]))
    weight = torch.exp(distance / (-2 * sigma**2)) * (distance <= max(9 * sigma**2, nearest) + 1e-9)
    pixels = list(range(ndim, 2 * ndim))
    weight = weight / weight.sum(pixels, keepdim=True)
    return torch.tensordot(x, weight, dims=(list(range(2, 2 + ndim)), pixels))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("s, sigma", [(1, None), (2, None), (3, 0.6), (4, 0.3), (2, 1.4)])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_blur(ndim: int, s: int, sigma: float | None, mode: str) -> None:
    """By its definition, at every size; it commutes with every symmetry."""
    pool = BLUR[ndim](s, sigma, mode)
    for size in sizes(ndim, 6, s + 1):
        x = image(1, 2, *size)
        y = pool(x)
        assert y.shape[2:] == tuple(math.ceil(n / s) for n in size)
        assert relative_error(y, defined_blur(x, (s,) * ndim, pool.sigma, mode)) <= EXACT
        assert largest_violation(pool, x, symmetries(ndim)[1:]) <= EXACT
        assert torch.equal(pool(x[0]), y[0])


def test_subsampling_from_a_corner_does_not_commute() -> None:
    """The same filter at the same distances, but not centred."""
    smooth = pooling.BlurPool2d(1, sigma=1)
    for n in (9, 10):
        violation = largest_violation(lambda x: smooth(x)[..., ::2, ::2], image(1, 2, n, n), symmetries(2))
        assert violation <= EXACT if n % 2 else violation > 0.1  # seen 1.1


def test_blur_per_axis() -> None:
    pool = pooling.BlurPool2d((2, 3))
    x = image(1, 2, 8, 10)
    assert pool.sigma == 1.5
    assert relative_error(pool(x), defined_blur(x, (2, 3), 1.5, "replicate")) <= EXACT
    assert largest_violation(pool, x, [g for g in symmetries(2) if g.order == (0, 1)]) <= EXACT


def test_tiny_sigma_takes_the_nearest_pixels() -> None:
    """One where the sample lies on it, the mean of 2, 4 or 8 where it lies between; nothing underflows."""
    for ndim in (1, 2, 3):
        x = image(1, 2, *(8,) * ndim)
        assert relative_error(BLUR[ndim](2, 1e-3)(x), TORCH_AVERAGE[ndim](x, 2)) <= EXACT
        odd = image(1, 2, *(9,) * ndim)
        assert torch.equal(BLUR[ndim](2, 1e-3)(odd), odd[(..., *(slice(None, None, 2),) * ndim)])
        # the filter ends further from the border than a whole pixel
        seven = odd[(..., *(slice(0, 7),) * ndim)]
        assert torch.equal(BLUR[ndim](8, 1e-3)(seven).squeeze(), seven[(..., *(3,) * ndim)].squeeze())


def response(pool: nn.Module, size: Sequence[int]) -> Tensor:
    """The filter of the sample in the middle, laid on the image: its gradient."""
    x = torch.zeros(1, 1, *size, dtype=torch.float64, requires_grad=True)
    y = pool(x)[0, 0]
    (gradient,) = torch.autograd.grad(y[tuple(n // 2 for n in y.shape)], x)
    return gradient[0, 0]


def central_filter(ndim: int, s: int, between: Sequence[bool]) -> Tensor:
    """A filter whose sample lies in the middle of the image, on a pixel of an axis or between two."""
    samples = 7  # odd, so that one is in the middle; the filter of the middle one ends inside
    size = [s * (samples - 1) + 1 + (s - 1 if (s - 1) % 2 == b else s - 2 if s > 1 else 0) for b in between]
    return response(BLUR[ndim](s), size)


@pytest.mark.parametrize("ndim, s", [(1, 2), (1, 4), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3)])
def test_filter(ndim: int, s: int) -> None:
    """Radially symmetric, falling, of bounded support, and damping as documented, on pixels and between."""
    for between in itertools.product((False, True), repeat=ndim):
        f = central_filter(ndim, s, between)
        assert [n % 2 == 0 for n in f.shape] == list(between)
        axes = [torch.arange(1 - n, n, 2, dtype=f.dtype) for n in f.shape]
        distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)  # |2d|^2
        values = []
        for shell in distance.unique():
            here = f[distance == shell]
            assert here.max() - here.min() <= 1e-16
            values.append(float(here[0]))
            assert (here > 0).all() == (shell <= (3 * s) ** 2)  # 2 * 3 sigma
        assert values == sorted(values, reverse=True)
        profile = f.flatten(1).sum(1) if ndim > 1 else f
        passes = lambda cycles: abs(float(profile @ torch.cos(math.pi * cycles * axes[0])))  # noqa: B023
        nyquist = 1 / (2 * s)
        assert 0.29 <= passes(nyquist) <= 0.31
        stop = torch.linspace(1.5 * nyquist, max(0.5, 1.5 * nyquist), 50).tolist()
        assert max(map(passes, stop)) <= 0.065
        assert passes(2 * nyquist) <= 0.026


def test_waves_are_damped() -> None:
    """Beyond the output's Nyquist frequency little is left of a wave, where torch's pooling lets it pass."""
    wave = torch.cos(2 * math.pi * 0.4 * torch.arange(200, dtype=torch.float64)).view(1, 1, -1)
    inner = slice(5, -5)
    for cut in (wave, wave[..., :-1]):
        assert pooling.BlurPool1d()(cut)[..., inner].abs().max() <= 0.05  # seen 0.044
        assert F.avg_pool1d(cut, 2)[..., inner].abs().max() > 0.3
        assert F.max_pool1d(cut, 2)[..., inner].abs().max() > 0.9


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_constants_stay(ndim: int) -> None:
    for size in sizes(ndim, 7, 3):
        one = torch.ones(1, 1, *size, dtype=torch.float64)
        assert (AVERAGE[ndim](3, 2)(one) - 1).abs().max() <= EXACT
        for s, mode in itertools.product((1, 2, 3, 4), MODES[:3]):
            assert (BLUR[ndim](s, padding_mode=mode, sigma=0.9)(one) - 1).abs().max() <= EXACT
        assert BLUR[ndim](padding_mode="zeros")(one)[(0, 0, *(0,) * ndim)] < 0.9


# --- what torch asks of a layer ---------------------------------------------------------------------------------------


def test_gradients() -> None:
    for ndim, size in ((1, (7,)), (2, (5, 6)), (3, (3, 4, 4))):
        x = image(1, 2, *size).requires_grad_()
        assert torch.autograd.gradcheck(AVERAGE[ndim](2, 2), x)
        assert torch.autograd.gradcheck(circular_crop, x)
        other = [n + (-2 if n > 5 else 2) for n in size]
        assert torch.autograd.gradcheck(lambda x, other=other: center_pad(x, other), x)
        for mode in MODES:
            assert torch.autograd.gradcheck(BLUR[ndim](2, 0.5, mode), x), mode


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_dtypes(ndim: int) -> None:
    """Half types to their rounding, on every layer; float32 to its own."""
    x = image(2, 3, *(9,) * ndim)
    layers = [AVERAGE[ndim](2), AVERAGE[ndim](3), *(BLUR[ndim](2, padding_mode=mode) for mode in MODES)]
    for layer in layers:
        for dtype, bound in ((torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
            y = layer(x.to(dtype))
            assert y.dtype == dtype
            assert relative_error(y, layer(x)) <= bound  # worst seen 3.7e-7, 6.6e-4, 4.5e-3
        assert layer(x.to("meta")).shape == layer(x).shape
        assert layer(x[:0]).shape == (0, *layer(x).shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert BLUR[ndim]()(x.float()).dtype == torch.bfloat16
        assert AVERAGE[ndim](2)(x.float()).dtype == torch.float32
        assert relative_error(BLUR[ndim]()(x.float()), BLUR[ndim]()(x)) <= 1.6e-2


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_last(ndim: int) -> None:
    """Kept, also where torch's own padding loses it; averages keep it where torch's do."""
    memory_format = (torch.channels_last, torch.channels_last_3d)[ndim - 2]
    kept = lambda y: y.is_contiguous(memory_format=memory_format) and not y.is_contiguous()
    for size in sizes(ndim, 9, 2):
        # float32, as convolutions of float64 don't keep channels_last in 3D
        x = image(2, 6, *size, dtype=torch.float32).contiguous(memory_format=memory_format)
        assert kept(circular_crop(x))
        assert kept(center_pad(x, [n + 2 for n in size]))
        for mode in MODES:
            y = BLUR[ndim](padding_mode=mode)(x)
            assert kept(y), mode
            assert relative_error(y, BLUR[ndim](padding_mode=mode)(x.contiguous())) <= 1e-6
        for k in (2, 3):
            y = AVERAGE[ndim](k, 2)(x)
            assert kept(y) == kept(TORCH_AVERAGE[ndim](x, k, 2))
            assert relative_error(y, AVERAGE[ndim](k, 2)(x.contiguous())) <= 1e-6


def network() -> nn.Sequential:
    """Every layer of this file, a blur of each padding mode."""
    blurs = [pooling.BlurPool2d(2 if mode == "replicate" else 1, padding_mode=mode) for mode in MODES]
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=2), pooling.BlurPool2d(1))
    return nn.Sequential(*blurs, Residual(body), CircularCrop(), pooling.SymmetricAvgPool2d(2)).double()


def test_compile_and_export() -> None:
    """One graph for every batch."""
    net, x = network(), image(4, 3, 21, 22)
    expected = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch._dynamo.mark_dynamic(x, 0)
        assert relative_error(compiled(x), expected) <= EXACT
        exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch, way in itertools.product((2, 3), (compiled, exported)):
                assert relative_error(way(x[:batch].clone()), expected[:batch]) <= EXACT


def test_modules_hold_nothing() -> None:
    """Nothing to load, nothing that a change of dtype would round."""
    layers = [*(pool(2) for pool in (*AVERAGE.values(), *BLUR.values())), CircularCrop()]
    for layer in layers:
        assert not layer.state_dict()
        assert not list(layer.buffers())
    x = image(1, 1, 8, 9)
    assert torch.equal(copy.deepcopy(pooling.BlurPool2d()).half().double()(x), pooling.BlurPool2d()(x))


def test_repr() -> None:
    assert repr(pooling.SymmetricAvgPool2d(3, 2)) == "SymmetricAvgPool2d(kernel_size=(3, 3), stride=(2, 2))"
    assert repr(pooling.BlurPool1d(3)) == "BlurPool1d(stride=(3,), sigma=1.5, padding_mode='replicate')"
    assert repr(CircularCrop(2.5)) == "CircularCrop(radius=2.5)"
    assert repr(CircularCrop()) == "CircularCrop()"


def test_docstrings() -> None:
    for pool in (*AVERAGE.values(), *BLUR.values()):
        doc = pool.__doc__ or ""
        assert f"{pool.ndim}D" in doc
        assert "{" not in doc


# --- center_pad and Residual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_center_pad(ndim: int) -> None:
    """What was there stays there, exactly; the rest is zero; cropping undoes padding."""
    x = image(2, 3, *range(4, 4 + ndim))
    size = [n + 2 * (axis + 1) for axis, n in enumerate(x.shape[2:])]
    y = center_pad(x, size)
    assert y.shape[2:] == tuple(size)
    assert torch.equal(center_pad(y, x), x)
    assert y.count_nonzero() == x.count_nonzero()
    assert largest_violation(lambda x: center_pad(x, [n + 2 for n in x.shape[2:]]), x, symmetries(ndim)) == 0
    mixed = [x.shape[2] - 2, *(n + 4 for n in x.shape[3:])]
    assert torch.equal(center_pad(x, mixed), center_pad(center_pad(x, [mixed[0], *x.shape[3:]]), mixed))
    assert center_pad(x, x.shape[2:]) is x
    assert center_pad(x.long(), size).dtype == torch.int64


class FullConv(nn.Module):
    """A bias-free radial convolution that keeps the size of its input's numbers, and ReLU."""

    def __init__(self, seed: int, kernel_size: int, padding: str = "full") -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(8, 8, 3, generator=random, dtype=torch.float64) / 8
        self.options = {"kernel_size": kernel_size, "padding": padding}

    def forward(self, x: Tensor) -> Tensor:
        sigma = radconv_ext.default_sigma(self.options["kernel_size"], 3, dtype=x.dtype)
        return radconv_ext.gmr_conv2d(x, self.weight, sigma, engine="reference", **self.options).relu()


def residual_stack(kernel_size: int, padding: str = "full") -> Callable[[Tensor], Tensor]:
    """Three blocks of two layers, the second with a 1x1 shortcut, summed over positions."""
    layers = iter(range(6))
    body = lambda: nn.Sequential(*(FullConv(next(layers), kernel_size, padding) for _ in range(2)))
    mixed = nn.Conv2d(8, 8, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        mixed.weight.copy_(image(8, 8, 1, 1) / 3)
    blocks = nn.Sequential(Residual(body()), Residual(body(), mixed), Residual(body()))
    return lambda x: blocks(x).detach().sum((2, 3))


@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_residual_blocks_ignore_position(kernel_size: int) -> None:
    """Wherever content lies on a zero background, right up to the border; with "same" padding the border shows."""
    content = image(1, 8, 5, 5)
    at = [(3, 3), *itertools.product((0, 7), repeat=2), (1, 4)]
    full, same = residual_stack(kernel_size), residual_stack(kernel_size, "same")
    expected, *moved = [full(placed(content, a)) for a in at]
    assert expected.count_nonzero() > 1
    assert max(relative_error(y, expected) for y in moved) <= EXACT
    expected, *moved = [same(placed(content, a)) for a in at]
    assert max(relative_error(y, expected) for y in moved) > 0.1  # least seen 0.43


def test_residual() -> None:
    x = image(2, 8, 6, 7)
    body, shortcut = FullConv(0, 3), nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float64)
    assert torch.equal(Residual(body)(x), body(x) + F.pad(x, (1, 1, 1, 1)))
    assert torch.equal(Residual(body, shortcut)(x), body(x) + F.pad(shortcut(x), (1, 1, 1, 1)))
    smaller = nn.AvgPool2d(3, 1)
    assert torch.equal(Residual(smaller)(x), smaller(x) + x[..., 1:-1, 1:-1])


# --- circular_crop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7,), (8,), (6, 6), (7, 7), (5, 8), (4, 5, 6)])
def test_circular_crop(size: tuple[int, ...]) -> None:
    ones = torch.ones(2, 3, *size)
    for radius in (None, 0.5, 1.5, 2, 2.9, 100):
        kept = circular_crop(ones, radius)
        assert torch.equal(CircularCrop(radius)(ones), kept)
        r = min(size) / 2 if radius is None else radius
        for at in itertools.product(*map(range, size)):
            inside = math.dist(at, [(n - 1) / 2 for n in size]) <= r
            assert (kept[(..., *at)] == inside).all(), (radius, at)
    assert largest_violation(circular_crop, image(1, 2, *size), symmetries(len(size))) == 0


def test_circular_crop_clears_anything() -> None:
    x = torch.full((1, 1, 6, 6), math.nan)
    x[..., 1:-1, 1:-1] = 1
    y = circular_crop(x, 2)
    assert y.isfinite().all()
    assert y.sum() == 12
    assert circular_crop(x.isnan(), 2).dtype == torch.bool


# --- errors -----------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("window", lambda: pooling.SymmetricAvgPool2d(0), ValueError, "kernel_size: expected at least 1, got 0"),
    ("window-float", lambda: pooling.SymmetricAvgPool2d(2.0), TypeError, "kernel_size: expected an int, got 2.0"),
    (
        "axes",
        lambda: pooling.SymmetricAvgPool3d((2, 2)),
        ValueError,
        "kernel_size: expected an int or 3 of them, one per spatial axis, got (2, 2)",
    ),
    ("stride", lambda: pooling.SymmetricAvgPool1d(2, -1), ValueError, "stride: expected at least 1, got -1"),
    ("blur-stride", lambda: pooling.BlurPool2d(0), ValueError, "stride: expected at least 1, got 0"),
    ("sigma", lambda: pooling.BlurPool2d(2, 0.0), ValueError, "sigma: expected a finite number above 0, got 0.0"),
    ("nan", lambda: pooling.BlurPool2d(2, math.nan), ValueError, "sigma: expected a finite number above 0, got nan"),
    ("sigma-text", lambda: pooling.BlurPool2d(2, "1"), TypeError, "sigma: expected a number, got '1'"),
    (
        "mode",
        lambda: pooling.BlurPool2d(padding_mode="mirror"),
        ValueError,
        "padding_mode: expected one of 'zeros', 'circular', 'reflect', 'replicate', got 'mirror'",
    ),
    (
        "small",
        lambda: pooling.SymmetricAvgPool2d(3)(torch.ones(1, 1, 4, 2)),
        ValueError,
        "x: expected spatial sizes of at least kernel_size (3, 3), got (4, 2)",
    ),
    (
        "rank",
        lambda: pooling.BlurPool2d()(torch.ones(4, 2)),
        ValueError,
        "x: expected 4 dimensions (B, C, 2 spatial), or 3 without batch, got (4, 2)",
    ),
    (
        "empty",
        lambda: pooling.BlurPool1d()(torch.ones(1, 2, 0)),
        ValueError,
        "x: expected a channel at least, and no empty spatial axis, got (1, 2, 0)",
    ),
    (
        "integers",
        lambda: pooling.SymmetricAvgPool1d(2)(torch.ones(1, 1, 4, dtype=torch.int32)),
        TypeError,
        "x: expected a floating-point tensor (float16, bfloat16, float32, float64), got torch.int32",
    ),
    ("list", lambda: pooling.BlurPool1d()([1.0]), TypeError, "x: expected a torch.Tensor, got list"),
    (
        "sparse",
        lambda: pooling.BlurPool1d()(torch.ones(1, 1, 4).to_sparse()),
        TypeError,
        "x: expected a dense tensor, got layout torch.sparse_coo",
    ),
    (
        "reflect",
        lambda: pooling.BlurPool2d(padding_mode="reflect")(torch.ones(1, 1, 9, 3)),
        ValueError,
        (
            "x: expected spatial sizes of at least (4, 4) for padding_mode 'reflect' with stride (2, 2) and sigma 1, "
            "got (9, 3)"
        ),
    ),
    (
        "circular",
        lambda: pooling.BlurPool1d(1, 1, "circular")(torch.ones(1, 1, 2)),
        ValueError,
        "x: expected spatial sizes of at least (3,) for padding_mode 'circular' with stride (1,) and sigma 1, got (2,)",
    ),
    (
        "half-pixel",
        lambda: center_pad(torch.ones(1, 1, 4, 5), (6, 6)),
        ValueError,
        (
            "x: expected spatial sizes that differ by even numbers from (6, 6), as half a pixel can't be centred, got "
            "(4, 5); use odd kernel sizes, or an even number of layers with an even one"
        ),
    ),
    (
        "size-axes",
        lambda: center_pad(torch.ones(1, 1, 4, 5), (6,)),
        ValueError,
        "size: expected one int per spatial axis of x (1, 1, 4, 5), got (6,)",
    ),
    ("size-sign", lambda: center_pad(torch.ones(1, 1, 4), (-2,)), ValueError, "size: expected at least 0, got -2"),
    ("size-float", lambda: center_pad(torch.ones(1, 1, 4), (2.0,)), TypeError, "size: expected an int, got 2.0"),
    (
        "size-int",
        lambda: center_pad(torch.ones(1, 1, 4), 6),
        TypeError,
        "size: expected a sequence of ints or a tensor, got 6",
    ),
    (
        "body",
        lambda: Residual("relu"),
        TypeError,
        "body: expected a torch.nn.Module, got str",
    ),
    ("shortcut", lambda: Residual(nn.ReLU(), 1), TypeError, "shortcut: expected a torch.nn.Module, got int"),
    (
        "channels",
        lambda: Residual(nn.Conv2d(1, 2, 1))(torch.ones(1, 1, 3, 3)),
        ValueError,
        (
            "shortcut: expected batch and channels of body's output (1, 2, 3, 3), got (1, 1, 3, 3); pass a "
            "shortcut that maps the channels, such as a 1x1 convolution"
        ),
    ),
    (
        "crop-rank",
        lambda: circular_crop(torch.ones(4, 4)),
        ValueError,
        "x: expected (B, C, *S) with 1 to 3 spatial axes, got (4, 4)",
    ),
    ("radius", lambda: CircularCrop(-1), ValueError, "radius: expected a finite number above 0, got -1"),
    ("flag", lambda: CircularCrop(True), TypeError, "radius: expected a number, got True"),
]


@pytest.mark.parametrize("call, error, message", [pytest.param(*case, id=name) for name, *case in ERRORS])
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message

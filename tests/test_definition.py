"""The operator against plain loops over its definition, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from definition import (
    Array,
    Index,
    conv_by_loops,
    kernel_by_loops,
    padding_of,
    positions,
    rings_of,
    scatter_by_loops,
    shells_of,
    support_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import BANDED, ENGINES, FAMILIES, PARAMETER_OF, Operands, call, dense_kernel, relative_error
from torch import Tensor

import radconv_ext

# --- geometry ---------------------------------------------------------------------------------------------------------

# k, 2D: taps, shells; rings; 3D: taps, shells
GEOMETRY = [
    (3, 9, 3, 2, 19, 3),
    (5, 21, 5, 3, 81, 7),
    (7, 37, 8, 4, 179, 12),
    (9, 69, 13, 5, 389, 19),
    (11, 97, 16, 6, 739, 27),
]


@pytest.mark.parametrize("row", GEOMETRY, ids=lambda row: f"k{row[0]}")
def test_table(row: tuple[int, ...]) -> None:
    k, taps_2d, shells_2d, rings, taps_3d, shells_3d = row
    for ndim, taps, shells in ((2, taps_2d, shells_2d), (3, taps_3d, shells_3d)):
        assert radconv_ext.shell_count(ndim, k) == shells
        # every shell its own number: each shows in the kernel, zero outside the support
        kernel = dense_kernel("shell", ndim, torch.arange(1.0, shells + 1).reshape(1, 1, -1), None, kernel_size=k)
        assert kernel.shape == (1, 1, *(k,) * ndim)
        assert int(kernel.count_nonzero()) == taps
        assert kernel[kernel != 0].unique().tolist() == list(range(1, shells + 1))
        # every ring its own number too
        kernel = dense_kernel("binary", ndim, torch.arange(1.0, rings + 1).reshape(1, 1, -1), None)
        assert kernel.shape == (1, 1, *(k,) * ndim)
        assert int(kernel.count_nonzero()) == taps
        assert kernel[kernel != 0].unique().tolist() == list(range(1, rings + 1))
    assert radconv_ext.default_sigma(k).shape == (rings,)


@pytest.mark.parametrize("circular", [True, False], ids=["circular", "full"])
@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}d".format)
def test_shells(ndim: int, circular: bool) -> None:
    """Taps share a kernel value exactly when they lie at the same distance; shells are numbered outwards."""
    for k in range(1, 12 if ndim < 3 else 10):
        shells = shells_of(ndim, k, circular)
        assert radconv_ext.shell_count(ndim, k, circular) == len(shells)
        numbered = torch.arange(1.0, len(shells) + 1).reshape(1, 1, -1)
        kernel = dense_kernel("shell", ndim, numbered, None, kernel_size=k, circular=circular)[0, 0]
        support = support_of(ndim, k, circular)
        for tap in positions((k,) * ndim):
            assert kernel[tap] == (shells.index(support[tap]) + 1 if tap in support else 0), f"k={k}, tap {tap}"


@pytest.mark.parametrize("k", [2, 3, 4, 7, 9])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_ring_centres(k: int, n: int) -> None:
    """Ring i peaks at i * k / (2 (n - 1)): the distances from it, read off the kernel of one ring, in float64."""
    sigma = 2.0
    for i in range(n):
        w = torch.zeros(1, 1, n, dtype=torch.float64)
        w[..., i] = 1
        kernel = radconv_ext.gmr_kernel2d(w, torch.full((n,), sigma, dtype=torch.float64), kernel_size=k)[0, 0]
        for tap, square in support_of(2, k, True).items():
            distance = math.sqrt(-2 * sigma**2 * math.log(kernel[tap]))
            assert distance == pytest.approx(abs(math.sqrt(square) / 2 - i * k / (2 * (n - 1))), abs=1e-7)


def test_single_ring_is_centred() -> None:
    w, sigma = torch.ones(1, 1, 1, dtype=torch.float64), torch.full((1,), 1.5, dtype=torch.float64)
    kernel = radconv_ext.gmr_kernel2d(w, sigma, kernel_size=5)[0, 0]
    for tap in positions((5, 5)):
        expected = math.exp(-support_of(2, 5, True).get(tap, math.inf) / 4 / (2 * 1.5**2))
        assert kernel[tap] == pytest.approx(expected, rel=1e-15)  # worst seen 1.8e-16


@pytest.mark.parametrize("k, n", [(3, 2), (9, 5), (9, 3), (8, 5), (11, 6)])
def test_default_sigma(k: int, n: int) -> None:
    """Full width at half maximum equal to the distance between rings."""
    sigma = radconv_ext.default_sigma(k, n, dtype=torch.float64)
    assert sigma.tolist() == pytest.approx([k / (2 * (n - 1)) / 2.355] * n, rel=1e-15)
    assert radconv_ext.default_sigma(k).tolist() == pytest.approx([k / (2 * (k // 2)) / 2.355] * (k // 2 + 1), rel=1e-7)


IMPLIED = [
    pytest.param(family, ndim, k, circular, id=f"{family}-{ndim}d-k{k}-{'circular' if circular else 'full'}")
    for family in FAMILIES
    for ndim in (1, 2, 3)
    for k in (1, 3, 5, 7)
    for circular in (True, False)
    # a single band without circular support belongs to no default size, k=1 has two bands there as k=1 alone
    if k > 1 or (family not in BANDED and not (ndim == 1 and family == "custom"))
]


@pytest.mark.parametrize("family, ndim, k, circular", IMPLIED)
def test_implied_kernel_size(family: str, ndim: int, k: int, circular: bool) -> None:
    """Without kernel_size the odd size whose default ring count (custom: shell count) it is."""
    n = rings_of(family, ndim, k, circular)
    w = torch.ones(1, 1, n)
    p = None
    if family == "custom":
        p = torch.ones(n, len(shells_of(ndim, k, circular)))
    elif family in PARAMETER_OF:
        p = torch.ones(n)
    kernel = dense_kernel(family, ndim, w, p, circular=circular)
    assert kernel.shape == (1, 1, *(k,) * ndim)
    y = call(family, ndim, Operands(torch.zeros(1, 1, *(9,) * ndim), w, p, None), circular=circular)
    assert y.shape == (1, 1, *(9 - k + 1,) * ndim)


# --- dense kernels ----------------------------------------------------------------------------------------------------


def random_array(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape)


def random_parameter(
    random: np.random.Generator, family: str, ndim: int, k: int, circular: bool, w: Array, channelwise: bool
) -> Array | None:
    """Sigma (n,) or (O, C/groups, n), the profile (n, D), or None."""
    n = w.shape[2]
    if family == "custom":
        return random_array(random, n, len(shells_of(ndim, k, circular)))
    if family not in PARAMETER_OF:
        return None
    spacing = k / (2 * max(n - 1, 1))
    return spacing / 2.355 * np.exp(0.5 * random_array(random, *(w.shape if channelwise else (n,))))


KERNELS = [
    pytest.param(family, ndim, circular, id=f"{family}-{ndim}d-{'circular' if circular else 'full'}")
    for family in FAMILIES
    for ndim in (1, 2, 3)
    for circular in (True, False)
]


@pytest.mark.parametrize("family, ndim, circular", KERNELS)
def test_kernel(family: str, ndim: int, circular: bool) -> None:
    """Every size, even ones too, with the default ring count and others."""
    random = np.random.default_rng(0)
    for k in range(1, 12 if ndim < 3 else 8):
        if family in BANDED and k % 2 == 0:
            continue
        default = rings_of(family, ndim, k, circular)
        for n in {default} if family == "shell" else {default, default + 1, 2 * default + 1, max(default - 1, 2)}:
            w = random_array(random, 2, 3, n)
            for channelwise in (False, True) if family in ("gaussian", "banded") else (False,):
                p = random_parameter(random, family, ndim, k, circular, w, channelwise)
                expected = kernel_by_loops(family, ndim, k, circular, w, p)
                for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 5e-7)):
                    # worst seen: 2.8e-15, where a large exponent meets rings that cancel, and 1.2e-7
                    operands = [None if a is None else torch.tensor(a, dtype=dtype) for a in (w, p)]
                    kernel = dense_kernel(family, ndim, *operands, kernel_size=k, circular=circular)
                    assert kernel.dtype is dtype
                    assert kernel.shape == expected.shape
                    error = relative_error(kernel, torch.from_numpy(expected))
                    assert error <= tolerance, f"k={k}, n={n}, channel-wise {channelwise}, {dtype}"
                    assert np.all(kernel.numpy()[expected == 0] == 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gaussian", "banded"])
def test_sigma_is_clamped(family: str, engine: str) -> None:
    """To [0.01, 2n]: values outside act as the bound and get no gradient, negative ones too."""
    n = 4
    random = np.random.default_rng(1)
    dtype = torch.float64 if engine == "reference" else torch.float32
    x, w = (torch.tensor(random_array(random, *shape), dtype=dtype) for shape in ((2, 3, 9, 9), (2, 3, n)))
    wild, bounded = ([1e-3, 20.0, -5.0, 0.7], [1e-2, 2.0 * n, 1e-2, 0.7])

    def outcome(values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        sigma = torch.tensor(values, dtype=dtype, requires_grad=True)
        y = radconv_ext.gmr_conv2d(x, w, sigma, family=family, engine=engine)
        return y, radconv_ext.gmr_kernel2d(w, sigma, family=family), torch.autograd.grad(y.square().sum(), sigma)[0]

    y, kernel, by_sigma = outcome(wild)
    y_bounded, kernel_bounded, _ = outcome(bounded)
    assert torch.equal(y, y_bounded)
    assert torch.equal(kernel, kernel_bounded)
    assert by_sigma[:3].tolist() == [0, 0, 0]
    assert by_sigma[3] != 0


# --- the convolution --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call; `batch=None` is an input without batch."""

    id: str
    ndim: int = 2
    family: str = "gaussian"
    k: int = 3
    rings: int | None = None  # None: the default count
    circular: bool = True
    batch: int | None = 2
    size: Index = ()
    channels: Index = (3, 4)  # per group: in, out
    groups: int = 1
    stride: Index = ()
    dilation: Index = ()
    padding: Any = 0
    mode: str = "zeros"
    bias: bool = True
    channelwise: bool = False
    layout: str = "contiguous"  # of x: or "channels_last", "sliced", "expanded"
    transposed: bool = False
    output_padding: Index = ()
    seed: int = 0

    def __post_init__(self) -> None:
        defaults = {"size": (8, 7, 6)[: self.ndim], "stride": 1, "dilation": 1, "output_padding": 0}
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value if isinstance(value, tuple) else (value,) * self.ndim)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x with other strides."""
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "channels_last" and x.dim() > 3:
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


def draw(case: Case, dtype: torch.dtype) -> Operands:
    """Operands of a case, batch dimension kept."""
    random = np.random.default_rng(case.seed)
    n = rings_of(case.family, case.ndim, case.k, case.circular) if case.rings is None else case.rings
    inner, outer = case.channels
    w = random_array(random, *((inner * case.groups, outer) if case.transposed else (outer * case.groups, inner)), n)
    p = random_parameter(random, case.family, case.ndim, case.k, case.circular, w, case.channelwise)
    x = random_array(random, 1 if case.batch is None else case.batch, inner * case.groups, *case.size)
    bias = random_array(random, outer * case.groups) if case.bias else None
    tensors = Operands(*(None if a is None else torch.tensor(a, dtype=dtype) for a in (x, w, p, bias)))
    if case.layout == "expanded":
        return tensors._replace(x=tensors.x[:1].expand_as(tensors.x))
    return tensors._replace(x=laid_out(tensors.x, case.layout))


def by_loops(case: Case, operands: Operands) -> tuple[Array, float]:
    """Expected output, and the largest that sum |x K| + |bias| could be: the unit of rounding errors."""
    x, w, p, bias = (None if t is None else t.double().numpy() for t in operands)
    kernel = kernel_by_loops(case.family, case.ndim, case.k, case.circular, w, p)
    if case.transposed:
        pad, _ = padding_of(case.padding, case.ndim, case.k, case.dilation)
        y = scatter_by_loops(x, kernel, case.stride, pad, case.output_padding, case.dilation, case.groups)
    else:
        low, high = padding_of(case.padding, case.ndim, case.k, case.dilation)
        y = conv_by_loops(x, kernel, case.stride, low, high, case.dilation, case.groups, case.mode)
    summed = tuple(axis for axis in range(kernel.ndim) if axis != (1 if case.transposed else 0))
    scale = np.abs(x).max(initial=0) * np.abs(kernel).sum(summed).max()
    if bias is not None:
        y += bias.reshape(-1, *(1,) * case.ndim)
        scale += np.abs(bias).max()
    return y, float(scale)


def by_package(case: Case, operands: Operands, engine: str) -> Tensor:
    options = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    options |= {"output_padding": case.output_padding} if case.transposed else {"padding_mode": case.mode}
    options |= {"kernel_size": case.k, "circular": case.circular, "engine": engine}
    if case.batch is None:
        operands = operands._replace(x=operands.x[0])
    return call(case.family, case.ndim, operands, transposed=case.transposed, **options)


def measured_error(case: Case, engine: str, dtype: torch.dtype) -> float:
    """Largest error, in units of the largest sum of |x K| + |bias|."""
    operands = draw(case, dtype)
    expected, scale = by_loops(case, operands)
    if case.batch is None:
        expected = expected[0]
    got = by_package(case, operands, engine)
    assert got.dtype is dtype
    assert tuple(got.shape) == expected.shape
    error = float(np.abs(got.double().numpy() - expected).max(initial=0))
    return error / scale if scale else error


# engine: the dtype that it is checked in, and the largest error
CHECKED_IN = {
    "reference": (torch.float64, 5e-15),  # worst seen 1.2e-15
    "cpu": (torch.float32, 5e-7),  # worst seen 1.3e-7
    "auto": (torch.float32, 5e-7),  # worst seen 3.4e-8
}


def check(case: Case, engine: str) -> None:
    dtype, tolerance = CHECKED_IN[engine]
    error = measured_error(case, engine, dtype)
    assert error <= tolerance, f"{case} by {engine}"


CASES = [
    *(Case(f"{family}-{n}d", ndim=n, family=family, k=5, padding="same") for family in FAMILIES for n in (1, 2, 3)),
    *(Case(f"{family}-full-support", family=family, k=5, circular=False, padding=2) for family in FAMILIES),
    *(Case(f"{family}-even", family=family, k=4, padding=1) for family in ("gaussian", "shell", "custom")),
    Case("even-3d", ndim=3, k=4, padding=2),
    Case("even-full-support", k=6, circular=False, padding=3),
    *(Case(f"k{k}", k=k, padding="same", size=(14, 13)) for k in (1, 2, 7, 9, 11)),
    Case("rings-1", k=5, rings=1),
    Case("rings-2", k=7, rings=2),
    Case("rings-more-than-shells", k=3, rings=7),
    Case("rings-banded", family="banded", k=7, rings=9),
    Case("rings-binary", family="binary", k=7, rings=2),
    Case("rings-binary-full-support", family="binary", k=7, rings=3, circular=False),
    Case("rings-custom-1", family="custom", k=5, rings=1),
    Case("rings-custom-9", family="custom", k=5, rings=9),
    Case("no-bias", bias=False),
    Case("stride", stride=(2, 3), padding=(1, 2)),
    Case("stride-wider-than-kernel", stride=(5, 4), size=(12, 9)),
    Case("dilation", dilation=(2, 3), padding=(2, 0)),
    Case("stride-and-dilation", stride=(2, 1), dilation=(1, 3), padding=3),
    Case("groups", groups=3, channels=(2, 1)),
    Case("depthwise", groups=6, channels=(1, 1), k=5, padding="same"),
    Case("depthwise-multiplier", groups=4, channels=(1, 3), padding="same"),
    Case("one-channel", channels=(1, 1)),
    Case("many-channels", channels=(33, 17), size=(5, 4)),
    Case("same-even", k=4, padding="same"),
    Case("same-even-dilated", k=4, padding="same", dilation=(3, 2)),
    Case("same-even-3d", ndim=3, k=2, padding="same"),
    Case("valid", padding="valid", k=5),
    Case("full", padding="full", k=5),
    Case("full-dilated", padding="full", k=4, dilation=(1, 2)),
    Case("full-strided", padding="full", k=4, stride=(3, 2)),
    Case("padding-int", padding=1),
    Case("padding-tuple", padding=(0, 2)),
    Case("padding-beyond-full", padding=(5, 4)),
    *(Case(f"{mode}-same", mode=mode, k=5, padding="same") for mode in ("circular", "reflect", "replicate")),
    *(Case(f"{mode}-same-even", mode=mode, k=4, padding="same") for mode in ("circular", "reflect", "replicate")),
    *(Case(f"{mode}-full", mode=mode, k=4, padding="full") for mode in ("circular", "reflect", "replicate")),
    *(Case(f"{mode}-valid", mode=mode, padding="valid") for mode in ("circular", "reflect", "replicate")),
    *(
        Case(f"{mode}-strided", mode=mode, padding=(3, 1), stride=(2, 3), dilation=(2, 1))
        for mode in ("circular", "reflect", "replicate")
    ),
    *(Case(f"{mode}-3d", ndim=3, mode=mode, padding=(1, 2, 0)) for mode in ("circular", "reflect", "replicate")),
    *(Case(f"{mode}-1d", ndim=1, mode=mode, k=7, padding=3) for mode in ("circular", "reflect", "replicate")),
    Case("circular-whole-turn", mode="circular", size=(3, 4), k=5, padding=(3, 4)),
    Case("unbatched", batch=None, padding="same"),
    Case("unbatched-1d", ndim=1, batch=None),
    Case("unbatched-3d", ndim=3, batch=None),
    Case("unbatched-reflect", batch=None, mode="reflect", padding=2),
    Case("unbatched-transposed", batch=None, transposed=True, stride=(2, 2)),
    Case("batch-1", batch=1),
    Case("batch-5", batch=5, size=(4, 4)),
    Case("channels-last", layout="channels_last", channels=(5, 6), padding="same"),
    Case("channels-last-3d", ndim=3, layout="channels_last", channels=(5, 6)),
    Case("sliced", layout="sliced", padding="same"),
    Case("sliced-1d", ndim=1, layout="sliced"),
    Case("expanded", layout="expanded", batch=3),
    *(Case(f"transposed-{family}", family=family, transposed=True, stride=(2, 1), padding=1) for family in FAMILIES),
    *(
        Case(f"transposed-{n}d", ndim=n, transposed=True, stride=(2,) * n, padding=1, output_padding=(1,) * n)
        for n in (1, 2, 3)
    ),
    Case("transposed-stride-1", transposed=True, k=5, padding=(2, 1)),
    Case("transposed-even", transposed=True, k=4, stride=(2, 3), padding=1),
    Case("transposed-dilated", transposed=True, dilation=(3, 2), stride=(1, 2), padding=(2, 0)),
    Case("transposed-dilation-allows-output-padding", transposed=True, dilation=(3, 2), output_padding=(2, 1)),
    Case("transposed-groups", transposed=True, groups=2, channels=(3, 2), stride=(2, 2)),
    Case("transposed-depthwise", transposed=True, groups=4, channels=(1, 1), stride=(3, 3), output_padding=(2, 0)),
    Case("transposed-padding-beyond-full", transposed=True, padding=(3, 2), size=(9, 8)),
    Case("transposed-full-support", transposed=True, circular=False, stride=(2, 2)),
    Case("transposed-channels-last", transposed=True, layout="channels_last", stride=(2, 2)),
    Case("transposed-stride-wider-than-kernel", transposed=True, stride=(5, 4), size=(3, 3)),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_conv(case: Case, engine: str) -> None:
    check(case, engine)


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("family", ["gaussian", "banded"])
def test_channelwise_sigma(family: str, transposed: bool, engine: str) -> None:
    """One sigma per output channel, input channel and ring."""
    check(Case("channel-wise", family=family, channelwise=True, groups=2, transposed=transposed), engine)


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        pytest.param(torch.float64, 1e-16, id="float64"),  # worst seen 2.5e-17
        pytest.param(torch.float32, 5e-8, id="float32"),  # worst seen 9.8e-9
        pytest.param(torch.bfloat16, 1e-3, id="bfloat16"),  # worst seen 2.1e-4
        pytest.param(torch.float16, 2e-4, id="float16"),  # worst seen 3.2e-5
    ],
)
def test_auto_engine(dtype: torch.dtype, tolerance: float) -> None:
    """Some engine serves every floating dtype."""
    assert measured_error(Case("auto", padding="same", k=5), "auto", dtype) <= tolerance


# --- random options ---------------------------------------------------------------------------------------------------


SIZES = {1: (3, 4, 5, 2, 7, 8, 9, 1), 2: (3, 4, 5, 2, 6, 1), 3: (3, 2, 1)}
ODD_SIZES = {ndim: tuple(k for k in sizes if k % 2) for ndim, sizes in SIZES.items()}


@st.composite
def cases(choose: st.DrawFn, ndim: int, mode: str, transposed: bool = False) -> Case:
    """Any legal call on a small input: sizes are drawn last, large enough for the options."""
    few = 2 if ndim == 3 else 3

    def one_of(*values: Any) -> Any:
        return choose(st.sampled_from(values))

    def between(low: int, high: int) -> int:
        return choose(st.integers(low, high))

    def per_axis(low: int, high: int) -> Index:
        return tuple(between(low, high) for _ in range(ndim))

    family = one_of(*FAMILIES)
    k = one_of(*(ODD_SIZES if family in BANDED else SIZES)[ndim])
    stride, dilation, output_padding = per_axis(1, few), per_axis(1, few), (0,) * ndim
    reach = tuple(d * (k - 1) for d in dilation)
    padding = one_of("int", "tuple") if transposed else one_of("int", "tuple", "same", "valid", "full")
    if padding in ("int", "tuple"):
        padding = between(0, few) if padding == "int" else per_axis(0, few + 1)
    if padding == "same":
        stride = (1,) * ndim
    low, high = padding_of(padding, ndim, k, dilation)
    if transposed:
        output_padding = tuple(between(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        # (n - 1) * s - 2 p + reach + e + 1 >= 1
        least = [
            1 + max(0, -(-(2 * p - r - e) // s)) for p, r, e, s in zip(low, reach, output_padding, stride, strict=True)
        ]
    else:
        inside = {"reflect": 1, "circular": 0}.get(mode, -max(*low, *high))
        least = [max(1, r + 1 - a - b, max(a, b) + inside) for r, a, b in zip(reach, low, high, strict=True)]
    return Case(
        id="random",
        ndim=ndim,
        family=family,
        k=k,
        rings=None if family == "shell" else one_of(None, 2, 3, 4, 5, 7),
        circular=one_of(True, False),
        batch=one_of(2, 1, 3, None),
        size=tuple(n + between(0, 1 if ndim == 3 else 4) for n in least),
        channels=(between(1, 3), between(1, 3)),
        groups=between(1, 3),
        stride=stride,
        dilation=dilation,
        padding=padding,
        mode=mode,
        bias=one_of(True, False),
        layout=one_of("contiguous", "channels_last", "sliced"),
        transposed=transposed,
        output_padding=output_padding,
        seed=between(0, 2**16),
    )


def random_calls(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}d".format)
@random_calls(150)
@given(data=st.data())
def test_random_conv(ndim: int, mode: str, data: st.DataObject) -> None:
    case = data.draw(cases(ndim, mode))
    for engine in ENGINES:
        check(case, engine)


@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}d".format)
@random_calls(200)
@given(data=st.data())
def test_random_transposed(ndim: int, data: st.DataObject) -> None:
    case = data.draw(cases(ndim, "zeros", transposed=True))
    for engine in ENGINES:
        check(case, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [2, (2,), [2], [2, 2], (2, np.int64(2)), np.int64(2)], ids=repr)
def test_one_for_all_axes(value: Any, engine: str) -> None:
    """An int, a sequence of one and one per axis are the same option."""
    case = Case("axes", k=5, padding=(2, 2), stride=(2, 2), dilation=(2, 2), size=(11, 12))
    operands = draw(case, torch.float32)
    options = {"stride": value, "padding": value, "dilation": value, "engine": engine}
    for kernel_size in (5, (5,), [5, 5]):
        got = radconv_ext.gmr_conv2d(*operands, kernel_size=kernel_size, **options)
        assert torch.equal(got, by_package(case, operands, engine))

"""Empty batches, NaN and Inf are served as torch's convolution with the dense kernel serves them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import ENGINES, FAMILIES, PARAMETER_OF, Operands, call, dense_kernel, operands
from torch import Tensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

# --- batch 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate", pytest.param(None, id="transposed")])
@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}d".format)
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_0(family: str, ndim: int, mode: str | None, engine: str) -> None:
    """An output without elements, gradients of zeros; as torch."""
    transposed = mode is None
    options: dict[str, Any] = {"stride": 2, "padding": 1} | ({} if transposed else {"padding_mode": mode})
    given = operands(family, ndim, 3, (7, 6, 5)[:ndim], batch=0, bias=True, transposed=transposed, dtype=torch.float32)
    given = Operands(*(None if t is None else t.requires_grad_() for t in given))
    y = call(family, ndim, given, transposed=transposed, kernel_size=3, engine=engine, **options)
    out = tuple(2 * n - 1 if transposed else (n + 1) // 2 for n in (7, 6, 5)[:ndim])
    assert y.shape == (0, 4, *out)
    y.sum().backward()
    for t in given:
        if t is not None:
            assert t.grad is not None
            assert t.grad.shape == t.shape
            assert t.grad.count_nonzero() == 0
            assert t.grad.isfinite().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_0_channels_last(engine: str) -> None:
    given = operands("gaussian", 2, 5, (7, 6), batch=0, in_channels=8, dtype=torch.float32)
    x = given.x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = call("gaussian", 2, given._replace(x=x), padding="same", engine=engine)
    assert y.shape == (0, 4, 7, 6)
    (by_x,) = torch.autograd.grad(y.sum(), x)
    assert by_x.shape == x.shape


# --- NaN and Inf ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A convolution for poisoned numbers."""

    id: str
    family: str = "gaussian"
    ndim: int = 2
    k: int = 5
    size: tuple[int, ...] = (11, 12)
    at: tuple[int, ...] = (4, 6)  # the poisoned pixel
    circular: bool = True
    channels: tuple[int, int] = (4, 6)  # in, out
    groups: int = 1
    transposed: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, Any], ...] = (("padding", 2),)


SETTINGS = [
    *(Setting(family, family) for family in FAMILIES),
    *(Setting(f"{family}-full-support", family, circular=False) for family in FAMILIES),
    *(Setting(f"{family}-1d", family, 1, size=(13,), at=(6,)) for family in FAMILIES),
    *(Setting(f"{family}-3d", family, 3, k=3, size=(5, 6, 7), at=(2, 3, 4)) for family in FAMILIES),
    Setting("corner", at=(0, 11)),
    Setting("last-row", at=(10, 5)),
    Setting("even", k=4),
    Setting("valid", options=(("padding", 0),)),
    Setting("full", options=(("padding", "full"),)),
    Setting("stride", options=(("padding", 2), ("stride", 2))),
    Setting("unread", at=(10, 11), size=(11, 12), k=3, options=(("stride", 3),)),
    Setting("between-windows", at=(4, 5), k=1, options=(("stride", 2),)),
    Setting("dilation", options=(("padding", 4), ("dilation", 2))),
    Setting("groups", groups=2),
    Setting("depthwise", channels=(6, 6), groups=6),
    Setting("wrapped", at=(0, 0), options=(("padding", 2), ("padding_mode", "circular"))),
    Setting("reflect", at=(1, 1), options=(("padding", 3), ("padding_mode", "reflect"))),
    Setting("replicate", at=(0, 5), options=(("padding", 3), ("padding_mode", "replicate"))),
    Setting("transposed", transposed=True, options=(("stride", 2), ("padding", 1))),
    Setting("transposed-stride-1", transposed=True, options=(("padding", 3),)),
    Setting("channels-last", channels_last=True, channels=(8, 16)),
    Setting("many-channels", channels=(40, 48)),
    Setting("bfloat16", dtype=torch.bfloat16),
    Setting("bfloat16-channels-last", dtype=torch.bfloat16, channels_last=True, channels=(8, 16)),
]
POISONS = {"nan": float("nan"), "inf": float("inf"), "minus-inf": -float("inf")}


def poisoned(setting: Setting, where: str, poison: float) -> tuple[Operands, Tensor]:
    """Operands and upstream gradient, one number of `where` poisoned."""
    ndim, (inner, outer) = setting.ndim, setting.channels
    given = operands(
        setting.family, ndim, setting.k, setting.size, circular=setting.circular, in_channels=inner,
        out_channels=outer, groups=setting.groups, transposed=setting.transposed, bias=True, dtype=setting.dtype,
    )  # fmt: skip
    if setting.channels_last:
        given = given._replace(x=given.x.contiguous(memory_format=torch.channels_last))
    shape = by_torch(setting, given).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(setting.dtype)
    if where == "x":
        given.x[(1, inner // 2, *setting.at)] = poison
    elif where == "w":
        given.w[given.w.shape[0] // 2, 0, given.w.shape[2] // 2] = poison
    elif where == "upstream":
        upstream[(0, outer // 2, *(n // 2 for n in shape[2:]))] = poison
    else:
        t = given.p if where == "p" else given.bias
        assert t is not None
        t.view(-1)[t.numel() // 2] = poison
    return given, upstream


def by_torch(setting: Setting, given: Operands) -> Tensor:
    """torch's own convolution with the public dense kernel."""
    ndim, options = setting.ndim, dict(setting.options)
    kernel = dense_kernel(setting.family, ndim, given.w, given.p, kernel_size=setting.k, circular=setting.circular)
    if setting.transposed:
        return CONV_TRANSPOSE[ndim](given.x, kernel, given.bias, groups=setting.groups, **options)
    x = given.x
    if options.get("padding") == "full":
        options["padding"] = setting.k - 1
    if "padding_mode" in options:
        x = F.pad(x, (options.pop("padding"),) * 2 * ndim, mode=options.pop("padding_mode"))
    return CONV[ndim](x, kernel, given.bias, groups=setting.groups, **options)


def by_package(setting: Setting, given: Operands, engine: str) -> Tensor:
    options = dict(setting.options) | {"kernel_size": setting.k, "circular": setting.circular, "engine": engine}
    return call(setting.family, setting.ndim, given, transposed=setting.transposed, groups=setting.groups, **options)


def pattern(t: Tensor) -> Tensor:
    """0 where finite, 1 where NaN, 2 and 3 where Inf and -Inf."""
    return t.isnan() + 2 * t.isposinf() + 3 * t.isneginf()


def assert_same_pattern(got: Tensor, expected: Tensor, what: str) -> None:
    assert torch.equal(pattern(got), pattern(expected)), (
        f"{what}: {int((pattern(got) != pattern(expected)).sum())} of {got.numel()} differ in kind, "
        f"{int(got.isnan().sum())} NaN and {int(got.isinf().sum())} Inf for {int(expected.isnan().sum())} and "
        f"{int(expected.isinf().sum())}"
    )
    finite = expected.isfinite()
    if finite.any():
        scale = expected[finite].abs().max()
        tolerance = {torch.float32: 5e-6, torch.bfloat16: 2e-2}[got.dtype]  # worst seen 1.1e-6 and 6.0e-3
        assert (got - expected)[finite].abs().max() <= tolerance * scale, what


PLACES = [
    pytest.param(setting, where, id=f"{setting.id}-{where}")
    for setting in SETTINGS
    for where in ("x", "w", "p", "bias", "upstream")
    if where != "p" or setting.family not in ("binary", "shell")
]
WANTED = [("x",), ("w",), ("p",), ("x", "bias"), ("w", "p")]


def outcome(y: Tensor, leaves: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    return {"output": y.detach(), **dict(zip(leaves, torch.autograd.grad(y, leaves.values(), upstream), strict=True))}


def assert_same_outcome(
    got: dict[str, Tensor], expected: dict[str, Tensor], setting: Setting, given: Operands, engine: str
) -> None:
    for name in expected:
        a, b = got[name], expected[name]
        if name == "p" and PARAMETER_OF[setting.family] == "sigma":
            assert given.p is not None
            a, b = a[~given.p.isnan()], b[~given.p.isnan()]  # its own gradient: test_gradient_by_nan_sigma
            if setting.family == "banded":
                # a sum of two terms: Inf - Inf, or Inf times their difference
                a, b = (t.where(t.isfinite(), torch.nan) for t in (a, b))
        assert_same_pattern(a, b, f"{name} by {engine}")


@pytest.mark.parametrize("poison", ["nan", "inf"])
@pytest.mark.parametrize("setting, where", PLACES)
def test_nan_and_inf(setting: Setting, where: str, poison: str) -> None:
    """NaN and Inf spread exactly as in torch's convolution with the dense kernel: 0 * Inf outside the disk included."""
    given, upstream = poisoned(setting, where, POISONS[poison])
    tensors = {name: t.requires_grad_() for name, t in given._asdict().items() if t is not None}
    expected = outcome(by_torch(setting, given), tensors, upstream)
    for engine in ENGINES:
        got = outcome(by_package(setting, given, engine), tensors, upstream)
        assert_same_outcome(got, expected, setting, given, engine)
        with torch.no_grad():
            assert_same_pattern(by_package(setting, given, engine), expected["output"], f"output alone by {engine}")


@pytest.mark.parametrize("wanted", WANTED, ids="-".join)
@pytest.mark.parametrize("where", ["x", "w", "p", "bias", "upstream"])
@pytest.mark.parametrize("poison", POISONS)
def test_nan_and_inf_for_some_gradients(where: str, poison: str, wanted: tuple[str, ...]) -> None:
    """Which gradients are asked for makes no difference to them."""
    setting = SETTINGS[0]
    given, upstream = poisoned(setting, where, POISONS[poison])
    tensors = {name: getattr(given, name).requires_grad_() for name in wanted}
    expected = outcome(by_torch(setting, given), tensors, upstream)
    for engine in ENGINES:
        got = outcome(by_package(setting, given, engine), tensors, upstream)
        assert_same_outcome(got, expected, setting, given, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gaussian", "banded"])
def test_gradient_by_nan_sigma(family: str, engine: str) -> None:
    """A sigma that is NaN is not inside the clamp's bounds: no gradient, as by the dense kernel."""
    setting = next(s for s in SETTINGS if s.id == family)
    given, upstream = poisoned(setting, "p", float("nan"))
    sigma = given.p
    assert sigma is not None
    sigma.requires_grad_()
    (expected,) = torch.autograd.grad(by_torch(setting, given), sigma, upstream)
    (got,) = torch.autograd.grad(by_package(setting, given, engine), sigma, upstream)
    assert expected[sigma.isnan()].tolist() == [0]
    assert_same_pattern(got, expected, "gradient by sigma")


def test_poison_shows() -> None:
    """The comparison above is about something: each poisoned place but an unread pixel shows in the output."""
    for setting, where in itertools.product(SETTINGS, ("x", "w")):
        given, _ = poisoned(setting, where, float("nan"))
        read = where == "w" or setting.id not in ("unread", "between-windows")
        assert bool(by_torch(setting, given).isnan().any()) == read, f"{setting.id} {where}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_poisoned_sample(family: str, engine: str) -> None:
    """A NaN in one group of one sample leaves the rest alone."""
    given = operands(family, 2, 5, (9, 9), batch=3, in_channels=4, groups=2, dtype=torch.float32)
    clean = call(family, 2, given, groups=2, kernel_size=5, engine=engine)
    given.x[1, 0, 4, 4] = float("nan")
    y = call(family, 2, given, groups=2, kernel_size=5, engine=engine)
    assert y[1, :2].isnan().any()
    spared = torch.ones(3, 4, dtype=torch.bool)
    spared[1, :2] = False
    assert (y[spared] - clean[spared]).abs().max() <= 1e-6 * clean.abs().max()  # worst seen 2.0e-7

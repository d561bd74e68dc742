"""What radial symmetry gives exactly, and where it ends.

The convolution commutes with the symmetries of the square and of the cube to rounding; with stride, only where the
last window ends at the border; a stack of bias-free layers with "full" or circular padding, summed over positions, does
not see where its content lies.  Each statement is tested with the case next to it, where it fails clearly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support import (
    BANDED,
    ENGINES,
    FAMILIES,
    Operands,
    call,
    dense_kernel,
    gradients,
    largest_violation,
    operands,
    relative_error,
)
from torch import Tensor

from radconv_ext.equivariance import Symmetry, symmetries

DTYPE = {"reference": torch.float64, "cpu": torch.float32}

# In units of the largest value.
EXACT = {
    "reference": 1e-13,  # worst seen 1.4e-14, gradient by the profile; outputs 1.4e-15
    "cpu": 5e-6,  # worst seen 1.8e-6, gradient by sigma; outputs 2.7e-7
}


def test_symmetries() -> None:
    assert [len(symmetries(ndim)) for ndim in (1, 2, 3)] == [2, 8, 48]
    assert [sum(s.is_rotation for s in symmetries(ndim)) for ndim in (2, 3)] == [4, 24]
    t = torch.arange(12).reshape(3, 4)
    images = {tuple(map(tuple, symmetry(t).tolist())) for symmetry in symmetries(2)}
    turned = {tuple(map(tuple, torch.rot90(s, n).tolist())) for s in (t, t.flip(0)) for n in range(4)}
    assert images == turned
    assert len(images) == 8


@dataclass(frozen=True)
class Case:
    id: str
    ndim: int = 2
    k: int = 5
    size: tuple[int, ...] = (9, 9)
    circular: bool = True
    transposed: bool = False
    in_channels: int = 3
    out_channels: int = 4
    options: tuple[tuple[str, Any], ...] = ()


CASES = [
    Case("1d", ndim=1, k=5, size=(11,), options=(("padding", "same"),)),
    Case("square", options=(("padding", "same"),)),
    Case("rectangle", size=(6, 11), options=(("padding", "same"),)),
    Case("k3", k=3, options=(("padding", 0),)),
    Case("k9", k=9, size=(12, 12), options=(("padding", "same"),)),
    Case("k11-full", k=11, size=(7, 7), options=(("padding", "full"),)),
    Case("even", k=4, options=(("padding", 2),)),
    Case("even-full", k=6, options=(("padding", "full"),)),
    Case("full-support", circular=False, options=(("padding", "same"),)),
    Case("dilated", options=(("dilation", 2), ("padding", 3))),
    Case("groups", in_channels=4, options=(("groups", 2), ("padding", "same"))),
    Case("depthwise", in_channels=4, options=(("groups", 4), ("padding", "same"))),
    Case("circular", options=(("padding", "same"), ("padding_mode", "circular"))),
    Case("reflect", options=(("padding", 4), ("padding_mode", "reflect"))),
    Case("replicate", options=(("padding", 4), ("padding_mode", "replicate"))),
    Case("transposed", transposed=True, options=(("padding", 1), ("stride", 2))),
    Case("cube", ndim=3, k=3, size=(5, 5, 5), options=(("padding", "same"),)),
    Case("cube-k5", ndim=3, k=5, size=(6, 6, 6), options=(("padding", "same"),)),
    Case("cube-even", ndim=3, k=4, size=(4, 5, 6), options=(("padding", "full"),)),
    Case("cube-full-support", ndim=3, k=3, size=(5, 5, 5), circular=False, options=(("padding", 2),)),
    Case("cube-circular", ndim=3, k=3, size=(5, 4, 6), options=(("padding", 1), ("padding_mode", "circular"))),
    Case("cube-transposed", ndim=3, k=3, size=(3, 3, 3), transposed=True, options=(("stride", 2),)),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "family, case",
    [
        pytest.param(family, case, id=f"{family}-{case.id}")
        for family in FAMILIES
        for case in CASES
        if case.k % 2 or family not in BANDED
    ],
)
def test_commutes_with_symmetries(family: str, case: Case, engine: str) -> None:
    """The output turns with the input, and so does the input's gradient; the other gradients stay.

    The gradients are compared under the symmetries with one flip, which generate all.
    """
    options = dict(case.options)
    given = operands(
        family, case.ndim, case.k, case.size, circular=case.circular, in_channels=case.in_channels, batch=1,
        out_channels=case.out_channels, groups=options.get("groups", 1), transposed=case.transposed, bias=True,
        dtype=DTYPE[engine],
    )  # fmt: skip
    options |= {"kernel_size": case.k, "circular": case.circular, "transposed": case.transposed, "engine": engine}
    f = lambda x: call(family, case.ndim, given._replace(x=x), **options)
    assert largest_violation(f, given.x, symmetries(case.ndim)[1:]) <= EXACT[engine]

    upstream = torch.randn(f(given.x).shape, generator=torch.Generator().manual_seed(3), dtype=given.x.dtype)

    def all_gradients(g: Symmetry) -> list[Tensor]:
        turned = Operands(*(None if t is None else t.clone().requires_grad_() for t in given._replace(x=g(given.x))))
        return gradients(call(family, case.ndim, turned, **options), turned, g(upstream))

    identity, *others = symmetries(case.ndim)
    by_x, *by_rest = all_gradients(identity)
    for g in (g for g in others if sum(g.flipped) == 1):
        turned_by_x, *turned_by_rest = all_gradients(g)
        assert relative_error(turned_by_x, g(by_x)) <= EXACT[engine], f"gradient by x, {g}"
        for got, expected in zip(turned_by_rest, by_rest, strict=True):
            assert relative_error(got, expected) <= EXACT[engine], f"gradient of shape {tuple(got.shape)}, {g}"


@pytest.mark.parametrize("engine", ENGINES)
def test_diagonal_needs_the_right_axes(engine: str) -> None:
    """The measure is able to fail: a dilation per axis leaves the flips exact, and turns by 90 degrees broken."""
    given = operands("gaussian", 2, 5, (12, 12), dtype=DTYPE[engine])
    f = lambda x: call("gaussian", 2, given._replace(x=x), dilation=(1, 2), padding=(2, 4), engine=engine)
    assert largest_violation(f, given.x, [g for g in symmetries(2) if g.order == (0, 1)]) <= EXACT[engine]
    for g in symmetries(2):
        if g.order == (1, 0):
            assert largest_violation(f, given.x, [g]) > 0.1  # seen 1.2


# --- stride -----------------------------------------------------------------------------------------------------------

# ndim, size, k, stride, dilation, padding
STRIDED = [
    pytest.param(ndim, n, k, s, d, p, id=f"{ndim}d-N{n}-k{k}-s{s}-d{d}-p{p}")
    for ndim, n, k, s, d, p in (
        *((2, n, 3, 2, 1, 1) for n in (9, 10)),
        *((2, n, 5, 2, 1, 2) for n in (11, 12)),
        *((2, n, 5, 3, 1, 1) for n in (9, 10, 11, 12)),
        *((2, n, 3, 2, 2, 0) for n in (9, 10)),
        *((2, n, 5, 2, 2, 4) for n in (10, 11)),
        *((2, n, 4, 2, 1, 1) for n in (8, 9)),
        *((2, n, 9, 4, 1, 4) for n in (13, 14, 15, 16)),
        *((2, n, 3, 5, 1, 0) for n in (13, 15, 17)),
        *((3, n, 3, 2, 1, 1) for n in (5, 6)),
        *((3, n, 3, 3, 2, 2) for n in (7, 8)),
        *((1, n, 7, 2, 1, 3) for n in (13, 14)),
    )
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
@pytest.mark.parametrize("ndim, n, k, s, d, p", STRIDED)
def test_stride_rule(ndim: int, n: int, k: int, s: int, d: int, p: int, mode: str, engine: str) -> None:
    """Exact iff (N + 2p - dilation (k - 1) - 1) % stride == 0; otherwise every turn and flip is far off."""
    given = operands("gaussian", ndim, k, (n,) * ndim, dtype=DTYPE[engine], batch=1)
    options = {"stride": s, "dilation": d, "padding": p, "padding_mode": mode, "kernel_size": k, "engine": engine}
    f = lambda x: call("gaussian", ndim, given._replace(x=x), **options)
    if (n + 2 * p - d * (k - 1) - 1) % s == 0:
        assert largest_violation(f, given.x, symmetries(ndim)) <= EXACT[engine]
        return
    for g in symmetries(ndim):
        if any(g.flipped):
            assert largest_violation(f, given.x, [g]) > 0.2, str(g)  # least seen 0.44
        else:  # swapping axes moves no window
            assert largest_violation(f, given.x, [g]) <= EXACT[engine], str(g)


@pytest.mark.parametrize("engine", ENGINES)
def test_stride_rule_holds_per_axis(engine: str) -> None:
    """A flip needs the rule along its own axis alone."""
    for sizes in ((9, 10), (10, 9)):
        given = operands("gaussian", 2, 3, sizes, dtype=DTYPE[engine])
        f = lambda x, given=given: call("gaussian", 2, given._replace(x=x), stride=2, padding=1, engine=engine)
        for axis, n in enumerate(sizes):
            flip = Symmetry((0, 1), (axis == 0, axis == 1))
            violation = largest_violation(f, given.x, [flip])
            assert violation <= EXACT[engine] if n % 2 else violation > 0.2  # least seen 0.75


@pytest.mark.parametrize("engine", ENGINES)
def test_stride_rule_per_axis_options(engine: str) -> None:
    """With options per axis the rule is the one of each axis."""
    given = operands("gaussian", 2, 3, (9, 10), dtype=DTYPE[engine])
    f = lambda x: call("gaussian", 2, given._replace(x=x), stride=(2, 3), padding=(1, 1), engine=engine)
    flips = [Symmetry((0, 1), flipped) for flipped in itertools.product((False, True), repeat=2)]
    assert (9 + 2 - 2 - 1) % 2 == (10 + 2 - 2 - 1) % 3 == 0
    assert largest_violation(f, given.x, flips) <= EXACT[engine]


# --- translation ------------------------------------------------------------------------------------------------------

CANVAS, CONTENT, CHANNELS = 12, 5, 8


def placed(content: Tensor, at: tuple[int, ...]) -> Tensor:
    """Content on a zero background."""
    canvas = content.new_zeros(*content.shape[:2], *(CANVAS,) * len(at))
    canvas[(..., *(slice(a, a + n) for a, n in zip(at, content.shape[2:], strict=True)))] = content
    return canvas


def offsets(ndim: int) -> list[tuple[int, ...]]:
    """Inside, along the borders and in every corner."""
    last = CANVAS - CONTENT
    inside = (last // 2,) * ndim
    return [inside, *itertools.product((0, 1, last) if ndim < 3 else (0, last), repeat=ndim)]


def stack_layer(ndim: int, family: str, k: int, seed: int, bias: bool, dtype: torch.dtype) -> Operands:
    """A layer that keeps the size of its input's numbers; its biases are a tenth of that."""
    layer = operands(family, ndim, k, (1,) * ndim, in_channels=CHANNELS, out_channels=CHANNELS, bias=bias, seed=seed)
    gain = dense_kernel(family, ndim, layer.w, layer.p, kernel_size=k).square().flatten(1).sum(1).mean().sqrt()
    layer = layer._replace(w=layer.w / gain, bias=None if layer.bias is None else layer.bias / 10)
    return Operands(*(None if t is None else t.to(dtype) for t in layer))


def summed_stack(
    ndim: int, family: str, engine: str, k: int, *, bias: bool = False, first_stride: int = 1, **options: Any
) -> Callable[[Tensor], Tensor]:
    """Three layers with ReLU, then the sum over positions: (B, channels)."""
    layers = [stack_layer(ndim, family, k, seed, bias, DTYPE[engine]) for seed in range(3)]
    own = [options | {"stride": first_stride}, options, options]

    def stack(x: Tensor) -> Tensor:
        for layer, chosen in zip(layers, own, strict=True):
            x = call(family, ndim, layer._replace(x=x), kernel_size=k, engine=engine, **chosen).relu()
        return x.sum(tuple(range(2, x.dim())))

    return stack


def content(ndim: int, engine: str) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randn(1, CHANNELS, *(CONTENT,) * ndim, generator=random, dtype=torch.float64).to(DTYPE[engine])


def largest_change(stack: Callable[[Tensor], Tensor], shown: Tensor) -> float:
    """Largest change of the stack's answer as content moves from the middle to every border, over the answer to it."""
    first, *rest = offsets(shown.dim() - 2)
    nothing = stack(placed(torch.zeros_like(shown), first))
    expected = stack(placed(shown, first)) - nothing
    assert expected.count_nonzero() > 1, "ReLU left nothing to compare"
    return max(relative_error(stack(placed(shown, at)) - nothing, expected) for at in rest)


SETTINGS = [
    pytest.param(ndim, family, k, id=f"{family}-{ndim}d-k{k}")
    for ndim, k in ((1, 5), (2, 5), (2, 4), (2, 9), (3, 3))
    for family in FAMILIES
    if k % 2 or family not in BANDED
]

# Sums over many positions, in units of the largest.
SAME_SUM = {
    "reference": 1e-13,  # worst seen 8.8e-16
    "cpu": 2e-6,  # worst seen 6.0e-7
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim, family, k", SETTINGS)
def test_full_padding_ignores_position(ndim: int, family: str, k: int, engine: str) -> None:
    """Right up to the border: every kernel value meets every input value wherever the content lies."""
    stack = summed_stack(ndim, family, engine, k, padding="full")
    assert largest_change(stack, content(ndim, engine)) <= SAME_SUM[engine]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim, family, k", SETTINGS)
def test_circular_padding_ignores_position(ndim: int, family: str, k: int, engine: str) -> None:
    stack = summed_stack(ndim, family, engine, k, padding="same", padding_mode="circular")
    assert largest_change(stack, content(ndim, engine)) <= SAME_SUM[engine]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim, family, k", SETTINGS)
def test_zero_padding_sees_the_border(ndim: int, family: str, k: int, engine: str) -> None:
    stack = summed_stack(ndim, family, engine, k, padding="same")
    assert largest_change(stack, content(ndim, engine)) > 0.1  # least seen 0.22


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim, family, k", SETTINGS)
def test_biases_see_the_border(ndim: int, family: str, k: int, engine: str) -> None:
    """With biases the background is no longer zero: full padding isn't exact, circular padding still is."""
    stack = summed_stack(ndim, family, engine, k, bias=True, padding="full")
    assert largest_change(stack, content(ndim, engine)) > 0.01  # least seen 0.045
    stack = summed_stack(ndim, family, engine, k, bias=True, padding="same", padding_mode="circular")
    assert largest_change(stack, content(ndim, engine)) <= SAME_SUM[engine]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ndim, family, k", SETTINGS)
def test_stride_ignores_whole_steps(ndim: int, family: str, k: int, engine: str) -> None:
    """With stride, shifts by its multiples are exact, others aren't."""
    stack = summed_stack(ndim, family, engine, k, first_stride=3, padding="full")
    shown = content(ndim, engine)
    expected = stack(placed(shown, (0,) * ndim))
    for at in itertools.product((0, 3, 6), repeat=ndim):
        assert relative_error(stack(placed(shown, at)), expected) <= SAME_SUM[engine]
    for at in itertools.product((0, 1), repeat=ndim):
        if any(at):
            change = relative_error(stack(placed(shown, at)), expected)
            assert change > 0.01  # least seen 0.057

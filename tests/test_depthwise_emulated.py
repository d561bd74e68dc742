"""The depthwise CUDA kernels, emulated on the CPU with races watched, their plans driven directly.

`make emulation` builds what this runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import Case
from test_engines import largest_errors, outputs_of
from torch import Tensor

from radconv_ext import problem as problem_module
from radconv_ext import reference
from radconv_ext.engines import cuda as engine_module
from radconv_ext.engines.native import conv_shape, dtype_of, reads_transposed, ring_model

if torch.cuda.is_available():
    pytest.skip("a GPU is here: test_gpu.py runs the compiled kernels instead", allow_module_level=True)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# largest error over the largest value of the float64 reference: of what is rounded to the tensor's type, and of sums
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-6}
SUMS = 2e-6
# a block of an A100's shared memory; few multiprocessors, so that blocks do several chunks and tiles
SMALL, LARGE = (163 * 1024, 1), (163 * 1024, 108)


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RADCONV_EMULATE_CUDA", os.environ.get("RADCONV_EMULATE_CUDA", "1"))
    monkeypatch.setenv("RADCONV_EMULATION_RACES", "1")
    yield
    problem_module._problems.clear()


def depthwise(id: str, size: tuple[int, ...], k: int, channels: int = 5, **changes: Any) -> Case:
    options = {"groups": channels, **changes.pop("options", {})}
    return Case(id, size, channels=(channels, channels), k=k, options=options, **changes)


CASES = [
    *(depthwise(f"k-{k}", (17, 18), k, options={"padding": "same"}) for k in (1, 3, 4, 5, 7, 9, 11, 13)),
    *(depthwise(f"k-{k}-3d", (6, 9, 17), k, options={"padding": "same"}) for k in (3, 5, 7)),
    *(depthwise(f"k-{k}-1d", (40,), k, options={"padding": "same"}) for k in (5, 9)),
    *(depthwise(f"rows-{n}", (n, 16), 3, options={"padding": 1}) for n in (1, 4, 5, 8, 9)),
    depthwise("tiles", (25, 50), 7, channels=37, batch=3, options={"padding": 3}),
    depthwise("channels-last", (9, 33), 5, channels=40, layout="channels_last", options={"padding": 2}),
    depthwise("channels-last-odd", (9, 20), 9, channels=37, layout="channels_last", options={"padding": 4}),
    depthwise("channels-last-even", (9, 20), 3, channels=22, layout="channels_last", options={"padding": 1}),
    depthwise("channels-last-3d", (5, 9, 17), 3, channels=24, layout="channels_last", options={"padding": 1}),
    depthwise("sliced", (9, 17), 5, layout="sliced", options={"padding": 2}),
    depthwise("expanded", (9, 17), 5, layout="expanded", batch=3),
    depthwise("valid-3d", (11, 10, 9), 5, batch=1),
    depthwise("full-3d", (3, 4, 5), 3, options={"padding": "full"}),
    depthwise("stride-2", (14, 35), 5, channels=20, options={"stride": 2, "padding": 2}),
    depthwise("stride-3-1", (14, 15), 7, options={"stride": (3, 1), "padding": 3}),
    depthwise("stride-2-3d", (9, 8, 11), 3, options={"stride": 2, "padding": 1}),
    depthwise("dilation-3-2", (19, 37), 5, options={"dilation": (3, 2), "padding": (6, 4)}),
    depthwise("dilation-2-3d", (9, 10, 11), 3, options={"dilation": 2, "padding": 2}),
    depthwise("circular", (11, 18), 7, options={"padding": 3, "padding_mode": "circular"}),
    depthwise("circular-3d", (5, 9, 8), 5, options={"padding": 2, "padding_mode": "circular"}),
    depthwise("square", (12, 13), 7, options={"circular": False, "padding": 3}),
    depthwise("banded", (12, 13), 9, rings=3, options={"family": "banded", "padding": 4}),
    depthwise("binary", (12, 13), 7, method="sre_conv", options={"padding": 3}),
    depthwise("binary-3d", (5, 6, 7), 5, method="sre_conv", options={"padding": 2}),
    depthwise("shell", (12, 13), 9, method="radial_conv"),
    depthwise("custom", (12, 13), 7, rings=3, method="radial_conv"),
    depthwise("no-bias", (12, 13), 5, bias=False),
    depthwise("transpose", (7, 8), 5, method="gmr_conv_transpose", options={"stride": 2, "padding": 2}),
]
KNOWN = {*((k, 1) for k in (3, 5, 7, 9, 11)), *((k, k) for k in (3, 5, 7))}


@dataclass
class Made:
    """What the kernels make of one case, with the plans' facts."""

    outputs: dict[str, Tensor]
    sums: Tensor  # (channels, functions)
    bias_sums: Tensor  # (channels,)
    facts: dict[str, dict[str, Any]]
    problem: problem_module.RadialConvProblem


def launch(plan: Any, *arguments: Any) -> Tensor:
    """The workspace, which begins and ends as NaN."""
    words = -(-plan.workspace // 4)
    workspace = torch.full((words + 64,), -1, dtype=torch.int32)
    tables = torch.frombuffer(bytearray(plan.tables), dtype=torch.int32)
    plan.prepare()
    plan.run(0, *arguments, workspace.data_ptr(), tables.data_ptr())
    assert (workspace[words:] == -1).all()
    return workspace.view(torch.float32)


def poisoned(shape: Any, like: problem_module.RadialConvProblem) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=like.memory_format).fill_(torch.nan)


def made_by_kernels(case: Case, dtype: torch.dtype, card: tuple[int, int]) -> Made:
    tensors = case.tensors(dtype)
    x, w, p, bias = (tensors.get(name) for name in ("x", "w", "p", "bias"))
    problem_module._problems.clear()
    case(tensors, "reference")
    (problem,) = problem_module._problems.values()
    c, address = engine_module._module(), engine_module._address

    def small(t: Tensor | None) -> tuple[int, Any]:
        return (0, c.DType.float32) if t is None else (t.data_ptr(), dtype_of(c, t.dtype))

    def common(adjoint: bool) -> dict[str, Any]:
        return {
            "model": ring_model(c, problem.options),
            "shape": conv_shape(c, problem, adjoint),
            "transpose": reads_transposed(problem, adjoint),
            "exact": True,
            "device": 0,
            "card": card,
        }

    last = problem.channels_last
    y, grad_x = poisoned(problem.output_shape, problem), poisoned(problem.gradient_shape, problem)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y)
    forward = c.DepthwisePlan(**common(False), x_strides=x.stride(), channels_last=last)
    if case.batch > 0:
        launch(forward, x.data_ptr(), *small(w), *small(p), *small(bias), y.data_ptr())
    backward = c.DepthwisePlan(**common(True), x_strides=grad.stride(), channels_last=last)
    if case.batch > 0:
        launch(backward, grad.data_ptr(), *small(w), *small(p), *small(None), grad_x.data_ptr())

    one, other = (grad, x) if problem.options.transposed else (x, grad)
    weights = c.DepthwiseGradientPlan(
        **common(problem.options.transposed), x_strides=one.stride(), grad_strides=other.stride()
    )
    grad_w, grad_p = (None if t is None else torch.full_like(t, torch.nan) for t in (w, p))
    grad_bias = torch.full((problem.out_channels,), torch.nan)
    workspace = launch(
        weights, one.data_ptr(), other.data_ptr(), *small(w), *small(p), address(grad_w), address(grad_p),
        address(grad_bias),
    )  # fmt: skip
    facts = weights.facts()
    functions, splits, channels = facts["functions"], facts["splits"], problem.in_channels

    def added(at: int, *shape: int) -> Tensor:
        count = splits * torch.Size(shape).numel()
        return workspace[at // 4 : at // 4 + count].view(splits, *shape).double().sum(0)

    outputs = {"y": y, "grad_x": reference.folded_gradient(problem, grad_x), "grad_w": grad_w, "grad_p": grad_p}
    if bias is not None and not problem.options.transposed:
        outputs["grad_bias"] = grad_bias
    return Made(
        {name: t for name, t in outputs.items() if t is not None},
        added(facts["sums"], channels, functions),
        added(facts["bias_sums"], channels),
        {"forward": forward.facts(), "backward": backward.facts(), "weights": facts},
        problem,
    )


def sums_by_definition(case: Case, made: Made) -> Tensor:
    """Sums over pixels of the output's gradient times the sum of x over each function's taps, (channels, functions)."""
    o, ndim = made.problem.options, case.ndim
    x = case.tensors(torch.float64)["x"]
    grad = torch.randn(made.problem.output_shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    taps = torch.cartesian_prod(*[torch.arange(1 - o.kernel_size, o.kernel_size, 2)] * ndim).reshape(-1, ndim)
    distance = taps.square().sum(1)
    if made.facts["weights"]["kernel"] == (0, 0):
        masks = [torch.tensor(o.geometry.bucket) == f for f in range(o.geometry.buckets)]
    else:
        masks = [distance == d for d in distance.unique() if d < o.kernel_size**2]
    pad = [v for axis in reversed(range(ndim)) for v in (o.low[axis], o.high[axis])]
    padded = torch.nn.functional.pad(x, pad, mode="circular" if o.padding_mode == "circular" else "constant")
    convolution = getattr(torch.nn.functional, f"conv{ndim}d")
    sums = []
    for mask in masks:
        kernel = mask.double().reshape(1, 1, *[o.kernel_size] * ndim).expand(x.shape[1], *[-1] * (ndim + 1))
        q = convolution(padded, kernel, stride=o.stride, dilation=o.dilation, groups=x.shape[1])
        sums.append((q * grad).sum((0, *range(2, ndim + 2))))
    return torch.stack(sums, 1)


def agree(case: Case, dtype: str, card: tuple[int, int]) -> Made:
    made = made_by_kernels(case, DTYPES[dtype], card)
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    for name, error in largest_errors(made.outputs, {name: expected[name] for name in made.outputs}).items():
        assert error < (SUMS if name == "grad_bias" else TOLERANCE[dtype]), (name, error)
    if not case.transposed:
        sums = sums_by_definition(case, made)
        assert (made.sums - sums).abs().max() < SUMS * sums.abs().max()
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernels_agree_with_the_definition(case: Case, dtype: str) -> None:
    agree(case, dtype, SMALL)


BY_ID = {case.id: case for case in CASES}


@pytest.mark.parametrize("id", ["tiles", "channels-last-odd", "k-5-3d", "k-13", "stride-2"])
def test_many_multiprocessors(id: str) -> None:
    """The same work among more blocks."""
    small, large = (agree(BY_ID[id], "float16", card).facts for card in (SMALL, LARGE))
    for name in ("forward", "weights"):
        assert small[name]["blocks"] < large[name]["blocks"]


def test_case_table_runs_every_kernel() -> None:
    seen: set[Any] = set()
    for id in ("k-4", "stride-2", *(f"k-{k}" for k in (3, 5, 7, 9, 11)), *(f"k-{k}-3d" for k in (3, 5, 7))):
        facts = made_by_kernels(BY_ID[id], torch.bfloat16, SMALL).facts
        kernels = {name: found["kernel"] for name, found in facts.items()}
        if id in ("k-4", "stride-2"):
            assert set(kernels.values()) == {(0, 0)}
        else:
            assert len(set(kernels.values())) == 1
        seen |= set(kernels.values())
    assert seen == KNOWN | {(0, 0)}


@pytest.mark.parametrize("order", ["backward", "1"])
@pytest.mark.parametrize("id", ["tiles", "k-13", "k-5-3d"])
def test_results_do_not_depend_on_the_order_of_threads(id: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(BY_ID[id], batch=2)
    before = made_by_kernels(case, torch.float16, SMALL).outputs
    monkeypatch.setenv("RADCONV_EMULATION_ORDER", order)
    after = made_by_kernels(case, torch.float16, SMALL).outputs
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_little_shared_memory() -> None:
    """One halo at a time; none at all where it doesn't fit."""
    case = depthwise("wide", (24, 25), 15, channels=20, batch=1, options={"stride": 3, "padding": 7})
    facts = agree(case, "float32", (18 * 1024, 1)).facts["forward"]
    assert facts["halo_buffers"] == 1
    assert facts["block_chunks"] > 1
    with pytest.raises(ValueError, match=r"the pixels that one output meets take \d+ bytes of shared memory, a block"):
        made_by_kernels(case, torch.float32, (4096, 1))


def test_shells_beyond_a_block() -> None:
    """A kernel of any size leaves some of them to other blocks."""
    case = depthwise("shells", (8, 9), 23, channels=3, method="radial_conv", options={"circular": False, "padding": 11})
    facts = agree(case, "float32", SMALL).facts["weights"]
    assert facts["functions"] > 64
    assert facts["blocks"] == 2 * facts["splits"]


@pytest.mark.parametrize("id", ["k-4", "k-5", "k-5-3d"])
def test_sums_over_nothing(id: str) -> None:
    made = made_by_kernels(replace(BY_ID[id], batch=0), torch.float32, LARGE)
    assert all((t == 0).all() for t in (made.sums, made.bias_sums, *made.outputs.values()))


def test_float16_sums_beyond_its_range() -> None:
    """Shell sums leave float16 where the output, whose weights are small, does not."""
    case = depthwise("large", (9, 9), 5, bias=False)
    tensors = {**case.tensors(torch.float16), "x": torch.full((2, 5, 9, 9), 3e4).half()}
    tensors["w"] = torch.full((5, 1, 3), 1e-4).half()

    class Given(Case):
        def tensors(self, dtype: torch.dtype, *_: Any) -> dict[str, Tensor]:  # type: ignore[override]
            return {name: t.to(dtype) for name, t in tensors.items()}

    given = Given(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    y = made_by_kernels(given, torch.float16, SMALL).outputs["y"]
    expected = given(given.tensors(torch.float64), "reference")
    assert (y.double() - expected).abs().max() < TOLERANCE["float16"] * expected.abs().max()


def test_reasons_why_not() -> None:
    with pytest.raises(ValueError, match="depthwise kernels take one channel to one, these groups take 2 to 3"):
        made_by_kernels(Case("groups", (9, 9), channels=(4, 6), options={"groups": 2}), torch.float16, SMALL)
    case = depthwise("rings", (9, 9), 9, channels=1, rings=500, method="radial_conv")
    with pytest.raises(ValueError, match="a profile of 500 rings by 13 shells is larger than one block holds"):
        made_by_kernels(case, torch.float16, SMALL)

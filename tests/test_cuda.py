"""The native CUDA engine, its kernels emulated on the CPU and races watched; and bugs planted in them, which must show.

`make emulation` builds what this runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from test_engines import (
    assert_nothing_comes_of_nothing,
    errors_of_gradients_alone,
    errors_of_strided_gradients,
    failures_of_threads,
    largest_errors,
    outputs_of,
    poison_new_tensors,
)
from test_gradients import rounding_errors
from torch import Tensor

import radconv_ext
from radconv_ext import problem as problem_module
from radconv_ext.engines import ENGINES
from radconv_ext.engines import cuda as engine_module

if torch.cuda.is_available():
    pytest.skip("a GPU is here: test_gpu.py runs the compiled kernels instead", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
# largest error over the largest value of the float64 reference, output and all gradients, any case
TOLERANCE = {
    "float16": 1.5e-3,  # worst seen 1.0e-3, sigma's gradient of k-4
    "bfloat16": 1.6e-2,  # worst seen 1.1e-2, sigma's gradient of transpose-dilation
    "tf32": 2e-3,  # worst seen 1.4e-3, sigma's gradient of k-4
    "float32": 5e-6,  # worst seen 2.9e-6, sigma's gradient where one block sums over all of a dilated image's pixels
}
BY_ID = {case.id: case for case in CASES}
SIZES = {(k, 1) for k in (3, 5, 7, 9, 11)} | {(k, k) for k in (3, 5, 7)} | {(0, 0)}  # of compiled kernels, 0: any


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RADCONV_EMULATE_CUDA", "1")
    monkeypatch.setenv("RADCONV_EMULATION_RACES", "1")
    problem_module._problems.clear()  # plans of other tests, and for them ours
    yield
    problem_module._problems.clear()


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of float32 products, by the test's parameter `dtype`; else TF32."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    exact = "callspec" in dir(request.node) and request.node.callspec.params.get("dtype") == "float32"
    conv.fp32_precision = "ieee" if exact else "tf32"
    yield
    conv.fp32_precision = before


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans that are run, in order, with the address of what they read."""
    done: list[Any] = []
    real = engine_module._Plan.run

    def noted(self: Any, x: int, *rest: Any) -> None:
        done.append((self.native, x))
        real(self, x, *rest)

    monkeypatch.setattr(engine_module._Plan, "run", noted)
    return done


def agree(case: Case, dtype: str) -> None:
    """Output and all gradients."""
    found = outputs_of(case, case.tensors(DTYPES[dtype]), "cuda")
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    assert all(t.dtype is DTYPES[dtype] for t in found.values())
    errors = largest_errors(found, expected)
    assert max(errors.values()) < TOLERANCE[dtype], errors


def as_on(card: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as for a card with so many bytes of shared memory a block, and so many multiprocessors."""
    c, _ = engine_module._kernels()
    for name in ("CudaPlan", "CudaGradientPlan", "DepthwisePlan", "DepthwiseGradientPlan"):
        monkeypatch.setattr(c, name, partial(getattr(c, name), card=card))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernels_agree_with_the_definition(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and a block for each, as small problems get; races are watched once."""
    if dtype != "bfloat16":
        monkeypatch.delenv("RADCONV_EMULATION_RACES")
    agree(case, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernels_agree_as_planned_for_large_problems(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card with one multiprocessor, every problem is large: whole tiles, many of them for a block."""
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    as_on((163 * 1024, 1), monkeypatch)
    agree(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_case_table_runs_every_kernel(dtype: str, plans: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    for case in CASES:
        if case.id.startswith(("k-", "volume", "batch-1", "tile+1")):
            outputs_of(case, case.tensors(DTYPES[dtype]), "cuda")
    for kind in ("CudaPlan", "CudaGradientPlan"):
        assert {native.facts()["kernel"] for native, _ in plans if type(native).__name__ == kind} == SIZES


@pytest.mark.parametrize("order", ["backward", "1", "2"])
@pytest.mark.parametrize("id", ["many-tiles", "inputs-260", "volume", "k-15", "stride-2", "depthwise"])
def test_results_do_not_depend_on_the_order_of_threads(id: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = BY_ID[id].tensors(torch.float16)
    forward = outputs_of(BY_ID[id], tensors, "cuda")
    monkeypatch.setenv("RADCONV_EMULATION_ORDER", order)
    again = outputs_of(BY_ID[id], tensors, "cuda")
    assert all(torch.equal(forward[name], again[name]) for name in forward)


# --- what the planner chooses -----------------------------------------------------------------------------------------

LAYOUTS = [
    ("channels-last", "bfloat16", (16, 24), "word"),
    ("channels-last", "tf32", (8, 24), "word"),
    ("channels-last", "bfloat16", (15, 24), "scalar"),
    ("channels-last", "float16", (14, 24), "word"),
    ("channels-last", "tf32", (6, 24), "word"),
    ("width-17", "bfloat16", (20, 24), "scalar"),
    ("width-17", "tf32", (20, 24), "word"),
    ("sliced", "float16", (20, 24), "scalar"),
]


@pytest.mark.parametrize(("id", "dtype", "channels", "loader"), LAYOUTS)
def test_loaders(id: str, dtype: str, channels: tuple[int, int], loader: str, plans: list[Any]) -> None:
    """The one that alignment and layout allow; 16 bytes at a time need an address to match."""
    agree(replace(BY_ID[id], channels=channels), dtype)
    native, _ = plans[0]
    assert native.loader(4) == loader
    vector = channels[0] % 8 == 0 and id == "channels-last"
    assert native.loader(0) == ("vector" if vector else loader)
    assert DTYPES[dtype] is torch.float32 or native.loader(2) == "scalar"


@pytest.mark.parametrize("dtype", DTYPES)
def test_address_of_one_element(dtype: str, plans: list[Any]) -> None:
    """A view that begins anywhere."""
    case = Case("offset", (9, 10), channels=(16, 8), layout="channels_last", options={"padding": 2})
    tensors = case.tensors(DTYPES[dtype])
    x = tensors["x"]
    moved = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert torch.equal(case({**tensors, "x": moved}, "cuda"), case(tensors, "cuda"))
    assert [native.loader(x) for native, x in plans] == [
        "word" if DTYPES[dtype] is torch.float32 else "scalar",
        "vector",
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [163, 99])
@pytest.mark.parametrize("id", ["k-3", "k-9", "k-11", "k-7-3d", "k-15", "stride-7", "outputs-260"])
def test_shared_memory_of_smaller_cards(
    id: str, shared: int, dtype: str, plans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less of it, fewer buffers and fewer outputs a block; 163 KiB hold everything twice."""
    as_on((shared * 1024, 1), monkeypatch)
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    agree(replace(BY_ID[id], channels=(40, 260 if id == "outputs-260" else 130), batch=1), dtype)
    facts = plans[0][0].facts()
    assert all(native.facts()["shared"] <= shared * 1024 for native, _ in plans)
    if shared == 163 and facts["kernel"] != (0, 0):
        assert (facts["halo_buffers"], facts["weight_buffers"], facts["block_outputs"]) == (2, 2, 128)
    if (shared, id) == (99, "k-9"):
        assert (facts["halo_buffers"], facts["weight_buffers"]) == (1, 1)
    if (shared, id) == (99, "k-11"):
        assert facts["tile"] == (1, 4, 16) or facts["block_outputs"] == 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_dilation_and_circular_padding_cost_no_shared_memory(
    dtype: str, plans: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dilated convolutions fall into as many plain ones, also where the dilation exceeds the image."""
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    for dilation in (1, 2, 5, (3, 40)):
        case = Case("dilated", (80, 165), channels=(3, 4), batch=1, k=5, options={"dilation": dilation})
        agree(case, dtype)
        agree(replace(case, options={"dilation": dilation, "padding": (12, 80), "padding_mode": "circular"}), dtype)
    for kind in ("CudaPlan", "CudaGradientPlan"):
        assert len({native.facts()["shared"] for native, _ in plans if type(native).__name__ == kind}) == 1
    assert {native.facts()["kernel"] for native, _ in plans} == {(5, 1)}


# --- numbers ----------------------------------------------------------------------------------------------------------


RATIOS = ["float16-float16-0.03", "float16-float16-1e-5", "bfloat16-bfloat16-1"]


def beside_the_dense_form(dtypes: str, weights: str, k: int, scale: int) -> dict[str, tuple[float, float]]:
    x, w, size = dtypes.split("-", 2)
    return rounding_errors("cuda", getattr(torch, x), getattr(torch, w), weights, scale, k, float(size))


@pytest.mark.parametrize(("k", "scale"), [(3, 1), (3, 5), (9, 1), (9, 5), (11, 3)])
@pytest.mark.parametrize("weights", ["random", "projected"])
@pytest.mark.parametrize("dtypes", RATIOS)
def test_error_is_at_most_one_and_a_half_times_the_dense_one(
    dtypes: str, weights: str, k: int, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incoming gradients far below 1 too. Worst ratios seen: output and gradient by x bfloat16 0.77, float16 1.14."""
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    for name, (ours, dense) in beside_the_dense_form(dtypes, weights, k, scale).items():
        assert name == "sigma" or ours <= 1.5 * dense, (name, ours, dense)


@pytest.mark.parametrize("dtypes", RATIOS)
def test_error_of_sigmas_gradient_beside_the_dense_one(dtypes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all of them: one has as few numbers as there are rings, whose rounding comes out as it may."""
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    pairs = [
        beside_the_dense_form(dtypes, weights, k, scale)["sigma"]
        for weights in ("random", "projected")
        for k, scale in ((3, 1), (3, 5), (9, 1), (9, 5), (11, 3))
    ]
    ours, dense = (sum(pair[i] ** 2 for pair in pairs) ** 0.5 for i in range(2))
    assert ours <= 1.5 * dense, (ours, dense)


@pytest.mark.parametrize("dtype", ["float32"])
@pytest.mark.parametrize(("k", "scale"), [(3, 1), (9, 5), (11, 3)])
def test_full_float32_is_as_exact_as_the_dense_form(
    k: int, scale: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its products are sums of three. Worst ratio seen 1.4, k = 3."""
    monkeypatch.delenv("RADCONV_EMULATION_RACES")
    errors = beside_the_dense_form(f"{dtype}-{dtype}-1", "projected", k, scale)
    for name in ("y", "x", "w"):
        ours, dense = errors[name]
        assert ours <= 1.5 * dense, (name, ours, dense)


def test_tf32_error_beside_the_dense_one() -> None:
    """The dense form with operands rounded to TF32 and sums in float64."""

    def rounded(t: Tensor) -> Tensor:
        bits = t.float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()

    generator = torch.Generator().manual_seed(0)
    for k, scale in ((3, 1), (9, 1), (9, 5)):
        x = torch.randn(1, 32, 20, 20, generator=generator)
        w = torch.randn(32, 32, k // 2 + 1, generator=generator)
        sigma = radconv_ext.default_sigma(k) * scale
        kernel = radconv_ext.gmr_kernel2d(w.double(), sigma.double())
        exact = torch.nn.functional.conv2d(x.double(), kernel)
        dense = (torch.nn.functional.conv2d(rounded(x), rounded(kernel)) - exact).norm()
        ours = (radconv_ext.gmr_conv2d(x, w, sigma, engine="cuda").double() - exact).norm()
        assert ours <= 1.5 * dense, (k, scale, ours / dense)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("k", [5, 6])
def test_float16_rings_beyond_its_range(k: int, ndim: int) -> None:
    """Rings leave float16 where the output, whose weights are small, does not; with k = 6 in the kernel of any size."""
    size = (k + 2,) * ndim
    given = (torch.full((1, 20, *size), 3e4), torch.full((2, 20, k // 2 + 1), 1e-4), radconv_ext.default_sigma(k))
    found = []
    for dtype, engine in ((torch.float16, "cuda"), (torch.float64, "reference")):
        x, w, sigma = (t.half().to(dtype) for t in given)
        convolution = getattr(radconv_ext, f"gmr_conv{ndim}d")
        found.append(convolution(x, w, sigma, kernel_size=k, engine=engine))
    assert found[1].max() < 65504
    assert (found[0].double() - found[1]).abs().max() < TOLERANCE["float16"] * found[1].max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_spread_over_the_support(value: float, dtype: str) -> None:
    x, w, sigma = torch.randn(1, 20, 20, 20), torch.randn(6, 20, 3), radconv_ext.default_sigma(5)
    x[0, 3, 9, 10] = value
    y = radconv_ext.gmr_conv2d(*(t.to(DTYPES[dtype]) for t in (x, w, sigma)), padding=2, engine="cuda")
    support = radconv_ext.gmr_kernel2d(torch.ones(1, 1, 3), sigma)[0, 0] != 0
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[7:12, 8:13] = support
    assert torch.equal(~y.isfinite(), expected.expand_as(y))


@pytest.mark.parametrize("family", ["gaussian", "banded"])
def test_sigma_is_clamped(family: str) -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(2, 2, 3), torch.tensor([1e-3, 0.8, 7.0])
    y = radconv_ext.gmr_conv2d(x, w, sigma, family=family, engine="cuda")
    clamped = radconv_ext.gmr_conv2d(x, w, sigma.clamp(1e-2, 6), family=family, engine="cuda")
    assert torch.equal(y, clamped)


@pytest.mark.parametrize("id", ["width-17", "stride-3", "transpose-output-padding", "depthwise", "channels-last-3d"])
def test_every_element_is_written(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison_new_tensors(monkeypatch)
    agree(BY_ID[id], "tf32")


def test_gradient_that_is_not_contiguous() -> None:
    errors = errors_of_strided_gradients("cuda")
    assert max(errors.values()) < TOLERANCE["tf32"], errors


@pytest.mark.parametrize("wanted", [("x",), ("w",), ("p",), ("bias",), ("x", "bias"), ("w", "bias")])
def test_gradients_asked_for_alone(wanted: tuple[str, ...]) -> None:
    errors = errors_of_gradients_alone("cuda", wanted)
    assert max(errors.values()) < TOLERANCE["tf32"], errors


def test_batch_of_none() -> None:
    assert_nothing_comes_of_nothing("cuda")


def test_threads_at_once() -> None:
    cases = [Case(f"thread-{i}", (20 + i, 30), channels=(8, 8 + i)) for i in range(4)]
    assert failures_of_threads(cases, lambda case: outputs_of(case, case.tensors(torch.float32), "cuda")) == []


# --- when it serves ---------------------------------------------------------------------------------------------------


def refused(match: str, *tensors: Tensor, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        radconv_ext.gmr_conv2d(*tensors, engine="cuda", **options)


def test_reasons_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3), radconv_ext.default_sigma(5)
    refused("serves float32, float16 and bfloat16, this is float64", x.double(), w.double(), sigma.double())
    refused("channel-wise sigma", x, w, torch.rand(3, 2, 3))
    refused(
        r"a profile of 60 rings by \d+ shells is larger than one block holds",
        torch.randn(1, 2, 119, 119), torch.randn(3, 2, 60), torch.rand(60),
    )  # fmt: skip
    refused(
        r"the pixels that one output meets take \d+ bytes of shared memory, a block of this card has 166912",
        torch.randn(1, 2, 150, 150), torch.randn(3, 2, 25), torch.rand(25), stride=2,
    )  # fmt: skip
    monkeypatch.setenv("RADCONV_EMULATE_CUDA", str(tmp_path))
    refused("RADCONV_EMULATE_CUDA names .*, where there are no emulated kernels", x, w, sigma, padding=2)
    monkeypatch.delenv("RADCONV_EMULATE_CUDA")
    refused("needs tensors on an NVIDIA GPU, these are on cpu", x, w, sigma, padding=3)


def test_automatic_choice_never_emulates() -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3), radconv_ext.default_sigma(5)
    spec, _ = problem_module.make_spec("auto", 2, "gaussian", 3, None, None, 1, 0, 1, 1, "zeros", True, False, 0)
    assert problem_module.build_problem(spec, x, w, sigma, None).engine.name == "cpu"


def test_tiles_of_a_few_pixels_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shared memory holds the halo of next to nothing: served by name, not by choice."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    emulated, _ = engine_module._emulated("1")
    monkeypatch.setattr(engine_module, "_kernels", lambda: (emulated, None))
    monkeypatch.setattr(engine_module, "emulates_cuda", lambda: False)
    reasons = []
    for engine in ("auto", "cuda"):
        spec, _ = problem_module.make_spec(engine, 2, "gaussian", 21, None, None, 1, 0, 1, 1, "zeros", True, False, 0)
        made = problem_module.build_problem(
            spec, torch.empty(1, 4, 99, 99).half(), torch.empty(4, 4, 21).half(), torch.empty(21).half(), None
        )
        reasons.append(ENGINES["cuda"].why_not(replace(made, device=torch.device("cuda", 0))))
    assert reasons == ["has shared memory for 4 output pixels at a time, and would take as long for 128", None]


def test_gradient_whose_pixels_are_far_apart() -> None:
    """A layout that no plan can serve is copied to the output's."""
    case = Case("far", (5, 5), channels=(4, 4), batch=1, k=3, bias=False)
    found = []
    for dtype, engine in ((torch.float16, "cuda"), (torch.float64, "reference")):
        tensors = case.tensors(dtype)
        y = case({**tensors, "x": tensors["x"].requires_grad_()}, engine)
        values = torch.arange(36.0).reshape(1, 4, 3, 3).to(dtype)
        (problem,) = problem_module._problems.values() if engine == "cuda" else (None,)
        if problem is not None:
            with pytest.raises(engine_module._kernels()[0].Unservable, match="more than 32 bits hold"):
                ENGINES["cuda"]._plan(problem, True, (4, 1, 4, 2**29))
            real = ENGINES["cuda"]._plan

            def refusing(problem: Any, adjoint: bool, strides: tuple[int, ...], real: Any = real) -> Any:
                return real(problem, adjoint, (4, 1, 4, 2**29) if strides == (36, 1, 12, 4) else strides)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ENGINES["cuda"], "_plan", refusing)
                grad = values.to(memory_format=torch.channels_last)
                found.append(torch.autograd.grad(y, tensors["x"], grad)[0])
        else:
            found.append(torch.autograd.grad(y, tensors["x"], values)[0])
    assert (found[0].double() - found[1]).abs().max() < TOLERANCE["float16"] * found[1].abs().max()


def test_native_cuda_comes_first_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder of choose(), with kernels and cards that aren't here."""
    monkeypatch.delenv("RADCONV_EMULATE_CUDA")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(ENGINES["triton"], "why_missing", lambda: None)
    monkeypatch.setattr("radconv_ext.engines.triton.host_reason", lambda: None)
    emulated, _ = engine_module._emulated("1")
    chosen = {}
    for reason in (None, "CUDA part: built, but the driver is too old"):
        monkeypatch.setattr(engine_module, "_kernels", lambda r=reason: (None, r) if r else (emulated, None))
        for precision in ("tf32", "ieee"):
            for groups in (1, 4):
                made = problem_of(precision, groups, "auto")
                chosen[reason is None, precision, groups] = radconv_ext.engines.choose(made).name
    assert {key for key, name in chosen.items() if name == "cuda"} == {key for key in chosen if key[0]}
    assert set(chosen.values()) == {"cuda", "triton"}
    with pytest.raises(ValueError, match=r"'cuda' can't serve this call: CUDA part: built, but the driver is too old"):
        radconv_ext.engines.choose(problem_of("tf32", 1, "cuda"))


CHOICES = [
    ((8, 3, 1024, 1024), 8, 1, "reference"),  # three channels: a block has next to nothing to do
    ((32, 64, 56, 56), 64, 1, "cuda"),
    ((2, 64, 14, 14), 64, 1, "cuda"),
    ((8, 64, 512, 512), 64, 64, "cuda"),
]


@pytest.mark.parametrize(("shape", "outputs", "groups", "engine"), CHOICES)
def test_dense_form_where_the_cost_model_says_so(
    shape: tuple[int, ...], outputs: int, groups: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADCONV_EMULATE_CUDA")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    emulated, _ = engine_module._emulated("1")
    monkeypatch.setattr(engine_module, "_kernels", lambda: (emulated, None))
    assert radconv_ext.engines.choose(problem_of("tf32", groups, "auto", shape, outputs)).name == engine
    assert radconv_ext.engines.choose(problem_of("tf32", groups, "cuda", shape, outputs)).name == "cuda"


def problem_of(
    precision: str, groups: int, engine: str, shape: tuple[int, ...] = (1, 4, 9, 9), outputs: int = 4
) -> problem_module.RadialConvProblem:
    spec, _ = problem_module.make_spec(engine, 2, "gaussian", 3, None, None, 1, 0, 1, groups, "zeros", True, False, 0)
    x, w = torch.empty(shape, device="meta"), torch.empty(outputs, shape[1] // groups, 3, device="meta")
    made = problem_module.build_problem(spec, x, w, torch.empty(3, device="meta"), None)
    return replace(made, device=torch.device("cuda", 0), precision=precision)


def test_refused_launch_names_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Native:
        workspace = 4
        tables = bytes(4)

        def facts(self) -> dict[str, Any]:
            return {"tile": (1, 8, 16), "tiles": (1, 1, 1)}

        def prepare(self) -> None:
            raise RuntimeError("loading the convolution kernel failed: no kernel image is available")

    case = BY_ID["batch-1"]
    monkeypatch.setattr(engine_module._emulated("1")[0], "CudaPlan", lambda **_: Native())
    with pytest.raises(RuntimeError, match=r"engine 'cuda': loading .* failed: no kernel image .* \(2d k=5 n=3"):
        case(case.tensors(torch.float16), "cuda")


def test_memory_that_runs_out_keeps_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_ID["batch-1"]
    tensors = case.tensors(torch.float16)
    case(tensors, "cuda")
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("dtype") is torch.int32:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory$"):
        case(tensors, "cuda")


def test_first_call_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = engine_module._Plan.__new__(engine_module._Plan)
    plan.problem, plan.tables = problem_of("tf32", 1, "cuda"), None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"first call of a problem can't be captured .* once before \(2d k=5"):
        plan.run(None, None, None, None, None)


def test_one_ring_is_as_exact_as_its_weights() -> None:
    """Nothing to factorise, so nothing to round: x = 1 at one pixel gives back w."""
    x, w, profile = torch.zeros(1, 1, 5, 5), torch.randn(8, 1, 1).bfloat16(), torch.tensor([[1.0, 1.0, 1.0]]).bfloat16()
    x[0, 0, 2, 2] = 1
    y = radconv_ext.radial_conv2d(x.bfloat16(), w, profile, kernel_size=3, padding=1, engine="cuda")
    assert torch.equal(y[0, :, 2, 2], w[:, 0, 0])


def test_emulation_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(engine_module.importlib, "import_module", missing)
    module, reason = engine_module._emulated.__wrapped__("1")
    assert module is None
    assert reason == "RADCONV_EMULATE_CUDA=1 is set, but the emulated kernels aren't built: run `make emulation`"

"""On a machine with an NVIDIA GPU: every case on the card, against the definition in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case
from test_engines import failures_of_threads, largest_errors, outputs_of
from test_gradients import rounding_errors
from torch import Tensor

import radconv_ext
from benchmarks import timing
from benchmarks.measure import Bench, Device
from benchmarks.problems import Problem
from radconv_ext.problem import make_spec, problem_of

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

# largest error over the largest value of the float64 reference: a few units of the type; not measured on a card yet
TOLERANCE = {"float32": 5e-6, "tf32": 5e-3, "float16": 4e-3, "bfloat16": 2e-2}
BY_ID = {case.id: case for case in CASES}


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Torch's convolutions use TF32 by default, and so do ours."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def with_engines(test: Any) -> Any:
    return pytest.mark.parametrize("engine", ["cuda", "triton"])(test)


@with_engines
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_engines_agree_with_the_definition(case: Case, engine: str, precision: str) -> None:
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    found = outputs_of(case, case.tensors(dtype, device="cuda"), engine)
    errors = largest_errors({name: t.cpu() for name, t in found.items()}, expected)
    assert max(errors.values()) < TOLERANCE[precision], errors


@pytest.mark.parametrize("k", [3, 5, 9])
@pytest.mark.parametrize("scale", [1, 3, 5])
@pytest.mark.parametrize("weights", ["random", "projected"])
@with_engines
@pytest.mark.parametrize("dtypes", ["float16", "bfloat16", "bfloat16-float32", "float32"])
def test_error_is_at_most_one_and_a_half_times_the_dense_one(
    engine: str, dtypes: str, weights: str, scale: int, k: int
) -> None:
    names = dtypes.split("-")
    types = [getattr(torch, name) for name in (names[0], names[-1])]
    for name, (ours, dense) in rounding_errors(engine, *types, weights, scale, k, 0.03, "cuda").items():
        assert ours <= 1.5 * dense, (name, ours, dense)


@with_engines
@pytest.mark.parametrize("id", ["channels-17-23", "depthwise", "volume", "channels-last"])
def test_runs_are_bitwise_equal(id: str, engine: str) -> None:
    case = BY_ID[id]
    first, again = (outputs_of(case, case.tensors(torch.bfloat16, device="cuda"), engine) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@with_engines
def test_launches_go_to_the_current_stream(engine: str) -> None:
    """The input is made on that stream too, behind a delay: work on any other one would read it too early."""
    case = BY_ID["channels-last"]
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    tensors = case.tensors(torch.float16, device="cuda")
    outputs_of(case, tensors, engine)  # compiled, planned
    late = {name: torch.full_like(t, torch.nan) for name, t in tensors.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, t in tensors.items():
            late[name].copy_(t)
        found = outputs_of(case, late, engine)
    stream.synchronize()
    errors = largest_errors({name: t.cpu() for name, t in found.items()}, expected)
    assert max(errors.values()) < TOLERANCE["float16"], errors


@with_engines
def test_graph_capture(engine: str) -> None:
    """Captured forward and backward, replayed with other numbers."""
    case = Case("graph", (20, 21), channels=(16, 24), options={"padding": "same"})
    leaves = {name: t.requires_grad_() for name, t in case.tensors(torch.bfloat16, device="cuda").items()}

    def step() -> list[Tensor]:
        y = case(leaves, engine)
        return [y, *torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for t in leaves.values():
            t.mul_(0.75)
    graph.replay()
    torch.cuda.synchronize()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)


@with_engines
def test_threads_at_once(engine: str) -> None:
    def outputs(case: Case) -> dict[str, Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = outputs_of(case, case.tensors(torch.bfloat16, device="cuda"), engine)
            torch.cuda.current_stream().synchronize()
        return found

    assert failures_of_threads([Case(f"t-{i}", (20 + i, 30), channels=(8, 8 + i)) for i in range(4)], outputs) == []


@pytest.mark.skipif(
    torch.cuda.get_device_properties(0).total_memory < 30 * 2**30, reason="needs a card with 30 GiB of memory"
)
@with_engines
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_image_of_more_than_2_to_the_31_elements(engine: str, memory_format: torch.memory_format) -> None:
    x = torch.randn(1, 16, 11600, 11700, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    assert x.numel() > 2**31
    w, sigma = torch.randn(16, 16, 2, device="cuda"), radconv_ext.default_sigma(3).cuda()
    leaves = [w.requires_grad_(), sigma.requires_grad_()]
    y = radconv_ext.gmr_conv2d(x, *leaves, padding=1, engine=engine)
    corner = radconv_ext.gmr_conv2d(x[..., -9:, -9:].float(), *leaves, padding=1, engine="reference")
    torch.testing.assert_close(y[..., -8:, -8:].float(), corner[..., -8:, -8:], rtol=2e-2, atol=0.2)
    grad = torch.zeros_like(y)
    grad[..., -8:, -8:] = torch.randn(8, 8, device="cuda")
    found = torch.autograd.grad(y, leaves, grad)
    expected = torch.autograd.grad(corner, leaves, grad[..., -9:, -9:].float())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


@pytest.mark.parametrize(
    ("dtype", "engine"), [(torch.float16, "cuda"), (torch.float32, "cuda"), (torch.float64, "reference")]
)
def test_engine_that_is_chosen(dtype: torch.dtype, engine: str) -> None:
    t = BY_ID["batch-1"].tensors(dtype, device="cuda")
    spec, _ = make_spec("auto", 2, "gaussian", 3, None, None, 1, 0, 1, 1, "zeros", True, False, 0)
    assert problem_of(spec, t["x"], t["w"], t["p"], t["bias"]).engine.name == engine


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_address_of_any_element(offset: int, dtype: torch.dtype) -> None:
    """The native engine's loaders, by alignment."""
    case = Case("offset", (9, 10), channels=(16, 8), layout="channels_last", options={"padding": 2})
    tensors = case.tensors(dtype, device="cuda")
    x = tensors["x"]
    moved = torch.zeros(x.numel() + offset, dtype=dtype, device="cuda")[offset:].as_strided(x.shape, x.stride())
    assert torch.equal(case({**tensors, "x": moved.copy_(x)}, "cuda"), case(tensors, "cuda"))


@with_engines
def test_float16_rings_beyond_its_range(engine: str) -> None:
    x, w, sigma = torch.full((1, 20, 7, 7, 7), 3e4), torch.full((2, 20, 3), 1e-4), radconv_ext.default_sigma(5)
    y = radconv_ext.gmr_conv3d(*(t.half().cuda() for t in (x, w, sigma)), engine=engine)
    expected = radconv_ext.gmr_conv3d(*(t.half().double() for t in (x, w, sigma)), engine="reference")
    assert (y.cpu().double() - expected).abs().max() < TOLERANCE["float16"] * expected.max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@with_engines
def test_tensors_on_another_device_than_the_current(engine: str) -> None:
    case = BY_ID["channels-last"]
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    found = outputs_of(case, case.tensors(torch.float16, device="cuda:1"), engine)
    errors = largest_errors({name: t.cpu() for name, t in found.items()}, expected)
    assert torch.cuda.current_device() == 0
    assert max(errors.values()) < TOLERANCE["float16"], errors


@pytest.mark.parametrize("engine", ["cuda"])
def test_first_call_inside_a_graph_of_torch_compile(engine: str) -> None:
    case = Case("reduced", (14, 15), channels=(16, 24), options={"padding": "same"})
    tensors = case.tensors(torch.bfloat16, device="cuda")
    compiled = torch.compile(lambda t: case(t, engine), mode="reduce-overhead")
    found = [compiled(tensors).clone() for _ in range(4)][-1]
    assert torch.equal(found, case(tensors, engine))


def test_native_launches_wait_for_nothing() -> None:
    """Forward and backward return while the stream is still busy."""
    case = Case("busy", (20, 21), channels=(16, 24), options={"padding": "same"})
    tensors = {name: t.requires_grad_() for name, t in case.tensors(torch.bfloat16, device="cuda").items()}
    outputs_of(case, tensors, "cuda")  # planned
    grad = torch.ones(2, 24, 20, 21, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    torch.autograd.grad(case(tensors, "cuda"), list(tensors.values()), grad)
    assert not torch.cuda.current_stream().query()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float64_is_served(case: Case) -> None:
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    found = outputs_of(case, case.tensors(torch.float64, device="cuda"), "auto")
    found = {name: t.cpu() for name, t in found.items()}
    errors = largest_errors(found, expected)
    assert max(errors.values()) < 1e-12, errors


def test_autocast_on_the_card() -> None:
    case = Case("autocast", (9, 10))
    tensors = {name: t.requires_grad_() for name, t in case.tensors(torch.float32, device="cuda").items()}
    with torch.autocast("cuda", dtype=torch.float16):
        y = case(tensors, "auto")
    assert y.dtype is torch.float16
    gradients = torch.autograd.grad(y.float().sum(), list(tensors.values()))
    assert all(g.dtype is torch.float32 and g.is_cuda for g in gradients)


def test_device_mix_is_refused() -> None:
    tensors = Case("mix", (9, 10)).tensors(torch.float32)
    with pytest.raises(ValueError, match=r"w: expected on cuda:0, where x is, got cpu"):
        Case("mix", (9, 10))({**tensors, "x": tensors["x"].cuda()}, "auto")


# ---- the benchmarks' clock -------------------------------------------------------------------------------------------

MEASURED = Problem("measured", "test", 5, channels=8, outputs=16, size=(13, 12))


@pytest.mark.parametrize("mode", MEASURED.modes)
def test_benchmarks_replay_graphs(mode: str) -> None:
    peers = ["torch_conv", "radconv_cuda", "radconv_triton", "naive_gmr"]
    for peer, result in Bench(MEASURED, Device("cuda"), timing.QUICK).measure(mode, peers).items():
        assert (peer, result.failure, result.clock) == (peer, None, "replay of a CUDA graph")


def test_a_graph_replays_all_steps_also_after_a_capture_that_failed() -> None:
    x, count = torch.ones(4, device="cuda"), torch.zeros((), device="cuda")

    def step() -> Tensor:
        count.add_(1)
        return 2 * x

    with pytest.raises(RuntimeError):
        timing.captured([lambda: step().sum().item()], MEASURED)
    torch.cuda.empty_cache()
    turn = timing.captured([step, step], MEASURED)
    before = float(count)
    assert turn(4) > 0
    assert float(count) == before + 4

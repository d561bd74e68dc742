"""The Triton engine in Triton's interpreter, on CPU tensors: the kernels themselves, without a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import CASES, Case
from test_engines import (
    assert_nothing_comes_of_nothing,
    errors_of_gradients_alone,
    errors_of_strided_gradients,
    largest_errors,
    outputs_of,
    poison_new_tensors,
)
from test_gradients import rounding_errors
from torch import Tensor

import radconv_ext

pytest.importorskip("triton", reason="needs triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a GPU is here: test_gpu.py runs the compiled kernels instead", allow_module_level=True)

import triton
from triton.runtime import interpreter

from radconv_ext.engines import triton as engine_module
from radconv_ext.precision import product_precision
from radconv_ext.triton_kernels import configs, launch, plan

DTYPES = {"float32": torch.float32, "float16": torch.float16}
# largest error over the largest value of the float64 reference, any output or gradient, any case
TOLERANCE = {
    "float32": 2e-6,  # worst seen 1.2e-6, weight gradient of depthwise-3d; 4.9e-7 in torch's own form
    "float16": 1.5e-3,  # worst seen 1.0e-3, gradient by sigma of k-4
}
BY_ID = {case.id: case for case in CASES}


def agree(case: Case, dtype: str) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):  # which the interpreter computes in full: rings are combined
        found = outputs_of(case, case.tensors(DTYPES[dtype]), "triton")
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    assert all(t.dtype is DTYPES[dtype] for t in found.values())
    errors = largest_errors(found, expected)
    assert max(errors.values()) < TOLERANCE[dtype], errors


@pytest.fixture(autouse=True, scope="module")
def _patched_once() -> Iterator[None]:
    """The interpreter patches triton.language anew at each call of a device function, a third of its time for nothing:
    what a launch has patched once stays so."""
    real, patched = interpreter._patch_lang, set[int]()
    real_call = interpreter.GridExecutor.__call__

    def patch(fn: Any) -> Any:
        if id(fn.__globals__) not in patched:
            patched.add(id(fn.__globals__))
            return real(fn)
        return None  # nobody restores a device function's scope

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()  # the launch before has restored what it patched
        return real_call(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, call
    yield
    interpreter._patch_lang, interpreter.GridExecutor.__call__ = real, real_call


@pytest.fixture(autouse=True)
def _own_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither uses nor leaves plans of other tests: what a test patches is read when a plan is made."""
    monkeypatch.setattr(radconv_ext.problem, "_problems", {})


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[launch.Launch]:
    """Kernel launches, in order."""
    done: list[launch.Launch] = []
    real = launch.Launch.__call__

    def noted(self: launch.Launch, *pointers: Tensor) -> None:
        done.append(self)
        real(self, *pointers)

    monkeypatch.setattr(launch.Launch, "__call__", noted)
    return done


def constants(launches: list[launch.Launch], name: str) -> set[Any]:
    """Values of one constant in the launches that have it."""
    return {one.argument(name) for one in launches if name in one.kernel.arg_names}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernels_agree_with_the_definition(case: Case, dtype: str) -> None:
    agree(case, dtype)


@pytest.mark.parametrize(
    "id",
    ["channels-last", "channels-last-3d", "channels-last-stride", "channels-last-depthwise", "transpose-channels-last"],
)
def test_operands_that_stay_where_they_are(
    id: str, monkeypatch: pytest.MonkeyPatch, launches: list[launch.Launch]
) -> None:
    """As on sm_90: nothing is rearranged, and float16 is read one by one, where other cards read two in a word."""
    if "3d" not in id:  # whose channels are odd
        agree(BY_ID[id], "float16")
        assert True in constants(launches, "PAIRS")
    launches.clear()
    radconv_ext.problem._problems.clear()
    monkeypatch.setattr(configs, "settles", lambda card: False)
    agree(BY_ID[id], "float16")
    assert constants(launches, "PAIRS") == constants(launches, "SETTLE") == {False}


@pytest.mark.parametrize("id", ["batch-1", "stride-2", "depthwise"])
def test_offsets_of_64_bits(id: str, monkeypatch: pytest.MonkeyPatch, launches: list[launch.Launch]) -> None:
    """As tensors past 2**31 elements need them."""
    monkeypatch.setattr(plan, "_span", lambda t, reach: 2**31)
    agree(BY_ID[id], "float32")
    assert constants(launches, "INDEX") == {plan.tl.int64}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("combine", [True, False])
@pytest.mark.parametrize("id", ["batch-1", "wide-sigma", "channels-17-23", "stride-2", "groups-2"])
def test_combined_rings(
    id: str, combine: bool, dtype: str, monkeypatch: pytest.MonkeyPatch, launches: list[launch.Launch]
) -> None:
    """Shells combined before the product, as products without TF32 have it, and not."""
    monkeypatch.setattr(configs, "combines", lambda rings, buckets, *_: combine)
    agree(BY_ID[id], dtype)
    assert constants([one for one in launches if one.kernel.__name__ == "convolve"], "COMBINE") == {combine}


@pytest.mark.parametrize("id", ["batch-33", "channels-last-depthwise"])
def test_many_shares_of_the_pixels(id: str, monkeypatch: pytest.MonkeyPatch, launches: list[launch.Launch]) -> None:
    """More splits than `finish` adds at a time."""
    case = replace(BY_ID[id], batch=70, size=(5, 5))
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 1000)
    agree(case, "float32")
    splits, sums = launches[-1].argument("splits"), launches[2]
    assert splits >= 70 > launches[-1].argument("SPLITS")
    assert (splits - 1) * sums.argument("tiles_per_split") < sums.argument("tile_count")  # the last has something to do


@pytest.mark.parametrize("wanted", [("x",), ("w",), ("p",), ("bias",), ("x", "p"), ("w", "bias")])
def test_gradients_asked_for_alone(wanted: tuple[str, ...]) -> None:
    errors = errors_of_gradients_alone("triton", wanted)
    assert max(errors.values()) < TOLERANCE["float32"], errors


def test_gradient_that_is_not_contiguous() -> None:
    errors = errors_of_strided_gradients("triton")
    assert max(errors.values()) < TOLERANCE["float32"], errors


def test_weights_that_are_not_contiguous() -> None:
    x, w, sigma = torch.randn(1, 4, 9, 9), torch.randn(3, 4, 6).mT.contiguous().mT, radconv_ext.default_sigma(5)
    strided = w[..., ::2]
    assert not strided.is_contiguous()
    y = radconv_ext.gmr_conv2d(x, strided, sigma, engine="triton")
    torch.testing.assert_close(y, radconv_ext.gmr_conv2d(x, strided.contiguous(), sigma, engine="reference"))


def test_batch_of_none() -> None:
    assert_nothing_comes_of_nothing("triton")


@pytest.mark.parametrize("id", ["width-17", "stride-3", "transpose-output-padding", "depthwise", "channels-last-3d"])
def test_every_element_is_written(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = BY_ID[id].tensors(torch.float32)
    with monkeypatch.context() as patch:
        poison_new_tensors(patch)
        found = outputs_of(BY_ID[id], tensors, "triton")
    errors = largest_errors(found, outputs_of(BY_ID[id], BY_ID[id].tensors(torch.float64), "reference"))
    assert max(errors.values()) < TOLERANCE["float32"], errors


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_is_that_of_a_convolution(layout: str) -> None:
    case = Case("layout", (6, 7), layout=layout, k=3)
    tensors = case.tensors(torch.float32)
    x = tensors["x"].requires_grad_()
    y = case(tensors, "triton")
    expected = torch.nn.functional.conv2d(x, radconv_ext.gmr_kernel2d(tensors["w"], tensors["p"]))
    assert y.stride() == expected.stride()
    (grad_x,) = torch.autograd.grad(y.sum(), [x])
    assert grad_x.stride() == x.stride()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # of the first attempt
@pytest.mark.parametrize("size", [0.03, 1e-5])
@pytest.mark.parametrize("k", [3, 9])
@pytest.mark.parametrize("scale", [1, 3, 5])
@pytest.mark.parametrize("weights", ["random", "projected"])
def test_error_is_at_most_one_and_a_half_times_the_dense_one(weights: str, scale: int, k: int, size: float) -> None:
    """Incoming gradients far below 1 too, whose products with small weights are beyond float16's normal numbers."""
    errors = rounding_errors("triton", torch.float16, torch.float16, weights, scale, k, size)
    for name, (ours, dense) in errors.items():
        assert ours <= 1.5 * dense, (name, ours, dense)


# --- launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["batch-1", "depthwise", "stride-2", "circular-same", "volume", "transpose-stride"])
def test_training_step_takes_five_launches(id: str, launches: list[launch.Launch]) -> None:
    """Forward, and all gradients, sigma's included; the bias' too, but for transposed convolutions."""
    case = BY_ID[id]
    outputs_of(case, case.tensors(torch.float32), "triton")
    names = [one.kernel.__name__ for one in launches]
    assert names == ["prepare", "convolve", "weight_gradient", "convolve", "finish"]
    assert constants(launches[2:3], "BIAS") == {not case.transposed}


def test_workspace_does_not_grow_with_the_image() -> None:
    """Folded weights forward; backward at most 64 MiB of sums, or one copy of them."""
    words = []
    for size in (16, 256):
        x = torch.empty(2, 128, size, size, device="meta", dtype=torch.float16)
        w, sigma = torch.empty(128, 128, 5, device="meta"), torch.empty(5, device="meta")
        spec, _ = radconv_ext.problem.make_spec(
            "auto", 2, "gaussian", 5, None, 9, 1, "same", 1, 1, "zeros", True, False, 0
        )
        problem = radconv_ext.problem.build_problem(spec, x, w, sigma, None)
        forward = plan.Convolution(problem, False, x, x, "ieee", False)
        backward = plan.Backward(problem, x, x, x, (True, True, True, True), "ieee")
        words.append((forward.words, backward.words))
    assert words[0][0] == words[1][0] <= 13 * 128 * 128 // 2 + 64
    assert words[1][1] * 4 <= configs.WORKSPACE + 4 * words[1][0] + 2**20


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # of the first attempt
def test_float16_shell_sums_beyond_its_range() -> None:
    """The sums of 3D shells leave float16 where the output, whose weights are small, does not."""
    x, w, sigma = torch.full((1, 2, 7, 7, 7), 6e4), torch.full((2, 2, 3), 1e-3), radconv_ext.default_sigma(5)
    found, expected = [], []
    for results, dtype, engine in ((found, torch.float16, "triton"), (expected, torch.float64, "reference")):
        leaves = [t.half().to(dtype).requires_grad_() for t in (x, w, sigma)]
        y = radconv_ext.gmr_conv3d(*leaves, engine=engine)
        results += [y, *torch.autograd.grad(y, leaves, torch.full_like(y, 2.0**-12))]
    for ours, exact in zip(found, expected, strict=True):
        smallest = 2.0**-24  # float16's, in which the gradient by x is counted
        assert (ours.double() - exact).abs().max() < TOLERANCE["float16"] * exact.abs().max() + smallest / 2


LAUNCH_SCRIPT = Path(__file__).with_name("launch_path.py")


def test_second_launch_takes_the_short_path_with_the_same_arguments() -> None:
    """With the compiler for a real target, and a driver that records instead of launching."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(LAUNCH_SCRIPT)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "the same launches: prepare, convolve, weight_gradient, convolve, finish",
        "images of 12 other sizes: one kernel for each shape of tiles",
    ]


# --- when it serves ---------------------------------------------------------------------------------------------------


def refused(match: str, *tensors: Tensor, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        radconv_ext.gmr_conv2d(*tensors, engine="triton", **options)


def test_reasons_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3), radconv_ext.default_sigma(5)
    refused("serves float32, float16 and bfloat16, this is float64", x.double(), w.double(), sigma.double())
    refused("the interpreter's bfloat16 products are wrong", x.bfloat16(), w, sigma)
    refused("channel-wise sigma", x, w, torch.rand(3, 2, 3))
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")
        refused("needs tensors on a GPU, these are on the CPU", x + 0, w, sigma, padding=3)
    wide = torch.randn(3, 2, 140)
    refused(r"a profile of 140 rings by \d+ shells is larger", torch.randn(1, 2, 279, 279), wide, torch.rand(140))


def test_reason_why_triton_cannot_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No C compiler for its part of the host, or no driver: said by the engine, so that another one serves."""

    class Driver:
        @property
        def active(self) -> None:
            raise RuntimeError("long story\nFailed to find C compiler. Please specify via CC environment variable.")

    problem = SimpleNamespace(
        options=SimpleNamespace(rings=3, geometry=SimpleNamespace(buckets=5)),
        device=torch.device("cuda", 0), dtype=torch.float16, channelwise=False,
    )  # fmt: skip
    engine = radconv_ext.engines.ENGINES["triton"]
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton.runtime, "driver", Driver())
    engine_module.host_reason.cache_clear()
    expected = "RuntimeError: Failed to find C compiler. Please specify via CC environment variable"
    assert engine.why_not(problem) == f"Triton can't build or load its launcher: {expected}"
    engine_module.host_reason.cache_clear()
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=SimpleNamespace(utils=None)))
    assert engine.why_not(problem) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert engine.why_not(problem) == "needs compute capability 8.0, this card has 7.5"
    engine_module.host_reason.cache_clear()


def test_tf32_where_torch_convolutions_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = SimpleNamespace(dtype=torch.float32, is_cuda=True)

    def precision() -> str:
        return product_precision(x)

    for allowed in (True, False):
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            assert precision() == ("tf32" if allowed else "ieee")
            assert product_precision(SimpleNamespace(dtype=torch.float16, is_cuda=True)) == "ieee"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert precision() == "ieee"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one setting for all")
def test_tf32_settings_from_the_particular_to_the_general() -> None:
    """Set in a process of its own: torch can't take all of them back."""
    script = """
import torch
from types import SimpleNamespace
from radconv_ext.precision import product_precision
x = SimpleNamespace(dtype=torch.float32, is_cuda=True)
found = [product_precision(x)]
torch.backends.cudnn.conv.fp32_precision = "ieee"
found.append(product_precision(x))
torch.backends.cudnn.conv.fp32_precision = "none"
torch.backends.fp32_precision = "tf32"
found.append(product_precision(x))
torch.backends.cudnn.fp32_precision = "ieee"
found.append(product_precision(x))
print(*found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["tf32", "ieee", "tf32", "ieee"], done.stderr


def test_automatic_choice_never_interprets() -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9).half(), torch.randn(3, 2, 3).half(), radconv_ext.default_sigma(5).half()
    spec, _ = radconv_ext.problem.make_spec("auto", 2, "gaussian", 3, None, None, 1, 0, 1, 1, "zeros", True, False, 0)
    assert radconv_ext.problem.build_problem(spec, x, w, sigma, None).engine.name == "reference"


# --- configurations ---------------------------------------------------------------------------------------------------


def work(**changes: Any) -> configs.Work:
    values = {
        "kernel": "convolve", "depthwise": False, "card": "sm_90", "ndim": 2, "unrolled": True, "item": 2,
        "exact": False, "functions": 1, "buckets": 13, "channels": 128, "outputs": 128,
    }  # fmt: skip
    return configs.Work(**{**values, **changes})


def test_some_configuration_fits_every_kind_of_work() -> None:
    for kernel, depthwise in configs.TABLES:
        for card in ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "hip"):
            for item, exact in ((2, False), (4, False), (4, True)):
                for buckets in (1, 3, 13, 27, 200):
                    for outputs, unrolled in itertools.product((1, 64, 1024), (True, False)):
                        w = work(
                            kernel=kernel, depthwise=depthwise, card=card, item=item, exact=exact, buckets=buckets,
                            outputs=outputs, unrolled=unrolled,
                        )  # fmt: skip
                        assert configs.candidates(w), w


def test_tiles_cover_the_pixels_with_the_least_reading() -> None:
    assert configs.tile_shape(64, (1, 64, 64), (0, 8, 8)) == (1, 8, 8)
    assert configs.tile_shape(64, (1, 1, 500), (0, 0, 8)) == (1, 1, 64)
    assert configs.tile_shape(64, (32, 32, 32), (4, 4, 4)) == (4, 4, 4)
    assert configs.tile_shape(64, (1, 7, 7), (0, 2, 2)) == (1, 8, 8)
    for counts in ((1, 3, 100), (2, 1, 9), (5, 5, 1)):
        shape = configs.tile_shape(64, counts, (0, 0, 0))
        assert shape[0] * shape[1] * shape[2] == 64


def test_finishing_takes_few_programs_of_registers_that_fit() -> None:
    for card in ("sm_80", "sm_90", "hip"):
        for rings in (1, 5, 8, 16):
            for total in (1, 100, 128 * 128, 512 * 512, 2048 * 2048):
                rows = configs.finish_rows(total, rings, card)
                assert rows in (16, 32, 64, 128, 256, 512, 1024, 2048)
                assert 2 * rows * rings <= configs.FINISH_LOADS
                assert total <= 256 * rows or 2 * rows * 2 ** rings.bit_length() == configs.FINISH_LOADS


def test_splits_stay_within_the_workspace() -> None:
    sums = 4 * 13 * 128 * 128
    assert configs.splits(8, 1024, sums, 132) * sums <= configs.WORKSPACE
    assert configs.splits(8, 3, sums, 132) == 3
    assert configs.splits(1, 10**6, 4 * 13 * 16 * 16, 132) == 4 * 132  # few channels: all multiprocessors all the same
    assert configs.splits(8, 1024, 2**40, 132) == 1

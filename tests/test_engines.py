"""Every engine against the definition in float64, over the case table: output and every gradient."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, CPU_CASES, Case
from torch import Tensor

import radconv_ext
from radconv_ext import reference
from radconv_ext.build_info import native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# largest error over the largest value of the float64 reference, any output or gradient, any case
TOLERANCE = {
    "float32": 2e-6,  # worst seen 1.2e-6 with AMX and AVX-512, 1.5e-6 without: gradients of past-caches
    "bfloat16": 1e-2,  # worst seen 6.7e-3, output of transpose, whose rings are rounded; else 6.4e-3, replicate
}


def outputs_of(case: Case, tensors: dict[str, Tensor], engine: str) -> dict[str, Tensor]:
    """Output and gradients by every tensor, for the same gradient of the output, laid out as that."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = case(leaves, engine)
    generator = torch.Generator().manual_seed(1)
    grad = torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator).bfloat16())
    gradients = torch.autograd.grad(y, list(leaves.values()), grad)
    return {"y": y.detach(), **{f"grad_{name}": g for name, g in zip(leaves, gradients, strict=True)}}


def largest_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    errors = {}
    for name, e in expected.items():
        assert found[name].shape == e.shape, name
        scale = e.abs().max().item()
        errors[name] = (found[name].double() - e).abs().max().item() / (scale or 1.0)
    return errors


def errors_of_gradients_alone(engine: str, wanted: Sequence[str]) -> dict[str, float]:
    """Errors of some gradients in float32, when no others are asked for."""
    case = Case("some-gradients", (9, 10))
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    tensors = case.tensors(torch.float32)
    leaves = [tensors[name].requires_grad_() for name in wanted]
    y = case(tensors, engine)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    found = {f"grad_{name}": g for name, g in zip(wanted, torch.autograd.grad(y, leaves, grad), strict=True)}
    return largest_errors(found, {name: expected[name] for name in found})


def errors_of_strided_gradients(engine: str) -> dict[str, float]:
    """Errors of all gradients in float32, from a permuted gradient of the output and from an expanded one, stride 0."""
    case = Case("strided-gradient", (9, 10), channels=(5, 7))
    results = []
    for dtype, name in ((torch.float32, engine), (torch.float64, "reference")):
        leaves = {name: t.requires_grad_() for name, t in case.tensors(dtype).items()}
        y = case(leaves, name)
        grad = torch.randn(7, 2, 6, 5, generator=torch.Generator().manual_seed(3)).to(dtype).permute(1, 0, 3, 2)
        assert not grad.is_contiguous()
        permuted = torch.autograd.grad(y, list(leaves.values()), grad)
        expanded = torch.autograd.grad(case(leaves, name).sum(), list(leaves.values()))
        results.append({f"permuted {n}": g for n, g in zip(leaves, permuted, strict=True)})
        results[-1] |= {f"expanded {n}": g for n, g in zip(leaves, expanded, strict=True)}
    return largest_errors(*results)


def assert_nothing_comes_of_nothing(engine: str) -> None:
    """A batch of none."""
    tensors = [torch.randn(0, 4, 9, 9), torch.randn(3, 4, 3), radconv_ext.default_sigma(5)]
    leaves = [t.requires_grad_() for t in tensors]
    y = radconv_ext.gmr_conv2d(*leaves, engine=engine)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert y.shape == (0, 3, 5, 5)
    assert [tuple(g.shape) for g in gradients] == [tuple(t.shape) for t in tensors]
    assert not any(g.any() for g in gradients)


def poison_new_tensors(patch: pytest.MonkeyPatch) -> None:
    """Outputs and workspaces start as NaN, or as its bits."""
    real = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = real(*args, **kwargs)
        if made.device.type == "meta":
            return made
        return made.fill_(torch.nan) if made.dtype.is_floating_point else made.fill_(0x7FC00000)

    patch.setattr(torch, "empty", poisoned)
    patch.setattr(torch, "empty_like", lambda t: torch.full_like(t, torch.nan))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, *CPU_CASES], ids=lambda case: case.id)
def test_cpu_engine_agrees_with_the_definition(case: Case, dtype: str) -> None:
    found = outputs_of(case, case.tensors(DTYPES[dtype]), "cpu")
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    assert all(t.dtype is DTYPES[dtype] for t in found.values())
    errors = largest_errors(found, expected)
    assert max(errors.values()) < TOLERANCE[dtype], errors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference_engine_serves_every_dtype(case: Case) -> None:
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    # worst seen 9.1e-7, 1.1e-2, 3.5e-3: dense kernel and torch's convolution round to the dtype
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 7e-3)):
        errors = largest_errors(outputs_of(case, case.tensors(dtype), "reference"), expected)
        assert max(errors.values()) < tolerance, (dtype, errors)


@pytest.mark.parametrize("wanted", ["x", "w", "p", "bias"])
def test_gradients_asked_for_one_at_a_time(wanted: str) -> None:
    """Fewer gradients may use a smaller basis."""
    errors = errors_of_gradients_alone("cpu", [wanted])
    assert max(errors.values()) < TOLERANCE["float32"], errors


def test_gradient_that_is_not_contiguous() -> None:
    errors = errors_of_strided_gradients("cpu")
    assert max(errors.values()) < TOLERANCE["float32"], errors


def test_results_are_the_kernels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where nobody should look must not pass for a NaN, which would leave the work to the dense form."""

    def refuse(*_: object) -> None:
        raise AssertionError("the dense form was asked")

    monkeypatch.setattr(reference, "forward", refuse)
    monkeypatch.setattr(reference, "backward", refuse)
    for case in (*CASES, *CPU_CASES):
        for dtype in DTYPES.values():
            outputs_of(case, case.tensors(dtype), "cpu")


@pytest.mark.parametrize("channels", [(5, 7), (37, 40)], ids=lambda channels: "-".join(map(str, channels)))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_in_another_layout_than_the_input(layout: str, channels: tuple[int, int]) -> None:
    case = Case("mixed", (9, 10), channels=channels, layout=layout)
    gradients = []
    for dtype, engine in ((torch.float32, "cpu"), (torch.float64, "reference")):
        leaves = {name: t.requires_grad_() for name, t in case.tensors(dtype).items()}
        y = case(leaves, engine)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        other = torch.channels_last if layout == "contiguous" else torch.contiguous_format
        results = torch.autograd.grad(y, list(leaves.values()), grad.contiguous(memory_format=other))
        gradients.append(dict(zip(leaves, results, strict=True)))
    errors = largest_errors(*gradients)
    assert max(errors.values()) < TOLERANCE["float32"], errors


def test_every_output_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (*CASES[::3], *CPU_CASES):
        tensors = case.tensors(torch.float32)
        with monkeypatch.context() as patch:
            poison_new_tensors(patch)
            found = outputs_of(case, tensors, "cpu")
        for name, t in found.items():
            assert t.isfinite().all(), (case.id, name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_memory_format_is_that_of_a_convolution(layout: str, ndim: int) -> None:
    case = Case("layout", (6, 7, 8)[:ndim], layout=layout, k=3)
    tensors = case.tensors(torch.float32)
    x = tensors["x"].requires_grad_()
    y = case(tensors, "cpu")
    dense = getattr(radconv_ext, f"gmr_kernel{ndim}d")(tensors["w"], tensors["p"])
    expected = getattr(torch.nn.functional, f"conv{ndim}d")(x, dense)
    assert y.stride() == expected.stride()
    (grad_x,) = torch.autograd.grad(y.sum(), [x])
    assert grad_x.stride() == x.stride()


def test_runs_are_bitwise_equal_whatever_the_threads() -> None:
    case = Case("deterministic", (40, 41), channels=(20, 24), k=7)
    tensors = case.tensors(torch.float32)
    threads = torch.get_num_threads()
    try:
        first = outputs_of(case, tensors, "cpu")
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            again = outputs_of(case, tensors, "cpu")
            for name in ("y", "grad_x", "grad_w", "grad_p"):
                assert torch.equal(first[name], again[name]), (name, count)
    finally:
        torch.set_num_threads(threads)


def failures_of_threads(cases: list[Case], outputs: Callable[[Case], dict[str, Tensor]]) -> list[str]:
    """Names of what differs when each case runs five times in a thread of its own, all at once."""
    expected = [outputs(case) for case in cases]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(5):
            found = outputs(cases[index])
            failures.extend(name for name, t in found.items() if not torch.equal(t, expected[index][name]))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return failures


def test_threads_at_once() -> None:
    cases = [Case(f"thread-{i}", (20 + i, 30), channels=(8, 8 + i)) for i in range(8)]
    assert failures_of_threads(cases, lambda case: outputs_of(case, case.tensors(torch.float32), "cpu")) == []


def test_kernels_run_on_the_threads_of_torchs_operators() -> None:
    """Others would compete with those, which spin for a while after each operator."""
    script = """
import os, torch, radconv_ext
torch.set_num_threads(2)
def threads(): return len(os.listdir("/proc/self/task"))
x, w, s = torch.randn(2, 16, 64, 64), torch.randn(16, 16, 4), radconv_ext.default_sigma(7)
before = threads()
torch.nn.functional.gelu(x)
torchs = threads()
radconv_ext.gmr_conv2d(x, w, s, engine="cpu")
print(torchs - before, threads() - torchs)
"""
    if not Path("/proc/self/task").exists() or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("counts OpenMP's threads in Linux's /proc")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("used_before", [True, False], ids=["used", "unused"])
def test_forked_child_has_a_pool_of_its_own(used_before: bool) -> None:
    """OpenMP would wait for threads that were not forked, which torch's operators alone may have started."""
    script = """
import os, sys, torch, radconv_ext
torch.set_num_threads(2)
x, w, s = torch.randn(2, 16, 64, 64), torch.randn(16, 16, 4), radconv_ext.default_sigma(7)
torch.nn.functional.gelu(x)
expected = radconv_ext.gmr_conv2d(x, w, s, engine=sys.argv[1])
child = os.fork()
if child == 0:
    found = radconv_ext.gmr_conv2d(x, w, s, engine="cpu")
    torch.set_num_threads(1)  # torch's own operators would wait for the same threads
    os._exit(0 if torch.allclose(found, expected, atol=1e-4) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    engine = "cpu" if used_before else "reference"
    subprocess.run([sys.executable, "-c", script, engine], check=True, timeout=60)


ISA_SCRIPT = """
import sys, torch
from cases import CASES, CPU_CASES
from test_engines import TOLERANCE, largest_errors, outputs_of
from radconv_ext.build_info import native
assert native().current_isa() == sys.argv[1], native().current_isa()
worst = 0.0
for case in (*CASES, *CPU_CASES):
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    for name, tolerance in TOLERANCE.items():
        errors = largest_errors(outputs_of(case, case.tensors(getattr(torch, name)), "cpu"), expected)
        assert max(errors.values()) < tolerance, (case.id, name, errors)
print(len(CASES) + len(CPU_CASES), "cases")
"""


def other_isas() -> list[str]:
    library = native()
    return [] if library is None else [name for name in library.available_isas() if name != library.current_isa()]


@pytest.mark.parametrize("isa", other_isas())
def test_other_instruction_sets_of_this_machine(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT, isa],
        env={**os.environ, "RADCONV_CPU_ISA": isa},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(CASES) + len(CPU_CASES)), "cases"]


def test_unknown_instruction_set_is_refused() -> None:
    script = "import torch, radconv_ext as r; r.gmr_conv1d(torch.ones(1, 1, 9), torch.ones(1, 1, 2), torch.ones(2))"
    env = {**os.environ, "RADCONV_CPU_ISA": "avx1024"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "RADCONV_CPU_ISA: expected" in done.stderr


def test_extra_memory_is_bounded_by_an_image_not_the_batch() -> None:
    """Peak resident memory of a forward and backward grows by the outputs alone when the batch grows."""
    script = """
import sys, torch, radconv_ext
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
batch = int(sys.argv[1])
torch.set_num_threads(2)
x, w, s = torch.randn(batch, 64, 64, 64), torch.randn(64, 64, 5), radconv_ext.default_sigma(9)
g = torch.randn_like(x)
# what a thread keeps is there before
few = [t.clone().requires_grad_() for t in (x[:8], w, s)]
torch.autograd.grad(radconv_ext.gmr_conv2d(*few, padding=4, engine="cpu"), few, g[:8])
leaves = [t.requires_grad_() for t in (x, w, s)]
before = peak()
y = radconv_ext.gmr_conv2d(x, w, s, padding=4, engine="cpu")
torch.autograd.grad(y, leaves, g)
print(peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads Linux's /proc")
    runs = [
        int(subprocess.run([sys.executable, "-c", script, str(b)], check=True, capture_output=True, text=True).stdout)
        for b in (8, 24)
    ]
    image = 64 * 64 * 64 * 4
    outputs = 2 * image  # output and input gradient, per image
    assert runs[1] - runs[0] < 16 * outputs + 2 * image, [r / image for r in runs]


def test_sums_that_overflow_are_answered_by_the_dense_form() -> None:
    """Finite tensors whose ring sums leave float32, though the output would not."""
    x, w, sigma = torch.full((1, 1, 5, 5), 2e38), torch.full((1, 1, 3), 1e-4), radconv_ext.default_sigma(5)
    grad = torch.full((1, 1, 1, 1), 1e-4)
    found = []
    for engine in ("cpu", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, w, sigma)]
        y = radconv_ext.gmr_conv2d(*leaves, engine=engine)
        found.append([y, *torch.autograd.grad(y, leaves, grad)])
    for a, b in zip(*found, strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


def test_window_beyond_the_halo_is_declined_with_a_reason() -> None:
    x, w, sigma = torch.randn(1, 1, 1500, 1500), torch.randn(1, 1, 2), radconv_ext.default_sigma(3)
    with pytest.raises(ValueError, match=r"'cpu' can't serve this call: one output needs a window of \d+ elements"):
        radconv_ext.gmr_conv2d(x, w, sigma, dilation=740, engine="cpu")
    assert radconv_ext.gmr_conv2d(x, w, sigma, dilation=740).shape == (1, 1, 20, 20)


def test_float32_bias_beside_half_weights_keeps_its_gradient() -> None:
    """The bias gradient is summed and handed over in float32."""
    x, w = torch.randn(1, 2, 9, 9).bfloat16(), torch.randn(3, 2, 3).bfloat16()
    sigma, bias = radconv_ext.default_sigma(5).bfloat16(), torch.zeros(3, requires_grad=True)
    for engine in ("cpu", "reference"):
        y = radconv_ext.gmr_conv2d(x, w, sigma, bias, engine=engine)
        (grad,) = torch.autograd.grad(y, [bias], torch.full_like(y, 1 + 2**-7))
        assert grad.tolist() == [25 * (1 + 2**-7)] * 3  # bfloat16 would round this

"""The registered operators: opcheck, compile, export, autocast, FLOPs, and what the dispatcher sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import radconv_ext
from radconv_ext import ops
from radconv_ext.problem import make_spec, parse_spec


def spec_of(engine: str = "auto", ndim: int = 2, rings: int = 3, **changed: Any) -> str:
    options: dict[str, Any] = {
        "kernel_size": None,
        "stride": 1,
        "padding": 2,
        "dilation": 1,
        "groups": 1,
        "padding_mode": "zeros",
        "circular": True,
        "transposed": False,
        "output_padding": 0,
        **changed,
    }
    return make_spec(engine, ndim, "gaussian", rings, None, *options.values())[0]


SPECS = {
    "plain": {},
    "reference": {"engine": "reference"},
    "stride-groups": {"stride": 2, "groups": 2},
    "circular": {"padding_mode": "circular", "padding": "same"},
    "circular-1": {"padding_mode": "circular", "padding": 1},
    "transposed": {"transposed": True, "stride": 2},
    "log-sigma": {"log_sigma": True},
}


@pytest.mark.parametrize(
    ("layout", "options"),
    [*(("contiguous", options) for options in SPECS), ("channels_last", "circular-1"), ("sliced", "stride-groups")],
)
def test_opcheck(layout: str, options: str) -> None:
    spec = spec_of(**SPECS[options])
    o = parse_spec(spec)
    case = Case("opcheck", (9, 10), channels=(4, 4), layout=layout, options={"groups": o.groups})
    x, w, p, bias = (t.requires_grad_() for t in case.tensors(torch.float32).values())
    y = ops.conv(x, w, p, bias, spec)
    torch.library.opcheck(ops.conv, (x, w, p, bias, spec))
    torch.library.opcheck(ops.conv, (x, w, p, None, spec))
    grad = torch.randn_like(y)
    torch.library.opcheck(ops.conv_backward, (grad, x, w, p, spec, [True, True, True, True]))
    torch.library.opcheck(ops.conv_backward, (grad.requires_grad_(), x, w, p, spec, [True, False, True, False]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_compiled_equals_eager(ndim: int, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    case = Case("compile", (12, 9, 7)[:ndim], k=5, options={"padding": "same"})
    leaves = {name: t.requires_grad_() for name, t in case.tensors(dtype).items()}

    def function(x: Tensor, w: Tensor, p: Tensor, bias: Tensor) -> Tensor:
        conv = getattr(radconv_ext, f"gmr_conv{ndim}d")
        return conv(x, w, p, bias, padding="same").relu().square().sum()

    compiled = torch.compile(function, fullgraph=True)
    eager = torch.autograd.grad(function(*leaves.values()), list(leaves.values()))
    traced = torch.autograd.grad(compiled(*leaves.values()), list(leaves.values()))
    for a, b in zip(eager, traced, strict=True):
        tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5  # inductor fuses the square's rounding
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", ["sre_conv2d", "radial_conv2d", "gmr_conv_transpose2d", "gmr_kernel2d"])
def test_other_functions_compile(name: str) -> None:
    torch._dynamo.reset()
    function = getattr(radconv_ext, name)
    x, w, sigma = torch.randn(2, 4, 9, 9), torch.randn(4, 4, 3), radconv_ext.default_sigma(5)
    arguments = {"gmr_kernel2d": (w, sigma), "gmr_conv_transpose2d": (x, w, sigma)}.get(name, (x, w))
    if name == "sre_conv2d":
        compiled = torch.compile(lambda *a: function(*a, padding=4, padding_mode="reflect"), fullgraph=True)
        expected = function(*arguments, padding=4, padding_mode="reflect")
    else:
        compiled = torch.compile(lambda *a: function(*a), fullgraph=True)
        expected = function(*arguments)
    torch.testing.assert_close(compiled(*arguments), expected)


def test_compiled_with_dynamic_sizes_is_compiled_once() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    w, sigma = torch.randn(6, 4, 3), radconv_ext.default_sigma(5)

    def function(x: Tensor) -> Tensor:
        return radconv_ext.gmr_conv2d(x, w, sigma, padding=1, stride=2)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch, size in ((2, 9), (5, 12), (7, 31)):
        x = torch.randn(batch, 4, size, size + 2)
        torch.testing.assert_close(compiled(x), function(x))
    assert counter.frame_count == 1


def test_compiled_under_no_grad_and_use_engine() -> None:
    torch._dynamo.reset()
    x, w, sigma = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3), radconv_ext.default_sigma(5)
    compiled = torch.compile(lambda: radconv_ext.gmr_conv2d(x, w, sigma), fullgraph=True)
    with torch.no_grad(), radconv_ext.use_engine("reference"):
        expected = radconv_ext.gmr_conv2d(x, w, sigma)
        assert torch.equal(compiled(), expected)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(6, 4, 3))
        self.sigma = torch.nn.Parameter(radconv_ext.default_sigma(5))

    def forward(self, x: Tensor) -> Tensor:
        return radconv_ext.gmr_conv2d(x, self.w, self.sigma, padding="same")


def test_export_with_a_dynamic_batch() -> None:
    layer = Layer()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(3, 4, 9, 9),), dynamic_shapes=({0: batch},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["radconv_ext.conv.default"]
    x = torch.randn(11, 4, 9, 9)
    assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_autocast_follows_convolution(engine: str) -> None:
    case = Case("autocast", (9, 10), channels=(4, 6))
    leaves = {name: t.requires_grad_() for name, t in case.tensors(torch.float32).items()}
    dense = torch.randn(6, 4, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case(leaves, engine)
        expected = torch.nn.functional.conv2d(leaves["x"], dense)
    assert y.dtype is expected.dtype is torch.bfloat16
    gradients = torch.autograd.grad(y.float().sum(), list(leaves.values()))
    assert all(g.dtype is torch.float32 for g in gradients)
    # only x was rounded: weights and sigma went in as float32
    rounded = {**leaves, "x": leaves["x"].bfloat16()}
    assert torch.equal(y, case(rounded, engine))
    wide = {name: t.detach().double() for name, t in leaves.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case(wide, "reference").dtype is torch.float64  # like convolution, double is left alone


@pytest.mark.parametrize("record", [True, False])
def test_every_call_passes_the_dispatcher(record: bool) -> None:
    seen: list[str] = []

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x, w, sigma = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3), radconv_ext.default_sigma(5)
    with torch.set_grad_enabled(record), Listener():
        radconv_ext.gmr_conv2d(x, w.requires_grad_(record), sigma)
    assert seen == ["radconv_ext.conv.default"]


def test_flop_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, w, sigma = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randn(6, 4, 3), radconv_ext.default_sigma(5)
    with FlopCounterMode(display=False) as counter:
        y = radconv_ext.gmr_conv2d(x, w.requires_grad_(), sigma, padding=2)
    mixing = 2 * (2 * 9 * 9) * 6 * 4 * 3
    assert counter.get_total_flops() == mixing
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * mixing


def test_inference_mode_and_meta_tensors() -> None:
    x, w, sigma = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3), radconv_ext.default_sigma(5)
    expected = radconv_ext.gmr_conv2d(x, w, sigma)
    with torch.inference_mode():
        assert torch.equal(radconv_ext.gmr_conv2d(x, w, sigma), expected)
    y = radconv_ext.gmr_conv2d(x.to("meta"), w.to("meta"), sigma.to("meta"), stride=2)
    assert (y.shape, y.device.type) == ((2, 6, 3, 3), "meta")


def test_spec_is_read_back_as_written() -> None:
    for changed in SPECS.values():
        o = parse_spec(spec_of(**changed))
        assert o.transposed == changed.get("transposed", False)
        assert o.groups == changed.get("groups", 1)
        assert o.engine == changed.get("engine", "auto")
    text = spec_of()
    assert text == (
        "2d k=5 n=3 gaussian disk stride=1,1 low=2,2 high=2,2 dilation=1,1 groups=1 zeros out=0,0 engine=auto"
    )


def test_use_engine_insists() -> None:
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3), radconv_ext.default_sigma(5)
    assert radconv_ext.current_engine() == "auto"
    with radconv_ext.use_engine("cpu"):
        assert radconv_ext.current_engine() == "cpu"
        with pytest.raises(ValueError, match=r"engine: 'cpu' can't serve this call: serves float32"):
            radconv_ext.gmr_conv2d(x.double(), w.double(), sigma.double())
        radconv_ext.gmr_conv2d(x.double(), w.double(), sigma.double(), engine="auto")
    assert radconv_ext.current_engine() == "auto"


def test_autocast_takes_the_other_half_type() -> None:
    tensors = Case("half", (9, 10)).tensors(torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = Case("half", (9, 10))(tensors, "cpu")
    wide = {name: t.float() for name, t in tensors.items()}
    expected = Case("half", (9, 10))({**wide, "x": tensors["x"].bfloat16()}, "cpu")
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.parametrize("record", [True, False])
def test_transforms_are_seen_without_recording(record: bool) -> None:
    """Whatever torch.no_grad says: a tangent, or a gradient by torch.func, is not dropped without a word."""
    x, w, sigma = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3), radconv_ext.default_sigma(5)

    def function(x: Tensor) -> Tensor:
        return radconv_ext.gmr_conv2d(x, w, sigma)

    expected = function(x)
    with torch.set_grad_enabled(record):
        tangent = torch.func.jvp(function, (x,), (x,))[1]
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.unpack_dual(function(torch.autograd.forward_ad.make_dual(x, x)))
        by_x = torch.func.grad(lambda x: (function(x) * expected).sum())(x)
    # the layer is linear in x
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dual.tangent, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((by_x * x).sum(), expected.square().sum(), rtol=1e-4, atol=1e-5)

"""The modules: torch.nn.ConvNd's arguments, initialisation, nothing stale, checkpoints, groups of parameters."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import Bumps, randomised, relative_error
from torch import Tensor, nn

import radconv_ext
from radconv_ext import nn as rnn

METHODS = ("GMR", "SRE", "Radial")
SIZES = {1: (19,), 2: (13, 12), 3: (7, 6, 8)}


def kind(method: str, ndim: int, transposed: bool = False, lazy: bool = False) -> Callable[..., Any]:
    return getattr(rnn, f"{'Lazy' if lazy else ''}{method}Conv{'Transpose' if transposed else ''}{ndim}d")


def plain(ndim: int, transposed: bool = False) -> Callable[..., Any]:
    return getattr(nn, f"Conv{'Transpose' if transposed else ''}{ndim}d")


class Flat(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(3)


class Nothing(nn.Module):
    def forward(self) -> Tensor:
        return torch.zeros(3, 5)


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_those_of_torch_and_ours_by_name(method: str, ndim: int, transposed: bool, lazy: bool) -> None:
    theirs = inspect.signature(plain(ndim, transposed)).parameters
    ours = inspect.signature(kind(method, ndim, transposed, lazy)).parameters
    positional = [name for name, a in ours.items() if a.kind is a.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name in theirs if not (lazy and name == "in_channels")]
    for name in positional:
        assert ours[name].default == theirs[name].default
    by_name = {name for name, a in ours.items() if a.kind is a.KEYWORD_ONLY}
    common = {"num_rings", "circular", "init", "engine"}
    assert by_name == common | {"GMR": {"family", "train_sigma"}, "SRE": set()}.get(
        method, {"family", "train_sigma", "profile"}
    )
    assert (inspect.getdoc(kind(method, ndim, transposed, lazy)) or "").count("{") == 0


OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 2},
    {"padding": "full", "dilation": 2},
    {"padding": "same", "bias": False},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": 3, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "groups": 2},
    {"circular": False, "padding": "valid"},
    {"num_rings": 2, "padding": 1},
    {"dtype": torch.float64, "engine": "reference"},
]
TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 2, "output_padding": 1},
    {"stride": 3, "groups": 2, "bias": False},
    {"dilation": 2, "circular": False, "num_rings": 3},
]
CASES = [
    (method, ndim, transposed, options)
    for method, ndim in itertools.product(METHODS, (1, 2, 3))
    for transposed, table in ((False, OPTIONS), (True, TRANSPOSED))
    for options in table
    if not (method == "Radial" and "num_rings" in options)
]


@pytest.mark.parametrize("method, ndim, transposed, options", CASES)
def test_output_is_that_of_the_plain_convolution(
    method: str, ndim: int, transposed: bool, options: dict[str, Any]
) -> None:
    """Of the folded layer, which is torch's own class with the dense kernel: every argument is honoured by both."""
    layer = randomised(kind(method, ndim, transposed)(4, 6, 5, **options))
    conv = layer.to_conv()
    assert type(conv) is plain(ndim, transposed)
    assert not {"radconv_ext"} & {type(m).__module__.partition(".")[0] for m in conv.modules()}
    x = torch.randn(2, 4, *SIZES[ndim], dtype=options.get("dtype"))
    assert relative_error(layer(x), conv(x)) < 4e-6  # worst seen 1.1e-6
    assert relative_error(layer(x[0]), conv(x[0])) < 4e-6
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "output_padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(conv, name), name
    assert layer.padding_mode == conv.padding_mode


@pytest.mark.parametrize("family", ["gaussian", "banded", "binary", "shell"])
def test_radial_conv_takes_every_family(family: str) -> None:
    layer = randomised(rnn.RadialConv2d(4, 6, 5, family=family, padding=2))
    assert (layer.sigma is None) == (family in ("binary", "shell"))
    x = torch.randn(2, 4, 9, 9)
    assert relative_error(layer(x), layer.to_conv()(x)) < 1e-5
    assert layer.profile_matrix().shape == (layer.num_rings, layer.geometry.buckets)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_profile_of_the_caller(ndim: int) -> None:
    shells = radconv_ext.shell_count(ndim, 5)
    layer = kind("Radial", ndim)(4, 6, 5, padding=2, profile=Bumps(3, shells))
    x = torch.randn(2, 4, *SIZES[ndim])
    assert relative_error(layer(x), layer.to_conv()(x)) < 1e-5
    layer(x).square().sum().backward()
    assert layer.profile.scale.grad.abs().min() > 0
    assert "profile.scale" in layer.state_dict()


def test_output_size_of_a_transposed_module() -> None:
    layer = rnn.GMRConvTranspose2d(4, 6, 5, stride=3, padding=1)
    conv = layer.to_conv()
    x = torch.randn(2, 4, 5, 6)
    for size in ((15, 19), (17, 18), (2, 6, 16, 20)):
        assert relative_error(layer(x, output_size=size), conv(x, output_size=size)) < 1e-5
    with pytest.raises(ValueError, match=r"output_size: expected 15 to 17 along spatial axis 0 of x \(2, 4, 5, 6\)"):
        layer(x, output_size=(18, 18))
    with pytest.raises(ValueError, match="output_size: expected 2 sizes"):
        layer(x, output_size=(15,))


WRONG = [
    ({"in_channels": None}, "in_channels: expected an int, got None"),
    ({"in_channels": 0}, "in_channels: expected at least 1, got 0"),
    ({"out_channels": 6.0}, "out_channels: expected an int, got 6.0"),
    ({"groups": 3}, "in_channels: expected a multiple of groups = 3, got 4"),
    ({"groups": 4}, "out_channels: expected a multiple of groups = 4, got 6"),
    ({"kernel_size": None}, "kernel_size: expected an int, got None"),
    ({"kernel_size": (3, 5)}, "kernel_size: expected one size for all axes"),
    ({"kernel_size": 4, "family": "banded"}, "kernel_size: expected an odd size"),
    ({"stride": 0}, "stride: expected at least 1, got 0"),
    ({"padding": "some"}, "padding: expected one of 'same', 'valid', 'full', got 'some'"),
    ({"padding": "same", "stride": 2}, "padding: 'same' needs stride 1"),
    ({"padding_mode": "mirror"}, "padding_mode: expected one of"),
    ({"bias": None}, "bias: expected a bool, got None"),
    ({"circular": 1}, "circular: expected a bool, got 1"),
    ({"num_rings": 0}, "num_rings: expected at least 1, got 0"),
    ({"family": "binary"}, "family: expected one of 'gaussian', 'banded', got 'binary'"),
    ({"train_sigma": "yes"}, "train_sigma: expected a bool, got 'yes'"),
    ({"init": "kaiming"}, "init: expected one of 'effective', 'paper', 'package', got 'kaiming'"),
    ({"engine": "fast"}, "engine: expected one of"),
    ({"dilation": (1, 2, 3)}, "dilation: expected an int or 2 of them"),
]


@pytest.mark.parametrize("changed, sentence", WRONG)
def test_wrong_arguments_are_named(changed: dict[str, Any], sentence: str) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 5} | changed
    with pytest.raises((ValueError, TypeError)) as caught:
        rnn.GMRConv2d(**arguments)
    assert str(caught.value).startswith(sentence)


def test_wrong_combinations_are_named() -> None:
    bumps = Bumps(3, 5)
    for wrong, sentence in (
        (lambda: rnn.RadialConv2d(4, 6, 5, family="shell", num_rings=4), "num_rings: expected 5, one per shell"),
        (lambda: rnn.RadialConv2d(4, 6, 5, train_sigma=True), "train_sigma: expected none, as family 'shell'"),
        (lambda: rnn.RadialConv2d(4, 6, 5, family="shell", profile=bumps), "family: expected none beside profile"),
        (lambda: rnn.RadialConv2d(4, 6, 5, num_rings=4, profile=bumps), "num_rings: expected 3, the rows of profile"),
        (lambda: rnn.RadialConv2d(4, 6, 7, profile=bumps), r"profile: expected \(3, 8\)"),
        (lambda: rnn.RadialConv2d(4, 6, 5, profile=torch.ones(3, 5)), "profile: expected a torch.nn.Module"),
        (lambda: rnn.RadialConv2d(4, 6, 5, profile=Flat()), "profile: expected a module that gives a tensor"),
        (lambda: rnn.RadialConv2d(4, 6, 5, profile=Nothing()), "profile: expected finite values that are not all 0"),
        (lambda: rnn.GMRConvTranspose2d(4, 6, 5, padding="same"), "padding: expected an int or 2 of them"),
        (lambda: rnn.GMRConvTranspose2d(4, 6, 5, padding_mode="reflect"), "padding_mode: expected 'zeros'"),
        (lambda: rnn.GMRConvTranspose2d(4, 6, 5, output_padding=1), "output_padding: expected less than stride"),
        (lambda: rnn.SREConv2d(4, 6, 5)(torch.randn(4)), "x: expected 4 dimensions"),
        (lambda: rnn.SREConv2d(4, 6, 5)([1.0]), "x: expected a torch.Tensor, got list"),
        (lambda: rnn.SREConv2d(4, 6, 5)(torch.randn(1, 5, 9, 9)), "x: expected 4 channels from w"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            wrong()


def test_attributes_changed_after_construction_are_honoured() -> None:
    """As of torch.nn.Conv2d: code that turns strides into dilation sets them."""
    layer = rnn.GMRConv2d(4, 6, 5, stride=2, padding=2)
    x = torch.randn(1, 4, 12, 12)
    assert layer(x).shape[2:] == (6, 6)
    layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), [4, 4]
    assert layer(x).shape[2:] == (12, 12)
    assert relative_error(layer(x), layer.to_conv()(x)) < 1e-5
    layer.padding[0] = 3
    assert layer(x).shape[2:] == (10, 12)
    layer.padding_mode = "circular"
    assert relative_error(layer(x), layer.to_conv()(x)) < 1e-5
    layer.double().engine = "cpu"
    with pytest.raises(ValueError, match="engine: 'cpu' can't serve this call: serves float32"):
        layer(x.double())


def test_use_engine_reaches_modules() -> None:
    layer, x = rnn.GMRConv2d(4, 6, 5, dtype=torch.float64), torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = layer(x)
    with radconv_ext.use_engine("cpu"), pytest.raises(ValueError, match="'cpu' can't serve"):
        layer(x)
    layer.engine = "reference"
    with radconv_ext.use_engine("cpu"):
        assert torch.equal(layer(x), expected)


def test_repr() -> None:
    assert repr(rnn.GMRConv2d(4, 6, 9)) == (
        "GMRConv2d(4, 6, kernel_size=(9, 9), stride=(1, 1), num_rings=5, family='gaussian')"
    )
    layer = rnn.GMRConvTranspose1d(
        4, 6, 5, 2, 1, 1, 2, False, num_rings=2, circular=False, family="banded", train_sigma=False, engine="reference"
    )
    assert repr(layer) == (
        "GMRConvTranspose1d(4, 6, kernel_size=(5,), stride=(2,), num_rings=2, family='banded', padding=(1,), "
        "output_padding=(1,), groups=2, bias=False, circular=False, train_sigma=False, engine=reference)"
    )
    assert "padding='full'" in repr(rnn.RadialConv3d(4, 6, 3, padding="full"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_lazy_modules(method: str, transposed: bool) -> None:
    lazy = kind(method, 2, transposed, lazy=True)(6, 5, groups=2)
    with pytest.raises(ValueError, match="expected a layer that knows its channels"):
        lazy.to_conv()
    y = lazy(torch.randn(2, 4, 9, 9))
    assert type(lazy) is kind(method, 2, transposed)
    assert lazy.in_channels == 4
    assert y.isfinite().all()
    again = kind(method, 2, transposed, lazy=True)(6, 5, groups=2)
    again.load_state_dict(lazy.state_dict())
    assert again.in_channels == 4
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(again(x), lazy(x))
    third = kind(method, 2, transposed, lazy=True)(6, 5, groups=2)
    third.load_state_dict(kind(method, 2, transposed, lazy=True)(6, 5, groups=2).state_dict())  # knows nothing yet
    assert third.in_channels is None
    with pytest.raises(ValueError, match="x: expected channels in a multiple of groups = 2, got 3"):
        third(torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (torch.randn(2, 4, 9, 9, 9), "x: expected 4 dimensions"),
        (torch.randn(9, 9), "x: expected 4 dimensions"),
        ([1.0], "x: expected a torch.Tensor, got list"),
        (torch.randn(2, 0, 9, 9), "x: expected at least one channel"),
        (torch.ones(2, 4, 9, 9, dtype=torch.int32), "x: expected a floating-point tensor"),
    ],
)
def test_lazy_modules_survive_a_wrong_input(wrong: Any, sentence: str) -> None:
    lazy = rnn.LazyGMRConv2d(6, 5)
    with pytest.raises((ValueError, TypeError), match=sentence):
        lazy(wrong)
    assert lazy(torch.randn(2, 4, 9, 9)).shape == (2, 6, 5, 5)


def test_lazy_modules_have_nothing_to_draw() -> None:
    lazy = rnn.LazyGMRConv2d(6, 5)
    lazy.reset_parameters()
    for function in (rnn.effective_fan, rnn.kaiming_normal_):
        with pytest.raises(ValueError, match="layer: expected one that knows its channels"):
            function(lazy)


def test_input_by_name_as_torch_has_it() -> None:
    layer, transposed = rnn.GMRConv2d(4, 6, 5), rnn.GMRConvTranspose2d(4, 6, 5)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(layer(input=x), layer(x))
    assert torch.equal(transposed(input=x, output_size=(13, 13)), transposed(x))


# ---- initialisation --------------------------------------------------------------------------------------------------

FAMILY_SIZES = [
    (ndim, family, k, circular)
    for ndim, sizes in ((1, (1, 3, 4, 9, 15)), (2, (1, 3, 4, 7, 9, 15)), (3, (3, 5, 6, 7)))
    for family, circular in itertools.product(("gaussian", "banded", "binary", "shell", "custom"), (True, False))
    for k in sizes
    if k % 2 or family not in ("banded", "binary")
]


def built(ndim: int, family: str, k: int, circular: bool = True, transposed: bool = False, **options: Any) -> Any:
    if family == "custom":
        shells = radconv_ext.shell_count(ndim, k, circular)
        options["profile"] = Bumps(min(shells, 3), shells)
    else:
        options["family"] = family
    channels = options.pop("channels", (64, 64))
    return kind("Radial", ndim, transposed)(*channels, k, bias=False, circular=circular, **options)


def variance(layer: Any) -> float:
    """Of one interior output pixel over independent inputs of variance 1: the mean over outputs of sum K^2."""
    kernel = layer.dense_kernel().detach().double()
    return float(kernel.square().flatten(1).sum(1).mean())


@pytest.mark.parametrize("ndim, family, k, circular", FAMILY_SIZES)
def test_variance_of_the_output_is_kaimings(ndim: int, family: str, k: int, circular: bool) -> None:
    """Gain^2 = 1/3 for torch's own `a = sqrt(5)`; 64 x 64 channels, the mean of 8 draws."""
    torch.manual_seed(0)
    layer = built(ndim, family, k, circular)
    found = []
    for _ in range(8):
        layer.reset_parameters()
        found.append(variance(layer))
    assert sum(found) / len(found) == pytest.approx(1 / 3, rel=0.1)  # worst seen 0.9 %


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_variance_of_interior_pixels(ndim: int, transposed: bool) -> None:
    """The same by running the layer, strided and in groups."""
    torch.manual_seed(0)
    options = {"stride": 2} if transposed else {}
    layer = built(ndim, "gaussian", 5, transposed=transposed, channels=(32, 64), groups=2, **options)
    size = {1: 600, 2: 40, 3: 16}[ndim]
    with torch.no_grad():
        y = layer(torch.randn(8, 32, *(size,) * ndim))
    inside = y[(..., *(slice(4, -4),) * ndim)]
    assert float(inside.var()) == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("init, fan", [("effective", None), ("paper", 16 * 5), ("package", 16 * 81)])
def test_rules_of_initialisation(init: str, fan: int | None) -> None:
    torch.manual_seed(0)
    layer = rnn.GMRConv2d(16, 400, 9, init=init)
    fan = fan or rnn.effective_fan(layer)
    assert float(layer.weight.detach().abs().max()) == pytest.approx(1 / math.sqrt(fan), rel=1e-3)
    bias_fan = {"effective": fan}.get(init, 16 * 5)  # the package's bias goes by the rings
    assert float(layer.bias.detach().abs().max()) == pytest.approx(1 / math.sqrt(bias_fan), rel=1e-2)


def test_kaiming_by_hand() -> None:
    torch.manual_seed(0)
    layer = rnn.GMRConv2d(64, 64, 9, bias=False)
    with torch.no_grad():
        layer.log_sigma.add_(0.7)  # wider rings overlap: the fan follows
    for initialise, options, gain in (
        (rnn.kaiming_normal_, {}, 2.0),
        (rnn.kaiming_uniform_, {"nonlinearity": "linear"}, 1.0),
        (rnn.kaiming_normal_, {"nonlinearity": "leaky_relu", "a": 1.0}, 1.0),
    ):
        initialise(layer, **options)
        assert variance(layer) == pytest.approx(gain, rel=0.1)
    with pytest.raises(ValueError, match="nonlinearity: expected one of"):
        rnn.kaiming_normal_(layer, "gelu?")


def test_a_profile_that_changes_its_rank_is_named() -> None:
    profile = Bumps(3, 5)
    layer = rnn.RadialConv2d(4, 6, 5, profile=profile)
    profile.forward = lambda: torch.ones(3)
    with pytest.raises(ValueError, match=r"profile: expected 2 dimensions \(n rings, D shells\), got \(3,\)"):
        layer(torch.randn(1, 4, 9, 9))


def test_sigma_starts_at_the_ring_width_and_is_clamped() -> None:
    layer = rnn.GMRConv2d(4, 6, 9)
    assert torch.allclose(layer.sigma, radconv_ext.default_sigma(9))
    with torch.no_grad():
        layer.log_sigma.copy_(torch.tensor([-9.0, 0.0, 9.0, 0.0, 0.0]))
    assert layer.sigma.tolist() == pytest.approx([0.01, 1, 10, 1, 1])
    x = torch.randn(1, 4, 12, 12)
    expected = radconv_ext.gmr_conv2d(x, layer.weight, layer.sigma, layer.bias)
    assert relative_error(layer(x), expected) < 1e-6
    layer.reset_parameters()
    assert torch.allclose(layer.sigma, radconv_ext.default_sigma(9))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        wide = rnn.GMRConv2d(4, 6, 9, dtype=dtype)
        with torch.no_grad():
            wide.log_sigma.fill_(100.0)  # whose exponential is infinite
        (grad,) = torch.autograd.grad(wide(x.to(dtype)).float().sum(), wide.log_sigma, create_graph=True)
        assert grad.tolist() == [0.0] * 5
    fixed = rnn.GMRConv2d(4, 6, 9, train_sigma=False)
    assert "log_sigma" not in dict(fixed.named_parameters())
    assert fixed.state_dict().keys() == layer.state_dict().keys()


# ---- nothing stale ---------------------------------------------------------------------------------------------------


def fresh(layer: Any, x: Tensor) -> Tensor:
    """By the definition, from the numbers that the layer has now."""
    w, sigma, bias = (None if t is None else t.detach() for t in (layer.weight, layer.sigma, layer.bias))
    return radconv_ext.gmr_conv2d(x, w, sigma, bias, padding=layer.padding, engine="reference")


def edit_in_place(layer: Any, seed: int = 1) -> None:
    randomised(layer, seed)


def edit_data(layer: Any) -> None:
    layer.weight.data.mul_(2)
    layer.log_sigma.data.add_(0.2)


def load(layer: Any) -> None:
    layer.load_state_dict(randomised(rnn.GMRConv2d(4, 6, 5, padding=2), 2).state_dict())


def load_assigned(layer: Any) -> None:
    layer.load_state_dict(randomised(rnn.GMRConv2d(4, 6, 5, padding=2), 3).state_dict(), assign=True)


def step(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(1, 4, 9, 9)).square().sum().backward()
    optimizer.step()


def replace(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.randn(6, 4, 3))


EDITS = (edit_in_place, edit_data, load, load_assigned, step, replace)


@pytest.mark.parametrize("evaluate", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_no_result_is_stale(edit: Callable[[Any], None], evaluate: bool) -> None:
    layer = rnn.GMRConv2d(4, 6, 5, padding=2).train(not evaluate)
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        before = layer(x)
    edit(layer)
    with torch.no_grad():
        after = layer(x)
        assert relative_error(after, fresh(layer, x)) < 1e-5
        assert not torch.allclose(after, before)
        layer.train(evaluate)
        assert torch.equal(layer(x), after)
        layer.train(not evaluate)
        assert torch.equal(layer(x), after)
        wide = layer.double()
        assert relative_error(wide(x.double()), fresh(wide, x.double())) < 1e-13
        assert relative_error(layer.to(torch.bfloat16)(x.bfloat16()), fresh(layer, x.bfloat16())) < 2e-2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies_are_whole_and_apart(clone: Callable[[Any], Any]) -> None:
    layer = rnn.GMRConv2d(4, 6, 5, padding=2).eval()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        before = layer(x)
        twin = clone(layer)
        assert torch.equal(twin(x), before)
        if clone is not copy.copy:
            edit_in_place(twin)
            assert relative_error(twin(x), fresh(twin, x)) < 1e-5
            assert torch.equal(layer(x), before)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_return(method: str) -> None:
    layer = randomised(kind(method, 2)(4, 6, 5))
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict()}, file)
    file.seek(0)
    again = kind(method, 2)(4, 6, 5)
    assert again.load_state_dict(torch.load(file, weights_only=True)["layer"]).missing_keys == []
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(again(x), layer(x))


def model(layer: nn.Module) -> nn.Module:
    return nn.ModuleDict({"stem": nn.Sequential(layer)})


@pytest.mark.parametrize(
    "saved, loading, sentences",
    [
        pytest.param(
            rnn.GMRConv2d(4, 6, 5), rnn.GMRConv2d(4, 6, 5, family="banded"),
            ("'2d k=5 n=3 gaussian disk'", "'2d k=5 n=3 banded disk'", "build the layer with the checkpoint's"),
            id="family",
        ),
        pytest.param(
            rnn.GMRConv2d(4, 6, 7), rnn.GMRConv2d(4, 6, 5), ("'2d k=7 n=4 gaussian disk'", "build the layer"),
            id="rings",
        ),
        pytest.param(rnn.GMRConv2d(4, 6, 5), rnn.GMRConv2d(4, 6, 4), ("'2d k=5 n=3", "'2d k=4 n=3"), id="even"),
        pytest.param(rnn.GMRConv1d(4, 6, 5), rnn.GMRConv2d(4, 6, 5), ("'1d k=5",), id="dimensions"),
        pytest.param(
            rnn.SREConv2d(4, 6, 5, circular=False), rnn.SREConv2d(4, 6, 7), ("binary cube", "binary disk"), id="support"
        ),
        pytest.param(
            rnn.GMRConvTranspose2d(4, 4, 5), rnn.GMRConv2d(4, 4, 5), ("gaussian disk transposed",), id="transposed"
        ),
        pytest.param(nn.Conv2d(4, 6, 5), rnn.GMRConv2d(4, 6, 5), ("dense kernel (6, 4, 5, 5)",), id="dense"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [True, False])
def test_another_layers_checkpoint_fails_with_a_sentence(
    saved: nn.Module, loading: nn.Module, sentences: tuple[str, ...], strict: bool
) -> None:
    target = model(loading)
    before = {name: t.clone() for name, t in target.state_dict().items()}
    with pytest.raises(RuntimeError) as caught:
        target.load_state_dict(model(saved).state_dict(), strict=strict)
    assert "stem.0: " in str(caught.value)
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in target.state_dict().items())  # nothing is lost


def test_checkpoints_without_identity_fail_by_shape_or_name() -> None:
    layer = rnn.GMRConv2d(4, 6, 5)
    bare = {name: t for name, t in layer.state_dict().items() if name != "_extra_state"}
    with pytest.raises(RuntimeError, match="_extra_state"):
        rnn.GMRConv2d(4, 6, 5).load_state_dict(bare)
    assert rnn.GMRConv2d(4, 6, 5).load_state_dict(bare, strict=False).missing_keys == ["_extra_state"]
    with pytest.raises(RuntimeError, match=r"the checkpoint has 3 rings.*num_rings=3"):
        rnn.GMRConv2d(4, 6, 7).load_state_dict(bare, strict=False)


@pytest.mark.parametrize("other", ["hello", None, b"2d k=5", torch.randn(7) * 1e6, torch.tensor([300.0])])
def test_unreadable_identities_are_refused(other: Any) -> None:
    state = rnn.GMRConv2d(4, 6, 5).state_dict() | {"_extra_state": other}
    with pytest.raises(RuntimeError, match=r"can't be read; where they are known to be those of a layer '2d k=5 n=3"):
        rnn.GMRConv2d(4, 6, 5).load_state_dict(state)


def test_averaged_and_cast_checkpoints_are_read() -> None:
    first, second = rnn.GMRConv2d(4, 6, 5).state_dict(), rnn.GMRConv2d(4, 6, 5).state_dict()
    for state in (
        {name: 0.9 * first[name] + 0.1 * second[name] for name in first},
        {name: torch.stack([first[name], second[name]]).mean(0) for name in first},
        {name: t.half() for name, t in first.items()},
        {name: t.bfloat16() for name, t in first.items()},
        {name: t.clone().mul_(0.9).add_(second[name], alpha=0.1) for name, t in first.items()},
    ):
        rnn.GMRConv2d(4, 6, 5).load_state_dict(state)
        with pytest.raises(RuntimeError, match="saved from a layer '2d k=5"):
            rnn.GMRConv2d(4, 6, 4).load_state_dict(state)


# ---- parameter groups ------------------------------------------------------------------------------------------------


def test_parameter_groups() -> None:
    net = nn.Sequential(rnn.GMRConv2d(3, 4, 5), nn.BatchNorm2d(4), rnn.SREConv2d(4, 4, 3), rnn.GMRConv2d(4, 4, 9))
    net[1].bias.requires_grad_(False)
    rest, widths = rnn.parameter_groups(net, lr=1e-4)
    assert [id(p) for p in widths["params"]] == [id(net[0].log_sigma), id(net[3].log_sigma)]
    assert widths == {"params": widths["params"], "weight_decay": 0.0, "lr": 1e-4}
    everything = {id(p) for group in (rest, widths) for p in group["params"]}
    assert everything == {id(p) for p in net.parameters() if p.requires_grad}
    assert set(rest) == {"params"}
    (only,) = rnn.parameter_groups(nn.Linear(2, 2))
    assert len(only["params"]) == 2
    nn.utils.parametrize.register_parametrization(net[0], "log_sigma", nn.Identity())
    _, widths = rnn.parameter_groups(net)
    assert len(widths["params"]) == 2

"""The whole networks that the benchmarks compare are what they are said to be."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from support import relative_error
from torch import Tensor, nn

from benchmarks.networks import (
    NETWORKS,
    RADCONV,
    ROTATIONS,
    Block,
    ResNet18,
    RotationPooling,
    deployed,
    doubled,
    parameter_count,
    plain,
    steerable,
)
from radconv_ext.nn import GMRConv2d, convert_released

# e2cnn's own, on every basis that it samples
pytestmark = pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")

WIDTH = 8
CLASSES = 5
TOLERANCE = 5e-6  # worst seen 6.1e-7, batch norms in ring weights


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(network: ResNet18) -> ResNet18:
    """In eval mode, with batch norms as after training: statistics of a batch, scales and shifts of order one."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                drawn = torch.rand(parameter.shape, generator=random)
                parameter.copy_(drawn + 0.5 if name.endswith("weight") else drawn - 0.5)
        for _ in range(3):
            network.train()(images(16))
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> ResNet18:
    torch.manual_seed(0)
    return trained(NETWORKS[name](WIDTH, CLASSES))


def test_shapes(network: ResNet18) -> None:
    strides = {16: (16, 8, 4, 2), 17: (17, 9, 5, 3)}
    for size, expected in strides.items():
        x, sizes = images(size), []
        for module in network.features:
            x = module(x)
            if isinstance(module, Block):
                sizes.append(x.shape[-1])
        assert sizes == [s for s in expected for _ in range(2)]
        assert network(images(size)).shape == (2, CLASSES)


def test_every_parameter_is_trained(name: str) -> None:
    network = NETWORKS[name](WIDTH, CLASSES)
    network(images(16)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any() or p.grad.isnan().any()]
    assert without == []


def test_conv_3x3_is_the_published_network() -> None:
    with torch.device("meta"):
        assert parameter_count(NETWORKS["conv_3x3"]()) == 11_173_962  # with 10 classes, as others count it


@pytest.mark.parametrize("width", [8, 16], ids="width{}".format)
def test_e2_has_as_many_parameters(width: int) -> None:
    ratio = parameter_count(NETWORKS["e2_conv"](width)) / parameter_count(NETWORKS["radconv"](width))
    assert abs(ratio - 1) <= 0.1  # 0.949 at width 8, 1.004 at 16, 0.995 at 64


def test_e2_weights_start_as_in_e2cnn() -> None:
    """The same spread of every weight, in the same order, as its slow initialisation of the whole layer."""
    layers, spread = steerable(), []
    for of, c in ((layers.image, 3), (layers.fields, 2)):
        torch.manual_seed(0)
        ours = layers.conv(of, c, 4, 5, 1)
        torch.manual_seed(0)
        spread.append(relative_error(ours.weights, layers.enn.R2Conv(of(c), layers.fields(4), 5, bias=False).weights))
    assert max(spread) <= 1e-6


def test_rotation_pooling_is_group_pooling() -> None:
    layers = steerable()
    x = torch.randn(2, 3 * ROTATIONS, 4, 5, generator=torch.Generator().manual_seed(3))
    fields = layers.fields(3)
    pooled = layers.enn.GroupPooling(fields)(layers.enn.GeometricTensor(x, fields)).tensor
    assert torch.equal(RotationPooling()(x), pooled)


# Strides keep the symmetry where every stage has an odd size: 8 m + 1.
@pytest.mark.parametrize(
    "name, size, invariant",
    [
        ("radconv", 17, True),
        ("released_gmr", 17, True),
        ("e2_conv", 17, True),
        ("conv_3x3", 17, False),
        ("radconv", 16, False),
        ("e2_conv", 16, False),
    ],
)
def test_quarter_turn(name: str, size: int, invariant: bool) -> None:
    torch.manual_seed(0)
    network = trained(NETWORKS[name](WIDTH, CLASSES))
    x = images(size)
    with torch.no_grad():
        features = network.features(x)
        errors = [relative_error(network.features(x.rot90(turns, (2, 3))), features) for turns in (1, 2, 3)]
    if invariant:
        assert max(errors) <= TOLERANCE
    else:
        assert min(errors) >= 5e-3  # least seen 1.2e-2, radconv


def test_released_is_the_banded_family() -> None:
    released = trained(NETWORKS["released_gmr"](WIDTH, CLASSES))
    banded = ResNet18(replace(RADCONV, conv=plain(partial(GMRConv2d, family="banded"))), doubled(WIDTH), CLASSES)
    banded.load_state_dict(convert_released(released.state_dict()))
    with torch.no_grad():
        assert relative_error(banded.eval()(images(16)), released(images(16))) <= TOLERANCE


FORMS = {"conv_3x3": ["dense"], "e2_conv": ["dense"]}


def test_deployed(name: str, network: ResNet18) -> None:
    x = images(16)
    with torch.no_grad():
        before = network(x)
        forms = deployed(network)
        assert list(forms) == FORMS.get(name, ["rings", "dense"])
        for form in forms.values():
            assert relative_error(form(x), before) <= TOLERANCE
        assert torch.equal(network(x), before)
    if name != "released_gmr":
        assert not [m for form in forms.values() for m in form.modules() if isinstance(m, nn.BatchNorm2d)]


def test_training_mode_is_not_deployed(name: str) -> None:
    with pytest.raises(ValueError, match="expected a model in eval mode"):
        deployed(NETWORKS[name](WIDTH, CLASSES))

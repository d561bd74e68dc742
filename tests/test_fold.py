"""Deployment: folding into plain convolutions, batch norms into ring weights, ONNX, released checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from support import randomised, relative_error, released_kernel
from torch import Tensor, nn

import radconv_ext
from benchmarks.third_party import gmr_module, sre_module
from radconv_ext import nn as rnn
from radconv_ext.export import decomposed


class Block(nn.Module):
    """A residual block whose forward is plain Python."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = rnn.GMRConv2d(channels, channels, 5, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.other = rnn.SREConv2d(channels, channels, 3, padding="full", groups=2)
        self.shrink = nn.AvgPool2d(3, 1)
        self.last = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return x + self.last(self.shrink(self.other(y)))


class Branching(nn.Module):
    """A forward that no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(rnn.GMRConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.mean() > 0 else self.a(-x)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        rnn.GMRConv2d(3, 4, 9, stride=2, padding=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Block(4),
        Branching(),
        rnn.RadialConvTranspose2d(4, 6, 5, stride=2, padding=2, output_padding=1, groups=2, family="gaussian"),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1),
        rnn.RadialConv2d(4, 4, 4, num_rings=2, family="gaussian"),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.eval()


def radial(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, rnn.RadialConvNd)]


# ---- fold ------------------------------------------------------------------------------------------------------------


def test_fold() -> None:
    net = network()
    x = torch.randn(2, 3, 24, 24)
    before = copy.deepcopy(net.state_dict())
    folded, report = rnn.fold(net)
    assert radial(folded) == []
    assert relative_error(folded(x), net(x)) < 2e-6  # worst seen 3.2e-7
    assert [layer.name for layer in report.layers] == radial(net)
    assert str(report).splitlines()[:2] == ["6 radial layers folded", "0: GMRConv2d, 60 -> 972 weights"]
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not folded.training
    for old, new in zip(net.parameters(), folded.parameters(), strict=False):
        assert old.data_ptr() != new.data_ptr()


def test_fold_of_a_layer_of_a_shared_one_and_of_none() -> None:
    layer = rnn.GMRConv2d(4, 4, 5, padding=2).train()
    conv, report = rnn.fold(layer)
    assert isinstance(conv, nn.Conv2d)
    assert conv.training
    assert str(report) == "1 radial layers folded\n(model): GMRConv2d, 48 -> 400 weights"
    twice, report = rnn.fold(nn.Sequential(layer, nn.ReLU(), layer))
    assert twice[0] is twice[2]
    assert len(report.layers) == 1
    plain = nn.Sequential(nn.Linear(2, 2))
    same, report = rnn.fold(plain)
    assert same is not plain
    assert report.layers == ()


def test_fold_refuses_what_would_be_lost() -> None:
    layer = rnn.GMRConv2d(4, 4, 5)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"fold: expected radial layers without hooks.*'0'"):
        rnn.fold(nn.Sequential(layer))
    with pytest.raises(ValueError, match=r"expected radial layers with the forward of their class, got '0', a Doubled"):
        rnn.fold(nn.Sequential(Doubled(4, 4, 5)))
    with pytest.raises(ValueError, match="expected a layer that knows its channels"):
        rnn.fold(nn.Sequential(rnn.LazyGMRConv2d(4, 5)))


def test_fold_of_half_precision_and_parametrized_layers() -> None:
    x = torch.randn(2, 4, 12, 12)
    layer = rnn.GMRConv2d(4, 6, 5)
    nn.utils.parametrizations.weight_norm(layer)
    assert relative_error(rnn.fold(layer)[0](x), layer(x)) < 1e-5
    half = rnn.GMRConv2d(4, 6, 5, dtype=torch.bfloat16)
    conv, _ = rnn.fold(half)
    assert conv.weight.dtype is torch.bfloat16
    assert relative_error(conv(x.bfloat16()), half(x.bfloat16())) < 2e-2


# ---- fuse_bn ---------------------------------------------------------------------------------------------------------


def test_fuse_bn() -> None:
    net = network()
    x = torch.randn(2, 3, 24, 24)
    fused, report = rnn.fuse_bn(net)
    assert relative_error(fused(x), net(x)) < 2e-6  # worst seen 3.2e-7
    pairs = {(pair.conv, pair.norm) for pair in report.fused}
    assert pairs == {("0", "1"), ("3.conv", "3.norm"), ("5", "6")}
    # `last` follows a pool, and `Branching` can't be traced
    assert report.left == {"4.a.1": "it is inside 4, whose forward can't be traced"}
    assert [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["3.last", "4.a.1"]
    assert radial(fused) == radial(net)
    folded, _ = rnn.fold(fused)
    assert relative_error(folded(x), net(x)) < 1e-5


def test_fuse_bn_in_double_for_every_group_count() -> None:
    for groups in (1, 2, 4):
        for kind in (rnn.GMRConv2d, rnn.GMRConvTranspose2d):
            net = nn.Sequential(kind(4, 8, 3, groups=groups, bias=False), nn.BatchNorm2d(8)).double().eval()
            nn.init.normal_(net[1].running_mean)
            nn.init.uniform_(net[1].running_var, 0.3, 3.0)
            x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
            fused, report = rnn.fuse_bn(net)
            assert len(report.fused) == 1
            assert relative_error(fused(x), net(x)) < 1e-13


class Normed(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class Doubled(rnn.GMRConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Uses(nn.Module):
    """A conv and a norm, used in a way that forbids fusing."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = (Doubled if how == "forward of its own" else rnn.GMRConv2d)(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2, track_running_stats=how != "no running statistics")

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "can't be traced" and x.mean() > 9:
            return x
        y = self.conv(x)
        z = self.norm(input=y)
        if self.how == "reads its parameters":
            return z * self.conv.weight.sum()
        if self.how == "uses the layer's output too":
            return z + y
        return z + self.conv(z) if self.how == "called more than once" else z


@pytest.mark.parametrize(
    "how",
    [
        "no running statistics",
        "uses the layer's output too",
        "called more than once",
        "in training mode",
        "parametrized",
        "has hooks",
        "forward of its own",
        "can't be traced",
        "reads its parameters",
    ],
)
def test_fuse_bn_leaves_what_it_must(how: str) -> None:
    net = Uses(how).eval()
    if how == "in training mode":
        net.norm.train()
    if how == "parametrized":
        nn.utils.parametrizations.weight_norm(net.conv)
    if how == "has hooks":
        net.norm.register_forward_hook(lambda *_: None)
    fused, report = rnn.fuse_bn(net)
    assert report.fused == ()
    assert how in report.left["norm"]
    assert "norm left: " in str(report)
    assert isinstance(fused.norm, nn.BatchNorm2d)


def test_fuse_bn_leaves_a_norm_with_a_forward_of_its_own() -> None:
    net = nn.Sequential(rnn.GMRConv2d(2, 2, 3), Normed(2)).eval()
    fused, report = rnn.fuse_bn(net)
    assert report.left == {"1": "it, or the layer before it, has a forward of its own"}
    assert isinstance(fused[1], Normed)


def test_frozen_parameters_stay_frozen() -> None:
    layer = rnn.GMRConv2d(4, 6, 5).requires_grad_(False)
    layer.bias.requires_grad_()
    assert [p.requires_grad for p in rnn.fold(layer)[0].parameters()] == [False, True]
    net = nn.Sequential(rnn.GMRConv2d(4, 6, 5, bias=False), nn.BatchNorm2d(6)).eval()
    for trained in (False, True):
        fused, _ = rnn.fuse_bn(net.requires_grad_(trained))
        assert {p.requires_grad for p in fused.parameters()} == {trained}


def test_fuse_bn_refuses_training_mode() -> None:
    with pytest.raises(ValueError, match="fuse_bn: expected a model in eval mode"):
        rnn.fuse_bn(network().train())


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def run_onnx(program: Any, path: Path, x: Tensor) -> Tensor:
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        rnn.GMRConv2d(3, 4, 9, padding="same"),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        rnn.SREConv2d(4, 4, 5, padding=2, padding_mode="circular"),
        rnn.GMRConvTranspose2d(4, 2, 5, stride=2, padding=2),
    ).eval()


def test_onnx_of_a_folded_model(tmp_path: Path) -> None:
    net = small()
    folded, _ = rnn.fold(rnn.fuse_bn(net)[0])
    x = torch.randn(2, 3, 14, 14)
    program = torch.onnx.export(folded, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 14, 14)
        assert relative_error(run_onnx(program, tmp_path / "folded.onnx", x), net(x)) < 1e-5


def test_onnx_of_the_decomposition_keeps_the_ring_weights(tmp_path: Path) -> None:
    net = small()
    x = torch.randn(2, 3, 14, 14)
    with decomposed():
        program = torch.onnx.export(
            net, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, optimize=False
        )
    initializers = {tuple(value.shape) for value in program.model.graph.initializers.values()}
    assert (4, 3, 5) in initializers  # ring weights, no (4, 3, 9, 9)
    assert (4, 3, 9, 9) not in initializers
    for batch in (2, 5):
        x = torch.randn(batch, 3, 14, 14)
        assert relative_error(run_onnx(program, tmp_path / "rings.onnx", x), net(x)) < 1e-5


def test_decomposed_export() -> None:
    net = small()
    x = torch.randn(2, 3, 14, 14)
    with decomposed():
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("radconv" in target for target in targets)
    x = torch.randn(5, 3, 14, 14)
    assert relative_error(program.module()(x), net(x)) < 1e-5
    torch._dynamo.reset()
    with decomposed():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(x), net(x)) < 1e-5
    assert "radconv_ext.conv.default" in str(torch.export.export(net, (x,)).graph)  # outside the block as ever


# ---- released checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("package", ["GMR", "SRE"])
def test_released_checkpoints(package: str, circular: bool) -> None:
    torch.manual_seed(0)
    if package == "GMR":
        module = gmr_module()
        layers = [module.GMR_Conv2d(4, 6, 9, force_circular=circular), module.GMR_Conv3d(6, 2, 3)]
    else:
        module = sre_module()
        layers = [module.SRE_Conv2d(4, 6, 9), module.SRE_Conv3d(6, 2, 3)]
        circular = True
    released = nn.Sequential(*layers)
    ours = nn.Sequential(
        getattr(rnn, f"{package}Conv2d")(
            4, 6, 9, circular=circular, **({"family": "banded"} if package == "GMR" else {})
        ),
        getattr(rnn, f"{package}Conv3d")(6, 2, 3, **({"family": "banded"} if package == "GMR" else {})),
    )
    with pytest.raises(RuntimeError, match=r"pass it through radconv_ext.nn.convert_released"):
        ours.load_state_dict(released.state_dict(), strict=False)
    saved = {**released.state_dict(), "head.weight": torch.ones(2)}
    converted = rnn.convert_released(saved)
    assert converted.pop("head.weight") is saved["head.weight"]
    ours.load_state_dict(converted)
    for theirs, mine in zip(released, ours, strict=True):
        assert relative_error(mine.dense_kernel(), released_kernel(theirs).reshape(mine.dense_kernel().shape)) < 1e-5
    with pytest.raises(RuntimeError, match="saved from a layer '2d k=9"):
        ours[0].__class__(4, 6, 7).load_state_dict({k[2:]: v for k, v in converted.items() if k[0] == "0"})


def test_released_checkpoints_under_another_default_device() -> None:
    state = sre_module().SRE_Conv2d(4, 6, 5).state_dict()
    with torch.device("meta"):
        converted = rnn.convert_released(state)
    rnn.SREConv2d(4, 6, 5).load_state_dict(converted)


def test_released_checkpoints_with_trained_indices_are_refused() -> None:
    layer = gmr_module().GMR_Conv2d(4, 6, 5, train_index_mat=True)
    with torch.no_grad():
        layer.weight_index_mat.add_(0.01)
    with pytest.raises(ValueError, match=r"weight_index_mat: expected bands.*it was trained"):
        rnn.convert_released(layer.state_dict())


def test_dense_kernel_of_the_module_is_the_functional_one() -> None:
    layer = randomised(rnn.GMRConv3d(2, 3, 5))
    expected = radconv_ext.gmr_kernel3d(layer.weight, layer.sigma)
    assert torch.equal(layer.dense_kernel(), expected)

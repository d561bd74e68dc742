"""Whole networks to compare: a ResNet-18 (He et al. 2016) whose convolutions are one part among others.

Basic blocks 2-2-2-2 with widths w, 2w, 4w, 8w, stride 2 in the first block of stages 2 to 4, and the stem for small
images: one convolution, no pooling. One builder assembles all of them; a variant is the parts that it hands over.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from radconv_ext.nn import GMRConv2d, fold, fuse_bn

from .third_party import gmr_module, import_e2cnn

IMAGE_CHANNELS = 3
STAGES = 4

Conv = Callable[[int, int, int, int], nn.Module]  # (C, O, k, stride); no bias, padding k // 2
Sizes = tuple[int, ...]  # one per stage


def plain(layer: Callable[..., nn.Module]) -> Conv:
    """A layer that takes the arguments of `torch.nn.Conv2d`."""
    return lambda c, o, k, stride: layer(c, o, k, stride=stride, padding=k // 2, bias=False)


PLAIN = plain(nn.Conv2d)


class ConvNorm(nn.Sequential):
    """A convolution and the batch norm behind it."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__(OrderedDict(conv=conv, norm=norm))


def fold_norms(model: nn.Module) -> nn.Module:
    """The same model, with batch norms in the `torch.nn.Conv2d` before them."""
    for pair in model.modules():
        if isinstance(pair, ConvNorm) and isinstance(pair.conv, nn.Conv2d) and isinstance(pair.norm, nn.BatchNorm2d):
            pair.conv, pair.norm = fuse_conv_bn_eval(pair.conv, pair.norm), nn.Identity()
    return model


def deploy_plain(model: nn.Module) -> dict[str, nn.Module]:
    return {"dense": fold_norms(copy.deepcopy(model))}


@dataclass(frozen=True)
class Parts:
    """What a network is made of; `C` and `O` count channels, or fields."""

    kernel_sizes: Sizes  # the first is the stem's too
    conv: Conv
    lift: Callable[[], nn.Module] = nn.Identity  # an image to what the stem takes
    stem: Conv | None = None  # None: `conv`
    shortcut: Conv = PLAIN  # k = 1
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    relu: Callable[[int], nn.Module] = lambda c: nn.ReLU(inplace=True)
    invariant: Callable[[int], nn.Module] = lambda c: nn.Identity()  # C fields to C channels
    deploy: Callable[[nn.Module], dict[str, nn.Module]] = deploy_plain


class Block(nn.Module):
    """Two convolutions, and a shortcut beside them: (B, C, H, W) -> (B, O, H / stride, W / stride), rounded up."""

    def __init__(self, parts: Parts, c: int, o: int, k: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(parts.conv(c, o, k, stride), parts.norm(o))
        self.second = ConvNorm(parts.conv(o, o, k, 1), parts.norm(o))
        same = stride == 1 and c == o
        self.shortcut = nn.Identity() if same else ConvNorm(parts.shortcut(c, o, 1, stride), parts.norm(o))
        self.relu = parts.relu(o)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):
    """(B, 3, H, W) -> (B, classes); `features` gives (B, widths[-1])."""

    def __init__(self, parts: Parts, widths: Sizes, classes: int) -> None:
        super().__init__()
        k, width, last = parts.kernel_sizes[0], widths[0], widths[-1]
        stem = ConvNorm((parts.stem or parts.conv)(IMAGE_CHANNELS, width, k, 1), parts.norm(width))
        blocks: list[nn.Module] = []
        c = width
        for stage, (o, k) in enumerate(zip(widths, parts.kernel_sizes, strict=True)):
            blocks.append(Block(parts, c, o, k, stride=2 if stage else 1))
            blocks.append(Block(parts, o, o, k, stride=1))
            c = o
        pool = (parts.invariant(last), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = nn.Sequential(parts.lift(), stem, parts.relu(width), *blocks, *pool)
        self.classifier = nn.Linear(last, classes)
        self.deploy = parts.deploy

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def doubled(width: int) -> Sizes:
    return tuple(width << stage for stage in range(STAGES))


def parameter_count(model: nn.Module) -> int:
    """Trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def deployed(model: ResNet18) -> dict[str, nn.Module]:
    """The forms in which one would run a trained network, with the same outputs.

    "rings", where there are some: the layers as they were trained. "dense": their dense kernels, made once. Batch norms
    become part of the layers before them, but of those of the released package.

    Args:
        model: in eval mode. It is left as it is.

    Raises:
        ValueError: the model is in training mode, where batch norms depend on the batch.
    """
    if model.training:
        raise ValueError("deployed: expected a model in eval mode, got one in training mode")
    return model.deploy(model)


# ---- this package, torch, and the released package -------------------------------------------------------------------


def deploy_radconv(model: nn.Module) -> dict[str, nn.Module]:
    rings = fold_norms(fuse_bn(model)[0])
    return {"rings": rings, "dense": fold(rings)[0]}


def deploy_released(model: nn.Module) -> dict[str, nn.Module]:
    """The 2D layers make their dense kernel in `eval()` and keep it, but take it only without `dw_fwd`.

    The constructor can't say so, its `dw_fwd` lands in another argument; the attribute can.
    """
    layers = [m for m in model.modules() if isinstance(m, gmr_module().GMR_Conv2d)]
    # the kept kernels carry a graph, which can't be copied
    kernels = {id(layer.infer_weight_matrix): layer.infer_weight_matrix.detach() for layer in layers}
    dense = copy.deepcopy(model, kernels)
    for layer in dense.modules():
        if isinstance(layer, gmr_module().GMR_Conv2d):
            layer.dw_fwd = False
    return {"rings": model, "dense": dense}


RADCONV = Parts((9, 9, 5, 5), plain(GMRConv2d), deploy=deploy_radconv)
CONV_3X3 = Parts((3, 3, 3, 3), PLAIN)


def radconv(width: int = 64, classes: int = 10) -> ResNet18:
    """`radconv_ext.nn.GMRConv2d` of sizes 9, 9, 5, 5."""
    return ResNet18(RADCONV, doubled(width), classes)


def conv_3x3(width: int = 64, classes: int = 10) -> ResNet18:
    """`torch.nn.Conv2d`, the network as He et al. have it."""
    return ResNet18(CONV_3X3, doubled(width), classes)


def released_gmr(width: int = 64, classes: int = 10) -> ResNet18:
    """The layer of package GMR-Conv 1.0.3, sizes 9, 9, 5, 5.

    It filters at stride 1, whatever the stride, and drops what the stride skips in the mixing behind; so in eval too.
    """
    parts = replace(RADCONV, conv=plain(gmr_module().GMR_Conv2d), deploy=deploy_released)
    return ResNet18(parts, doubled(width), classes)


# ---- e2cnn -----------------------------------------------------------------------------------------------------------

ROTATIONS = 8
KERNEL_SIZES = (5, 5, 5, 5)  # the smallest that resolves 8 directions


class Converted(nn.Module):
    """A tensor made e2cnn's typed one, or back; nothing in an exported network."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        super().__init__()
        self.convert = convert

    def forward(self, x: Any) -> Any:
        return self.convert(x)

    def export(self) -> nn.Module:
        return nn.Identity()


class RotationPooling(nn.Module):
    """(B, n * 8, H, W) -> (B, n, H, W), as e2cnn's `GroupPooling`, which takes float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, ROTATIONS)).max(2).values


class Weights(nn.Module):
    """So many weights, without the layer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, device="meta"))


class Steerable:
    """Layers of e2cnn 0.2.3 between regular fields of 8 rotations, the first one from an image."""

    def __init__(self) -> None:
        gspaces, self.enn = import_e2cnn()
        self.space = gspaces.Rot2dOnR2(ROTATIONS)

    def image(self, c: int) -> Any:
        return self.enn.FieldType(self.space, c * [self.space.trivial_repr])

    def fields(self, n: int) -> Any:
        return self.enn.FieldType(self.space, n * [self.space.regular_repr])

    @lru_cache  # noqa: B019 (one object for all networks)
    def spread(self, of: Callable[[int], Any], k: int) -> Tensor:
        """Standard deviation of the weights from one field to one, (basis size,), by e2cnn's form of He's scheme."""
        conv = self.enn.R2Conv(of(1), self.fields(1), k, bias=False, initialize=False)
        return self.enn.init._generalized_he_init_variances(conv.basisexpansion)

    def conv(self, of: Callable[[int], Any], c: int, o: int, k: int, stride: int) -> nn.Module:
        """`R2Conv`, started as it does, for which it takes ten times as long."""
        conv = self.enn.R2Conv(of(c), self.fields(o), k, k // 2, stride, bias=False, initialize=False)
        spread = self.spread(of, k) / c**0.5
        conv.weights.data.normal_().view(-1, len(spread)).mul_(spread)
        return conv.train()  # drops the buffer that holds the dense kernel in eval mode

    def lift(self) -> nn.Module:
        return Converted(partial(self.enn.GeometricTensor, type=self.image(IMAGE_CHANNELS)))

    def invariant(self, n: int) -> nn.Module:
        """(B, n * 8, H, W) -> (B, n, H, W), the largest over the rotations."""
        return nn.Sequential(Converted(attrgetter("tensor")), RotationPooling())

    def parts(self) -> Parts:
        conv = partial(self.conv, self.fields)
        return Parts(
            KERNEL_SIZES,
            conv,
            lift=self.lift,
            stem=partial(self.conv, self.image),
            shortcut=conv,
            norm=lambda n: self.enn.InnerBatchNorm(self.fields(n)),
            relu=lambda n: self.enn.ReLU(self.fields(n), inplace=True),
            invariant=self.invariant,
            deploy=deploy_e2,
        )

    def counted(self) -> Parts:
        """Parts with as many weights, which compute nothing and take no time to make."""

        def count(of: Callable[[int], Any], c: int, o: int, k: int, stride: int) -> nn.Module:
            return Weights(c * o * len(self.spread(of, k)))

        conv, stem, nothing = partial(count, self.fields), partial(count, self.image), lambda n: nn.Identity()
        norm = lambda n: Weights(2 * n)
        return Parts(KERNEL_SIZES, conv, stem=stem, shortcut=conv, norm=norm, relu=nothing, invariant=nothing)

    def widths(self, like: ResNet18) -> Sizes:
        """Numbers of fields, doubled from stage to stage (rounded), with about the parameters of another network."""
        classifier, target = like.classifier, parameter_count(like)

        def of(last: int) -> Sizes:
            return tuple(max(1, round(last / (1 << (STAGES - 1 - stage)))) for stage in range(STAGES))

        def count(last: int) -> int:
            return parameter_count(ResNet18(self.counted(), of(last), classifier.out_features))

        # a field has more weights than a channel of any other network here
        enough = bisect_left(range(classifier.in_features), target, lo=1, key=count)
        return of(min((enough - 1, enough), key=lambda last: abs(count(last) - target)))


steerable = lru_cache(Steerable)


def deploy_e2(model: nn.Module) -> dict[str, nn.Module]:
    """What e2cnn exports, in the place of its modules."""
    modules: Iterable[Any] = model.modules()
    exported = {id(module): module.export() for module in modules if hasattr(module, "export")}
    return {"dense": fold_norms(copy.deepcopy(model, exported).eval())}


def e2_conv(width: int = 64, classes: int = 10) -> ResNet18:
    """E(2)-equivariant network of e2cnn with the parameters of `radconv(width)`, as nearly as whole fields allow."""
    with torch.device("meta"):
        like = radconv(width, classes)
    layers = steerable()
    return ResNet18(layers.parts(), layers.widths(like), classes)


# The one list: a new network is a function and a line here.
NETWORKS: dict[str, Callable[..., ResNet18]] = {
    "radconv": radconv,
    "conv_3x3": conv_3x3,
    "released_gmr": released_gmr,
    "e2_conv": e2_conv,
}

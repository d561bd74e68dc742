"""What is measured, as data: one row a problem.  The peers that compute them are in `peers.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")
MODES = ("forward", "inference", "training")
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# Largest error over the reference's largest value: of the output and the input gradient, and of the gradients by
# parameters, which are sums over all pixels; sigma's terms cancel besides.  An operand or a result rounded to bfloat16
# moves by up to 2^-9, to float16 by 2^-12, to TF32 by up to 2^-11 (2^-10 where it is cut off): room for a handful, none
# for a wrong tap.  Worst seen on a CPU, of all peers: float32 2.4e-6 and 4.1e-5 (ours 4.7e-6), bfloat16 6.3e-3 and
# 1.2e-2, float16 8.8e-4 and 1.0e-3.
BOUNDS = {
    "float32": (1e-5, 1e-4),
    "tf32": (5e-3, 2e-2),
    "float16": (3e-3, 1e-2),
    "bfloat16": (2e-2, 5e-2),
}

# Of a network, whose gradients are one vector, compared by its norm.  Worst seen on a CPU, all networks: float32 1.4e-6
# and 6.3e-3 (a ReLU on the other side of zero), bfloat16 4.1e-2 and 0.38.  TF32 between them: not measured.
NETWORK_BOUNDS = {
    "float32": {"output": 1e-5, "gradients": 2e-2},
    "tf32": {"output": 2e-2, "gradients": 0.2},
    "bfloat16": {"output": 1e-1, "gradients": 0.6},
}


@dataclass(frozen=True)
class Problem:
    """A square radial convolution with "same" padding and the default number of rings.

    forward: parameters as in training, no gradient recorded; recording: the same with an autograd graph; inference:
    each peer in the form one deploys; training: forward and the gradients of input and parameters.
    """

    id: str
    suite: str
    kernel_size: int
    batch: int = 2
    channels: int = 128
    outputs: int = 128
    size: tuple[int, ...] = (64, 64)
    groups: int = 1
    layout: str = "contiguous"
    precision: str = "float32"  # of the product; with "tf32" all tensors are float32
    modes: tuple[str, ...] = ("forward", "training")
    devices: tuple[str, ...] = DEVICES
    peers: str | tuple[str, ...] = "core"  # "core", "all", or names
    # "paper": 1,000 calls in a row, no search for the best algorithm, deterministic ones only; "modern": the best one
    protocol: str = "modern"
    quick: bool = False

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def rings(self) -> int:
        return self.kernel_size // 2 + 1

    @property
    def pixels(self) -> int:
        """Of all samples; the output has as many."""
        return self.batch * math.prod(self.size)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def bound(self, quantity: str) -> float:
        """The largest error of an output or a gradient that counts as agreement."""
        return BOUNDS[self.precision][quantity not in ("output", "gradient of x")]

    @property
    def memory_format(self) -> torch.memory_format:
        if self.layout == "contiguous":
            return torch.contiguous_format
        return torch.channels_last if self.ndim == 2 else torch.channels_last_3d

    @property
    def dense_flops(self) -> int:
        """Of one dense convolution; a training step is three."""
        return 2 * self.pixels * self.outputs * (self.channels // self.groups) * self.kernel_size**self.ndim

    def laid_out(self, t: Tensor) -> Tensor:
        """In the problem's layout, if it has the rank of the input."""
        return t.to(memory_format=self.memory_format) if t.dim() == self.ndim + 2 else t

    def data(self, channels: int, outputs: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Input (B, channels, *S) and the output's gradient (B, outputs, *S)."""
        generator = torch.Generator(device).manual_seed(seed)
        shapes = [(self.batch, c, *self.size) for c in (channels, outputs)]
        x, grad = (torch.randn(shape, generator=generator, device=device).to(self.dtype) for shape in shapes)
        return self.laid_out(x), self.laid_out(grad)


@dataclass(frozen=True)
class NetworkProblem(Problem):
    """Images (B, 3, H, W) through a ResNet-18-shaped network with batch norms (`networks.py`) to `outputs` classes.

    training: forward and the gradients of all parameters.
    """

    width: int = 64  # channels of the first stage

    def bound(self, quantity: str) -> float:
        return NETWORK_BOUNDS[self.precision][quantity]

    @property
    def dense_flops(self) -> int:
        """Of the network with plain 3x3 convolutions."""
        first = 3 * self.width + 4 * self.width**2
        # each later stage has a quarter of the pixels and four times the weights; its first layer has half the inputs
        return 2 * 9 * self.pixels * (first + 3 * int(3.5 * self.width**2))

    def data(self, channels: int, outputs: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        x, grad = super().data(channels, outputs, device, seed)
        return x, grad[:, :, 0, 0].contiguous()


@dataclass(frozen=True)
class Suite:
    """Problems that one table shows: what they share, then each one's own."""

    name: str
    common: dict[str, Any] = field(default_factory=dict)

    def __call__(self, id: str, kernel_size: int, **own: Any) -> Problem:
        return Problem(id=id, suite=self.name, kernel_size=kernel_size, **(self.common | own))


HALF: dict[str, Any] = {"precision": "bfloat16", "layout": "channels_last"}
ODD_SIZES = (3, 5, 7, 9, 11, 13, 15)


def on_card(problems: Iterable[Problem], **changes: Any) -> Iterator[Problem]:
    """The same in bfloat16, channels_last, on a GPU alone, with what else changes."""
    for p in problems:
        own: dict[str, Any] = HALF | {"devices": ("cuda",), "modes": ("forward", "training")} | changes
        yield replace(p, id=f"{p.id}-bf16", quick=False, **own)


def square(channels: int, side: int, ndim: int = 2) -> dict[str, Any]:
    return {"channels": channels, "outputs": channels, "size": (side,) * ndim}


def depthwise(channels: int, side: int) -> dict[str, Any]:
    return square(channels, side) | {"groups": channels}


overhead = Suite("overhead", {"batch": 1, "channels": 1, "outputs": 1, "size": (8, 8)})
quick = Suite("quick", {"channels": 32, "outputs": 32, "size": (32, 32), "modes": MODES, "peers": "all"})
table_s2 = Suite("table-s2", {"modes": MODES})  # GMR-Conv paper, Table S2: x (2, 128, 64, 64) to 128 channels
table_s2_tf32 = Suite("table-s2-tf32", {"devices": ("cuda",), "precision": "tf32"})
CPU_ALONE: dict[str, Any] = {"devices": ("cpu",)}  # on a GPU in bfloat16: `on_card`
AGAINST_DENSE: dict[str, Any] = {"peers": ("radconv_cpu", "torch_conv"), **CPU_ALONE}
table_s2_bf16 = Suite("table-s2-bf16", {"precision": "bfloat16", **AGAINST_DENSE})
# Beside the 1x1 convolution of n * C maps that are already there, in its fastest layout.
MIXING: dict[str, Any] = {"layout": "channels_last", "modes": ("forward",), "peers": ("radconv_cpu", "mixing_alone")}
mixing = Suite("mixing", MIXING | CPU_ALONE)
paper = Suite("paper-protocol", {"devices": ("cuda",), "protocol": "paper", "peers": "all"})
modern = Suite("table-s2-modern", {"devices": ("cuda",), "batch": 32, **HALF})
resnet = Suite("resnet", {"batch": 32, "modes": MODES, **CPU_ALONE})
pathology = Suite("pathology", {"batch": 24, **square(64, 224), "modes": MODES, **CPU_ALONE})
convnext = Suite("convnext", {"batch": 8, **CPU_ALONE})
volume = Suite("volume", {"modes": MODES, **CPU_ALONE})
odd = Suite("odd", {"batch": 1})
small = Suite("small", {"batch": 1, "outputs": 64, **AGAINST_DENSE})
batch_sweep = Suite("batch-sweep")
channel_sweep = Suite("channel-sweep", {"size": (32, 32)})


STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # widths and sides of ResNet-18, and of ResNet-50's 3x3 layers
RESNET = [resnet(f"resnet-{c}x{side}-k{k}", k, **square(c, side)) for k in (3, 5, 9) for c, side in STAGES]
PATHOLOGY = [pathology(f"pathology-k{k}", k) for k in (3, 5, 9)]
CONVNEXT_STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
CONVNEXT = [
    convnext("depthwise-k7", 7, **depthwise(192, 56), quick=True, devices=DEVICES),
    *(convnext(f"convnext-{c}x{side}", 7, **depthwise(c, side)) for c, side in CONVNEXT_STAGES),
    *(convnext(f"depthwise-k{k}", k, **depthwise(96, 56)) for k in (3, 11, 15)),
]
VOLUMES = [
    volume("volume-quick-k3", 3, batch=1, **square(8, 16, 3), peers="all", quick=True, devices=DEVICES),
    *(volume(f"volume-k{k}", k, batch=1, **square(32, 32, 3), peers="all" if k < 7 else "core") for k in (3, 5, 7, 9)),
    *(volume(f"medmnist-k{k}", k, batch=32, **square(16, 28, 3)) for k in (3, 5)),
    *(volume(f"modelnet-k{k}", k, batch=8, **square(16, 32, 3)) for k in (3, 5)),
    *(volume(f"mri-k{k}", k, batch=2, **square(16, 96, 3)) for k in (3, 5)),
]

# One layer's call by module and by function: what the module adds.
MODULE = Problem(
    "module-call", "module", 5, batch=1, channels=1, outputs=1, size=(8, 8), quick=True,
    modes=("forward", "recording"), peers=("gmr_conv2d", "GMRConv2d"),
)  # fmt: skip

RESNETS = ("radconv_resnet", "radconv_resnet_folded", "conv_3x3_resnet", "released_gmr_resnet", "e2_conv_resnet")


def network(id: str, batch: int, side: int, width: int, **own: Any) -> NetworkProblem:
    return NetworkProblem(
        id, "network", 9, batch, 3, 10, (side, side), width=width, modes=("inference", "training"), peers=RESNETS, **own
    )


# The most telling first: a run that must end early has them.
PROBLEMS = [
    MODULE,
    *(overhead(f"overhead-k{k}", k, quick=k == 3) for k in (3, 5, 9)),
    *(modern(f"batch-32-k{k}-bf16", k) for k in ODD_SIZES),
    *(table_s2_tf32(f"table-s2-tf32-k{k}", k) for k in (3, 5, 7, 9, 11)),
    *(quick(f"quick-k{k}", k, quick=True) for k in (3, 5, 9)),
    *chain.from_iterable(  # by k, since the layers of group convolutions take long to make
        (table_s2(f"table-s2-k{k}", k, peers="all"), paper(f"paper-protocol-k{k}", k)) for k in (3, 5, 7, 9, 11)
    ),
    *chain.from_iterable(
        (mixing(f"mixing-k{k}", k), table_s2_bf16(f"table-s2-k{k}-cpu-bf16", k)) for k in (3, 5, 7, 9, 11)
    ),
    *(table_s2(f"table-s2-k{k}", k) for k in (13, 15)),
    table_s2("table-s2-k9-channels-last", 9, layout="channels_last"),
    *(modern(f"batch-32-k9-{precision}", 9, precision=precision) for precision in ("float16", "tf32", "float32")),
    CONVNEXT[0],
    *VOLUMES,
    network("resnet18-w8-16x16", 4, 16, 8, quick=True),
    network("resnet18-w32-32x32", 16, 32, 32, devices=("cpu",)),
    network("resnet18-32x32", 8, 32, 64, devices=("cpu",)),
    network("resnet18-32x32-b32", 32, 32, 64, devices=("cpu",)),
    network("resnet18-32x32-b128", 128, 32, 64, devices=("cuda",), precision="tf32", layout="channels_last"),
    network("resnet18-64x64-b128-bf16", 128, 64, 64, devices=("cuda",), **HALF),
    *on_card(CONVNEXT, batch=32),
    *on_card(VOLUMES),
    *CONVNEXT[1:],
    odd("odd-1x3x7x33", 5, channels=3, outputs=5, size=(7, 33)),
    odd("odd-stem-k7", 7, channels=3, outputs=32, size=(224, 224)),
    odd("odd-1x64x8x8", 5, **square(64, 8)),
    odd("odd-33x17x29x23", 9, batch=33, channels=17, outputs=31, size=(29, 23)),
    odd("odd-gray-k11", 11, channels=1, outputs=16, size=(128, 128)),
    *(
        small(f"small-{c}-{high}x{wide}-k{k}", k, channels=c, size=(high, wide))
        for c in (3, 64)
        for high, wide in ((8, 8), (7, 33), (33, 7), (32, 32))
        for k in (3, 5, 9)
    ),
    *(batch_sweep(f"batch-{b}-k9", 9, batch=b) for b in (1, 2, 4, 8)),
    *(channel_sweep(f"channels-{c}-k{k}", k, **square(c, 32)) for k in (3, 9) for c in (8, 16, 32, 64, 128, 256)),
    *RESNET,
    *on_card(RESNET, batch=128),
    PATHOLOGY[0],  # the others take minutes on a CPU
    *on_card(PATHOLOGY),
]

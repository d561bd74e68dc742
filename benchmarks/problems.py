"""What is measured: problems and peers as data, one maker of training steps for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import radconv_ext


@dataclass(frozen=True)
class Problem:
    """A square radial convolution with "same" padding."""

    id: str
    kernel_size: int
    batch: int = 2
    channels: int = 128
    outputs: int = 128
    size: tuple[int, ...] = (64, 64)
    groups: int = 1
    layout: str = "contiguous"

    @property
    def ndim(self) -> int:
        return len(self.size)


# GMR-Conv paper, Table S2: x (2, 128, 64, 64) to 128 channels
TABLE_S2 = [Problem(f"table-s2-k{k}", k) for k in (3, 5, 7, 9, 11)]
PROBLEMS = [
    *TABLE_S2,
    Problem("table-s2-k9-channels-last", 9, layout="channels_last"),
    Problem("depthwise-k7", 7, batch=8, channels=192, outputs=192, size=(56, 56), groups=192),
    Problem("volume-k5", 5, batch=1, channels=32, outputs=32, size=(32, 32, 32)),
]

Peer = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Rival:
    """One way to compute a problem: its tensors, those that train first, and the function of them."""

    name: str
    tensors: list[Tensor]
    run: Peer


def rivals(problem: Problem) -> list[Rival]:
    """Ours and the dense convolution of the same kernel, on the same data."""
    generator = torch.Generator().manual_seed(0)
    p, k = problem, problem.kernel_size
    x = torch.randn(p.batch, p.channels, *p.size, generator=generator)
    if p.layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    w = torch.randn(p.outputs, p.channels // p.groups, k // 2 + 1, generator=generator)
    sigma = radconv_ext.default_sigma(k)
    kernel = getattr(radconv_ext, f"gmr_kernel{p.ndim}d")(w, sigma)
    ours = getattr(radconv_ext, f"gmr_conv{p.ndim}d")
    dense = getattr(F, f"conv{p.ndim}d")
    options = {"padding": k // 2, "groups": p.groups}
    return [
        Rival("radconv_cpu", [x, w, sigma], lambda t: ours(*t, **options, engine="cpu")),
        Rival("torch_conv", [x, kernel], lambda t: dense(*t, **options)),
    ]


def forward_of(rival: Rival) -> Callable[[], Tensor]:
    """One call; time it inside `recording("forward")`."""
    return lambda: rival.run(rival.tensors)


def training_of(rival: Rival) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, then the gradients of every tensor (ours: input, ring weights and sigma)."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in rival.tensors]
    grad = torch.randn(rival.run(leaves).shape, generator=torch.Generator().manual_seed(1))

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(rival.run(leaves), leaves, grad)

    return step


MODES = {"forward": forward_of, "training": training_of}


def recording(mode: str) -> torch.set_grad_enabled:
    """Context of a mode, entered outside what is timed: inference records no gradient."""
    return torch.set_grad_enabled(mode == "training")


def assert_agreement(problem: Problem) -> None:
    """Output and input gradient of all rivals agree; nothing is timed before this."""
    first, *others = [(forward_of(r)(), training_of(r)()[0]) for r in rivals(problem)]
    for other in others:
        for a, b in zip(first, other, strict=True):
            error = (a - b).abs().max() / b.abs().max()
            assert error < 1e-5, f"{problem.id}: the peers disagree, relative error {error:.1e}"

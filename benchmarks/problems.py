"""What is measured: problems and peers as data, one maker of training steps for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    dtype: torch.dtype = torch.float32

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def memory_format(self) -> torch.memory_format:
        if self.layout == "contiguous":
            return torch.contiguous_format
        return torch.channels_last if self.ndim == 2 else torch.channels_last_3d


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
    grad: Tensor | None = None  # gradient of the output; None: drawn for each training step that is made


def rivals(problem: Problem, engines: Sequence[str] = ("cpu",), device: str = "cpu", seed: int = 0) -> list[Rival]:
    """Ours by each engine, then the dense convolution of the same kernel, on the same data."""
    generator = torch.Generator(device).manual_seed(seed)
    p, k = problem, problem.kernel_size
    x = torch.randn(p.batch, p.channels, *p.size, generator=generator, device=device)
    x = x.to(p.dtype, memory_format=p.memory_format)
    w = torch.randn(p.outputs, p.channels // p.groups, k // 2 + 1, generator=generator, device=device).to(p.dtype)
    sigma = radconv_ext.default_sigma(k).to(device)
    kernel = getattr(radconv_ext, f"gmr_kernel{p.ndim}d")(w, sigma)
    convolve = getattr(radconv_ext, f"gmr_conv{p.ndim}d")
    dense = getattr(F, f"conv{p.ndim}d")
    options = {"padding": k // 2, "groups": p.groups}

    def ours(engine: str) -> Rival:
        return Rival(f"radconv_{engine}", [x, w, sigma], lambda t: convolve(*t, **options, engine=engine))

    return [*map(ours, engines), Rival("torch_conv", [x, kernel], lambda t: dense(*t, **options))]


def forward_of(rival: Rival) -> Callable[[], Tensor]:
    """One call; time it inside `recording("forward")`."""
    return lambda: rival.run(rival.tensors)


def training_of(rival: Rival) -> Callable[[], tuple[Tensor, ...]]:
    """Output, then the gradients of every tensor (ours: input, ring weights and sigma)."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in rival.tensors]
    grad = rival.grad
    if grad is None:
        grad = torch.randn(rival.run(leaves).shape, generator=torch.Generator().manual_seed(1))

    def step() -> tuple[Tensor, ...]:
        y = rival.run(leaves)
        return y, *torch.autograd.grad(y, leaves, grad)

    return step


MODES = {"forward": forward_of, "training": training_of}


def recording(mode: str) -> torch.set_grad_enabled:
    """Context of a mode, entered outside what is timed: inference records no gradient."""
    return torch.set_grad_enabled(mode == "training")


def assert_agreement(problem: Problem) -> None:
    """Output and input gradient of all rivals agree; nothing is timed before this."""
    first, *others = [(forward_of(r)(), training_of(r)()[1]) for r in rivals(problem)]
    for other in others:
        for a, b in zip(first, other, strict=True):
            error = (a - b).abs().max() / b.abs().max()
            assert error < 1e-5, f"{problem.id}: the peers disagree, relative error {error:.1e}"


def last_sample(rival: Rival) -> dict[str, Tensor]:
    """The last sample's output, and all gradients, in float64 on the CPU."""
    names = ("x", "w", "sigma") if len(rival.tensors) == 3 else ("x", "kernel")
    with recording("forward"):
        found = {"output": forward_of(rival)()[-1:]}
    with recording("training"):
        gradients = training_of(rival)()[1:]
    found |= {f"gradient of {name}": g for name, g in zip(names, gradients, strict=True)}
    found["gradient of x"] = found["gradient of x"][-1:]
    return {name: t.detach().double().cpu() for name, t in found.items()}


def expected_of(*peers: Rival) -> dict[str, Tensor]:
    """What `last_sample` should find, from peers that do it in float64 on the CPU: the definition and the dense one."""
    expected: dict[str, Tensor] = {}
    for peer in peers:
        assert peer.grad is not None
        x, grad, *others = (t.double().cpu() for t in (peer.tensors[0][-1:], peer.grad[-1:], *peer.tensors[1:]))
        expected = last_sample(replace(peer, tensors=[x, *others], grad=grad)) | expected
    return expected


def assert_last_sample(rival: Rival, expected: dict[str, Tensor], bound: float, errors: dict[str, Any]) -> None:
    """The whole batch runs, as when it is timed; the last sample, with the largest addresses, is compared.

    Relative errors are left in `errors`, also when one exceeds the bound.
    """
    assert rival.grad is not None
    # zero for the other samples, so that the gradients of w and sigma are those of one sample
    alone = torch.zeros_like(rival.grad)
    alone[-1:] = rival.grad[-1:]
    found = last_sample(replace(rival, grad=alone))
    errors[rival.name] = {
        name: float((t - expected[name]).abs().max() / expected[name].abs().max()) for name, t in found.items()
    }
    for name, error in errors[rival.name].items():
        assert error < bound, f"{name} disagrees with the reference: relative error {error:.1e}, bound {bound:.0e}"

"""Part 3: time of a radial layer against the dense convolution that it replaces, on this machine's CPU."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from .. import default_sigma, gmr_conv2d, gmr_kernel2d
from ..engines import ENGINES
from .common import Demo

__all__ = ["run"]

SIZES = (3, 5, 7, 9, 11)
TOLERANCE = 1e-3  # worst relative L2 difference seen 2e-5, k = 3, sigma: the dense form's own error


def run(demo: Demo) -> None:
    """Check that both forms agree, then print medians of interleaved runs."""
    batch, channels, side, rounds = (1, 32, 32, 3) if demo.quick else (2, 128, 64, 7)
    engine = "cpu" if ENGINES["cpu"].why_missing() is None else "reference"
    shape = f"({batch}, {channels}, {side}, {side}) to {channels} channels"
    table = Table("k", title=f"Milliseconds, {shape}")
    for kind in ("forward", "training"):
        for name in ("radial", "dense", "ratio"):
            table.add_column(f"{kind}\n{name}", justify="right")
    table.columns[0].justify = "right"

    torch.manual_seed(0)
    worst = 0.0
    with demo.steps("Speed", len(SIZES) * (rounds + 1), live=False) as steps:
        for k in SIZES:
            case = _Case(k, torch.randn(batch, channels, side, side), channels, engine)
            worst = max(worst, case.check())
            steps.advance()
            times: dict[str, list[float]] = {name: [] for name in case.runs}
            for _ in range(rounds):
                for name, call in case.runs.items():
                    times[name].append(_milliseconds(call))
                steps.advance()
            forward, dense_forward, training, dense_training = (median(t) for t in times.values())
            table.add_row(
                str(k),
                *(f"{forward:.2f}", f"{dense_forward:.2f}", f"[bold]{dense_forward / forward:.1f}[/]"),
                *(f"{training:.2f}", f"{dense_training:.2f}", f"[bold]{dense_training / training:.1f}[/]"),
            )
    demo.console.print(table)
    demo.console.print(
        f"{_cpu_name()}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}, float32, engine {engine!r}; dense: F.conv2d. Medians of {rounds} interleaved runs; "
        "ratio: dense / radial. Training: forward and all gradients (radial: x, weights, sigma; dense: x, kernel). "
        f"Checked first: outputs and gradients agree, largest relative difference {worst:.0e}."
    )


class _Case:
    """The same convolution in both forms, forward and training."""

    def __init__(self, kernel_size: int, x: Tensor, out_channels: int, engine: str) -> None:
        sigma = default_sigma(kernel_size)
        self.x = x.requires_grad_()  # (B, C, H, W)
        self.w = torch.randn(out_channels, x.shape[1], len(sigma)).requires_grad_()
        self.sigma = sigma.requires_grad_()
        self.kernel = gmr_kernel2d(self.w, sigma).detach().requires_grad_()  # (O, C, k, k)
        self.grad = torch.randn(x.shape[0], out_channels, *x.shape[2:])
        self.engine = engine
        self.runs: dict[str, Callable[[], object]] = {
            "radial forward": torch.no_grad()(self._radial),
            "dense forward": torch.no_grad()(lambda: self._dense(self.kernel)),
            "radial training": self._radial_step,
            "dense training": lambda: torch.autograd.grad(self._dense(self.kernel), (self.x, self.kernel), self.grad),
        }

    def _radial(self) -> Tensor:
        return gmr_conv2d(self.x, self.w, self.sigma, padding="same", engine=self.engine)

    def _dense(self, kernel: Tensor) -> Tensor:
        return F.conv2d(self.x, kernel, padding="same")

    def _radial_step(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._radial(), (self.x, self.w, self.sigma), self.grad)

    def check(self) -> float:
        """Largest relative L2 difference of output and gradients; an error where it is more than rounding."""
        y = self._dense(gmr_kernel2d(self.w, self.sigma))  # differentiable down to w and sigma
        expected = (y, *torch.autograd.grad(y, (self.x, self.w, self.sigma), self.grad))
        found = (self._radial(), *self._radial_step())
        worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))
        if not worst < TOLERANCE:
            size = self.kernel.shape[-1]
            raise RuntimeError(f"speed: the two forms disagree by {worst:.1e} at k = {size}, so nothing is timed")
        return worst


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or f"{platform.machine()}, {os.cpu_count()} CPUs"

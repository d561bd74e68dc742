"""Part 1: Gaussian rings of growing size find structure of growing size in an MRI slice."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.table import Table
from torch import Tensor

from .. import default_sigma, gmr_conv2d, gmr_kernel2d, shell_count
from ..geometry import OUTSIDE, shell_geometry
from ..profiles import ring_centres
from .common import Demo, mri_slice

__all__ = ["run"]

SIZES = (3, 5, 7, 9, 11, 13, 15)


def blob_weights(kernel_size: int) -> Tensor:
    """Ring weights of a centre-surround kernel, `sum K = 0` and `sum |K| = 1`: (1, 1, n)."""
    sigma = default_sigma(kernel_size)  # (n,)
    mass = gmr_kernel2d(torch.eye(len(sigma)).unsqueeze(1), sigma).sum((1, 2, 3))  # (n,) sum of each ring over the taps
    reach = torch.tensor(ring_centres(kernel_size, len(sigma))) / (kernel_size / 5)
    w = (1 - reach**2 / 2) * torch.exp(-(reach**2) / 2)  # a sampled Laplacian of Gaussian
    w = w - mass * (w @ mass) / (mass @ mass)
    return (w / gmr_kernel2d(w.view(1, 1, -1), sigma).abs().sum()).view(1, 1, -1)


def run(demo: Demo) -> None:
    """Convolve the slice with each kernel; print the kernels' figures and save profiles, kernels and responses."""
    image = mri_slice()
    table = Table("k", "ring weights", "shells", "taps", "largest response", title="Gaussian rings on an MRI slice")
    for column in table.columns:
        column.justify = "right"
    figure = Figure(figsize=(16.5, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 3.6))[0]
    _draw_input(left.subplots(), image)
    grid = right.subplots(3, len(SIZES), height_ratios=(0.8, 1, 1))
    with demo.steps("MRI slice", len(SIZES)) as steps:
        for column, k in enumerate(SIZES):
            w, sigma = blob_weights(k), default_sigma(k)
            response = gmr_conv2d(image[None, None], w, sigma, kernel_size=k, padding="same")[0, 0]
            bucket = torch.tensor(shell_geometry(2, k).bucket).view(k, k)
            kernel = gmr_kernel2d(w, sigma, kernel_size=k)[0, 0].masked_fill(bucket == OUTSIDE, torch.nan)
            _draw_profile(grid[0, column], k, sigma)
            kernels = _draw_signed(grid[1, column], kernel, float(kernel.nan_to_num().abs().max()))
            responses = _draw_signed(grid[2, column], response, float(response.abs().quantile(0.995)))
            taps = f"{int((bucket != OUTSIDE).sum())} of {k * k}"
            table.add_row(str(k), str(len(sigma)), str(shell_count(2, k)), taps, f"{response.abs().max():.3f}")
            steps.advance()
    grid[0, 0].set_ylabel("ring value")
    grid[1, 0].set_ylabel("kernel")
    grid[2, 0].set_ylabel("response")
    right.colorbar(kernels, ax=grid[1], ticks=(-1, 0, 1), label="value / largest", pad=0.01)
    right.colorbar(responses, ax=grid[2], ticks=(-1, 0, 1), label="value / 99.5 percentile", extend="both", pad=0.01)
    figure.suptitle("One centre-surround kernel per size, written as Gaussian rings", fontsize=15)
    demo.console.print(table)
    demo.save(figure, "rings.png")


def _draw_input(axes: Axes, image: Tensor) -> None:
    axes.imshow(image, cmap="gray")
    axes.set(title="input: MRI slice", xlabel="pixels", ylabel="pixels", xticks=(0, 128, 255), yticks=(0, 128, 255))


def _draw_profile(axes: Axes, kernel_size: int, sigma: Tensor) -> None:
    radius = torch.linspace(0, kernel_size / 2, 200)
    for centre, width in zip(ring_centres(kernel_size, len(sigma)), sigma.tolist(), strict=True):
        axes.plot(radius, torch.exp(-((radius - centre) ** 2) / (2 * width**2)), linewidth=1.4)
    axes.set(title=f"k = {kernel_size}, {len(sigma)} rings", xlabel="radius, pixels", xlim=(0, kernel_size / 2))
    axes.set(ylim=(0, 1.08), yticks=(0, 1) if kernel_size == SIZES[0] else ())
    axes.spines[["top", "right"]].set_visible(False)


def _draw_signed(axes: Axes, values: Tensor, largest: float) -> AxesImage:
    """An image on a diverging map, scaled to `largest`; taps outside the support grey."""
    axes.set_facecolor("0.85")
    axes.set(xticks=(), yticks=())
    return axes.imshow(values / largest, cmap="RdBu_r", vmin=-1, vmax=1)

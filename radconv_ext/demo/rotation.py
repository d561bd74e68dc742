"""Part 2: does the layer commute with rotation?  A radial layer and a plain one, angle by angle."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure, SubFigure
from rich.table import Table
from scipy import ndimage
from torch import Tensor, nn

from ..equivariance import ball, rotate
from ..nn import GMRConv2d
from .common import PLAIN, RADIAL, Demo, mri_slice

__all__ = ["run"]

KERNEL_SIZE = 9
CHANNELS = 8
SHOWN_ANGLE = 60
TITLE = f"Rotation error, k = {KERNEL_SIZE}, random weights"


def scale_space(image: Tensor) -> Tensor:
    """The image under Gaussian blurs of 0, 0.5 .. 3.5 pixels, as channels: (1, 8, N, N)."""
    blurred = np.stack([ndimage.gaussian_filter(image.numpy(), sigma / 2) for sigma in range(CHANNELS)])
    return torch.from_numpy(blurred).unsqueeze(0)


def rotation_error(layer: nn.Module, turned: Tensor, y: Tensor, angle: float, inside: Tensor) -> float:
    """`||layer(rotate(x)) - rotate(layer(x))|| / ||rotate(layer(x))||` within the mask;
    `turned = rotate(x)`, `y = layer(x)`."""
    expected = rotate(y, angle) * inside
    return float((layer(turned) * inside - expected).norm() / expected.norm())


@torch.no_grad()
def run(demo: Demo) -> None:
    """Print and plot the error of both layers from 0 to 360 degrees."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "radial": GMRConv2d(CHANNELS, CHANNELS, KERNEL_SIZE, padding="same", bias=False),
        "plain": nn.Conv2d(CHANNELS, CHANNELS, KERNEL_SIZE, padding="same", bias=False),
    }
    image = mri_slice()
    if demo.quick:
        image = F.avg_pool2d(image[None], 2)[0]
    x = scale_space(image)
    # the disk that no rotation leaves, less the kernel's reach
    inside = ball(image.shape, len(image) / 2 - KERNEL_SIZE)
    angles = list(range(0, 361, 30 if demo.quick else 10))
    errors: dict[str, list[float]] = {name: [] for name in layers}
    outputs = {name: layer(x) for name, layer in layers.items()}
    with demo.steps("Rotation error", len(angles)) as steps:
        for angle in angles:
            turned = rotate(x, angle)
            for name, layer in layers.items():
                errors[name].append(rotation_error(layer, turned, outputs[name], angle, inside))
            steps.advance()

    table = Table("rotation, degrees", "radial error", "plain error", title=TITLE)
    for column in table.columns:
        column.justify = "right"
    for angle, *pair in zip(angles, *errors.values(), strict=True):
        quarter = angle % 90 == 0
        table.add_row(str(angle), *(f"{error:.1e}" for error in pair), style="bold" if quarter else None)
    demo.console.print(table)
    demo.console.print(
        "Error: ||conv(rotate(x)) - rotate(conv(x))|| / ||rotate(conv(x))|| within the central disk. Input: the MRI "
        f"slice, {len(image)} x {len(image)}, under {CHANNELS} blurs as channels. Rotation: scipy.ndimage.rotate, "
        "splines of order 5. Bold: the pixel grid maps onto itself, and the radial layer is exact to float32 rounding."
    )
    figure = Figure(figsize=(16, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.3))[0]
    _draw_errors(left, angles, errors)
    _draw_maps(right, layers, rotate(x, SHOWN_ANGLE), outputs, ~inside)
    demo.save(figure, "rotation_error.png")


def _draw_errors(figure: SubFigure, angles: list[int], errors: dict[str, list[float]]) -> None:
    floor = 1e-8  # at 0 degrees both errors are 0
    axes = figure.subplots()
    for name, colour, marker in (("plain", PLAIN, "s"), ("radial", RADIAL, "o")):
        clipped = [max(error, floor) for error in errors[name]]
        axes.semilogy(angles, clipped, color=colour, marker=marker, markersize=4.5, label=f"{name} convolution")
    axes.set(xlabel="rotation, degrees", xticks=range(0, 361, 45), xlim=(-6, 366), ylim=(floor / 2, 20))
    axes.set(ylabel="relative error (1e-8 stands for less)", title=TITLE)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", ncols=2)


def _draw_maps(
    figure: SubFigure, layers: dict[str, nn.Module], turned: Tensor, outputs: dict[str, Tensor], hidden: Tensor
) -> None:
    grid = figure.subplots(len(layers), 3)
    for row, (name, layer) in zip(grid, layers.items(), strict=True):
        first = layer(turned)[0, 0].masked_fill(hidden, torch.nan)
        second = rotate(outputs[name], SHOWN_ANGLE)[0, 0].masked_fill(hidden, torch.nan)
        scale = float(second.nan_to_num().abs().quantile(0.995))
        for axes, values in zip(row, (first, second, first - second), strict=True):
            shown = axes.imshow(values / scale, cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set(xticks=(), yticks=())
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(f"{name} convolution", fontsize=12)
    for axes, title in zip(grid[0], ("rotate, then convolve", "convolve, then rotate", "difference"), strict=True):
        axes.set_title(title)
    figure.colorbar(shown, ax=grid, ticks=(-1, 0, 1), label="value / 99.5 percentile", extend="both", shrink=0.7)
    figure.suptitle(f"First output channel at {SHOWN_ANGLE} degrees")

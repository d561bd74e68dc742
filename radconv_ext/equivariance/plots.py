"""Figures: kernels and rings, error by angle, feature maps of a turned image.

Every function returns a `matplotlib.figure.Figure` of its own (`figure.savefig("name.png")`); no global state is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import expect_floating, expect_integer, expect_tensor
from ..geometry import OUTSIDE
from ..nn.base import RadialConvNd
from .grid import ball, needed, offsets, relative_error, rotate
from .measure import expect_model
from .observe import preserved
from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

__all__ = ["feature_maps", "plot_angle_error", "plot_kernels"]

# Okabe and Ito's palette, told apart with every kind of colour vision; markers help in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
SIGNED = "RdBu_r"
OUTSIDE_GREY = "0.85"
FLOOR = 1e-16  # what an error of 0 is drawn as, on a logarithmic axis


def _figure(width: float, height: float) -> Figure:
    figure: Figure = needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return figure


def _signed(axes: Axes, values: Tensor, largest: float) -> AxesImage:
    """An image on a diverging map from -largest to largest; NaN grey."""
    axes.set_facecolor(OUTSIDE_GREY)
    axes.set(xticks=(), yticks=())
    return axes.imshow(values.double().cpu().numpy(), cmap=SIGNED, vmin=-largest, vmax=largest)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def plot_kernels(model: nn.Module, *, kernels: int = 4) -> Figure:
    """The dense kernels of radial layers, and their rings by radius.

    A row per radial layer: first its kernels (output channel, input channel of the group) in order, on one colour scale
    per layer with taps outside the support grey (3D: the central slice), then the value of every ring at every tap
    radius.

    Args:
        model: a radial layer, or a model with radial layers in it.
        kernels: how many kernels of each layer to show, at most.  Default: 4.

    Returns:
        A figure; 1D kernels are drawn as lines.

    Raises:
        TypeError, ValueError: an argument does not fit, or there is no radial layer.
        ModuleNotFoundError: matplotlib is absent.
    """
    expect_model(model)
    expect_integer("kernels", kernels, 1)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, RadialConvNd)}
    if not layers:
        raise ValueError(f"model: expected a radial layer, or a model with one in it, got {type(model).__name__}")
    with torch.no_grad():
        dense = {name: layer.dense_kernel().double().cpu() for name, layer in layers.items()}
    columns = max(min(kernels, k.shape[0] * k.shape[1]) for k in dense.values())
    figure = _figure(2.1 * columns + 4.8, 2.6 * len(layers) + 0.3)
    rows = figure.subfigures(len(layers), 1, squeeze=False)[:, 0]
    for row, (name, layer) in zip(rows, layers.items(), strict=True):
        size = " x ".join(map(str, layer.kernel_size))
        label = f"{name}: " if name else ""
        row.suptitle(f"{label}{type(layer).__name__}, {size}, {layer.num_rings} rings, {layer.family}", fontsize=11)
        # apart, so that the colour bar's label keeps clear of the rings' axis
        left, right = row.subfigures(1, 2, squeeze=False, width_ratios=(2.1 * columns + 0.9, 3.9))[0]
        _draw_kernels(left, left.subplots(1, columns, squeeze=False)[0], layer, dense[name])
        _draw_rings(right.subplots(), layer)
    return figure


def _draw_kernels(part: SubFigure, places: Sequence[Axes], layer: RadialConvNd, dense: Tensor) -> None:
    k, ndim = layer.kernel_size[0], layer.ndim
    outside = torch.tensor(layer.geometry.bucket, device="cpu").view((k,) * ndim) == OUTSIDE
    dense = dense.masked_fill(outside, torch.nan)
    if ndim == 3:
        dense = dense[:, :, k // 2]
    flat = dense.flatten(0, 1)[: len(places)]
    largest = float(flat.nan_to_num().abs().max()) or 1.0
    rows, columns = ("in", "out") if layer.transposed else ("out", "in")
    for i, axes in enumerate(places):
        if i >= len(flat):
            axes.set_axis_off()
            continue
        axes.set_title(f"{rows} {i // dense.shape[1]}, {columns} {i % dense.shape[1]}", fontsize=9)
        if ndim > 1:
            shown = _signed(axes, flat[i], largest)
            continue
        axes.plot(offsets(layer.kernel_size)[0], flat[i], color=COLOURS[0], marker="o", markersize=4)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="tap offset, pixels", ylim=(-1.1 * largest, 1.1 * largest))
        axes.tick_params(labelleft=i == 0)
    if ndim == 1:
        places[0].set_ylabel("kernel value")
    else:
        label = "kernel value" + (", central slice" if ndim == 3 else "")
        part.colorbar(shown, ax=list(places), label=label, shrink=0.85, pad=0.02)


def _draw_rings(axes: Axes, layer: RadialConvNd) -> None:
    geometry = layer.geometry
    positions = torch.meshgrid(*offsets(layer.kernel_size), indexing="ij")
    radius = torch.stack(positions).norm(dim=0).flatten().tolist()
    with torch.no_grad():
        profile = layer.profile_matrix().double().cpu()  # (n, buckets)
    # one tap per radius, equal up to rounding; a bucket may hold several radii (bands)
    at = {round(r, 6): b for r, b in zip(radius, geometry.bucket, strict=True) if b != OUTSIDE}
    radii = sorted(at)
    colours = needed("matplotlib").colormaps["cividis"]
    for ring, values in enumerate(profile):
        height = [float(values[at[r]]) for r in radii]
        shade = colours(0.9 * ring / max(layer.num_rings - 1, 1))  # not the palest, for a white ground
        axes.plot(radii, height, color=shade, marker="o", markersize=3, linewidth=1.3, label=f"ring {ring}")
    axes.set(xlabel="radius, pixels", ylabel="ring value", xlim=(-0.1, max(radii) + 0.1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.05))


# ---- error by angle --------------------------------------------------------------------------------------------------


def plot_angle_error(reports: Report | Mapping[str, Report]) -> Figure:
    """Relative error over the angle of rotation, logarithmic, one line per report.

    Args:
        reports: of `check`, one or several by name.

    Returns:
        A figure; errors below 1e-16 are drawn there.

    Raises:
        TypeError, ValueError: not reports, or one without angles.
        ModuleNotFoundError: matplotlib is absent.
    """
    named = {reports.model: reports} if isinstance(reports, Report) else reports
    if not isinstance(named, Mapping) or not named or not all(isinstance(r, Report) for r in named.values()):
        raise TypeError(f"reports: expected a Report, or a dict of them by name, got {type(reports).__name__}")
    for name, report in named.items():
        if not report.angles:
            raise ValueError(f"reports: expected reports with angles, got {name!r} without")
    figure = _figure(8, 4.6)
    axes = figure.subplots()
    for i, (name, report) in enumerate(named.items()):
        points = sorted(report.angles.items())
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        axes.semilogy([angle for angle, _ in points], [max(error, FLOOR) for _, error in points], label=name, **style)
    axes.xaxis.set_major_locator(needed("matplotlib.ticker").MultipleLocator(45))
    within = sorted({report.within for report in named.values()})
    where = ", ".join(f"{part:g}" for part in within)
    axes.set(xlabel="rotation, degrees", ylabel="relative error  ||f(gx) - g f(x)|| / ||g f(x)||")
    axes.set_title(f"Rotation error within {where} of the inscribed disk", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)  # beside the lines, wherever they run
    return figure


# ---- feature maps ----------------------------------------------------------------------------------------------------


def feature_maps(
    model: nn.Module,
    image: Tensor,
    angles: Sequence[float] = (0, 30, 60, 90, 135, 180),
    *,
    layer: str | None = None,
    channels: Sequence[int] = (0,),
) -> Figure:
    """Feature maps of a turned image, turned back, beside those of the upright one.

    A column per angle.  First row: the mean of the image's channels, turned.  Then per channel of the layer three rows:
    its map, the map turned back, and the difference from the upright image's map with its relative error.  Pixels
    outside the inscribed disk are grey: no rotation leaves it, and the image is cut to it.  The model runs as in
    `check` and is left as it was.

    Args:
        model: any model that takes (1, C, H, W).
        image: (C, H, W) or (1, C, H, W), floating point.
        angles: degrees, counter-clockwise.
        layer: name in `model.named_modules()`.  Default: the model's own output.
        channels: of the layer's output.  Default: the first.

    Returns:
        A figure.

    Raises:
        TypeError, ValueError: an argument does not fit, or the layer's output is not (1, C', H', W').
        ModuleNotFoundError: matplotlib, or for angles other than multiples of 90 degrees scipy, is absent.

    Source: the form of Fig. 2 and S9 of the GMR-Conv paper, arXiv 2504.02819.
    """
    expect_model(model)
    expect_tensor("image", image)
    expect_floating("image", image)
    if image.dim() not in (3, 4) or (image.dim() == 4 and image.shape[0] != 1):
        raise ValueError(f"image: expected (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    modules = dict(model.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(f"layer: expected a name in model.named_modules(), got {layer!r}")
    if not angles or not channels:
        raise ValueError("angles, channels: expected at least one of each")
    x = image.detach().view(1, *image.shape[-3:])
    observed = model if layer is None else modules[layer]
    disk = ball(x.shape[2:], min(x.shape[2:]) / 2).to(x.device)
    turned = [torch.where(disk, rotate(x, angle), 0) for angle in angles]
    upright, *maps = _outputs(model, observed, [torch.where(disk, x, 0), *turned])
    if upright.dim() != 4:
        raise ValueError(f"layer: expected one with an output (1, C', H', W'), got {tuple(upright.shape)}")
    for channel in channels:
        if not 0 <= expect_integer("channels", channel, 0) < upright.shape[1]:
            raise ValueError(f"channels: expected indices below {upright.shape[1]}, got {channel}")

    names = ["map", "turned back", "difference,\nsame scale"]
    figure = _figure(1.9 * len(angles) + 1.6, 1.9 * (1 + len(names) * len(channels)) + 0.6)
    grid = figure.subplots(1 + len(names) * len(channels), len(angles), squeeze=False)
    shown = [t.mean(1)[0].float().cpu().masked_fill(~disk.cpu(), torch.nan) for t in turned]
    pixels = torch.stack(shown).nan_to_num()
    for axes, angle, t in zip(grid[0], angles, shown, strict=True):
        axes.set_facecolor(OUTSIDE_GREY)
        axes.imshow(t.numpy(), cmap="gray", vmin=float(pixels.min()), vmax=float(pixels.max()))
        axes.set(xticks=(), yticks=())
        axes.set_title(f"{angle:g} degrees", fontsize=10)
    grid[0, 0].set_ylabel("image")
    sizes = upright.shape[2:]
    inside = ball(sizes, min(sizes) / 2)
    for i, channel in enumerate(channels):
        rows = grid[1 + len(names) * i : 1 + len(names) * (i + 1)]
        expected = upright[0, channel].double().cpu()
        largest = float(expected[inside].abs().nan_to_num().quantile(0.995)) or 1.0
        for column, (angle, y) in enumerate(zip(angles, maps, strict=True)):
            found = y[0, channel].double().cpu()
            back = rotate(found, -angle)
            for axes, values in zip(rows[:, column], (found, back, back - expected), strict=True):
                drawn = _signed(axes, values.masked_fill(~inside, torch.nan), largest)
            error = relative_error(back, expected, inside)
            rows[2, column].set_xlabel(f"error {error:.1e}", fontsize=9)
        for axes, name in zip(rows[:, 0], names, strict=True):
            axes.set_ylabel(f"channel {channel}\n{name}")
        figure.colorbar(drawn, ax=list(rows.flat), extend="both", label="feature value", shrink=0.7, pad=0.01)
    where = "output" if layer is None else f"layer {layer}"
    figure.suptitle(f"{type(model).__name__}, {where}: turn the image, run, turn back", fontsize=12)
    return figure


def _outputs(model: nn.Module, observed: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What one module of the model returns for each input; of several calls the last."""
    seen: list[Any] = []
    outputs = []
    with preserved(model) as put_back:
        handle = observed.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            for x in inputs:
                put_back()
                seen.clear()
                model(x)
                if not seen or not isinstance(seen[-1], Tensor):
                    what = type(seen[-1]).__name__ if seen else "no call of it"
                    raise ValueError(f"layer: expected one that returns a tensor, got {what}")
                outputs.append(seen[-1].clone())
        finally:
            handle.remove()
    return outputs

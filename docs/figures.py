"""The figures and the computed tables of the documentation: `draw(folder)` writes them all.

conf.py calls it in every build; `python docs/figures.py FOLDER` does the same without Sphinx.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import ScalarFormatter
from torch import Tensor, nn

from radconv_ext import default_sigma, gmr_kernel2d, shell_count
from radconv_ext.equivariance import check, feature_maps
from radconv_ext.geometry import OUTSIDE, band_geometry, shell_geometry
from radconv_ext.nn import GMRConv2d, RadialConv2d, SREConv2d
from radconv_ext.profiles import FAMILIES, ring_centres

__all__ = ["draw"]

SIZE = 9  # the kernel that most figures show
RINGS = SIZE // 2 + 1
SIZES = tuple(range(3, 16, 2))
DRAWS = 5  # random weights per setting; odd, so that the median is one of them
BLUE, ORANGE, GREEN, BLACK = "#0072b2", "#d55e00", "#009e73", "#222222"  # apart for colour-blind eyes too
OUT_OF_SUPPORT = "0.87"


def ring_colours(count: int) -> list[tuple[float, ...]]:
    """Dark to light, without the yellow that is hard to see on white."""
    return [matplotlib.colormaps["viridis"](0.85 * i / max(count - 1, 1)) for i in range(count)]


# ---- the grid --------------------------------------------------------------------------------------------------------


def grid() -> Figure:
    """Shells, bands and one Gaussian ring on the taps of a kernel."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    shells, bands, ring = figure.subplots(1, 3)
    by_shell, by_band = shell_geometry(2, SIZE), band_geometry(2, SIZE, RINGS)
    colours = ring_colours(by_shell.buckets)
    _draw_taps(shells, by_shell.bucket, colours, f"{by_shell.buckets} shells")
    _draw_taps(bands, by_band.bucket, ring_colours(RINGS), f"{RINGS} bands")
    _draw_ring(ring, 2)
    for axes in (shells, bands, ring):
        axes.add_patch(Circle((0, 0), SIZE / 2, fill=False, edgecolor=BLACK, linewidth=1.4, zorder=2))
        axes.set(xlabel="offset, pixels", xticks=range(-4, 5, 2), yticks=range(-4, 5, 2), aspect="equal")
        axes.set(xlim=(-5, 5), ylim=(-5, 5))
    shells.set_ylabel("offset, pixels")
    return figure


def _draw_taps(axes: Axes, bucket: Iterable[int], colours: list[tuple[float, ...]], title: str) -> None:
    """Every tap in the colour of its bucket, with the bucket's number."""
    half = SIZE // 2
    for tap, number in enumerate(bucket):
        x, y = tap % SIZE - half, half - tap // SIZE
        colour = OUT_OF_SUPPORT if number == OUTSIDE else colours[number]
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, color=colour))
        if number != OUTSIDE:
            dark = sum(colour[:3]) < 1.6
            axes.text(
                x, y, str(number), ha="center", va="center", zorder=3, fontsize=8, color="white" if dark else "black"
            )
    axes.set_title(title, fontsize=11)


def _draw_ring(axes: Axes, i: int) -> None:
    """The values of ring `i` on the taps, and the circles on which the rings' centres lie."""
    w = torch.zeros(1, 1, RINGS)
    w[..., i] = 1
    kernel = gmr_kernel2d(w, default_sigma(SIZE))[0, 0]
    bucket = torch.tensor(shell_geometry(2, SIZE).bucket).view(SIZE, SIZE)
    extent = (-SIZE / 2, SIZE / 2, -SIZE / 2, SIZE / 2)
    axes.imshow(torch.where(bucket == OUTSIDE, 1.0, torch.nan), cmap="gray", vmin=0, vmax=1 / 0.87, extent=extent)
    shown = axes.imshow(kernel.masked_fill(bucket == OUTSIDE, torch.nan), cmap="Blues", vmin=0, vmax=1, extent=extent)
    for j, radius in enumerate(ring_centres(SIZE, RINGS)):
        style = {
            "color": ORANGE,
            "linewidth": 2.0 if j == i else 1.0,
            "linestyle": "-" if j == i else "--",
            "zorder": 3,
        }
        axes.add_patch(Circle((0, 0), max(radius, 0.06), fill=False, **style))
    axes.set_title(f"Gaussian ring {i} of {RINGS}", fontsize=11)
    axes.figure.colorbar(shown, ax=axes, label="value of the ring", shrink=0.8)


# ---- profiles --------------------------------------------------------------------------------------------------------


def profiles() -> Figure:
    """Value of every ring over the radius, in every family."""
    figure = Figure(figsize=(11, 5.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, name in zip(panels.flat, ("gaussian", "banded", "binary", "shell"), strict=True):
        family = FAMILIES[name]
        rings = family.rings_for(2, SIZE, True)
        geometry = family.geometry(2, SIZE, rings, True)
        p = family.profile(geometry, rings, default_sigma(SIZE) if family.has_sigma else None)  # (n, buckets)
        for i, colour in enumerate(ring_colours(rings)):
            if name == "shell":
                axes.vlines(geometry.radii[i], 0, 1, color=colour, linewidth=1.4)
                axes.plot(geometry.radii[i], 1, "o", color=colour, markersize=5)
            elif family.one_hot:
                _draw_bands(axes, p[i], i, colour)
            else:
                radius = torch.linspace(0, SIZE / 2, 200)
                centre, width = ring_centres(SIZE, rings)[i], default_sigma(SIZE)[i]
                axes.plot(radius, torch.exp(-((radius - centre) ** 2) / (2 * width**2)), color=colour, linewidth=1.4)
                axes.plot(geometry.radii, p[i], "o", color=colour, markersize=5, label=f"ring {i}")
        axes.set(title=f"{name}, {rings} rings", ylim=(0, 1.12))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set(xlabel="radius, pixels", xlim=(-0.08, SIZE / 2 + 0.08))
    for axes in panels[:, 0]:
        axes.set_ylabel("value of the ring")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(
        f"Profile families, k = {SIZE}, 2D, sigma at its start; dots: shells, grey lines: edges of bands", fontsize=12
    )
    return figure


def _draw_bands(axes: Axes, values: Tensor, i: int, colour: tuple[float, ...]) -> None:
    """A line per band where ring `i` has a value; thin ones of inner rings lie upon thick ones of outer rings."""
    edges = torch.linspace(0, SIZE / 2, len(values) + 1)
    for band, value in enumerate(values):
        if value > 1e-3:
            width = 4.0 if i >= band else 1.6
            axes.hlines(value, edges[band], edges[band + 1], color=colour, linewidth=width, zorder=3 - width / 4)
    axes.vlines(edges[1:], 0, 1.12, color="0.85", linewidth=0.8, zorder=0)


# ---- sigma -----------------------------------------------------------------------------------------------------------


def sigma() -> Figure:
    """One set of ring weights under growing widths."""
    scales = (0.25, 0.5, 1.0, 2.0, 4.0)
    w = torch.tensor([1.0, -0.6, 0.4, -0.8, 0.5]).view(1, 1, RINGS)
    geometry = shell_geometry(2, SIZE)
    bucket = torch.tensor(geometry.bucket).view(SIZE, SIZE)
    centres = torch.tensor(ring_centres(SIZE, RINGS))
    radius = torch.linspace(0, SIZE / 2, 300)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(2, len(scales), height_ratios=(1.25, 1), sharey="row")
    for (image, curve), scale in zip(panels.T, scales, strict=True):
        widths = scale * default_sigma(SIZE)
        kernel = gmr_kernel2d(w, widths)[0, 0].masked_fill(bucket == OUTSIDE, torch.nan)
        image.set_facecolor(OUT_OF_SUPPORT)
        extent = (-SIZE / 2, SIZE / 2, -SIZE / 2, SIZE / 2)
        shown = image.imshow(kernel, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent)
        image.set(title=f"{scale:g} times the start\nsigma = {widths[0]:.2f} pixels", xticks=(-4, 0, 4))
        image.set(yticks=(-4, 0, 4))
        values = (w[0, 0, :, None] * torch.exp(-((radius - centres[:, None]) ** 2) / (2 * widths[:, None] ** 2))).sum(0)
        at_shells = [float(kernel[bucket == s][0]) for s in range(geometry.buckets)]
        curve.axhline(0, color="0.75", linewidth=0.8)
        curve.plot(radius, values, color=BLUE, linewidth=1.4)
        curve.plot(geometry.radii, at_shells, "o", color=ORANGE, markersize=3.5)
        curve.set(xlabel="radius, pixels", xlim=(-0.1, SIZE / 2 + 0.1), xticks=range(5), ylim=(-1.15, 1.15))
        curve.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("offset, pixels")
    panels[1, 0].set_ylabel("kernel value")
    figure.colorbar(shown, ax=panels[0], label="kernel value", extend="both", pad=0.01)
    return figure


# ---- initialisation --------------------------------------------------------------------------------------------------


def init() -> Figure:
    """Output variance over the input's, under the three rules."""
    rules = {
        "effective": (BLUE, "o", "effective fan (default)"),
        "paper": (ORANGE, "s", "fan of (C, n): the paper's rule"),
        "package": (GREEN, "^", "fan of the dense kernel: the package's rule"),
    }
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    torch.manual_seed(0)
    axes.axhline(1 / 3, color=BLACK, linestyle="--", linewidth=1.2, label="torch.nn.Conv2d: 1/3")
    for rule, (colour, marker, label) in rules.items():
        axes.plot(SIZES, [_variance(rule, k) for k in SIZES], color=colour, marker=marker, linewidth=1.4, label=label)
    axes.set(xlabel="kernel size k, pixels", ylabel="variance of output / variance of input", yscale="log")
    axes.set(xticks=SIZES, title="GMRConv2d as initialised, interior pixels, white noise as input")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize=9)
    axes.set_ylim(0.1, 20)
    axes.set_yticks((0.1, 0.2, 1 / 3, 0.5, 1, 2, 5, 10, 20), ("0.1", "0.2", "1/3", "0.5", "1", "2", "5", "10", "20"))
    axes.tick_params(axis="y", which="minor", labelleft=False)
    return figure


@torch.no_grad()
def _variance(rule: str, kernel_size: int, channels: int = 64) -> float:
    """Measured: no padding, so every output pixel is an interior one."""
    layer: nn.Module = GMRConv2d(channels, channels, kernel_size, bias=False, init=rule)
    return float(layer(torch.randn(1, channels, kernel_size + 39, kernel_size + 39)).var())


# ---- cost ------------------------------------------------------------------------------------------------------------


def mixing_ratio(ndim: int, kernel_size: int) -> float:
    """FLOPs of the dense convolution over those of the ring mixing alone."""
    return kernel_size**ndim / (kernel_size // 2 + 1)


def all_ratio(ndim: int, kernel_size: int, channels: int) -> float:
    """Likewise, with the ring stage counted too: additions within the shells, and `n * D` multiply-adds."""
    rings, shells = kernel_size // 2 + 1, shell_count(ndim, kernel_size)
    ring_stage = (taps(ndim, kernel_size) - shells) + 2 * rings * shells
    return 2 * kernel_size**ndim * channels / (ring_stage + 2 * rings * channels)


def taps(ndim: int, kernel_size: int) -> int:
    """Taps in the circular support."""
    return sum(bucket != OUTSIDE for bucket in shell_geometry(ndim, kernel_size).bucket)


def cost() -> Figure:
    """How many times fewer operations than the dense convolution, over the kernel size."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for ndim, colour, marker in ((3, ORANGE, "s"), (2, BLUE, "o")):
        alone = [mixing_ratio(ndim, k) for k in SIZES]
        counted = [all_ratio(ndim, k, 128) for k in SIZES]
        axes.plot(SIZES, alone, color=colour, marker=marker, linewidth=1.6, label=f"{ndim}D, mixing alone")
        axes.plot(
            SIZES, counted, color=colour, marker=marker, linewidth=1.2, linestyle=":", markerfacecolor="white",
            label=f"{ndim}D, ring stage counted too, 128 output channels",
        )  # fmt: skip
    axes.set(xlabel="kernel size k, pixels", ylabel="dense FLOPs / ring FLOPs", yscale="log", xticks=SIZES)
    axes.set(title="Operations saved, circular support, k // 2 + 1 rings", ylim=(1, 1000))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def cost_table() -> str:
    """The figures of the cost section, Markdown."""
    head = ["k", "rings n", *(f"{ndim}D {what}" for ndim in (2, 3) for what in ("taps", "shells D", "dense / mixing"))]
    rows = [head, ["---"] * len(head)]
    for k in SIZES:
        row = [str(k), str(k // 2 + 1)]
        for ndim in (2, 3):
            row += [f"{taps(ndim, k):,}", str(shell_count(ndim, k)), f"{mixing_ratio(ndim, k):.3g}"]
        rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# ---- equivariance ----------------------------------------------------------------------------------------------------


def angles() -> Figure:
    """Rotation error of three stacks over the angle: median and range over random weights."""
    names = {nn.Conv2d: "nn.Conv2d", SREConv2d: "SREConv2d", GMRConv2d: "GMRConv2d"}
    degrees = tuple(7.5 * i for i in range(1, 13))
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for layer, colour, marker in ((nn.Conv2d, ORANGE, "s"), (SREConv2d, GREEN, "^"), (GMRConv2d, BLUE, "o")):
        errors = []
        for seed in range(DRAWS):
            torch.manual_seed(seed)
            found = check(stack(layer), (1, 1, 48, 48), angles=degrees).angles
            errors.append([found[angle] for angle in degrees])
        lowest, middle, highest = torch.tensor(errors).quantile(torch.tensor([0.0, 0.5, 1.0]), 0)
        axes.fill_between(degrees, lowest, highest, color=colour, alpha=0.2, linewidth=0)
        axes.plot(degrees, middle, color=colour, marker=marker, markersize=5, label=names[layer])
    axes.set(xlabel="rotation, degrees", ylabel="||f(gx) - g f(x)|| / ||g f(x)||", yscale="log", ylim=(3e-8, 5))
    axes.set(xticks=range(0, 91, 15), title=f"Relative rotation error, median and range of {DRAWS} stacks")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def stack(layer: type[nn.Module]) -> nn.Module:
    layers = [layer(inputs, 8, SIZE, padding="same", bias=False) for inputs in (1, 8, 8)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def choices_table() -> str:
    """Rotation error at 45 degrees of one layer under each choice, Markdown."""
    gmr = lambda **options: lambda: GMRConv2d(4, 4, **{"kernel_size": SIZE, "padding": "same", **options})
    layers: dict[str, Callable[[], nn.Module]] = {
        "`GMRConv2d`, k = 9, n = 5": gmr(),
        **{f"k = {k}, n = {k // 2 + 1}": gmr(kernel_size=k) for k in (3, 5, 7, 11, 13)},
        **{f"k = 9, n = {n}": gmr(num_rings=n) for n in (3, 7, 13)},
        "k = 9, n = 5, `circular=False`": gmr(circular=False),
        **{f"k = 9, n = 5, sigma {scale:g} times its start": lambda scale=scale: scaled(scale) for scale in (0.5, 2)},
        '`family="banded"`, k = 9, n = 5': gmr(family="banded"),
        "`SREConv2d`, k = 9, n = 5": lambda: SREConv2d(4, 4, SIZE, padding="same"),
        "`RadialConv2d` (one weight per shell), k = 9": lambda: RadialConv2d(4, 4, SIZE, padding="same"),
        "`torch.nn.Conv2d`, k = 9": lambda: nn.Conv2d(4, 4, SIZE, padding="same"),
    }
    rows = ["| layer | median error | range |\n|---|---|---|\n"]
    for name, make in layers.items():
        found = sorted(error_at_45(make, seed) for seed in range(DRAWS))
        rows.append(f"| {name} | {found[DRAWS // 2]:.1%} | {found[0]:.1%} to {found[-1]:.1%} |\n")
    return "".join(rows)


def error_at_45(make: Callable[[], nn.Module], seed: int) -> float:
    torch.manual_seed(seed)
    return check(make(), (1, 4, 48, 48), angles=(45,)).angles[45]


@torch.no_grad()
def scaled(scale: float) -> nn.Module:
    """A layer with other ring widths."""
    layer = GMRConv2d(4, 4, SIZE, padding="same")
    assert layer.log_sigma is not None
    layer.log_sigma += torch.tensor(scale).log()
    return layer


def maps() -> Figure:
    """Feature maps of a letter, turned."""
    torch.manual_seed(1)
    image = torch.zeros(1, 48, 48)
    image[:, 12:36, 16:20] = image[:, 12:16, 16:32] = image[:, 22:26, 16:28] = 1  # an F
    return feature_maps(GMRConv2d(1, 4, SIZE, padding="same", bias=False), image, angles=(0, 30, 60, 90, 135))


FIGURES: tuple[Callable[[], Figure], ...] = (grid, profiles, sigma, init, cost, angles, maps)


def draw(folder: Path) -> None:
    """Write every figure as PNG, white behind, and the tables as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        figure().savefig(folder / f"{figure.__name__}.png", dpi=140, facecolor="white")
    (folder / "cost.md").write_text(cost_table())
    (folder / "choices.md").write_text(choices_table())


if __name__ == "__main__":
    draw(Path(sys.argv[1]))

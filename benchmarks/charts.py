"""The report's charts, one function each; a figure, or None where nothing of it was measured."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .problems import MODES
from .rows import DENSE, DENSE_FORMS, ENGINES, Results, Row, is_ours

# Okabe and Ito's palette, told apart with every kind of colour vision; peers of a family differ in marker and line.
FAMILIES = {
    "radconv": "#0072B2",
    DENSE: "#000000",
    "naive_gmr": "#E69F00",
    "unfused": "#E69F00",
    "released": "#D55E00",
    "symm_conv": "#CC79A7",
    "e2_conv": "#009E73",
    "group_conv": "#7f7f7f",
}
OTHER = "#56B4E9"
MARKERS = "osD^vP*X"
LINES = ("-", "--", "-.", ":")
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "radconv_ext",
}
WIDTH = 11.5  # inches


def svg(figure: Figure) -> str:
    """The figure as an element for a page: no XML head, no metadata, nothing to load."""
    out = io.StringIO()
    with rc_context(SETTINGS):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", bbox_inches="tight", pad_inches=0.05, metadata=nothing)
    text = out.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text[text.index("<svg") :], count=1)


def _family(peer: str) -> str:
    return next((name for name in FAMILIES if peer.startswith(name)), peer)


def _styles(peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line properties per peer: colour by family, marker and dashes by the place in it, ours wide and in front."""
    styles: dict[str, dict[str, Any]] = {}
    for peer in peers:
        family = _family(peer)
        place = sum(FAMILIES.get(_family(other), OTHER) == FAMILIES.get(family, OTHER) for other in styles)
        in_front = is_ours(peer) and peer not in DENSE_FORMS
        front = {"linewidth": 3, "markersize": 8, "zorder": 4} if in_front else {"linewidth": 1.3, "markersize": 5}
        look = {"color": FAMILIES.get(family, OTHER), "marker": MARKERS[place % len(MARKERS)]}
        styles[peer] = look | {"linestyle": LINES[place % len(LINES)], "markeredgecolor": "white"} | front
    return styles


def _figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes.tolist()


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One for all panels, below them."""
    found = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(5, len(found)), frameon=False)


def _title(figure: Figure, found: Results) -> None:
    """Suite and shape of what stands on the curves."""
    row = found.rows[0]
    shape = f"({', '.join(map(str, (row['batch'], row['channels'], *row['size'])))}) to {row['outputs']}"
    figure.suptitle(f"{row['suite']}: {shape} channels, {row['dtype']}, {row['layout']}", fontsize=12, weight="bold")


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}" if value < 1e4 else f"{value:,.0f}"


def _log(axes: Axes, values: Sequence[float], which: str = "y") -> None:
    """A logarithmic axis with plain numbers: at 1, 2, 5 over few decades."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    wide = bool(values) and max(values) / min(values) > 1000
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _ticks(axes: Axes, values: Sequence[float]) -> None:
    """The x axis names the values that were measured, and no more."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.4", fontsize=12)
    axes.set(xticks=(), yticks=())


Point = Callable[[Row], float | None]


def _curves(axes: Axes, found: Results, x: str, y: Point, styles: dict[str, dict[str, Any]]) -> list[float]:
    """A line per peer over a field of the rows; returns all values drawn."""
    drawn = []
    for peer, style in styles.items():
        points = [(row[x], y(row)) for row in sorted(found.select(peer=peer).rows, key=lambda row: row[x])]
        known = [(a, b) for a, b in points if b is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=peer, **style)
            drawn += [b for _, b in known]
    if drawn:
        _ticks(axes, found.values(x))
    else:
        _empty(axes)
    return drawn


def speedup(results: Results) -> Figure | None:
    """Time of the dense convolution over each peer's, against k, one panel a mode; rows of one suite and device."""
    found = results.usual("dtype", "layout", "batch", "channels")
    styles = _styles([peer for peer in found.peers() if peer != DENSE])
    if not any(found.speedup(row) for row in found.rows if row["peer"] != DENSE):
        return None
    figure, ((*panels,),) = _figure(1, 3, 5.4, sharey=True)
    values: list[float] = []
    for axes, mode in zip(panels, MODES, strict=True):
        axes.set(title=mode, xlabel="kernel size k")
        values += _curves(axes, found.select(mode=mode), "kernel_size", found.speedup, styles)
    low, high = min(*values, 0.8) / 1.7, max(*values, 1.2) * 1.2
    for axes in panels:
        if axes.lines:
            _log(axes, (low, high))
            axes.axhspan(low, 1, color="#f6e3dc", zorder=0, linewidth=0)
            axes.axhline(1, color=FAMILIES[DENSE], linewidth=1, label=DENSE)
            axes.text(0.98, 0.015, "slower than dense", transform=axes.transAxes, ha="right", color="#9c3a12")
            axes.set_ylim(low, high)
    _title(figure, found.select(peer=DENSE))
    panels[0].set_ylabel("times as fast as torch's dense convolution")
    _legend(figure, panels)
    return figure


SWEEPS = (
    ("table-s2", "kernel_size", "kernel size k"),
    ("batch-sweep", "batch", "batch"),
    ("channel-sweep", "channels", "channels, in and out"),
)


def growth(results: Results) -> Figure | None:
    """Time against k, batch and channels, both axes logarithmic, one row of panels a mode; rows of one device."""
    sweeps = []
    for suite, x, label in SWEEPS:
        held = [field for field in ("kernel_size", "batch", "channels", "layout", "dtype") if field != x]
        sweeps.append((results.select(suite=suite).usual(*held), x, label))
    everything = Results(row for found, *_ in sweeps for row in found.rows)
    modes, styles = everything.modes(), _styles(everything.peers())
    if not modes:
        return None
    figure, panels = _figure(len(modes), 3, 0.9 + 3.5 * len(modes))
    for mode, line in zip(modes, panels, strict=True):
        for axes, (found, x, label) in zip(line, sweeps, strict=True):
            held_k = "" if x == "kernel_size" or not found.rows else f", k = {found.rows[0]['kernel_size']}"
            axes.set(title=f"{mode}{held_k}", xlabel=label)
            values = _curves(axes, found.select(mode=mode), x, lambda row: row["median"] * 1e3, styles)
            if values:
                _log(axes, found.values(x), "x")
                _ticks(axes, found.values(x))
                _log(axes, values)
        line[0].set_ylabel("milliseconds")
    _legend(figure, [axes for line in panels for axes in line])
    return figure


def memory(results: Results) -> Figure | None:
    """Peak memory against k, one panel a mode; rows of one suite and device."""
    found = Results(row for row in results.rows if row.get("peak_bytes") is not None)
    if not found.rows:
        return None
    found = found.usual("dtype", "layout", "batch", "channels")
    modes, styles = found.modes(), _styles(found.peers())
    figure, ((*panels,),) = _figure(1, max(2, len(modes)), 5.0, sharey=True)
    for axes in panels[len(modes) :]:
        axes.set_visible(False)
    for axes, mode in zip(panels, modes, strict=False):
        axes.set(title=mode, xlabel="kernel size k")
        rows = found.select(mode=mode)
        values = _curves(
            axes, rows, "kernel_size", lambda row: (row["peak_bytes"] or None) and row["peak_bytes"] / 2**20, styles
        )
        if values:
            _log(axes, values)
    _title(figure, found)
    panels[0].set_ylabel("peak memory of a call, MiB")
    _legend(figure, panels[: len(modes)])
    return figure


def roofline(results: Results) -> Figure | None:
    """The floor over the time, of our engines, a line a problem; rows of one device."""
    names = [name for engines in ENGINES.values() for name in engines]
    measured = (row for row in results.rows if row["suite"] != "overhead")  # nothing but the host's work
    found = Results(row for row in measured if row["peer"] in names and row.get("floor_fraction") is not None)
    if not found.rows:
        return None
    problems = found.values("problem")
    figure, ((axes,),) = _figure(1, 1, 1.4 + 0.3 * len(problems))
    colours = dict(zip(MODES, ("#0072B2", "#009E73", "#D55E00"), strict=True))
    for mode in found.modes():
        for place, peer in enumerate(found.peers()):
            rows = found.select(mode=mode, peer=peer).rows
            above = 0.22 * (1 - MODES.index(mode))  # or equal fractions would hide each other
            places = [len(problems) - 1 - problems.index(row["problem"]) + above for row in rows]
            label = f"{mode}, {peer}"
            axes.plot(
                [row["floor_fraction"] for row in rows], places, "os"[place % 2], color=colours[mode], label=label,
                markersize=6.5, markeredgecolor="white",
            )  # fmt: skip
    axes.set_yticks(range(len(problems)), problems[::-1])
    axes.set(xlabel="roofline floor / measured time (1: nothing left to gain)", ylim=(-0.7, len(problems) - 0.3))
    axes.set_xlim(0, max(1.02, 1.05 * max(row["floor_fraction"] for row in found.rows)))
    axes.axvline(1, color="0.3", linewidth=1)
    _legend(figure, [axes])
    return figure

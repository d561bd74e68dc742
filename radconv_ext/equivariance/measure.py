"""How far a model is from commuting with the symmetries of the grid and with rotations, and which layer is to blame."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from ..checks import expect_floating, expect_integer, expect_tensor
from .grid import SmoothImage, Symmetry, ball, needed, plane_axes, relative_error, rotate, symmetries
from .observe import FIRST, LAST, NONE, Call, copies_of, layouts, leaves, preserved, recorded, transformed
from .reasons import Situation, explain, positional
from .report import LayerReport, Report, exceeds, number, rank, worst_of

__all__ = ["TOLERANCE", "check", "expect_model"]

# Far above rounding.  Worst seen in stacks of GMRConv2d, BatchNorm2d and ReLU: a layer alone, then 30 in a row, float64
# 3e-15, 2e-13; float32 1e-7, 2e-5; float16 6e-5, 3e-2.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
ANGLES = tuple(range(15, 360, 15))


# ---- layer by layer --------------------------------------------------------------------------------------------------


class _Trace:
    """A call of the reference run, and how it fared in the transformed runs."""

    def __init__(self, call: Call, batch: int, ndim: int) -> None:
        self.call = call
        self.batch, self.ndim = batch, ndim
        tensors = call.inputs
        ways = [layouts(t, batch, ndim) for t in tensors]
        self.known = bool(ways) and all(ways)
        self.spatial = self.known and any(FIRST in way for way in ways)
        self.tensors = tensors
        self.finite = all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
        choices = (FIRST, LAST) if self.spatial else (NONE,)
        self.errors_in: dict[str, float] = dict.fromkeys(choices if self.known else (), 0.0)
        self.errors_out: dict[str, float] = dict.fromkeys(layouts(call.output, batch, ndim), 0.0)
        self.out: str | None = None  # layout of the output, once the layer was measured alone

    def compare(self, g: Symmetry, found: Call | None) -> None:
        """Take in what the same call saw when the model's input was transformed."""
        inputs = [] if found is None else found.inputs
        for layout in self.errors_in:
            errors = [
                relative_error(t, transformed(expected, g, layout))
                for t, expected in zip(inputs, self.tensors, strict=False)
            ]
            self.errors_in[layout] = worst_of([self.errors_in[layout], *(errors or [math.inf])])
        for layout in self.errors_out:
            t = None if found is None else found.output
            error = relative_error(t, transformed(self.call.output, g, layout)) if isinstance(t, Tensor) else math.inf
            self.errors_out[layout] = worst_of([self.errors_out[layout], error])

    @property
    def layout(self) -> str:
        """The one under which the input follows the symmetries better."""
        return min(self.errors_in, key=lambda layout: rank(self.errors_in[layout]))

    @property
    def before(self) -> float | None:
        """Cumulative error of the input."""
        return self.errors_in[self.layout] if self.errors_in else None

    @property
    def after(self) -> float | None:
        """Cumulative error of the output."""
        if self.out is not None:
            return self.errors_out[self.out]
        return min(self.errors_out.values(), key=rank) if self.errors_out else None

    def why_not_alone(self) -> str | None:
        """Why the layer can't be measured on its own."""
        if not self.known or not self.errors_out:
            return f"skipped: input and output are not (B, C, {'*S' if self.ndim > 1 else 'L'}) or (B, F)"
        if not self.spatial:
            return "skipped: its input has no spatial axes"
        if not self.finite:
            return "skipped: its input holds NaN or Inf"
        return None

    def sizes(self, t: Tensor, layout: str) -> tuple[int, ...]:
        return {FIRST: tuple(t.shape[2:]), LAST: tuple(t.shape[1:-1]), NONE: ()}[layout]

    def own(
        self, group: Sequence[Symmetry], tolerance: float, put_back: Callable[[], None]
    ) -> tuple[dict[Symmetry, float], str]:
        """The layer alone: error by symmetry, and why the layer failed where it did.  Finds the output's layout."""
        call, layout = self.call, self.layout

        def run(g: Symmetry) -> Any:
            put_back()
            turn = lambda t: transformed(t, g, layout) if isinstance(t, Tensor) else t
            args, kwargs = tree_map(turn, (call.args, call.kwargs))
            return call.layer(*args, **kwargs)

        expected = copies_of(run(symmetries(self.ndim)[0]))
        errors: dict[str, dict[Symmetry, float]] = {out: {} for out in self.errors_out}
        failure = ""
        for g in group:
            found, why = _attempt(lambda g=g: run(g), g)  # type: ignore[misc]
            failure = failure or why
            for out, by_symmetry in errors.items():
                turned = transformed(expected, g, out)
                by_symmetry[g] = math.inf if found is None else relative_error(found, turned)
        exact = [out for out in errors if not exceeds(worst_of(list(errors[out].values())), tolerance)]
        # the input's layout, unless the output is exact in the other alone, as behind a layer that permutes the axes
        self.out = min(errors, key=lambda out: (out not in exact, out != layout))
        return errors[self.out], failure

    def report(self, group: Sequence[Symmetry], tolerance: float, put_back: Callable[[], None]) -> LayerReport:
        call = self.call
        kind = type(call.layer).__name__
        if why := self.why_not_alone():
            return LayerReport(call.name, kind, None, self.after, why)
        errors, failure = self.own(group, tolerance, put_back)
        g = max(errors, key=lambda g: rank(errors[g]))
        error = errors[g]
        if not exceeds(error, tolerance):
            return LayerReport(call.name, kind, error, self.after)
        if math.isnan(error):
            return LayerReport(call.name, kind, error, self.after, "its output holds NaN or Inf", g)
        spatial = next(t for t in self.tensors if t.dim() > 2)
        situation = Situation(
            layer=call.layer,
            sizes=self.sizes(spatial, self.layout),
            out_sizes=self.sizes(call.output, self.out or NONE),
            channels_first=self.layout == FIRST,
            tolerance=tolerance,
            broken=frozenset(g for g, error in errors.items() if exceeds(error, tolerance)),
        )
        parts = [explain(situation), f"it fails on the transformed input: {failure}" if failure else None]
        reason = "; ".join(part for part in parts if part)
        return LayerReport(call.name, kind, error, self.after, reason or "no rule here explains it", g)


def _attempt(run: Callable[[], Any], g: Symmetry) -> tuple[Any, str]:
    """The result, or None and why; only axes in another order can give a layer a shape that it wasn't made for."""
    try:
        return run(), ""
    except (RuntimeError, ValueError) as error:
        if g.order == tuple(range(len(g.order))) or isinstance(error, torch.OutOfMemoryError):
            raise
        return None, str(error).partition("\n")[0]


def _between(
    model: nn.Module, traces: Sequence[_Trace], reports: Sequence[LayerReport], output_error: float, tolerance: float
) -> str:
    """A sentence on the first tensor that breaks, if no offending layer broke it."""
    last, last_trace = "the model's input", None
    skipped: list[str] = []
    for trace, report in zip(traces, reports, strict=True):
        if exceeds(trace.before, tolerance):
            return _jump(model, last, last_trace, trace, skipped, trace.before, tolerance)
        if exceeds(trace.after, tolerance):
            if exceeds(report.own, tolerance):
                return ""
            return f"The error comes up in {report.name} ({report.kind}), measured {number(trace.after)} behind it."
        if trace.after is None:
            skipped.append(report.name)
        else:
            last, last_trace, skipped = report.name, trace, []
    if not exceeds(output_error, tolerance):
        return ""
    return _jump(model, last, last_trace, None, skipped, output_error, tolerance)


def _jump(
    model: nn.Module,
    last: str,
    before: _Trace | None,
    after: _Trace | None,
    skipped: Sequence[str],
    error: float | None,
    tolerance: float,
) -> str:
    end = "the model's output" if after is None else after.call.name
    words = [f"The error comes up between {last} and {end}: measured {number(error)} at the latter"]
    if skipped:
        words.append(f"layers between them that could not be measured: {', '.join(skipped)}")
    if before is not None and FIRST in before.errors_out:
        output = before.call.output
        sizes = tuple(output.shape[2:])
        if after is not None and not after.spatial and after.known and after.tensors[0][0].numel() == output[0].numel():
            positions = " x ".join(map(str, sizes))
            words.append(f"{positions} positions are flattened into features there: pool over them first")
        for name, module in model.named_modules():
            if any(True for _ in module.children()):
                words += [f"{name or 'the model'}: {found}" for found in positional(module, sizes, tolerance)]
    return "; ".join(words) + "."


# ---- the measurement -------------------------------------------------------------------------------------------------


def check(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    x: Tensor | None = None,
    angles: Iterable[float] | None = None,
    planes: Sequence[tuple[int, int]] = ((-1, -2),),
    within: float = 0.5,
    tolerance: float | None = None,
    seed: int = 0,
) -> Report:
    """Measure how far a model is from commuting with flips, 90-degree turns and rotations, and name what breaks it.

    Every error is relative, `||f(g x) - g f(x)|| / ||g f(x)||`; an output without spatial axes, (B, F), is compared as
    it is, `g f(x) = f(x)`.

    - *Symmetries of the grid* (2, 8 or 48, the identity left out): the whole output, borders included, since padding
      can be as symmetric as the rest.  An input of unequal sizes is transposed with its axes.
    - *Angles* (2D and 3D): the output within a disk (ball) of `within` times its inscribed radius, at least the
      innermost pixels; the input is 0 outside its inscribed disk, which no rotation leaves.  The rest is left out since
      zeros (or a bias) behind the border don't turn with the image.  The output is rotated by `rotate`, so for inputs
      as smooth as the default one errors below about 1e-5 are its own.
    - *Layers* (modules without children, and convolutions): each call of each, in the model and alone on the input that
      it had.  A layer that offends alone gets a reason.  (B, *S, C) is recognised as the layout that fits better.

    The model runs in the mode that it is in, without gradients, each time with the same random numbers and buffers;
    modes, buffers, hooks and torch's random state are as before afterwards.

    Args:
        model: one layer or a whole network, (B, C, *S) to (B, C', *S') or (B, F).
        input_size: (B, C, *S), 1 to 3 spatial axes.  The input is then random and smooth: `SmoothImage`, waves of at
            least 8 pixels, in the dtype and on the device of the model's first parameter; its rotations are exact.
        x: an input of the caller's, (B, C, *S), in the place of `input_size`; rotated by `rotate`.
        angles: degrees.  Default: 15 to 345 in steps of 15 where there is scipy, else none.
        planes: pairs of spatial axes to rotate in; the largest error counts.  Default: the last two.
        within: radius that angles are compared within, over the inscribed radius of the output.  Default: 0.5.
        tolerance: largest error on the grid that counts as rounding.  Default, by the coarsest dtype seen: float64
            1e-10, float32 1e-4, float16 and bfloat16 5e-2.  With TF32, pass 1e-2.
        seed: of the random input.  Default: 0.

    Returns:
        A `Report`; print it.

    Raises:
        TypeError, ValueError: an argument does not fit, or the model's output is not a (B, C', *S') or (B, F) tensor.
        ModuleNotFoundError: angles were asked for and scipy is absent.
    """
    expect_model(model)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number >= 0, got {tolerance!r}")
    if not 0 < within <= 1:
        raise ValueError(f"within: expected a number above 0, at most 1, got {within!r}")
    image = _image(model, input_size, x, seed)
    start = image(0.0, (-1, -2))
    ndim = start.dim() - 2
    notes = list(_notes(model))
    swept = _angles(angles, ndim, notes)
    spatial_planes = [plane_axes("planes", plane, start.dim()) for plane in (planes if ndim > 1 else ())]
    if any(min(plane) < 2 for plane in spatial_planes):
        raise ValueError(f"planes: expected pairs of spatial axes, got {tuple(planes)}")

    group = symmetries(ndim)[1:]
    layers = leaves(model)
    with preserved(model) as put_back:
        put_back()
        expected, calls = recorded(model, start.clone(), layers)
        _expect_output(expected, start.shape[0], ndim)
        traces = [_Trace(call, start.shape[0], ndim) for call in calls]
        if tolerance is None:
            tensors = [start, expected, *(t for trace in traces for t in (*trace.tensors, trace.call.output))]
            tolerance = max(TOLERANCE.get(t.dtype, 0.0) for t in tensors if isinstance(t, Tensor))
        layout = FIRST if expected.dim() > 2 else NONE
        grid: dict[Symmetry, float] = {}
        for g in group:
            put_back()
            found, why = _attempt(lambda g=g: recorded(model, transformed(start, g, FIRST), layers), g)  # type: ignore[misc]
            y, seen = found or (None, [])
            grid[g] = math.inf if y is None else relative_error(y, transformed(expected, g, layout))
            if why:
                notes.append(f"under {g} the model fails: {why}")
            by_name = {call.name: call for call in seen}
            for trace in traces if found else ():
                trace.compare(g, by_name.get(trace.call.name))
        reports = tuple(trace.report(group, tolerance, put_back) for trace in traces)
        between = _between(model, traces, reports, worst_of(list(grid.values())), tolerance)
        by_angle = _sweep(model, image, swept, spatial_planes, within, put_back)
    return Report(
        type(model).__name__, tuple(start.shape), tolerance, grid, by_angle, within, reports, between, tuple(notes)
    )


def expect_model(model: Any) -> None:
    """A module whose parameters have shapes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: expected one that is not scripted, got a {type(model).__name__}")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise ValueError("model: expected one whose parameters have shapes, got a lazy one: call it once before")


_Image = Callable[[float, tuple[int, int]], Tensor]


def _image(model: nn.Module, input_size: Sequence[int] | None, x: Tensor | None, seed: int) -> _Image:
    """The input by angle and plane; at 0 degrees the input as it is."""
    if x is not None:
        expect_tensor("x", x)
        expect_floating("x", x)
        _expect_size("x", x.shape)
        if input_size is not None and tuple(input_size) != tuple(x.shape):
            raise ValueError(f"input_size: expected none beside x {tuple(x.shape)}, or the same, got {input_size}")
        given = x.detach()
        return lambda degrees, plane: rotate(given, degrees, plane) if degrees else given
    if input_size is None:
        raise TypeError("input_size: expected (B, C, *S), or x in its place, got neither")
    _expect_size("input_size", input_size)
    first = next((p for p in model.parameters() if p.dtype in TOLERANCE), torch.empty(0))
    expect_integer("seed", seed, 0)
    smooth = SmoothImage(tuple(input_size), seed)
    return lambda degrees, plane: smooth(degrees, plane).to(first.device, first.dtype)


def _expect_size(name: str, size: Sequence[int]) -> None:
    if not isinstance(size, Sequence) or not 3 <= len(size) <= 5:
        raise ValueError(f"{name}: expected sizes (B, C, *S) with 1 to 3 spatial axes, got {size!r}")
    for n in size:
        expect_integer(name, n, 1)


def _notes(model: nn.Module) -> Iterator[str]:
    for kinds, word in (
        (_BatchNorm, "normalising by the statistics of this batch"),
        (_DropoutNd, "drawing at random"),
    ):
        names = [name or "the model" for name, m in model.named_modules() if isinstance(m, kinds) and m.training]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            yield f"{shown} in training mode, {word}: for the model at inference, call model.eval() before"


def _angles(angles: Iterable[float] | None, ndim: int, notes: list[str]) -> tuple[float, ...]:
    if angles is None:
        if ndim == 1:
            return ()
        if importlib.util.find_spec("scipy") is None:
            notes.append("angles were left out: scipy is not installed")
            return ()
        return ANGLES
    chosen: tuple[Any, ...] = tuple(angles)
    if chosen and ndim == 1:
        raise ValueError(f"angles: expected none for an input with one spatial axis, got {chosen}")
    if not all(isinstance(angle, Real) and math.isfinite(angle) for angle in chosen):
        raise ValueError(f"angles: expected finite degrees, got {chosen}")
    if any(angle % 90 for angle in chosen):
        needed("scipy.ndimage")
    return chosen


def _expect_output(y: Any, batch: int, ndim: int) -> None:
    spatial = "*S'" if ndim > 1 else "L'"
    if not isinstance(y, Tensor):
        raise TypeError(f"model: expected it to return a tensor (B, C', {spatial}) or (B, F), got {type(y).__name__}")
    if y.dim() not in (2, ndim + 2) or y.shape[0] != batch or not y.is_floating_point():
        raise ValueError(
            f"model: expected a floating-point output ({batch}, C', {spatial}) or ({batch}, F), got {y.dtype} "
            f"{tuple(y.shape)}"
        )


def _sweep(
    model: nn.Module,
    image: _Image,
    angles: Sequence[float],
    planes: Sequence[tuple[int, int]],
    within: float,
    put_back: Callable[[], None],
) -> dict[float, float]:
    """Largest error over the planes, by angle."""

    def run(degrees: float, plane: tuple[int, int]) -> Tensor:
        x = image(degrees, plane)
        # cut after rotating: the edge of the cut is then the same pixels at every angle
        edge = ball(x.shape[2:], min(x.shape[2:]) / 2).to(x.device)
        put_back()
        return model(torch.where(edge, x, 0))

    if not angles:
        return {}
    y = run(0.0, planes[0])
    sizes = y.shape[2:]
    inside = ball(sizes, max(within * min(sizes) / 2, math.sqrt(len(sizes)) / 2)) if sizes else None
    errors = {}
    for angle in angles:
        by_plane = [
            relative_error(run(angle, plane), rotate(y, angle, plane) if sizes else y, inside) for plane in planes
        ]
        errors[angle] = worst_of(by_plane)
    return errors

"""What `check` finds, and how it is printed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .grid import Symmetry

__all__ = ["LayerReport", "Report", "exceeds", "number", "rank", "worst_of"]


@dataclass(frozen=True)
class LayerReport:
    """One call of one layer.

    Attributes:
        name: path in the model, with "(call 2)" and so on behind it where a layer is called more than once.
        kind: class of the layer.
        own: the layer alone, run on its recorded input: largest `||L(g in) - g L(in)|| / ||g L(in)||` over the
            symmetries g of the grid.  None: not measured, and `reason` says why.
        cumulative: the same of its output within the model, where g acts on the model's input.  None: no such output.
        reason: why `own` is above the tolerance, or why there is none; else "".
        worst: the symmetry of `own`, where that is above the tolerance.
    """

    name: str
    kind: str
    own: float | None
    cumulative: float | None
    reason: str = ""
    worst: Symmetry | None = None


@dataclass(frozen=True)
class Report:
    """What `check` found; `str(report)` is a table and one sentence per offending layer.

    Attributes:
        model: class of the model.
        size: of the input, (B, C, *S).
        tolerance: largest relative error that counts as rounding.
        grid: relative error under each symmetry of the grid but the identity.
        angles: relative error by degrees, the largest over the planes; empty where none was measured.
        within: the part of the output's inscribed disk (ball) that `angles` is measured in, by radius.
        layers: every call of every layer, in the order of the calls.
        between: a sentence where the error comes up between layers, in an operation that is no module.
        notes: what else to know: layers in training mode, measurements left out.
    """

    model: str
    size: tuple[int, ...]
    tolerance: float
    grid: Mapping[Symmetry, float]
    angles: Mapping[float, float]
    within: float
    layers: tuple[LayerReport, ...]
    between: str
    notes: tuple[str, ...]

    @property
    def equivariant(self) -> bool:
        """Whether the model commutes with every symmetry of the grid, within the tolerance."""
        return not any(exceeds(error, self.tolerance) for error in self.grid.values())

    @property
    def offending(self) -> tuple[LayerReport, ...]:
        """Layers whose own error is above the tolerance, or NaN."""
        return tuple(layer for layer in self.layers if exceeds(layer.own, self.tolerance))

    def __str__(self) -> str:
        verdict = "commutes" if self.equivariant else "does not commute"
        lines = [
            f"{self.model} on {self.size} {verdict} with the symmetries of the grid (tolerance {self.tolerance:.0e})",
            *self._grid_lines(),
            *self._angle_lines(),
            "",
            *self._layer_lines(),
        ]
        sentences = [
            f"{layer.name} ({layer.kind}): own error {number(layer.own)} under {layer.worst}: {layer.reason}."
            for layer in self.offending
        ]
        sentences += [self.between] if self.between else []
        sentences += [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, *([""] if sentences else []), *sentences])

    def _grid_lines(self) -> Iterator[str]:
        for word, turns in (("rotations", True), ("reflections", False)):
            errors = {g: error for g, error in self.grid.items() if g.is_rotation is turns}
            if errors:
                worst = max(errors, key=lambda g: rank(errors[g]))
                broken = sum(exceeds(error, self.tolerance) for error in errors.values())
                yield f"  {word}: {broken} of {len(errors)} broken, worst {number(errors[worst])} ({worst})"

    def _angle_lines(self) -> Iterator[str]:
        if not self.angles:
            return
        yield f"  by angle, within {self.within:g} of the inscribed disk's radius:"
        cells = [f"{angle:6g}: {number(error):>7}" for angle, error in self.angles.items()]
        for start in range(0, len(cells), 6):
            yield "  " + "  ".join(cells[start : start + 6])

    def _layer_lines(self) -> Iterator[str]:
        rows = [("layer", "kind", "own", "cumulative", "")]
        for layer in self.layers:
            mark = "<- offends" if exceeds(layer.own, self.tolerance) else layer.reason
            rows.append((layer.name, layer.kind, number(layer.own), number(layer.cumulative), mark))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for name, kind, own, cumulative, mark in rows:
            line = f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {own:>{widths[2]}}  {cumulative:>{widths[3]}}  {mark}"
            yield line.rstrip()


def exceeds(error: float | None, tolerance: float) -> bool:
    return error is not None and not error <= tolerance  # NaN exceeds


def rank(error: float) -> float:
    """For max(): NaN is the worst."""
    return math.inf if math.isnan(error) else error


def worst_of(errors: Sequence[float]) -> float:
    return max(errors, key=rank)


def number(error: float | None) -> str:
    return "-" if error is None else f"{error:.1e}"

"""Why a layer does not commute with a symmetry of the grid: rules on its options and its parameters.

Each rule looks at one thing and yields a sentence part where that thing breaks a symmetry; `explain` joins them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..nn.base import RadialConvNd
from .grid import Symmetry, relative_error, symmetries

__all__ = ["Situation", "explain", "is_convolution", "positional"]


@dataclass(frozen=True)
class Situation:
    """A layer and the tensors that it was called with."""

    layer: nn.Module
    sizes: tuple[int, ...]  # of the input, spatial
    out_sizes: tuple[int, ...]  # of the output, spatial; () for (B, F)
    channels_first: bool
    tolerance: float
    broken: frozenset[Symmetry]  # what the layer does not commute with

    @property
    def ndim(self) -> int:
        return len(self.sizes)

    @property
    def swaps_broken(self) -> bool:
        """Whether any symmetry that reorders axes is broken."""
        return any(g.order != tuple(range(self.ndim)) for g in self.broken)

    def along(self, findings: Iterable[tuple[int, str]]) -> Iterator[str]:
        """Findings by axis, each with a place "{axis}" in it, where its flip is broken; equal ones as one."""
        axes: dict[str, list[str]] = {}
        for axis, text in findings:
            flip = Symmetry(tuple(range(self.ndim)), tuple(a == axis for a in range(self.ndim)))
            if flip in self.broken:
                axes.setdefault(text, []).append(f"axis {axis - self.ndim}")
        for text, names in axes.items():
            yield text.replace("{axis}", " and ".join(names))

    def per_axis(self, name: str, default: Any = None) -> tuple[Any, ...] | None:
        """An option of the layer, one value per axis; None where it has none, or of another form."""
        value = getattr(self.layer, name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (value,) * self.ndim
        if isinstance(value, (tuple, list)) and len(value) == self.ndim:
            return tuple(value)
        return None


def explain(situation: Situation) -> str | None:
    """All that the rules find, or None."""
    found = [part for rule in RULES for part in rule(situation)]
    return "; ".join(found) or None


def is_convolution(layer: nn.Module) -> bool:
    """Whether the layer has a dense kernel that is known here."""
    return isinstance(layer, (_ConvNd, RadialConvNd))


def asymmetry(t: Tensor, ndim: int) -> float:
    """Largest relative difference from the images of the last axes under the symmetries that keep their sizes."""
    images = (g(t) for g in symmetries(ndim))
    return max(relative_error(image, t) for image in images if image.shape == t.shape)


RULE = "(N + 2p - dilation (k - 1) - 1) % stride"


# ---- kernels and windows ---------------------------------------------------------------------------------------------


def dense_kernel(s: Situation) -> Iterator[str]:
    if not isinstance(s.layer, (_ConvNd, RadialConvNd)):
        return
    kernel = s.layer.dense_kernel() if isinstance(s.layer, RadialConvNd) else s.layer.weight
    if not (difference := asymmetry(kernel, s.ndim)) <= s.tolerance:
        yield (
            f"its dense kernel {tuple(kernel.shape)} is not symmetric (its turned and mirrored images differ from it "
            f"by up to {difference:.1e}): use a radial convolution"
        )


def unequal_axes(s: Situation) -> Iterator[str]:
    for name in ("kernel_size", "stride", "dilation", "padding", "output_size", "size", "scale_factor"):
        values = s.per_axis(name)
        if values is not None and len(set(values)) > 1 and s.swaps_broken:
            yield f"{name} {values} differs between the axes, so that a turn by 90 degrees changes it"


def windows_that_do_not_fit(s: Situation) -> Iterator[str]:
    """Convolutions and pools whose windows start at the first pixel and do not end at the last."""
    kernel, dilation = s.per_axis("kernel_size"), s.per_axis("dilation", 1)
    if kernel is None or dilation is None or getattr(s.layer, "transposed", False) or not hasattr(s.layer, "stride"):
        return
    stride = kernel if s.layer.stride is None else s.per_axis("stride")
    words = {"valid": (0,) * s.ndim, "full": tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))}
    padding = words.get(str(getattr(s.layer, "padding", 0))) or s.per_axis("padding", 0)
    if stride is None or padding is None:  # "same" goes with stride 1 alone
        return
    ceil = ", which ceil_mode covers at the far end alone" if getattr(s.layer, "ceil_mode", False) else ""
    found = []
    for axis, (n, k, step, d, p) in enumerate(zip(s.sizes, kernel, stride, dilation, padding, strict=True)):
        if rest := (n + 2 * p - d * (k - 1) - 1) % step:
            numbers = f"({n} + {2 * p} - {d} * {k - 1} - 1) % {step} = {rest}, expected 0"
            found.append((axis, f"windows leave {rest} of {{axis}} over at the far end{ceil}: {RULE} = {numbers}"))
    yield from s.along(found)


def same_padding(s: Situation) -> Iterator[str]:
    kernel, dilation = s.per_axis("kernel_size"), s.per_axis("dilation", 1)
    if getattr(s.layer, "padding", None) != "same" or kernel is None or dilation is None:
        return
    totals = [(axis, k, d * (k - 1)) for axis, (k, d) in enumerate(zip(kernel, dilation, strict=True))]
    found = [
        (axis, f"padding 'same' with kernel size {k} adds {total // 2} before and {total - total // 2} after {{axis}}")
        for axis, k, total in totals
        if total % 2
    ]
    yield from s.along(found)


def explicit_padding(s: Situation) -> Iterator[str]:
    """Modules that pad and do nothing else: (before, after) per axis, the last axis first."""
    padding = getattr(s.layer, "padding", None)
    if hasattr(s.layer, "kernel_size") or not isinstance(padding, (tuple, list)) or len(padding) != 2 * s.ndim:
        return
    pairs = [(padding[2 * i], padding[2 * i + 1]) for i in reversed(range(s.ndim))]
    found = [(axis, f"pads {a} before and {b} after {{axis}}") for axis, (a, b) in enumerate(pairs) if a != b]
    yield from s.along(found)
    if len({before + after for before, after in pairs}) > 1:
        yield f"pads the axes differently, by {pairs}, so that a turn by 90 degrees changes it"


def output_padding(s: Situation) -> Iterator[str]:
    values = s.per_axis("output_padding")
    if getattr(s.layer, "transposed", False) and values is not None and any(values):
        yield f"output_padding {values} lengthens the output at the far end alone: choose a size that needs none"


def random_windows(s: Situation) -> Iterator[str]:
    if isinstance(s.layer, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        yield "draws its windows at random"


# ---- resampling ------------------------------------------------------------------------------------------------------


def resampling(s: Situation) -> Iterator[str]:
    layer = s.layer
    if not isinstance(layer, nn.Upsample) or not s.out_sizes:
        return
    factors = s.per_axis("scale_factor") or (None,) * s.ndim
    found = []
    for axis, (n, m, factor) in enumerate(zip(s.sizes, s.out_sizes, factors, strict=True)):
        sizes = f"from {n} to {m} pixels along {{axis}}"
        if layer.mode == "nearest" and m % n:
            found.append((axis, f"mode 'nearest' {sizes} rounds towards the first: use a whole factor or 'bilinear'"))
        elif layer.mode == "nearest-exact" and any((2 * i + 1) * n % (2 * m) == 0 for i in range(m)):
            found.append((axis, f"mode 'nearest-exact' {sizes} meets ties, and takes the later pixel"))
        elif factor is not None and factor * n != m and not (layer.align_corners or layer.recompute_scale_factor):
            cure = "use recompute_scale_factor=True"
            found.append((axis, f"scale_factor {factor:g} {sizes} counts positions from the first: {cure}"))
    yield from s.along(found)


def pixel_shuffle(s: Situation) -> Iterator[str]:
    if isinstance(s.layer, (nn.PixelShuffle, nn.PixelUnshuffle)):
        yield "keeps the position within each block in the order of the channels, which a symmetry does not reorder"


# ---- positions that are treated differently --------------------------------------------------------------------------


def flattening(s: Situation) -> Iterator[str]:
    if isinstance(s.layer, nn.Flatten) and not s.out_sizes and math.prod(s.sizes) > 1:
        positions = " x ".join(map(str, s.sizes))
        yield f"flattens {positions} positions into features that are no longer interchangeable: pool over them first"


def acting_along_one_axis(s: Situation) -> Iterator[str]:
    """Softmax and GLU along, a linear layer on, or a norm over some spatial axes and not the others."""
    layer = s.layer
    if not s.channels_first:
        return
    if isinstance(layer, nn.Linear):
        yield f"mixes the {s.sizes[-1]} positions along axis -1, each with weights of its own"
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and len(layer.normalized_shape) < s.ndim:
        axes = ", ".join(str(axis) for axis in range(-len(layer.normalized_shape), 0))
        yield f"normalises over axis {axes} alone, not over every spatial axis"
    elif isinstance(layer, (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU)) and isinstance(layer.dim, int):
        axis = layer.dim % (s.ndim + 2) - 2
        if axis >= 0 and (s.ndim > 1 or isinstance(layer, nn.GLU)):
            yield f"acts along axis {axis - s.ndim} alone"


def parameters_by_position(s: Situation) -> Iterator[str]:
    if not (is_convolution(s.layer) or isinstance(s.layer, (nn.Linear, _NormBase))):
        yield from positional(s.layer, s.sizes, s.tolerance, s.channels_first)


def positional(layer: nn.Module, sizes: Sequence[int], tolerance: float, channels_first: bool = True) -> Iterator[str]:
    """Parameters and buffers of the module itself that have a value per position, and are not symmetric."""
    ndim = len(sizes)
    # one axis may be channels as well as positions: only norms are known to mean the last ones
    least = 1 if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) else max(ndim, 2)
    for name, t in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if t.dim() < (least if channels_first else ndim + 1) or not t.is_floating_point():
            continue
        values = t.view((1,) * (ndim - t.dim()) + t.shape) if channels_first else t.movedim(-1, 0)
        last = values.shape[-ndim:]
        by_position = any(n > 1 for n in last) and all(n in (1, size) for n, size in zip(last, sizes, strict=True))
        # one value per row, the same for every column, may be symmetric under flips, but not under turns
        turns = len(set(last)) <= len(set(sizes))
        if by_position and not (turns and asymmetry(values, ndim) <= tolerance):
            yield f"`{name}` {tuple(t.shape)} has a value per position, which is not symmetric"


def drawn_per_pixel(s: Situation) -> Iterator[str]:
    if s.layer.training and isinstance(s.layer, (nn.Dropout, nn.AlphaDropout, nn.RReLU)):
        yield "draws at random for each pixel in training mode: call model.eval()"


RULES = (
    dense_kernel,
    unequal_axes,
    windows_that_do_not_fit,
    same_padding,
    explicit_padding,
    output_padding,
    random_windows,
    resampling,
    pixel_shuffle,
    flattening,
    acting_along_one_axis,
    parameters_by_position,
    drawn_per_pixel,
)

"""From a problem to launches: index arithmetic, tap tables, workspace, arguments.  Made once per problem, kept by it.

A plan knows everything but the tensors' addresses.  Running it allocates one workspace and launches:

    forward           prepare, convolve
    backward          weight_gradient (with the preparation of the next), convolve, finish

which makes five launches for a training step, sigma included, and the bias but for transposed convolutions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..geometry import OUTSIDE, Geometry
from ..problem import Core, RadialConvProblem
from ..profiles import SIGMA_MIN, SQRT_2PI, ring_centres, sigma_max
from . import configs, kernels, weights
from .configs import Config, Work
from .launch import INTERPRETED, Launch, card_of, multiprocessors

__all__ = ["INTERPRETED", "Backward", "Convolution"]

_FAMILY = {"gaussian": "gaussian", "banded": "banded", "binary": "identity", "shell": "identity", "custom": "custom"}
_POINTER = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_ROWS = 128  # weights that one program of prepare handles
_ALIGNMENT = 32  # words, of everything in a workspace


def _three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Spatial values as (depth, height, width)."""
    padded = (fill,) * (3 - len(values)) + tuple(values)
    return padded[0], padded[1], padded[2]


def _strides(t: Tensor) -> tuple[int, ...]:
    """Strides of (batch, channel, depth, height, width); 0 where there is just one element."""
    used = [s if n > 1 else 0 for n, s in zip(t.shape, t.stride(), strict=True)]
    return (*used[:2], *_three(used[2:], 0))


def _unit_axis(strides: Sequence[int]) -> str:
    """The axis along which elements are neighbours: channels, width, or none."""
    return "c" if strides[1] == 1 else "w" if strides[4] == 1 else "-"


def _span(t: Tensor, reach: Sequence[int]) -> int:
    """Largest offset within one image, with room for coordinates a kernel's reach outside."""
    return sum(2 * (n + r) * s for n, r, s in zip(t.shape[1:], (0, *reach), t.stride()[1:], strict=True))


def _round_up(words: int) -> int:
    return -(-words // _ALIGNMENT) * _ALIGNMENT


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


# --- tables on the device, shared by all problems with this geometry --------------------------------------------------
# Never given back: captured CUDA graphs know their addresses, and nobody else knows of the graphs.


def _taps(geometry: Geometry) -> list[list[tuple[int, ...]]]:
    """Tap indices (depth, height, width) of each bucket."""
    found: list[list[tuple[int, ...]]] = [[] for _ in range(geometry.buckets)]
    for tap, bucket in zip(
        itertools.product(range(geometry.kernel_size), repeat=geometry.ndim), geometry.bucket, strict=True
    ):
        if bucket != OUTSIDE:
            found[bucket].append(_three(tap, 0))
    return found


@lru_cache(maxsize=256)
def _static_taps(geometry: Geometry, dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and mask bits of each tap, four numbers in a row, and where each bucket begins."""
    flat: list[int] = []
    starts = [0]
    k = geometry.kernel_size
    for taps in _taps(geometry):
        for tap in taps:
            bits = sum(1 << (t + k * axis) for axis, t in enumerate(reversed(tap[3 - geometry.ndim :])))
            flat += [*(t * d for t, d in zip(tap, dilation, strict=True)), bits]
        starts.append(len(flat) // 4)
    return tuple(flat), tuple(starts)


@cache
def _tap_tables(
    geometry: Geometry,
    stride: tuple[int, ...],
    upsample: tuple[int, ...],
    dilation: tuple[int, ...],
    low: tuple[int, ...],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Offsets (taps, 3) of all residue classes, and where each bucket begins in them (classes, buckets + 1).

    Output `u * j + r` meets tap `t` at input `stride * j + (stride * r + dilation * t - low) / u`, where that is whole.
    """
    flat: list[tuple[int, ...]] = []
    starts: list[int] = []
    for residue in itertools.product(*map(range, upsample)):
        starts.append(len(flat))
        for taps in _taps(geometry):
            for tap in taps:
                virtual = [s * r + d * t - a for s, r, d, t, a in zip(stride, residue, dilation, tap, low, strict=True)]
                if all(v % u == 0 for v, u in zip(virtual, upsample, strict=True)):
                    flat.append(tuple(v // u for v, u in zip(virtual, upsample, strict=True)))
            starts.append(len(flat))
    starts += [len(flat)] * configs.MOST_LANES  # blocks of buckets may end behind the last bucket
    offsets = torch.tensor(flat or [(0, 0, 0)], dtype=torch.int32, device="cpu")
    return offsets.to(device), torch.tensor(starts, dtype=torch.int32, device="cpu").to(device)


@cache
def _profile_table(geometry: Geometry, rings: int, device: torch.device) -> Tensor:
    """What weights._profile reads."""
    radii = list(geometry.radii[: geometry.buckets])  # bands need none, but there is a place for them
    radii += [0.0] * (geometry.buckets - len(radii))
    counts = [float(max(len(taps), 1)) for taps in _taps(geometry)]
    limits = [SIGMA_MIN, sigma_max(rings), SQRT_2PI]
    values = [*radii, *counts, *limits, *ring_centres(geometry.kernel_size, rings)]
    return torch.tensor(values, dtype=torch.float64, device="cpu").to(device)


# --- what both kinds of launches have in common -----------------------------------------------------------------------


class _Gather:
    """One pass over a tensor by shells: who is gathered, at which coordinates, with which constants."""

    def __init__(
        self,
        problem: RadialConvProblem,
        core: Core,
        x: Tensor,  # gathered
        y: Tensor,  # at the other side
    ) -> None:
        o = problem.options
        geometry = o.geometry
        self.problem, self.core = problem, core
        self.groups, self.batch = o.groups, x.shape[0]
        self.channels, self.outputs = x.shape[1] // o.groups, y.shape[1] // o.groups
        # one lane an output channel where there is nothing, or next to nothing, to mix
        self.depthwise = self.channels <= 2 and self.outputs <= 8 and o.groups > 1 and o.groups * self.outputs >= 8
        self.lanes = self.outputs * (o.groups if self.depthwise else 1)  # output channels that share a block
        self.in_size, self.out_size = _three(core.in_size, 1), _three(core.out_size, 1)
        stride, dilation = _three(core.stride, 1), _three(core.dilation, 1)
        low = _three(core.low, 0)
        self.classes = _three(core.upsample, 1)
        self.x_strides, self.y_strides = _strides(x), _strides(y)
        wide = max(_span(x, o.reach), _span(y, o.reach)) >= 2**31
        self.index = tl.int64 if wide else tl.int32
        self.layout = _unit_axis(self.x_strides) + _unit_axis(self.y_strides)
        self.pairs = (
            # two float16 are taken apart in one more instruction, which pays where operands have to be rearranged
            (
                problem.dtype is torch.bfloat16
                or (problem.dtype is torch.float16 and configs.settles(card_of(problem.device)))
            )
            and x.data_ptr() % 4 == 0
            and self.x_strides[1] == 1
            and all(s % 2 == 0 for s in (self.x_strides[0], *self.x_strides[2:]))
            and (
                self.channels % 2 == 0 or (self.depthwise and self.channels == self.outputs == 1 and o.groups % 2 == 0)
            )
            and not (self.depthwise and self.channels * self.outputs > 1)
        )
        # what the kernels count in: words of two channels
        x_units = tuple(s // 2 if self.pairs and i != 1 else s for i, s in enumerate(self.x_strides))
        self.x_units = (*x_units[:4], tl.constexpr(x_units[4]))
        k = geometry.kernel_size
        self.may_be_static = (
            not core.wrap
            and math.prod(core.upsample) == 1
            and k * o.ndim <= configs.MOST_BITS
            and sum(b != OUTSIDE for b in geometry.bucket) <= configs.MOST_STATIC_TAPS
            # else the addresses of all channels fill the registers, of which the interpreter knows nothing
            and (self.x_strides[1] == 1 or self.channels * o.groups == 1 or INTERPRETED)
            and not (self.depthwise and self.channels > 1)  # whose masks don't change from chunk to chunk
        )
        self.device = problem.device
        self.stride, self.dilation, self.low = stride, dilation, low
        self.counts = tuple(-(-n // u) for n, u in zip(self.out_size, self.classes, strict=True))  # pixels of a class

    def work(self, kernel: str, functions: int, precision: str) -> Work:
        return Work(
            kernel=kernel,
            depthwise=self.depthwise,
            card=card_of(self.device),
            ndim=self.problem.options.ndim,
            unrolled=self.may_be_static,
            item=self.problem.dtype.itemsize,
            exact=self.problem.dtype is torch.float32 and precision == "ieee",
            functions=functions,
            buckets=self.problem.options.geometry.buckets,
            channels=self.channels,
            outputs=self.lanes,
        )

    def key(self, work: Work) -> str:
        """All that a measured time depends on but the card, as text."""
        o = self.problem.options
        values = asdict(work) | {
            "k": o.kernel_size, "rings": o.rings, "batch": self.batch, "groups": self.groups,
            "in": self.in_size, "out": self.out_size, "stride": self.stride, "upsample": self.classes,
            "dilation": self.dilation, "wrap": self.core.wrap, "dtype": str(self.problem.dtype).removeprefix("torch."),
            "layout": self.layout, "pairs": self.pairs, "index": self.index,
        }  # fmt: skip
        words = (",".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values.values())
        return " ".join(f"{name}={word}" for name, word in zip(values, words, strict=True))

    def tile(self, config: Config) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Shape of a tile, and how many there are along each axis."""
        reach = _three(self.problem.options.reach, 0)
        pixels = config.pixels
        if INTERPRETED:  # whose time goes by the elements, and which has no smallest size of a fast product
            pixels = max(16, min(pixels, _power_of_two(math.prod(self.counts))))
        shape = configs.tile_shape(pixels, self.counts, reach)
        return shape, tuple(-(-n // t) for n, t in zip(self.counts, shape, strict=True))

    def taps(self, static: bool) -> tuple[Any, ...]:
        """Tables (taps, starts), origin of coordinates, and the compile-time constants of every kernel that gathers."""
        geometry = self.problem.options.geometry
        if static:
            tables, origin = _no_tables(self.device), tuple(-a for a in self.low)
            taps, starts = _static_taps(geometry, self.dilation)
        else:
            tables = _tap_tables(geometry, self.stride, self.classes, self.dilation, self.low, self.device)
            origin, taps, starts = (0, 0, 0), None, None
        constants = (
            taps, starts, geometry.buckets, geometry.kernel_size, self.dilation, geometry.ndim, self.index,
            self.core.wrap, self.pairs, self.depthwise,
            not self.depthwise and configs.settles(card_of(self.device)),
        )  # fmt: skip
        return tables, origin, constants


@cache
def _no_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros(_ALIGNMENT, dtype=torch.int32, device="cpu").to(device)  # waited for: other streams read it
    return nothing, nothing


class _Fold:
    """Arguments of the folding of w for one direction."""

    def __init__(self, gather: _Gather, transpose: bool, combine: bool, copies: int, base: int) -> None:
        problem = gather.problem
        o = problem.options
        n, buckets = o.rings, o.geometry.buckets
        rows, columns = (gather.channels, gather.outputs) if transpose else (gather.outputs, gather.channels)
        row, column = columns * n, n
        self.rings, self.copies = n, copies
        self.w_strides = (rows * columns * n, column, row) if transpose else (rows * columns * n, row, column)
        total = rows * columns * o.groups
        functions = n if combine else buckets
        half = gather.problem.dtype in (torch.float16, torch.bfloat16) and not gather.depthwise
        self.dtype = _POINTER[problem.dtype] if half else tl.float32
        self.basis_at = base
        self.weights_at = base + _round_up(copies * n * buckets if combine else 0)
        self.end = self.weights_at + _round_up(functions * total // (2 if half else 1) + 1)
        self.programs = -(-total // _ROWS)
        self.constants = (
            _FAMILY[o.family], combine, self.dtype, _power_of_two(n), _power_of_two(buckets), _ROWS,
        )  # fmt: skip
        self.table = _profile_table(o.geometry, n, problem.device)
        self.channels, self.outputs = gather.channels, gather.outputs


class Convolution:
    """Preparation and convolution in one direction: the forward pass, or the gradient by its input."""

    def __init__(
        self,
        problem: RadialConvProblem,
        adjoint: bool,
        x: Tensor,
        y: Tensor,
        precision: str,
        bias: bool,
        base: int = 0,  # first free word of the workspace
        config: Config | None = None,
    ) -> None:
        o = problem.options
        core = problem.adjoint_core if adjoint else problem.core
        gather = _Gather(problem, core, x, y)
        n, buckets = o.rings, o.geometry.buckets
        work = gather.work("convolve", 1, precision)
        combine = not gather.depthwise and configs.combines(n, buckets, work.item, work.exact, work.card)
        self.work = gather.work("convolve", n if combine else 1, precision)
        self.key = gather.key(self.work)
        config = config or configs.default(self.work)
        shape, tiles = gather.tile(config)
        block_c = 1 if gather.depthwise else config.block_c
        self.fold = _Fold(gather, o.transposed != adjoint, combine, -(-gather.channels // block_c), base)
        self.words = self.fold.end
        static = gather.may_be_static and configs.chains(config, work, n if combine else buckets)
        self.tables, origin, constants = gather.taps(static)
        grid = (
            math.prod(tiles) * math.prod(gather.classes) * x.shape[0],
            -(-gather.lanes // config.block_o),
            1 if gather.depthwise else gather.groups,
        )
        self.convolve = Launch(
            kernels.convolve,
            grid,
            (
                gather.channels, self.fold.basis_at, self.fold.weights_at,
                *gather.in_size, *gather.out_size, *tiles, gather.stride, origin, gather.classes,
                gather.x_units, gather.y_strides,
                tuple(tl.constexpr(i) for i in range(n if combine else 1)), gather.outputs, gather.groups, combine,
                *constants, bias, precision, *shape, block_c, config.block_o,
            ),
            config,
        )  # fmt: skip
        f = self.fold
        self.prepare = Launch(
            weights.prepare,
            (f.programs, 1, 1),
            (
                f.basis_at,
                f.weights_at,
                n,
                f.channels,
                f.outputs,
                o.groups,
                f.w_strides,
                f.copies,
                *f.constants,
                buckets,
            ),
            configs.SMALL,
        )

    def run(self, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, y: Tensor) -> None:
        """Both launches."""
        self.run_prepared(x, bias, y, self.prepared(w, p))

    def prepared(self, w: Tensor, p: Tensor | None) -> Tensor:
        """A workspace, with the first launch."""
        ws = torch.empty(self.words, dtype=torch.int32, device=w.device)
        self.prepare(w, w if p is None else p, ws, self.fold.table)
        return ws

    def run_prepared(self, x: Tensor, bias: Tensor | None, y: Tensor, ws: Tensor) -> None:
        """The second launch, when the first has been done into this workspace."""
        self.convolve(x, y, ws if bias is None else bias, ws, *self.tables)


class _Sums:
    """The weight gradient's sums over pixels, and what ends them: gradients of w, sigma or the profile, and bias."""

    def __init__(
        self,
        problem: RadialConvProblem,
        x: Tensor,
        grad: Tensor,
        want_w: bool,
        want_p: bool,
        want_bias: bool,
        precision: str,
        config: Config | None = None,
    ) -> None:
        o = problem.options
        n, buckets = o.rings, o.geometry.buckets
        # the side that is not upsampled is gathered; w's rows belong to the other
        self.swapped = o.transposed
        gathered, other = (grad, x) if self.swapped else (x, grad)
        core = problem.core.adjoint(o.kernel_size) if self.swapped else problem.core
        gather = _Gather(problem, core, gathered, other)
        self.work = work = gather.work("weight_gradient", 1, precision)
        self.key = gather.key(work)
        config = config or configs.default(work)
        shape, tiles = gather.tile(config)
        lanes = configs.lanes(config, work)
        self.tables, origin, constants = gather.taps(gather.may_be_static and lanes == buckets)
        block_c = 1 if gather.depthwise else config.block_c
        blocks = (-(-gather.lanes // config.block_o), -(-gather.channels // block_c), -(-buckets // lanes))
        programs = math.prod(blocks) * (1 if gather.depthwise else gather.groups)
        tile_count = math.prod(tiles) * x.shape[0]
        rows = gather.outputs * gather.groups
        total = rows * gather.channels
        wanted = configs.splits(programs, tile_count, 4 * buckets * total, multiprocessors(problem.device))
        per_split = -(-tile_count // wanted)
        splits = -(-tile_count // per_split)  # without those that would be left with nothing
        finish_rows = configs.finish_rows(total, n, work.card)
        finishers = -(-total // finish_rows)
        self.bias = want_bias and not self.swapped  # else it would be a sum over the gathered side
        bias_at = _round_up(splits * buckets * total)
        partial_at = bias_at + _round_up(splits * rows if self.bias else 0)
        count_at = partial_at + _round_up(finishers * n * buckets if want_p else 0)
        self.words = count_at + _ALIGNMENT
        self._grid = splits * programs
        self._config = config
        self._before = (
            gather.channels, gather.outputs, gather.groups, 0, bias_at, count_at,
            *gather.in_size, *gather.out_size, *tiles, tile_count, per_split, gather.stride, origin,
            gather.x_units, gather.y_strides, blocks,
        )  # fmt: skip
        self._after = (*constants, self.bias, precision, *shape, block_c, config.block_o)
        self._lanes = tuple(tl.constexpr(j) for j in range(lanes))
        nd2 = _power_of_two(n * buckets)
        self.finish = Launch(
            weights.finish,
            (finishers, 1, 1),
            (
                0, bias_at, partial_at, count_at, n, total, rows, splits,
                _FAMILY[o.family], buckets, want_w, want_p, self.bias,
                _power_of_two(n), nd2, configs.FINISH_LOADS // finish_rows, finish_rows, max(1, 4096 // nd2),
            ),
            configs.finish(work.card),
        )  # fmt: skip
        self.no_fold = _Fold(gather, False, False, 1, 0)

    def launch(self, convolution: Convolution | None) -> Launch:
        """The sums, and the preparation of the convolution that follows, if one does."""
        fold = self.no_fold if convolution is None else convolution.fold
        programs = 0 if convolution is None else fold.programs
        folding = (fold.basis_at, fold.weights_at, fold.rings, fold.channels, fold.outputs, fold.w_strides, fold.copies)
        return Launch(
            kernels.weight_gradient,
            (programs + self._grid, 1, 1),
            (*self._before, programs, *folding, self._lanes, convolution is not None, *fold.constants, *self._after),
            self._config,
        )


class Backward:
    """Gradients by x, w, sigma or the profile, and bias, those that are wanted."""

    def __init__(
        self,
        problem: RadialConvProblem,
        x: Tensor,
        grad: Tensor,
        grad_x: Tensor | None,
        wanted: Sequence[bool],
        precision: str,
        sums: Config | None = None,
        convolve: Config | None = None,
    ) -> None:
        _, want_w, want_p, want_bias = wanted
        self.sums = self.convolution = None
        if want_w or want_p:
            self.sums = _Sums(problem, x, grad, want_w, want_p, want_bias, precision, sums)
        self.words = 0 if self.sums is None else self.sums.words
        if grad_x is not None:
            self.convolution = Convolution(problem, True, grad, grad_x, precision, False, self.words, convolve)
            self.words = self.convolution.words
        self.launch = None if self.sums is None else self.sums.launch(self.convolution)
        self.table = _profile_table(problem.options.geometry, problem.options.rings, problem.device)

    @property
    def makes_bias(self) -> bool:
        """Whether the bias gradient comes out of the same launches."""
        return self.sums is not None and self.sums.bias

    def workspace(self, x: Tensor) -> Tensor:
        """Room for what one launch leaves for the next."""
        return torch.empty(self.words, dtype=torch.int32, device=x.device)

    def run_sums(self, x: Tensor, grad: Tensor, w: Tensor, p: Tensor | None, ws: Tensor) -> None:
        """The first launch, where there are sums; writes nothing but the workspace."""
        gathered, other = (grad, x) if self.sums.swapped else (x, grad)
        self.launch(gathered, other, w, w if p is None else p, ws, *self.sums.tables, self.table)

    def run(
        self,
        x: Tensor,
        grad: Tensor,
        w: Tensor,
        p: Tensor | None,
        grad_x: Tensor | None,
        grad_w: Tensor | None,
        grad_p: Tensor | None,
        grad_bias: Tensor | None,
    ) -> None:
        """Up to three launches; each gradient that is not None is written."""
        ws = self.workspace(x)
        parameter = w if p is None else p
        if self.sums is not None:
            self.run_sums(x, grad, w, p, ws)
        elif self.convolution is not None:
            self.convolution.prepare(w, parameter, ws, self.table)
        if self.convolution is not None:
            self.convolution.run_prepared(grad, None, grad_x, ws)
        if self.sums is not None:
            outputs = (ws if t is None else t for t in (grad_w, grad_p, grad_bias))
            self.sums.finish(w, parameter, *outputs, ws, self.table)

"""Tile configurations as data, the resource model that prunes them, and the choice for one launch.

What limits a tile, in this order:

- Registers, 255 a thread.  Accumulators take pixels * block_o / threads, each of the n ring sums pixels * block_c /
  threads, and the loads in flight a few tens more.  Spilled sums cost more than anything that a larger tile saves.
- Work done twice: a block of outputs smaller than all of them sums the shells again for the next block, and a tile with
  a large rim reads its neighbours' pixels again.
- Shared memory holds one operand pair of one product at a time, 10 to 70 KB, and is never short.

`python -m benchmarks.resources` compiles every configuration and prints what it got.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import triton

__all__ = ["MOST_STATIC_TAPS", "Config", "Work", "candidates", "combines", "default", "splits", "tile_shape"]

MOST_STATIC_TAPS = 100  # unrolled code is about 50 KB there; more of it would not stay in the instruction caches
MOST_BITS = 31  # tap indices of all axes in one word, see shells.tap_bits
WORKSPACE = 64 * 2**20  # bytes for the sums of the weight gradient, but for one copy of them at least
MOST_LANES = 16
MOST_REGISTERS = 232  # of the model: 255 less what it can't see


@dataclass(frozen=True)
class Config:
    """Block sizes of one launch."""

    pixels: int  # of a tile
    block_c: int  # input channels at a time
    block_o: int  # output channels
    warps: int
    why: str = field(default="", compare=False)
    most_registers: int | None = None  # NVIDIA: cap for the compiler, where it would overshoot and spill a few

    @property
    def threads(self) -> int:
        return 32 * self.warps


@dataclass(frozen=True)
class Work:
    """What a choice depends on."""

    kernel: str  # "convolve" or "weight_gradient"
    depthwise: bool
    card: str  # "sm_90"; "interpreter"
    ndim: int
    unrolled: bool  # taps are constants
    item: int  # bytes of an element of x
    exact: bool  # float32 products without TF32
    functions: int  # ring sums that a program keeps, 1 when it keeps none
    buckets: int
    channels: int  # of a group
    outputs: int  # of a group; depthwise: of all groups


# The first that fits is the default until somebody's measurements say otherwise.
CONVOLVE = (
    Config(
        64,
        32,
        128,
        4,
        "16-byte loads of half types; two blocks a multiprocessor: one's sums beside the other's product",
    ),
    Config(64, 16, 128, 4, "the same for float32"),
    Config(64, 16, 128, 8, "ring sums and float32 products without matrix units: half the values a thread"),
    Config(128, 32, 128, 8, "weights read half as often, one block a multiprocessor"),
    Config(64, 32, 64, 4, "64 outputs or fewer"),
    Config(128, 32, 64, 4, "64 outputs or fewer, weights read half as often"),
    Config(64, 32, 32, 4, "32 outputs or fewer"),
    Config(64, 16, 64, 4, "the same in 3D"),
    Config(32, 16, 64, 4, "many rings, small images"),
    Config(16, 16, 32, 4, "whatever nothing else fits"),
)
DEPTHWISE = (
    Config(32, 1, 64, 8, "8 channels a thread: loads of 16 bytes, one mask for all of them"),
    Config(16, 1, 64, 4, "small images"),
    Config(32, 1, 32, 4, "few channels"),
)
WEIGHT_GRADIENT = (
    Config(128, 16, 128, 8, "shell sums over 16 channels meet all outputs at once, so they are made once"),
    Config(64, 16, 128, 8, "where operands are in registers: half of them in flight", 248),
    Config(128, 16, 64, 8, "64 outputs or fewer"),
    Config(64, 16, 64, 8, "the same where operands are in registers", 240),
    Config(64, 16, 32, 4, "32 outputs or fewer where operands are in registers", 248),
    Config(32, 16, 64, 8, "products without matrix units"),
)
DEPTHWISE_GRADIENT = (
    Config(32, 1, 64, 8, "8 pixel-channels a thread and bucket, summed over pixels once at the end"),
    Config(32, 1, 32, 4, "few channels"),
)
TABLES = {
    ("convolve", False): CONVOLVE,
    ("convolve", True): DEPTHWISE,
    ("weight_gradient", False): WEIGHT_GRADIENT,
    ("weight_gradient", True): DEPTHWISE_GRADIENT,
}
SMALL = Config(0, 0, 0, 4, "prepare and finish: a few vectors", 144)
ONE_WARP = Config(0, 0, 0, 1, "finish where a barrier doesn't wait for other warps' stores to global memory")
FINISH_LOADS = 4096  # sums that one program of finish reads at a time: rows * splits
# The interpreter's time is the number of programs times the number of operations, whatever their size.
INTERPRETER = {
    ("convolve", False): Config(1024, 32, 64, 4),
    ("convolve", True): Config(1024, 1, 32, 4),
    ("weight_gradient", False): Config(1024, 32, 64, 4),
    ("weight_gradient", True): Config(1024, 1, 32, 4),
}


def registers(config: Config, work: Work) -> int:
    """Estimate for one thread of what it must hold at once; 64 stand for addresses, masks and loads in flight."""
    tile = config.pixels * config.block_c / config.threads
    outputs = config.pixels * config.block_o / config.threads
    if work.kernel == "weight_gradient":
        sums = lanes(config, work) * _one_lane(config, work)
        return math.ceil(64 + sums + outputs * (work.item / 4 if not work.exact else 2) / 2 + 2 * tile)
    if work.depthwise:
        return math.ceil(64 + 3 * outputs)
    # products without matrix units keep rows and columns of both operands
    operands = 2 * (config.pixels + config.block_o) * config.block_c / config.threads if work.exact else 2 * tile
    if settles(work.card):
        operands += 4 * tile
    rings = 1.75 * work.functions * tile if work.functions > 1 else 2 * tile
    return math.ceil(64 + outputs + rings + operands * work.item / 4)


def shared_bytes(config: Config, work: Work) -> int:
    """Estimate: the operands of one product, and room to rearrange one of them."""
    if work.depthwise:
        return 4 * config.pixels * config.block_o
    first = config.pixels * config.block_c
    second = config.block_o * (config.pixels if work.kernel == "weight_gradient" else config.block_c)
    return work.item * (2 * first + second)


MOST_SHARED = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
}  # else 99 KB, the smallest of sm_8x, sm_12x


def _one_lane(config: Config, work: Work) -> float:
    """Registers of one bucket's sums."""
    return config.block_o * (config.pixels if work.depthwise else config.block_c) / config.threads


def lanes(config: Config, work: Work) -> int:
    """Buckets that one program of the weight gradient accumulates: all, or equal shares of at most what fits."""
    most = max(1, min(MOST_LANES, int((32 if work.exact else 128) // _one_lane(config, work))))
    return math.ceil(work.buckets / math.ceil(work.buckets / most))


def fits(config: Config, work: Work) -> bool:
    """Whether the model finds room for it."""
    if config.block_c > 16 and work.unrolled and (work.ndim == 3 or work.item == 4):
        return False  # addresses of 21 rows of taps, or two loads a tap: more than the loads in flight leave room for
    if settles(work.card) and work.unrolled and config.pixels * config.block_c > 1024 and not work.depthwise:
        return False  # operands are in registers too
    if work.kernel == "weight_gradient" and not work.unrolled and not work.depthwise and config.pixels > 64:
        return False  # addresses of every tap are made on the way
    if work.kernel == "weight_gradient" and config.block_o < 64 and not (settles(work.card) or work.depthwise):
        return False  # the matrix units of a warpgroup take 64 rows; fewer would go through registers
    if work.exact and work.kernel == "weight_gradient" and not work.depthwise and config.pixels > 32:
        return False  # products without matrix units hold operands of a whole tile
    return registers(config, work) <= MOST_REGISTERS and shared_bytes(config, work) <= MOST_SHARED.get(
        work.card, 99 * 1024
    )


def candidates(work: Work) -> list[Config]:
    """Configurations that fit, in order of preference; those with blocks far larger than the problem come last."""
    table = [c for c in TABLES[work.kernel, work.depthwise] if fits(c, work)]
    return sorted(table, key=lambda c: max(c.block_o // max(work.outputs, 32), 1))


@lru_cache(maxsize=1024)
def default(work: Work) -> Config:
    """The configuration for this work when nothing was measured."""
    if work.card == "interpreter":
        return INTERPRETER[work.kernel, work.depthwise]
    found = candidates(work)
    return found[0] if found else TABLES[work.kernel, work.depthwise][-1]


def combines(rings: int, buckets: int, item: int, exact: bool, card: str) -> bool:
    """Whether shells are combined to rings before the product, or meet weights that the profile was folded into.

    Combining costs rings * buckets multiply-adds a pixel and channel, and registers for all rings of a tile; not
    combining, (buckets - rings) * 2 * outputs operations on the matrix units, beside which the plain units go on.
    Counted in machine code at k = 9 and 11: 268 and 377 issue slots with, 224 and 321 without.  The matrix units keep
    up where they do 2 * outputs * buckets operations in that time (128 outputs, k = 9: 3328 in 224 slots), as they
    should for half types from sm_80 on and for TF32 from sm_90 on.
    """
    slow = exact or (item == 4 and card in ("sm_80", "sm_86", "sm_87", "sm_89"))
    return rings < buckets and slow


def settles(card: str) -> bool:
    """Whether operands of the matrix units are per-warp registers, which the compiler must be kept from summing in."""
    return card not in ("sm_90", "sm_100", "sm_103")


# Where accumulators live in tensor memory, 512 columns of it; before 3.8, Triton gives each product of a chain its own.
_TENSOR_MEMORY = ("sm_100", "sm_103")
_ONE_ACCUMULATOR = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8)


def chains(config: Config, work: Work, products: int) -> bool:
    """Whether so many unrolled products may add to one accumulator: copies of it and first operands have room."""
    if _ONE_ACCUMULATOR or work.card not in _TENSOR_MEMORY or work.depthwise or work.exact or config.pixels < 64:
        return True
    return 1.2 * products * config.pixels * config.block_o / 128 <= 512


def finish(card: str) -> Config:
    """Of `finish`, whose programs tell one another when their share is written: one warp knows that of itself."""
    return SMALL if card.startswith("sm_") else ONE_WARP


def finish_rows(total: int, rings: int, card: str) -> int:
    """Weights that one program of `finish` handles: 256 programs, whose shares of the profile the last one adds up."""
    if card == "interpreter":
        return 128
    wanted = 1 << (max(total // 256, 1) - 1).bit_length()
    return max(16, min(wanted, FINISH_LOADS // 2 >> rings.bit_length()))


def splits(programs: int, tiles: int, sums_bytes: int, multiprocessors: int) -> int:
    """Shares of the pixels: enough programs for four waves of one block, within the workspace."""
    wanted = math.ceil(4 * multiprocessors / programs)
    return max(1, min(wanted, tiles, WORKSPACE // max(sums_bytes, 1)))


@lru_cache(maxsize=1024)
def tile_shape(pixels: int, counts: Sequence[int], reach: Sequence[int]) -> tuple[int, int, int]:
    """Powers of two (depth, height, width) that make `pixels`, with the fewest pixels read for all tiles together."""
    exponents = range(pixels.bit_length())
    shapes = [
        (2**d, 2**h, pixels >> (d + h))
        for d, h in itertools.product(exponents, exponents)
        if d + h < pixels.bit_length()
    ]

    def read(shape: tuple[int, int, int]) -> tuple[int, int]:
        tiles = math.prod(-(-c // t) for c, t in zip(counts, shape, strict=True))
        return tiles * math.prod(t + r for t, r in zip(shape, reach, strict=True)), -shape[2]

    return min(
        (s for s in shapes if all(t == 1 or c > 1 for t, c in zip(s, counts, strict=True)) or s[2] == pixels), key=read
    )

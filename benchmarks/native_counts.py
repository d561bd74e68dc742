"""What one step of the native CUDA kernels executes, counted in their machine code.

A step is 128 pixels of one chunk of channels (16 halves or 8 floats), of a channels_last problem of typical size, in a
tile that lies inside the image.  Counted is the longest way through a loop, inner loops as often as they run.  Where
the code has versions, the one that runs is the one counted:

- copies of 16 bytes, of whole chunks of channels.  All pixels are inside the image: the store of zeros beside each copy
  of the halo is switched off by its predicate, and takes an issue slot, as a NOP.  Other instructions that a predicate
  switches off count in full;
- the convolution's product without branches with 128 outputs, and the one with branches, for 32 pixels by 64 outputs a
  warp, with 64;
- padding with zeros: circular padding divides by the image's sizes, so the way with the fewest divisions counts;
- no sums for the bias, which one of the weight gradient's blocks along the channels makes.

Not counted is what happens once per block: the convolution's table of the halo, the first copies, the way out, and
float16's second attempt.  The weight gradient makes tables for every tile, which are in its counts, where the chunks
that a block takes share them; so is what one thread does to place the next tile, for that thread's warp.

Counts are those of one warp, as if four of them did the step, so that `instructions / channels of a chunk` is the
number of issue slots that one pixel of one channel takes.  Rings and product of the convolution are four warps' work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .machine_code import Counts, Flow, Instruction, Loop, Numbers, Way, add

PIXELS, PIXEL_BYTES = 128, 32  # of a step; of a pixel in a chunk of channels
WARPS = 4  # that copy pixels together, and whose instructions make up a step
GRADIENT_WARPS = 8  # of the weight gradient that multiply
PART_PIXELS = 64  # that its warps hand over at a time

Kind = Callable[[Instruction], bool]


class NoWay(RuntimeError):
    """The machine code isn't what is counted here."""


@dataclass(frozen=True)
class Work:
    """What the planner decided about a typical problem: numbers of times that loops run."""

    k: int
    depth: int
    chunk: int  # channels
    exact: bool  # three matrix instructions multiply what else one does
    tile: tuple[int, int, int]
    block_outputs: int

    @property
    def copied(self) -> float:
        """Bytes a step, from global to shared memory."""
        raise NotImplementedError

    @property
    def products(self) -> int:
        return 3 if self.exact else 1

    @property
    def pixels(self) -> int:
        return math.prod(self.tile)

    @property
    def halo_plane(self) -> int:
        """Pixels that are copied at a time."""
        return math.prod(size + self.k - 1 for size in self.tile[1:])

    @property
    def halo(self) -> int:
        return self.halo_plane * self.depth


@dataclass(frozen=True)
class ConvWork(Work):
    halo_buffers: int
    weight_buffers: int

    @property
    def functions(self) -> int:
        return self.k // 2 + 1

    @property
    def weight_bytes(self) -> int:
        return self.functions * self.block_outputs * PIXEL_BYTES

    @property
    def wide(self) -> bool:
        return self.block_outputs > 64

    @property
    def copied(self) -> float:
        return self.halo * PIXEL_BYTES + self.weight_bytes


@dataclass(frozen=True)
class GradientWork(Work):
    chunks: int  # that a block takes, one after the other
    pixel_splits: int  # among how many warps the pixels of a part are

    @property
    def functions(self) -> int:
        """Shells: different distances of taps."""
        axes = [range(-(size // 2), size // 2 + 1) for size in (self.depth, self.k, self.k)]
        squares = {z * z + y * y + x * x for z in axes[0] for y in axes[1] for x in axes[2]}
        return sum(4 * square < self.k**2 for square in squares)

    @property
    def parts(self) -> int:
        return self.pixels // PART_PIXELS

    @property
    def busy(self) -> float:
        """Part of the warps that multiply: the others' outputs are beyond the block's."""
        ways = GRADIENT_WARPS // (self.chunk // 8)
        return min(1, self.block_outputs / ((16 if self.exact else 32) * ways // self.pixel_splits))

    @property
    def share(self) -> float:
        """Of a step: a tile and chunk."""
        return self.pixels / PIXELS

    @property
    def copied(self) -> float:
        item = PIXEL_BYTES // self.chunk  # the output's gradient is copied once for all chunks of a block
        return self.halo * PIXEL_BYTES / self.share + PIXELS * self.block_outputs * item / self.chunks


def is_copy(instruction: Instruction) -> bool:
    """Of 16 bytes, all of them: the vector loader's last chunk of channels, where it is partial, has ZFILL."""
    return instruction.name == "LDGSTS" and ".128" in instruction.opcode and "ZFILL" not in instruction.opcode


def is_any_copy(instruction: Instruction) -> bool:
    return instruction.name == "LDGSTS"


def is_commit(instruction: Instruction) -> bool:
    """Ends copies that are waited for together."""
    return instruction.name == "LDGDEPBAR"


def is_product(instruction: Instruction) -> bool:
    return instruction.name == "HMMA"


def is_guarded_product(instruction: Instruction) -> bool:
    return is_product(instruction) and instruction.guarded


def is_function(instruction: Instruction) -> bool:
    return instruction.name == "FFMA"


def is_sum(instruction: Instruction) -> bool:
    return instruction.name == "FADD"


def is_division(instruction: Instruction) -> bool:
    return instruction.name == "MUFU"


def is_shuffle(instruction: Instruction) -> bool:
    """Only sums for the bias end in these."""
    return instruction.name == "SHFL"


def is_entry(instruction: Instruction) -> bool:
    """Of a table; shell sums are stored by the same instruction."""
    return instruction.opcode == "STS"


def is_alone(instruction: Instruction) -> bool:
    """Of one thread, to place a tile: nothing else loads from global memory or stores 8 bytes."""
    return instruction.name == "LDG" or instruction.opcode == "STS.64"


def is_zeros(instruction: Instruction) -> bool:
    """For a pixel outside the image, instead of a copy: nothing else stores 16 bytes in the loops over steps."""
    return instruction.name == "STS" and ".128" in instruction.opcode


def is_off(instruction: Instruction) -> bool:
    return instruction.never or (is_zeros(instruction) and instruction.guarded)


def is_outside(instruction: Instruction) -> bool:
    return is_zeros(instruction) and not instruction.guarded


# ---- loops ----------------------------------------------------------------------------------------------------------


def innermost(flow: Flow, start: Loop, what: Kind, share: float) -> list[Loop]:
    """The innermost loop with more than a share of these instructions, and those around it, outermost first."""
    loops = [start]
    total = flow.count(start.blocks, what)
    while inner := [i for i in loops[-1].inner if flow.count(i.blocks, what) > share * total]:
        loops.append(inner[0])
    return loops


def copy_loop(flow: Flow, loop: Loop, goal: set[int], ahead: bool) -> Loop:
    """The loop over 16-byte copies, or the one over planes, ahead of the goal or behind it: for two buffers or one."""
    found = [
        inner
        for inner in loop.inner
        if flow.count(inner.blocks, is_copy) and ahead is not goal.isdisjoint(flow.reaches(loop, inner.blocks))
    ]
    if len(found) != 1:
        raise NoWay(f"{len(found)} loops copy {'ahead of' if ahead else 'behind'} the work, expected one")
    return found[0]


def whole_pass(flow: Flow, loop: Loop, inner: Mapping[int, Counts], without: Sequence[Kind] = ()) -> Counts:
    """The longest way through the loop that has none of these instructions outside of inner loops."""
    return flow.longest_pass(loop, inner, without)[(0,) * len(without)].counts()


def pick(ways: Mapping[Numbers, Way], wanted: Numbers) -> Way | None:
    """The longest of the ways whose numbers begin so and end, if they go on, with the fewest of the last kind."""
    fitting = [numbers for numbers in ways if numbers[: len(wanted)] == wanted]
    fewest = min((numbers[-1] for numbers in fitting), default=0)
    fitting = [numbers for numbers in fitting if numbers[-1] == fewest]
    return max((ways[numbers] for numbers in fitting), key=lambda way: way.length, default=None)


def ahead_of(unrolled: int, times: int) -> list[int]:
    """Passes that may be ahead of a loop that takes so many at once, the likeliest first."""
    return sorted(range(unrolled), key=lambda odd: (odd - times) % unrolled)


def copying_way(
    flow: Flow,
    loop: Loop,
    copies: Sequence[Loop],
    times: int,
    inner: Mapping[int, Counts],
    keys: Sequence[Kind],
    wanted: Numbers,
) -> Counts | None:
    """One pass of a loop that copies so many times, by one of these inner loops, and stores no zeros: of these ways,
    what `pick` takes."""
    unrolled = {flow.count(each.blocks, is_copy) for each in copies}
    if len(unrolled) != 1:
        raise NoWay(f"loops copy {unrolled} times a pass, expected the same number in all")
    (size,) = unrolled
    bodies = {each.head: whole_pass(flow, each, {}) for each in copies}
    for odd in ahead_of(size, times):
        passes = math.ceil((times - odd) / size)
        copied = {head: add(Counter(), body, passes) for head, body in bodies.items()}
        ways = flow.longest_pass(loop, {**inner, **copied}, (is_copy, is_outside, *keys))
        way = pick(ways, (odd, 0, *wanted))
        if way is not None and sum(n for opcode, n in way.counts().items() if "LDGSTS" in opcode) >= times:
            return way.counts()
    return None


def copies_of(warp: int, size: int) -> int:
    """Times that one of the four warps copies 16 bytes a lane."""
    return max(0, math.ceil((size - 512 * warp) / (512 * WARPS)))


def copying_pass(
    flow: Flow,
    loop: Loop,
    copies: Loop,
    size: int,
    inner: Mapping[int, Counts],
    commits: int = 1,
    products: int = 0,
) -> Counts:
    """One pass of a loop that copies `size` bytes, averaged over the four warps that do it: of the ways that commit
    copies so often, and have so many matrix instructions outside of inner loops."""
    result: Counts = Counter()
    for warp in range(WARPS):
        times = copies_of(warp, size)
        way = copying_way(flow, loop, [copies], times, inner, (is_commit, is_product), (commits, products))
        if way is None:
            raise NoWay(f"no way through a loop copies {times} times")
        result = add(result, way, 1 / WARPS)
    return result


def check_products(counts: Counts, expected: float) -> None:
    products = sum(n for opcode, n in counts.items() if opcode.startswith("HMMA"))
    if not math.isclose(products, expected):
        raise NoWay(f"{products} matrix instructions a step, expected {expected}")


# ---- convolution ----------------------------------------------------------------------------------------------------


def conv_rings(flow: Flow, work: ConvWork) -> Counts:
    """Instructions of a warp that gathers: in 3D, the steps of one chunk, each stage once, everything else of the loop
    once per step."""
    *_, around, loop = innermost(flow, flow.whole, is_function, 0.5)
    stages = {b for b in loop.blocks if flow.count([b], is_function)}
    copies = copy_loop(flow, loop, stages, work.halo_buffers == 2)
    size = work.halo_plane * PIXEL_BYTES
    if work.depth == 1:
        return copying_pass(flow, loop, copies, size, {})
    each = copy_loop(flow, copies, set(), False)
    planes = add(Counter(), copying_pass(flow, copies, each, size, {}, commits=0), work.depth)
    steps = work.depth // 2 + 1
    ways = flow.longest_pass(loop, {copies.head: planes}, (is_commit,), lambda b: 1 if b in stages else steps)
    return whole_pass(flow, around, {loop.head: ways[1,].counts()})


def is_whole(flow: Flow, loop: Loop) -> bool:
    """Of the two loops over functions, the one for 64 pixels by 64 outputs a warp, which asks nothing."""
    products = flow.count(loop.blocks, is_product)
    return {*flow.longest_pass(loop, {}, (is_product, is_guarded_product))} == {(products, 0)}


def conv_product(flow: Flow, work: ConvWork) -> Counts:
    """Instructions of a warp that multiplies."""
    loop = innermost(flow, flow.whole, is_product, 0.99)[-1]
    stages = {b for b in loop.blocks if flow.count([b], is_product)}
    copies = copy_loop(flow, loop, stages, work.weight_buffers == 2)
    each = (32 if work.wide else 16) * work.products  # matrix instructions of a function
    found = [i for i in loop.inner if flow.count(i.blocks, is_product) and is_whole(flow, i) is work.wide]
    if len(found) > 1:
        raise NoWay(f"{len(found)} loops multiply, expected one at most")
    # The first functions may be done ahead of the loop, or all of them without one.
    looped = {b for i in loop.inner for b in i.blocks}
    ahead = flow.count(stages - looped, is_product) if work.wide else 0
    inner: dict[int, Counts] = {}
    if found:
        unrolled = flow.count(found[0].blocks, is_product) if work.wide else each
        body = flow.longest_pass(found[0], {}, (is_product,))[unrolled,].counts()
        inner[found[0].head] = add(Counter(), body, (each * work.functions - ahead) / unrolled)
    result = copying_pass(flow, loop, copies, work.weight_bytes, inner, products=ahead)
    check_products(result, each * work.functions)
    return result


# ---- weight gradient ------------------------------------------------------------------------------------------------


def planes_and_copies(flow: Flow, loop: Loop) -> tuple[list[Loop], list[Loop]]:
    """Inner loops over copies by way of a loop over planes or outputs, and those that copy themselves."""
    copies = [inner for inner in loop.inner if flow.count(inner.blocks, is_copy)]
    return [inner for inner in copies if inner.inner], [inner for inner in copies if not inner.inner]


def gradient_rings(flow: Flow, work: GradientWork) -> Counts:
    """Instructions of a warp that gathers: the loop over chunks, whose last pass makes the next tile's table."""
    apart = [loop for loop in flow.whole.inner if not flow.count(loop.blocks, is_product)]
    start = max(apart, key=lambda loop: flow.count(loop.blocks, is_sum))
    *_, around, loop = innermost(flow, start, is_sum, 0.5)
    planes, copies = planes_and_copies(flow, loop)
    others = (is_any_copy, is_alone)  # of the loaders by words and by elements
    tables = [
        inner
        for inner in loop.inner
        if flow.count(inner.blocks, is_entry) and not any(flow.count(inner.blocks, kind) for kind in others)
    ]
    size, steps = work.halo_plane * PIXEL_BYTES, work.depth // 2 + 1
    inner: dict[int, Counts] = {}
    for each in planes:
        (direct,) = planes_and_copies(flow, each)[1]
        inner[each.head] = add(Counter(), copying_pass(flow, each, direct, size, {}, commits=0), 2)
    unrolled = flow.count(tables[0].blocks, is_entry)
    row = pick(flow.longest_pass(tables[0], {}, (is_entry, is_division)), (unrolled,))
    if len(tables) != 1 or row is None:
        raise NoWay(f"{len(tables)} loops make tables, expected one")

    keys = (is_commit, is_alone, is_entry, is_division)
    stored = work.functions * work.tile[1]  # shells of a thread's column
    own = loop.blocks.difference(*(each.blocks for each in loop.inner))
    places = [b for b in own if flow.count([b], is_alone)]
    placing = flow.count(places, is_alone), stored + flow.count(places, is_entry)

    def way(warp: int, table: Mapping[int, Counts], *wanted: int) -> Counts | None:
        times = copies_of(warp, size)
        return copying_way(flow, loop, copies, times, {**inner, **table}, keys, (steps, *wanted))

    result: Counts = Counter()
    for warp in range(WARPS):
        passes = [way(warp, {}, 0, stored)] * (work.chunks - 1)
        entries = math.ceil((work.halo - 32 * warp) / (32 * WARPS))
        for odd in ahead_of(unrolled, entries):
            table = {tables[0].head: add(Counter(), row.counts(), math.ceil((entries - odd) / unrolled))}
            alone, entered = placing if warp == 0 else (0, stored)
            last = way(warp, table, alone, entered + odd)
            if last is not None:
                break
        for each_pass in (*passes, last):
            if each_pass is None:
                raise NoWay(f"no way through the loop over chunks of warp {warp}")
            result = add(result, each_pass, 1 / WARPS)
    result = whole_pass(flow, around, {loop.head: result})
    return add(Counter(), result, 1 / (work.chunks * work.share))


def multiplying_pass(
    flow: Flow, loop: Loop, steps: int, inner: Mapping[int, Counts], work: GradientWork, makes_table: bool
) -> Counts:
    """One pass of a loop over parts or tiles, averaged over the eight warps: each thread of the first ones makes an
    entry of the next tile's table, or none."""
    products = {
        each.head: add(Counter(), whole_pass(flow, each, {}), steps)
        for each in loop.inner
        if flow.count(each.blocks, is_product) and each.head not in inner
    }
    makers = work.pixels // 32 if makes_table else 0
    result: Counts = Counter()
    for warps, without in (
        (min(makers, 1), ()),
        (max(makers - 1, 0), (is_alone,)),
        (GRADIENT_WARPS - makers, (is_alone, is_entry)),
    ):
        for loops, share in (({**inner, **products}, work.busy), (inner, 1 - work.busy)):
            if warps * share > 0:
                way = whole_pass(flow, loop, loops, (is_shuffle, *without))
                result = add(result, way, share * warps / GRADIENT_WARPS)
    return result


def gradient_product(flow: Flow, work: GradientWork) -> Counts:
    """Instructions of the warps that multiply, two of which make up one."""
    item = PIXEL_BYTES // work.chunk
    pixels = PIXEL_BYTES // item  # of a matrix instruction
    steps = PART_PIXELS // pixels // work.pixel_splits
    # Loops with all products: (float16's attempts), tiles, (parts, where there are two, and a part's pixels, where
    # there is one chunk).
    loops = innermost(flow, flow.whole, is_product, 0.99)
    tiles = loops[-1 if work.chunks > 1 else -1 - work.parts]
    parts = tiles.inner if work.parts > 1 else [tiles]
    copied: dict[int, Counts] = {}
    for loop in parts:
        for each in planes_and_copies(flow, loop)[1]:
            once = flow.longest_pass(each, {}, (is_copy, is_outside)).get((1, 0))
            if once is None:
                raise NoWay("no way through the loop over outputs copies once")
            copied[each.head] = add(Counter(), once.counts(), math.ceil(work.block_outputs / (2 * work.chunk)))
    if len(copied) != 1:
        raise NoWay(f"{len(copied)} loops copy the output's gradient, expected one")
    inner = copied
    if work.parts > 1:
        inner = {}
        for loop in parts:
            first = flow.count(loop.blocks, is_commit) > 0
            once = multiplying_pass(flow, loop, steps, copied, work, makes_table=first)
            again = multiplying_pass(flow, loop, steps, copied, work, makes_table=False)
            inner[loop.head] = add(once, again, work.parts - 1)
    result = multiplying_pass(flow, tiles, steps, inner, work, makes_table=work.parts == 1)
    result = add(Counter(), result, GRADIENT_WARPS / WARPS / (work.chunks * work.share))
    of_outputs, of_pixels = work.block_outputs / 16, PIXELS / pixels
    check_products(result, of_outputs * of_pixels * work.chunk / 8 * work.functions * work.products / WARPS)
    return result

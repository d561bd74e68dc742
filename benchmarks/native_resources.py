"""What the native CUDA kernels compile to, read out of the installed library; no GPU, no compiler.

Counted is what one step of a convolution executes: 128 pixels of one chunk of channels (16 halves or 8 floats), for a
channels_last problem of typical size, whose tile lies inside the image.  The ring stage: the longest way through the
loop over steps, with the vector loader's copies as often as the halo needs them (in 3D, the steps of one chunk: each
stage once, everything else of the loop once per step).  The product: the same, with its loop over functions and its
copies of weights.  Both are run by four warps, so that `instructions / channels of a chunk` is the number of issue
slots that one pixel of one channel takes.

Where the code has versions, the one counted is the one that runs: copies of whole chunks of channels; the product
without branches with 128 outputs, and the one with branches, for 32 pixels by 64 outputs a warp, with 64.  All pixels
are inside the image: the store of zeros beside each copy of the halo is switched off by its predicate, takes an issue
slot, as a NOP, and no time of the shared memory.  Other instructions that a predicate switches off count in full.

Not counted: what happens once per block (the table of the halo, the first copies, the way out), partly empty tiles,
float16's second attempt.  The kernel of any size loops over tables: it has no counts.  Neither has the preparation,
whose shared memory, a few hundred bytes, isn't in its row.

What each unit is taken to do in a clock of a multiprocessor is in CARDS and SHARED; nothing waits for anything, and no
shared memory bank is hit twice.  The bound is the busiest unit's time: a prediction under these assumptions, and no
measurement.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine_code import Counts, Flow, Instruction, Loop, add, functions, instructions, names, tool
from .triton_resources import MOST_SHARED, MOST_WARPS, REGISTERS, Problem, radial_problem

THREADS, PREP_THREADS = 384, 256
PIXELS, PIXEL_BYTES = 128, 32  # of a block; of a pixel in a chunk of channels
WARPS = 4  # that gather a step's rings, and that multiply them
FP32 = ("FFMA", "FADD", "FMUL", "HADD2", "HFMA2", "HMUL2", "IMAD")  # conversions from float16 are HADD2.F32
INTEGER = (
    "LOP3", "SHF", "IADD3", "LEA", "PRMT", "SEL", "FSEL", "ISETP", "FSETP", "PLOP3", "VIADD", "IMNMX", "VIMNMX",
    "VIADDMNMX", "FMNMX", "IABS", "MOV", "F2FP", "F2F", "P2R", "R2P",
)  # fmt: skip

# Clocks of the shared memory's 128 bytes for an instruction of a warp, all lanes with data of their own.  LDS.128 is
# the exception: it only loads basis values here, the same for all lanes, which takes 2 (forums.developer.nvidia.com,
# "Unexpected shared memory bank conflict"), as the way back is 128 bytes wide too.
SHARED = {"LDS": 1, "LDS.64": 1, "LDS.128": 2, "LDSM": 4, "STS": 1, "STS.64": 2, "STS.128": 4, "LDGSTS": 4}


@dataclass(frozen=True)
class Card:
    """A card, and what its multiprocessors do in a clock: instructions of warps, and FLOP on the matrix units."""

    name: str
    multiprocessors: int
    clock: float  # Hz; the H200's without boost, which is 1.98e9
    issue: int
    fp32: int
    integer: int
    half: float
    tf32: float


# On sm_90, mma.sync is taken to reach 390 TFLOP/s with halves, as the fastest published kernels that use it do.
CARDS = {
    80: Card("A100", 108, 1.41e9, 4, 2, 2, 2048, 1024),
    90: Card("H200", 132, 1.755e9, 4, 4, 2, 390e12 / 132 / 1.755e9, 195e12 / 132 / 1.755e9),
}
DENSE_CARD, DENSE = "H200", 650e12  # FLOP/s of a dense 2D convolution of halves

_KERNEL = re.compile(r"4convINS\w*?_\d+(BFloat16|Float16|TF32)ELi(\d+)ELi(\d+)EEE")
_DTYPES = {"BFloat16": "bfloat16", "Float16": "float16", "TF32": "tf32"}


def library() -> Path | None:
    """The installed library, or None if it has no CUDA kernels."""
    from radconv_ext.build_info import build_info, native

    c = native()
    return Path(c.__file__) if c is not None and c.__file__ and build_info()["cuda"]["built"] else None


def contents(path: Path) -> tuple[list[int], list[int]]:
    """Targets of the machine code and of the PTX in a library."""

    def targets(listing: str) -> list[int]:
        return sorted({int(found) for found in re.findall(r"\.sm_(\d+)[af]?\.", listing)})

    return targets(tool("cuobjdump", "-lelf", str(path))), targets(tool("cuobjdump", "-lptx", str(path)))


# ---- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What the planner decided about a typical problem: numbers of times that loops run."""

    k: int
    depth: int
    halo_bytes: int  # of a plane
    weight_bytes: int  # of a step
    halo_buffers: int
    weight_buffers: int
    block_outputs: int
    chunk: int  # channels

    @property
    def functions(self) -> int:
        return self.k // 2 + 1

    @property
    def wide(self) -> bool:
        return self.block_outputs > 64


def is_copy(instruction: Instruction) -> bool:
    """Of 16 bytes, all of them: the vector loader's last chunk of channels, where it is partial, has ZFILL."""
    return instruction.name == "LDGSTS" and ".128" in instruction.opcode and "ZFILL" not in instruction.opcode


def is_commit(instruction: Instruction) -> bool:
    """Ends the copies for a step."""
    return instruction.name == "LDGDEPBAR"


def is_product(instruction: Instruction) -> bool:
    return instruction.name == "HMMA"


def is_sum(instruction: Instruction) -> bool:
    return instruction.name == "FFMA"


def is_zeros(instruction: Instruction) -> bool:
    """For a pixel outside the image, instead of a copy: nothing else stores 16 bytes in the loops over steps."""
    return instruction.name == "STS" and ".128" in instruction.opcode


def is_off(instruction: Instruction) -> bool:
    return instruction.never or (is_zeros(instruction) and instruction.guarded)


def is_outside(instruction: Instruction) -> bool:
    return is_zeros(instruction) and not instruction.guarded


def innermost(flow: Flow, what: Callable[[Instruction], bool], share: float) -> tuple[Loop, Loop]:
    """The innermost loop with more than a share of these instructions, and the loop around it."""
    around = loop = flow.whole
    while inner := [i for i in loop.inner if flow.count(i.blocks, what) > share * flow.count(flow.whole.blocks, what)]:
        around, loop = loop, inner[0]
    return loop, around


def copy_loop(flow: Flow, loop: Loop, goal: set[int], ahead: bool) -> Loop:
    """The loop over 16-byte copies, or the one over planes, ahead of the goal or behind it: for two buffers or one."""
    found = [
        inner
        for inner in loop.inner
        if flow.count(inner.blocks, is_copy) and ahead is not goal.isdisjoint(flow.reaches(loop, inner.blocks))
    ]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} loops copy {'ahead of' if ahead else 'behind'} the work, expected one")
    return found[0]


def copying_pass(
    flow: Flow,
    loop: Loop,
    copies: Loop,
    size: int,
    inner: Mapping[int, Counts],
    commits: int = 1,
    products: int = 0,
) -> Counts:
    """One pass of a loop that copies `size` bytes, averaged over the four warps that do it: of the ways that store no
    zeros, commit copies so often, and have so many matrix instructions outside of inner loops."""
    result: Counts = Counter()
    body = max(flow.longest_pass(copies, {}).values(), key=Counter.total)
    unrolled = flow.count(copies.blocks, is_copy)
    for warp in range(WARPS):
        count = max(0, math.ceil((size - 512 * warp) / (512 * WARPS)))
        for odd in sorted(range(unrolled), key=lambda n: (n - count) % unrolled):  # copies ahead of an unrolled loop
            passes = add(Counter(), body, math.ceil((count - odd) / unrolled))
            ways = flow.longest_pass(loop, {**inner, copies.head: passes}, (is_copy, is_outside, is_commit, is_product))
            way = ways.get((odd, 0, commits, products), Counter())
            if sum(n for opcode, n in way.items() if "LDGSTS" in opcode) >= count:
                result = add(result, way, 1 / WARPS)
                break
        else:
            raise RuntimeError(f"no way through a loop copies {count} times")
    return result


def ring_stage(flow: Flow, work: Work) -> Counts:
    """Instructions of a warp that gathers, per step."""
    loop, around = innermost(flow, is_sum, 0.5)
    stages = {b for b in loop.blocks if flow.count([b], is_sum)}
    copies = copy_loop(flow, loop, stages, work.halo_buffers == 2)
    if work.depth == 1:
        return copying_pass(flow, loop, copies, work.halo_bytes, {})
    each = copy_loop(flow, copies, set(), False)
    planes = add(Counter(), copying_pass(flow, copies, each, work.halo_bytes, {}, commits=0), work.depth)
    steps = work.depth // 2 + 1
    ways = flow.longest_pass(loop, {copies.head: planes}, (is_commit,), lambda b: 1 if b in stages else steps)
    return flow.longest_pass(around, {loop.head: ways[1,]})[()]


def is_whole(flow: Flow, loop: Loop) -> bool:
    """Of the two loops over functions, the one for 64 pixels by 64 outputs a warp, which asks nothing."""
    return len(loop.blocks) == 1 and not any(is_product(i) and i.guarded for b in loop.blocks for i in flow.blocks[b])


def product(flow: Flow, work: Work) -> Counts:
    """Instructions of a warp that multiplies, per step."""
    loop = innermost(flow, is_product, 0.99)[0]
    stages = {b for b in loop.blocks if flow.count([b], is_product)}
    copies = copy_loop(flow, loop, stages, work.weight_buffers == 2)
    each = 32 if work.wide else 16  # matrix instructions of a function
    found = [i for i in loop.inner if flow.count(i.blocks, is_product) and is_whole(flow, i) is work.wide]
    if len(found) > 1:
        raise RuntimeError(f"{len(found)} loops multiply, expected one at most")
    # The first functions may be done ahead of the loop, or all of them without one.
    looped = {b for i in loop.inner for b in i.blocks}
    ahead = flow.count(stages - looped, is_product) if work.wide else 0
    inner: dict[int, Counts] = {}
    if found:
        unrolled = flow.count(found[0].blocks, is_product) if work.wide else each
        body = flow.longest_pass(found[0], {}, (is_product,))[unrolled,]
        inner[found[0].head] = add(Counter(), body, (each * work.functions - ahead) / unrolled)
    result = copying_pass(flow, loop, copies, work.weight_bytes, inner, products=ahead)
    products = sum(n for opcode, n in result.items() if opcode.startswith("HMMA"))
    if products != each * work.functions:
        raise RuntimeError(f"{products} matrix instructions a step, expected {each * work.functions}")
    return result


# ---- bounds ---------------------------------------------------------------------------------------------------------


def clocks(card: Card, work: Work, counts: Counts, tf32: bool) -> dict[str, float]:
    """Clocks of a multiprocessor that a pixel of a channel keeps each unit busy."""

    def take(rates: Callable[[str], float]) -> float:
        warp_clocks = sum(n * rates(opcode) for opcode, n in counts.items())
        return WARPS * warp_clocks / (PIXELS * work.chunk)

    def name(opcode: str) -> str:
        return opcode.partition(".")[0]

    flop, rate = (2048, card.tf32) if tf32 else (4096, card.half)
    return {
        "issue": take(lambda opcode: 1 / card.issue),
        "fp32": take(lambda opcode: (name(opcode) in FP32) / card.fp32),
        "integer": take(lambda opcode: (name(opcode) in INTEGER) / card.integer),
        "shared": take(shared_clocks),
        "matrix": take(lambda opcode: (name(opcode) == "HMMA") * flop / rate),
    }


def shown(opcode: str) -> str:
    """Opcode as a report names it: loads of shared memory by their width, others without modifiers."""
    width = re.search(r"\.(64|128)\b", opcode)
    name = opcode.partition(".")[0]
    return f"{name}.{width.group(1)}" if width is not None and name in ("LDS", "STS") else name


def shared_clocks(opcode: str) -> float:
    return SHARED.get(shown(opcode), 0)


# ---- rows -----------------------------------------------------------------------------------------------------------


def typical(k: int, depth: int, dtype: str) -> Problem:
    """A problem that this kernel serves."""
    dtype = "float32" if dtype == "tf32" else dtype
    if k == 0:
        return Problem("2d-k9-stride-2", 9, dtype=dtype, options=(("stride", 2),))
    if depth > 1:
        return Problem(f"3d-k{k}", k, dtype=dtype, size=(32, 32, 32), batch=2, channels=64, outputs=64)
    return Problem(f"2d-k{k}", k, dtype=dtype)


def plan(problem: Problem, most_shared: int) -> dict[str, Any]:
    """What the planner decides about it."""
    from radconv_ext.build_info import native
    from radconv_ext.engines.native import conv_shape, reads_transposed, ring_model

    c: Any = native()
    radial = radial_problem(problem)
    return c.CudaPlan(
        model=ring_model(c, radial.options),
        shape=conv_shape(c, radial, False),
        transpose=reads_transposed(radial, False),
        exact=problem.precision == "ieee",
        x_strides=radial.x_strides,
        channels_last=radial.channels_last,
        device=0,
        card=(most_shared, CARDS[80].multiprocessors),
    ).facts()


def work_of(k: int, depth: int, dtype: str, facts: dict[str, Any]) -> Work:
    side = [size + k - 1 for size in facts["tile"][1:]]
    return Work(
        k=k,
        depth=depth,
        halo_bytes=math.prod(side) * PIXEL_BYTES,
        weight_bytes=(k // 2 + 1) * facts["block_outputs"] * PIXEL_BYTES,
        halo_buffers=facts["halo_buffers"],
        weight_buffers=facts["weight_buffers"],
        block_outputs=facts["block_outputs"],
        chunk=PIXEL_BYTES // (4 if dtype == "tf32" else 2),
    )


def part(counts: Counts, work: Work) -> dict[str, Any]:
    mix: Counts = Counter()
    for opcode, n in counts.items():
        mix[shown(opcode)] += n
    slots = {opcode: round(n / work.chunk, 2) for opcode, n in mix.most_common()}
    return {"slots": round(counts.total() / work.chunk, 1), "mix": {o: n for o, n in slots.items() if n >= 0.05}}


def measure_kernel(name: str, text: str, usage: str, target: int) -> dict[str, Any]:
    """The row of one kernel."""
    most = MOST_SHARED[target]
    everything = names(instructions(text)[0])
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    row: dict[str, Any] = {"engine": "cuda", "kernel": "prepare", "target": f"sm_{target}"}
    found = _KERNEL.search(name)
    if found is None and "prepare" not in name:
        raise RuntimeError(f"what is {name}?")
    facts: dict[str, Any] = {}
    if found is not None:
        dtype, k, depth = _DTYPES[found.group(1)], int(found.group(2)), int(found.group(3))
        problem = typical(k, depth, dtype)
        facts = plan(problem, most)
        if facts["kernel"] != (k, depth):
            raise RuntimeError(f"{problem.id} takes kernel {facts['kernel']}, expected {(k, depth)}")
        row |= {"kernel": f"conv {k}x{depth} {dtype}", "problem": problem.id}
    threads = PREP_THREADS if found is None else THREADS
    shared = facts.get("shared", 0)
    row |= {
        "registers": registers,
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "spills": everything["LDL"] + everything["STL"],
        "shared": shared,
        "most_shared": most,
        "blocks": min(REGISTERS // (registers * threads), most // max(shared, 1), MOST_WARPS * 32 // threads),
        "threads": threads,
        "matrix": everything["HMMA"],
    }
    if found is None or k == 0:
        return row
    flow, work = Flow(text, is_off), work_of(k, depth, dtype, facts)
    rings, mixing = ring_stage(flow, work), product(flow, work)
    row |= {"ring": part(rings, work), "product": part(mixing, work)}
    row["slots"] = round((rings.total() + mixing.total()) / work.chunk, 1)
    if (card := CARDS.get(target)) is not None:
        bounds = clocks(card, work, add(rings, mixing), dtype == "tf32")
        busiest = max(bounds, key=lambda unit: bounds[unit])
        pixels = problem.batch * math.prod(problem.size)
        seconds = bounds[busiest] * pixels * problem.channels / (card.multiprocessors * card.clock)
        row |= {
            "bounds": {unit: round(value, 3) for unit, value in bounds.items()},
            "bound": busiest,
            "card": card.name,
            "predicted_us": round(1e6 * seconds, 1),
        }
        if card.name == DENSE_CARD and depth == 1 and dtype != "tf32":
            dense = 2 * k * k * problem.channels * problem.outputs * pixels / DENSE
            row["predicted_over_dense"] = round(seconds / dense, 3)
    return row


def measure_library(path: Path, targets: Sequence[int] | None = None, only: str = "") -> list[dict[str, Any]]:
    """One row for each kernel and target in the library whose name contains `only`."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        tool("cuobjdump", "-xelf", "all", str(path), cwd=folder)
        cubins = sorted(Path(folder).glob("*.cubin"))

        def read(cubin: Path) -> list[tuple[int, str, str, str]]:
            target = int(re.search(r"\.sm_(\d+)[af]?\.cubin$", cubin.name).group(1))
            if targets is not None and target not in targets:
                return []
            usage = dict(re.findall(r"Function ([\w$]+):\s*\n\s*(.*)", tool("cuobjdump", "-res-usage", str(cubin))))
            texts = functions(tool("nvdisasm", "-c", str(cubin))) if usage else {}
            return [(target, name, texts[name], usage[name]) for name in usage]

        found = [kernel for kernels in pool.map(read, cubins) for kernel in kernels]
    rows = [measure_kernel(name, text, usage, target) for target, name, text, usage in found]
    return sorted((row for row in rows if only in row["kernel"]), key=order)


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    size = re.search(r" (\d+)x(\d+) (\w+)", row["kernel"])
    if size is None:
        return (row["target"], math.inf)
    k, depth, dtype = size.groups()
    return (row["target"], int(k) == 0, int(depth), int(k), list(_DTYPES.values()).index(dtype))


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| kernel | target | registers | spills | KB | blocks | ring slots | product slots | clocks | predicted, us |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bounds = ", ".join(f"{unit} {value:.2f}" for unit, value in row.get("bounds", {}).items())
        cells = [
            row["kernel"], row["target"], row["registers"], row["spills"], f"{row['shared'] / 1024:.1f}",
            row["blocks"], row.get("ring", {}).get("slots", ""), row.get("product", {}).get("slots", ""), bounds,
            row.get("predicted_us", ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)

"""What the native CUDA kernels compile to, read out of the installed library; no GPU, no compiler.

Registers, spills, stack and shared memory of every kernel, and of the convolution and its weight gradient what a pixel
of a channel takes, by native_counts.py.  Kernels of any size loop over tables: they have no counts.  Neither have the
depthwise kernels and the small launches before and behind the others, whose shared memory, a few hundred bytes to a few
kilobytes that depend on the problem, isn't in their rows.

What each unit is taken to do in a clock of a multiprocessor is in CARDS and SHARED; nothing waits for anything, and no
shared memory bank is hit twice.  The bound is the busiest unit's time: a prediction under these assumptions, and no
measurement.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine_code import Counts, Flow, add, functions, instructions, names, tool
from .native_counts import (
    PIXEL_BYTES,
    PIXELS,
    WARPS,
    ConvWork,
    GradientWork,
    Work,
    conv_product,
    conv_rings,
    gradient_product,
    gradient_rings,
    is_off,
)
from .triton_resources import MOST_SHARED, MOST_WARPS, REGISTERS, Problem, radial_problem

THREADS = {"conv": 384, "gradient": 384, "depthwise": 128, "depthwise_gradient": 128}
SMALL_THREADS = 256  # of the launches before and behind these
FP32 = ("FFMA", "FADD", "FMUL", "HADD2", "HFMA2", "HMUL2", "IMAD")  # conversions from float16 are HADD2.F32
INTEGER = (
    "LOP3", "SHF", "IADD3", "LEA", "PRMT", "SEL", "FSEL", "ISETP", "FSETP", "PLOP3", "VIADD", "IMNMX", "VIMNMX",
    "VIADDMNMX", "FMNMX", "IABS", "MOV", "F2FP", "F2F", "P2R", "R2P",
)  # fmt: skip

# Clocks of the shared memory's 128 bytes for an instruction of a warp, all lanes with data of their own.  LDS.128 is
# the exception: it only loads what is the same for all lanes, basis values mostly, which takes 2
# (forums.developer.nvidia.com, "Unexpected shared memory bank conflict"), as the way back is 128 bytes wide too.
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

_DTYPES = {"BFloat16": "bfloat16", "Float16": "float16", "TF32": "tf32", "Float32": "float32"}


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


# ---- bounds ---------------------------------------------------------------------------------------------------------


def clocks(card: Card, work: Work, counts: Counts) -> dict[str, float]:
    """Clocks of a multiprocessor that a pixel of a channel keeps each unit busy."""

    def take(rates: Callable[[str], float]) -> float:
        warp_clocks = sum(n * rates(opcode) for opcode, n in counts.items())
        return WARPS * warp_clocks / (PIXELS * work.chunk)

    def name(opcode: str) -> str:
        return opcode.partition(".")[0]

    flop, rate = (2048, card.tf32) if work.chunk == 8 else (4096, card.half)
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


@dataclass(frozen=True)
class Kernel:
    """`what` is the name of the function; `k` is 0 for any size, and -1 where there is no size at all."""

    what: str
    k: int = -1
    depth: int = 0
    dtype: str = ""

    @property
    def name(self) -> str:
        return self.what if self.k < 0 else f"{self.what} {self.k}x{self.depth} {self.dtype}"

    @property
    def counted(self) -> bool:
        return self.what in ("conv", "gradient") and self.k > 0


def kernel_of(mangled: str) -> Kernel:
    """Of a function's mangled name: the last of its nested names, and the template's arguments."""
    at, what = len("_ZN"), mangled
    while length := re.compile(r"\d+").match(mangled, at):
        at = length.end() + int(length.group())
        what = mangled[length.end() : at]
    found = re.match(r"I\w*?\d([A-Z]\w+?)ELi(\d+)ELi(\d+)EEE", mangled[at:])
    if found is None:
        return Kernel(what)
    return Kernel(what, int(found.group(2)), int(found.group(3)), _DTYPES[found.group(1)])


def typical(kernel: Kernel) -> Problem:
    """A problem that this kernel serves."""
    k, depth = kernel.k, kernel.depth
    dtype = "float32" if kernel.dtype == "tf32" else kernel.dtype
    rest: dict[str, Any] = {"dtype": dtype, "precision": "ieee" if kernel.dtype == "float32" else "tf32"}
    depthwise = kernel.what.startswith("depthwise")
    name = "depthwise" if depthwise else "3d" if depth > 1 else "2d"
    channels = 64 if depth > 1 else 384 if depthwise else 128
    rest |= {"channels": channels, "outputs": channels, "groups": channels if depthwise else 1}
    if k == 0:
        return Problem(f"{name}-k9-stride-2", 9, options=(("stride", 2),), **rest)
    if depth > 1:
        return Problem(f"{name}-k{k}{'-3d' * depthwise}", k, size=(32, 32, 32), batch=2, **rest)
    return Problem(f"{name}-k{k}", k, **rest)


def plan(kernel: Kernel, problem: Problem, most_shared: int, multiprocessors: int) -> dict[str, Any]:
    """What the planner decides about it."""
    from radconv_ext.build_info import native
    from radconv_ext.engines.native import conv_shape, reads_transposed, ring_model

    c: Any = native()
    radial = radial_problem(problem)
    common = {
        "model": ring_model(c, radial.options),
        "shape": conv_shape(c, radial, False),
        "transpose": reads_transposed(radial, False),
        "exact": problem.precision == "ieee",
        "x_strides": radial.x_strides,
        "device": 0,
        # the last wave of blocks decides about tiles, too: on one multiprocessor, whole ones are the faster
        "card": (most_shared, multiprocessors if kernel.what == "gradient" else 1),
    }
    if kernel.what.endswith("gradient"):
        make = c.DepthwiseGradientPlan if kernel.what.startswith("depthwise") else c.CudaGradientPlan
        facts = make(**common, grad_strides=radial.output_strides).facts()
    else:
        make = c.DepthwisePlan if kernel.what.startswith("depthwise") else c.CudaPlan
        facts = make(**common, channels_last=radial.channels_last).facts()
    if facts["kernel"] != (kernel.k, kernel.depth):
        raise RuntimeError(f"{problem.id} takes kernel {facts['kernel']}, expected {(kernel.k, kernel.depth)}")
    return facts


def work_of(kernel: Kernel, channels: int, facts: dict[str, Any]) -> ConvWork | GradientWork:
    chunk = PIXEL_BYTES // (4 if kernel.dtype in ("tf32", "float32") else 2)
    common: dict[str, Any] = {
        "k": kernel.k,
        "depth": kernel.depth,
        "chunk": chunk,
        "exact": kernel.dtype == "float32",
        "tile": facts["tile"],
        "block_outputs": facts["block_outputs"],
    }
    if kernel.what == "gradient":
        chunks = channels // (chunk * facts["chunk_blocks"])
        return GradientWork(**common, chunks=chunks, pixel_splits=facts["pixel_splits"])
    if math.prod(facts["tile"]) != PIXELS:
        raise RuntimeError(f"{kernel.name}: a tile of {facts['tile']} for a large problem, expected {PIXELS} pixels")
    return ConvWork(**common, halo_buffers=facts["halo_buffers"], weight_buffers=facts["weight_buffers"])


def unevenness(images: int, facts: dict[str, Any], multiprocessors: int) -> float:
    """How much longer the busiest multiprocessor works than all do on average."""
    tiles, splits = 1, 1
    if "splits" in facts:  # blocks of the weight gradient work on some of the tiles each
        tiles, splits = images * math.prod(facts["tiles"]), facts["splits"]
    most = math.ceil(facts["blocks"] / multiprocessors) * math.ceil(tiles / splits)
    return most * multiprocessors / (facts["blocks"] // splits * tiles)


def part(counts: Counts, work: Work) -> dict[str, Any]:
    mix: Counts = Counter()
    for opcode, n in counts.items():
        mix[shown(opcode)] += n
    slots = {opcode: round(n / work.chunk, 2) for opcode, n in mix.most_common()}
    return {"slots": round(counts.total() / work.chunk, 1), "mix": {o: n for o, n in slots.items() if n >= 0.05}}


def measure_kernel(kernel: Kernel, text: str, usage: str, target: int) -> dict[str, Any]:
    """The row of one kernel."""
    most, card = MOST_SHARED[target], CARDS.get(target)
    everything = names(instructions(text)[0])
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    threads = THREADS.get(kernel.what, SMALL_THREADS)
    row: dict[str, Any] = {"engine": "cuda", "kernel": kernel.name, "target": f"sm_{target}"}
    facts: dict[str, Any] = {}
    if kernel.k >= 0:
        problem = typical(kernel)
        row["problem"] = problem.id
        facts = plan(kernel, problem, most, (card or CARDS[90]).multiprocessors)
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
    if not kernel.counted:
        return row
    flow, work = Flow(text, is_off), work_of(kernel, problem.channels, facts)
    if isinstance(work, ConvWork):
        rings, mixing = conv_rings(flow, work), conv_product(flow, work)
    else:
        rings, mixing = gradient_rings(flow, work), gradient_product(flow, work)
    row |= {"ring": part(rings, work), "product": part(mixing, work)}
    row["slots"] = round((rings.total() + mixing.total()) / work.chunk, 1)
    row["copied_bytes"] = round(work.copied / (PIXELS * work.chunk), 1)
    if card is not None:
        bounds = clocks(card, work, add(rings, mixing))
        busiest = max(bounds, key=lambda unit: bounds[unit])
        pixels, out_blocks = problem.batch * math.prod(problem.size), math.ceil(problem.outputs / work.block_outputs)
        seconds = bounds[busiest] * pixels * problem.channels * out_blocks / (card.multiprocessors * card.clock)
        row |= {
            "bounds": {unit: round(value, 3) for unit, value in bounds.items()},
            "bound": busiest,
            "card": card.name,
            "uneven": round(unevenness(problem.batch, facts, card.multiprocessors), 2),
            "predicted_us": round(1e6 * seconds, 1),
        }
        if card.name == DENSE_CARD and kernel.depth == 1 and work.chunk == 16:
            dense = 2 * kernel.k**2 * problem.channels * problem.outputs * pixels / DENSE
            row |= {"dense_us": round(1e6 * dense, 1), "predicted_over_dense": round(seconds / dense, 3)}
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
    kernels = [(kernel_of(name), text, usage, target) for target, name, text, usage in found]
    kernels = sorted((kernel for kernel in kernels if only in kernel[0].name), key=lambda found: order(*found[::3]))
    return [measure_kernel(*kernel) for kernel in kernels]


def order(kernel: Kernel, target: int) -> tuple[Any, ...]:
    if kernel.k < 0:
        return (target, len(THREADS), kernel.what)
    dtype = list(_DTYPES.values()).index(kernel.dtype)
    return (target, list(THREADS).index(kernel.what), kernel.k == 0, kernel.depth, kernel.k, dtype)


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

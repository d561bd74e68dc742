"""What the Triton kernels compile to: compiled ahead of time, for typical problems or with every tile configuration.

Instructions are counted in the longest loop: the one over channels, or over tiles.  A warp-instruction counts for 32
threads, so `instructions * threads / (pixels * channels)` is the number of issue slots that one pixel of one channel
takes.  Kernels whose taps are a table have no such loop, and no such count.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from .machine_code import hot_loop, instructions, names, tool

TARGETS = (80, 90, 100)
MOST_SHARED = {  # bytes a block may have
    **dict.fromkeys((80, 87), 163 * 1024),
    **dict.fromkeys((86, 89, 120, 121), 99 * 1024),
    **dict.fromkeys((90, 100, 103, 110), 227 * 1024),
}
REGISTERS = 65536  # of a multiprocessor, all targets here
MOST_WARPS = 64
MOST_COLUMNS = 512  # of tensor memory, where there is some
SHOWN = ("FFMA", "FADD", "FADD2", "HMMA", "HGMMA", "UTCHMMA", "LDG", "LDS", "LDSM", "STS", "LOP3", "ISETP", "F2FP")


@dataclass(frozen=True)
class Problem:
    """One problem whose kernels are compiled."""

    id: str
    k: int
    dtype: str = "bfloat16"
    size: tuple[int, ...] = (64, 64)
    batch: int = 32
    channels: int = 128
    outputs: int = 128
    groups: int = 1
    layout: str = "channels_last"
    precision: str = "tf32"
    options: tuple[tuple[str, Any], ...] = ()


PROBLEMS = [
    *(Problem(f"2d-k{k}", k) for k in (3, 5, 7, 9, 11, 15)),
    Problem("2d-k9-64-outputs", 9, outputs=64),
    Problem("2d-k5-16-channels", 5, channels=16, outputs=16, size=(224, 224)),
    Problem("2d-k9-512-channels", 9, channels=512, outputs=512, size=(16, 16)),
    Problem("2d-k9-contiguous", 9, layout="contiguous"),
    Problem("2d-k9-float16", 9, dtype="float16"),
    Problem("2d-k9-tf32", 9, dtype="float32"),
    Problem("2d-k9-float32", 9, dtype="float32", precision="ieee"),
    Problem("2d-k9-stride-2", 9, options=(("stride", 2),)),
    Problem("2d-k9-circular", 9, options=(("padding_mode", "circular"),)),
    Problem("depthwise-k7", 7, size=(56, 56), channels=384, outputs=384, groups=384),
    Problem("depthwise-k7-contiguous", 7, size=(56, 56), channels=384, outputs=384, groups=384, layout="contiguous"),
    Problem("1d-k9", 9, size=(4096,), layout="contiguous"),
    *(Problem(f"3d-k{k}", k, size=(32, 32, 32), batch=2, channels=64, outputs=64) for k in (3, 5, 7)),
]


DENSE = Problem("2d-k5", 5)
DEPTHWISE = Problem("depthwise-k5", 5, channels=384, outputs=384, groups=384)


class _Target:
    """Stands in for Triton's driver: compiling asks it for the target, and for nothing else."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def radial_problem(problem: Problem) -> Any:
    """The library's own description of it."""
    import torch

    from radconv_ext.problem import build_problem, make_spec

    p = problem
    memory_format = torch.contiguous_format
    if p.layout == "channels_last":
        memory_format = torch.channels_last if len(p.size) == 2 else torch.channels_last_3d
    x = torch.empty(
        (p.batch, p.channels, *p.size), dtype=getattr(torch, p.dtype), device="meta", memory_format=memory_format
    )
    w = torch.empty((p.outputs, p.channels // p.groups, p.k // 2 + 1), device="meta")
    sigma = torch.empty(w.shape[-1], device="meta")
    options = {"stride": 1, "padding_mode": "zeros", **dict(p.options)}
    spec, _ = make_spec(
        "auto", len(p.size), "gaussian", w.shape[-1], None, p.k, options["stride"], p.k // 2, 1, p.groups,
        options["padding_mode"], True, False, 0,
    )  # fmt: skip
    return build_problem(spec, x, w, sigma, None)


def launches(problem: Problem) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Every launch of a training step: name, launch, pointer types."""
    import torch

    from radconv_ext.triton_kernels.plan import Backward, Convolution

    p = problem
    radial = radial_problem(p)
    dtype, memory_format = radial.dtype, radial.memory_format
    x = torch.empty((p.batch, p.channels, *p.size), dtype=dtype, device="meta", memory_format=memory_format)
    y = torch.empty(radial.output_shape, dtype=dtype, device="meta", memory_format=memory_format)
    forward = Convolution(radial, False, x, y, p.precision, False)
    backward = Backward(radial, x, y, torch.empty_like(x), (True, True, True, True), p.precision)
    f32, i32, f64 = torch.float32, torch.int32, torch.float64
    gather = (dtype, dtype, i32, i32, i32, i32)
    return [
        ("prepare", forward.prepare, (f32, f32, i32, f64)),
        ("forward", forward.convolve, gather),
        ("input gradient", backward.convolution.convolve, gather),
        ("weight gradient", backward.launch, (dtype, dtype, f32, f32, i32, i32, i32, f64)),
        ("finish", backward.sums.finish, (f32, f32, f32, f32, f32, i32, f64)),
    ]


def configurations() -> list[tuple[str, bool, int]]:
    """Every row of the tables in configs.py: kernel, depthwise, index."""
    from radconv_ext.triton_kernels.configs import TABLES

    return [(kernel, depthwise, i) for (kernel, depthwise), table in TABLES.items() for i in range(len(table))]


def measure_configuration(configuration: tuple[str, bool, int], capability: int) -> list[dict[str, Any]]:
    """Rows of one configuration on a small problem, whatever the model thinks of it."""
    from radconv_ext.triton_kernels import configs

    kernel, depthwise, index = configuration
    chosen = configs.TABLES[kernel, depthwise][index]
    real = configs.default
    configs.default = lambda work: chosen if work.kernel == kernel else real(work)
    try:
        wanted = "forward" if kernel == "convolve" else "weight gradient"
        rows = measure(DEPTHWISE if depthwise else DENSE, capability, wanted)
    finally:
        configs.default = real
    return [{**row, "problem": f"{row['problem']} configuration {index}"} for row in rows]


def measure(problem: Problem, capability: int, only: str | None = None) -> list[dict[str, Any]]:
    """One row a launch, or the row of one of them."""
    from triton.runtime import driver

    driver.set_active(_Target(capability))
    rows = []
    for name, launch, pointers in launches(problem):
        if only not in (None, name):
            continue
        compiled = launch.compile(*pointers)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            usage = tool("cuobjdump", "-res-usage", cubin.name)
            disassembly = tool("nvdisasm", "-c", cubin.name)
        threads = launch.config.threads
        registers = int(re.search(r"REG:(\d+)", usage).group(1))
        shared = compiled.metadata.shared
        columns = getattr(compiled.metadata, "tmem_size", None) or 0  # of tensor memory
        if columns > MOST_COLUMNS:
            raise RuntimeError(f"{problem.id} {name}: {columns} columns of tensor memory, {MOST_COLUMNS} exist")
        everything = names(instructions(disassembly)[0])
        resident = min(
            REGISTERS // (registers * threads),
            MOST_SHARED[capability] // max(shared, 1),
            MOST_WARPS * 32 // threads,
            MOST_COLUMNS // max(columns, 1),
        )
        row = {
            "engine": "triton",
            "problem": problem.id,
            "target": f"sm_{capability}",
            "launch": name,
            "registers": registers,
            "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
            "spills": everything["LDL"] + everything["STL"],
            "shared": shared,
            "most_shared": MOST_SHARED[capability],
            "blocks": resident,
            "threads": threads,
            "matrix": sum(everything[op] for op in ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")),
        }
        if "STARTS" in launch.kernel.arg_names:
            tile = [launch.argument(f"TILE_{axis}") for axis in "DHW"]
            pixels = tile[0] * tile[1] * tile[2]
            channels = launch.argument("BLOCK_O" if launch.argument("DEPTHWISE") else "BLOCK_C")
            row |= {"tile": tile, "block_c": launch.argument("BLOCK_C"), "block_o": launch.argument("BLOCK_O")}
            row["unrolled"] = launch.argument("STARTS") is not None
            if row["unrolled"]:
                scale = threads / (pixels * channels)
                mix = hot_loop(disassembly)
                row["slots"] = round(sum(mix.values()) * scale, 1)
                row["loop_spills"] = mix["LDL"] + mix["STL"]
                row["mix"] = {op: round(mix[op] * scale, 2) for op in SHOWN if mix[op]}
        rows.append(row)
    return rows


def measure_all(
    measured: Callable[..., list[dict[str, Any]]], subjects: Sequence[Any], targets: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of all problems (or configurations) and targets, compiled on every core."""
    jobs = [(subject, target) for target in targets for subject in subjects]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        return [row for rows in pool.map(measured, *zip(*jobs, strict=True)) for row in rows]


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| problem | target | launch | tile, channels, outputs | registers | spills | KB | blocks | slots | of these |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        blocks = f"{'x'.join(map(str, row['tile']))}, {row['block_c']}, {row['block_o']}" if "tile" in row else ""
        mix = ", ".join(f"{op} {n}" for op, n in row.get("mix", {}).items())
        cells = [
            row["problem"], row["target"], row["launch"], blocks, row["registers"], row["spills"],
            f"{row['shared'] / 1024:.1f}", row["blocks"], row.get("slots", ""), mix,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)

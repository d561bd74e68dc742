"""The GPU figures of README.md: `python -m benchmarks.gpu_table [--seconds S] [out.json]`, on one NVIDIA GPU.

Kernel time comes from CUDA graphs that the peers replay in turn (ours, dense, ours, dense, ...).  A graph runs the step
on one input set after another, together more than twice the second-level cache, so that every step reads device memory.
Eager time is wall time per call, host included.  The ceilings of the card are measured in the same run; its clocks are
left as they are.  Prints Markdown, writes JSON after every problem.

Exit status: 1 if a peer failed or disagreed with the reference (it isn't timed then), or a problem would have begun
after S seconds (320); 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cpu_table import OVERHEAD, interleaved_medians, output_of, software
from .problems import MODES, TABLE_S2, Problem, Rival, assert_last_sample, expected_of, recording, rivals

ENGINES = ("cuda", "triton")
DEVICE = "cuda"
DENSE = "torch_conv"
HALF: dict[str, Any] = {"dtype": torch.bfloat16, "layout": "channels_last"}
PROBLEMS = [
    OVERHEAD[0],
    *(Problem(f"batch-32-k{k}", k, batch=32, **HALF) for k in (3, 5, 7, 9, 11)),
    Problem("depthwise-k7", 7, batch=32, channels=384, outputs=384, size=(56, 56), groups=384, **HALF),
    *(Problem(f"volume-k{k}", k, batch=2, channels=64, outputs=64, size=(32, 32, 32), **HALF) for k in (3, 5)),
    *TABLE_S2,
]
# Largest error over the reference's largest value.  An operand or a result rounded to bfloat16 moves by up to 2^-9, to
# TF32 by up to 2^-11 (2^-10 where it is cut off): room for ten and for five to ten of those, none for a wrong tap.
# Worst seen in bfloat16 on a CPU: 4.7e-3.
BOUNDS = {torch.bfloat16: 2e-2, torch.float32: 5e-3}

ROUNDS = 15
BATCH_SECONDS = 0.02  # of replays between two events
MOST_SETS = 32
EAGER_ROUNDS, EAGER_CALLS = 7, 100
RESULTS = Path(__file__).parent / "results" / "gpu.json"

Step = Callable[[], Any]

# --- pure: what the figures are made of -------------------------------------------------------------------------------


def spread(times: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def moved_bytes(problem: Problem) -> int:
    """Input and output, once each."""
    p = problem
    return p.batch * math.prod(p.size) * (p.channels + p.outputs) * p.dtype.itemsize


def input_sets(problem: Problem, cache_bytes: int) -> int:
    """How many input sets together exceed twice the cache; tiny problems stop at a limit and stay in it."""
    return max(2, min(MOST_SETS, 2 * cache_bytes // moved_bytes(problem) + 1))


def floors(problem: Problem, mode: str, ceilings: dict[str, Any], tf32: bool) -> dict[str, float]:
    """Seconds at the card's ceilings for moving the tensors, and for the ring mixing product alone.

    Training moves x, y and their gradients, and has three products: output, input gradient, weight gradient.
    """
    p = problem
    flops = 2 * p.batch * math.prod(p.size) * p.outputs * (p.channels // p.groups) * (p.kernel_size // 2 + 1)
    units = "bfloat16" if p.dtype is torch.bfloat16 else "tf32" if tf32 else "float32"
    moves, products = (1, 1) if mode == "forward" else (2, 3)
    return {
        "memory": moves * moved_bytes(p) / ceilings["copy_bytes_per_second"],
        "product": products * flops / ceilings[f"{units}_flops"],
    }


def card_state(text: str | None) -> dict[str, str | None]:
    """The first card of nvidia-smi's answer to `driver_state`."""
    cells = text.splitlines()[0].split(", ") if text else []
    return dict(zip_longest(("driver", "sm_clock", "memory_clock"), cells[:3]))


def new_row(problem: Problem, cache_bytes: int) -> dict[str, Any]:
    row = asdict(problem) | {"dtype": str(problem.dtype).removeprefix("torch.")}
    row |= {"input_sets": input_sets(problem, cache_bytes), "error_bound": BOUNDS[problem.dtype]}
    return row | {"errors": {}, "failures": {}, "peak_bytes": {}}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)] + [""]


def _microseconds(times: dict[str, float]) -> str:
    return f"{times['median'] * 1e6:.1f} ({times['min'] * 1e6:.1f}-{times['max'] * 1e6:.1f})"


def markdown(result: dict[str, Any]) -> str:
    """Kernel times, eager times and memory, ceilings, failures; a dash where there is no figure."""
    kernel_columns, eager_columns = ["problem", "engine"], ["problem", "engine"]
    for mode in MODES:
        kernel_columns += [f"{mode}: ours, us", "dense, us", "dense / ours", "of the floor"]
        eager_columns += [f"{mode}, eager: ours, us", "dense, us"]
    eager_columns += ["peak of training: ours, MiB", "dense, MiB"]
    kernel, eager, failures = [], [], []
    for row in result["rows"]:
        failures += [f"- {row['id']}, {who}: {' '.join(why.split())[:300]}" for who, why in row["failures"].items()]
        for engine in ENGINES:
            peers = (f"radconv_{engine}", DENSE)
            kernel.append([row["id"], engine])
            eager.append([row["id"], engine])
            for mode in MODES:
                ours, dense = (row.get(mode, {}).get(peer) for peer in peers)
                kernel[-1] += [_microseconds(found["kernel"]) if found else "-" for found in (ours, dense)]
                ratio = dense["kernel"]["median"] / ours["kernel"]["median"] if ours and dense else None
                kernel[-1].append("-" if ratio is None else f"{ratio:.2f}")
                kernel[-1].append(f"{ours['floor_fraction']:.0%}" if ours else "-")
                eager[-1] += [f"{found['eager'] * 1e6:.1f}" if found else "-" for found in (ours, dense)]
            peaks = [row["peak_bytes"].get(peer) for peer in peers]
            eager[-1] += ["-" if peak is None else f"{peak / 2**20:.1f}" for peak in peaks]
    c = result["ceilings"]
    rates = ", ".join(f"{name} {c[f'{name}_flops'] / 1e12:.0f} TFLOP/s" for name in ("bfloat16", "tf32", "float32"))
    lines = [*_table(kernel_columns, kernel), *_table(eager_columns, eager)]
    lines.append(f"Ceilings: copy {c['copy_bytes_per_second'] / 1e12:.2f} TB/s; 8192^3 product {rates}.")
    return "\n".join([*lines, *(["", "Failed or not measured:", "", *failures] if failures else [])])


# --- on the card ------------------------------------------------------------------------------------------------------


def elapsed(function: Step, calls: int) -> float:
    """Seconds on the card of one of several calls in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def measure_ceilings() -> dict[str, Any]:
    """Best of several: copied bytes (read and written) and floating-point operations per second."""

    def best(function: Step) -> float:
        elapsed(function, 3)
        return min(elapsed(function, 10) for _ in range(5))

    source = torch.ones(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    found: dict[str, Any] = {"copy_bytes_per_second": 2 * source.numel() / best(partial(target.copy_, source))}
    n, allowed = 8192, torch.backends.cuda.matmul.allow_tf32
    kinds = (("bfloat16", torch.bfloat16, allowed), ("tf32", torch.float32, True), ("float32", torch.float32, False))
    for name, dtype, tf32 in kinds:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b, c = (torch.randn(n, n, dtype=dtype, device=DEVICE) for _ in range(3))
        found[f"{name}_flops"] = 2 * n**3 / best(partial(torch.mm, a, b, out=c))
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return found


def driver_state() -> dict[str, str | None]:
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem"
    return card_state(output_of("nvidia-smi", query, "--format=csv,noheader"))


def machine() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    triton = next(iter(metadata.distributions(name="triton")), None)
    return {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "cache_bytes": card.L2_cache_size,
        **driver_state(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton and triton.version,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        **software(),
    }


def input_set(problem: Problem, seed: int) -> dict[str, Rival]:
    """The reference and all peers on the same data, everything of the problem's rank in its layout."""

    def laid_out(t: Tensor) -> Tensor:
        return t.to(memory_format=problem.memory_format) if t.dim() == 2 + problem.ndim else t

    shape = (problem.batch, problem.outputs, *problem.size)
    grad = laid_out(torch.randn(shape, dtype=problem.dtype, device=DEVICE))
    found = rivals(problem, ("reference", *ENGINES), DEVICE, seed)
    return {r.name: replace(r, tensors=[laid_out(t) for t in r.tensors], grad=grad) for r in found}


def captured(steps: Sequence[Step]) -> torch.cuda.CUDAGraph:
    """A graph of all steps in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # nothing may compile, tune or load inside the capture, and autograd works on the stream that it was warmed up on
    with torch.cuda.stream(stream):
        for step in (steps[0], steps[0], *steps):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        # held until the end, or all steps would write to the same memory and find it in the cache
        held = [step() for step in steps]
    del held
    return graph


def replayed(graphs: dict[str, torch.cuda.CUDAGraph], sets: int) -> dict[str, dict[str, float]]:
    """Seconds of one step: batches of replays, the peers in turn."""
    calls = {}
    for name, graph in graphs.items():
        elapsed(graph.replay, 2)
        calls[name] = max(1, round(BATCH_SECONDS / elapsed(graph.replay, 1)))
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            times[name].append(elapsed(graph.replay, calls[name]) / sets)
    return {name: spread(found) for name, found in times.items()}


def eager(step: Step) -> Step:
    """Many calls and one synchronisation."""

    def calls() -> None:
        for _ in range(EAGER_CALLS):
            step()
        torch.cuda.synchronize()

    return calls


def peak_bytes(step: Step) -> int:
    """Memory that a step adds at its peak, once the first step has tuned and compiled."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def attempt(row: dict[str, Any], name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value, or None with the reason in the row: one peer's failure leaves the others' figures."""
    try:
        return function(*arguments)
    except Exception as error:
        row["failures"][name] = f"{type(error).__name__}: {error}"
        return None


def measure(problem: Problem, row: dict[str, Any], ceilings: dict[str, Any]) -> None:
    """Fill the row: agreement first, then times and memory of the peers that agree."""
    sets = [input_set(problem, seed) for seed in range(row["input_sets"])]
    expected = expected_of(sets[0]["radconv_reference"], sets[0][DENSE])
    peers = [name for name in sets[0] if name != "radconv_reference"]
    for name in peers:
        attempt(row, name, assert_last_sample, sets[0][name], expected, row["error_bound"], row["errors"])
    for mode, make in MODES.items():
        row[mode] = {"floors": floors(problem, mode, ceilings, torch.backends.cudnn.allow_tf32)}
        with recording(mode):
            steps = {n: [make(s[n]) for s in sets] for n in peers if n not in row["failures"]}
            if mode == "training":
                row["peak_bytes"] = {n: attempt(row, n, peak_bytes, made[0]) for n, made in steps.items()}
            graphs = {n: attempt(row, n, captured, made) for n, made in steps.items()}
            graphs = {n: graph for n, graph in graphs.items() if n not in row["failures"]}
            kernel = replayed(graphs, len(sets))
            walls = interleaved_medians([eager(steps[n][0]) for n in graphs], EAGER_ROUNDS)
        for name, wall in zip(graphs, walls, strict=True):
            fraction = max(row[mode]["floors"].values()) / kernel[name]["median"]
            row[mode][name] = {"kernel": kernel[name], "eager": wall / EAGER_CALLS, "floor_fraction": fraction}
    row["clocks_afterwards"] = driver_state()


def save(result: dict[str, Any], out: Path) -> None:
    """Replace the file at once: an interruption leaves the last complete one."""
    unfinished = out.with_name(f"{out.name}.part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(out)


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu_table: torch sees no CUDA device.", file=sys.stderr)
        return 2
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=RESULTS, help="file for the figures")
    parser.add_argument("--seconds", type=float, default=320.0, help="no problem begins later")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {"command": "python -m benchmarks.gpu_table", "machine": machine()}
    result |= {"ceilings": measure_ceilings(), "rows": []}
    for problem in PROBLEMS:
        row = new_row(problem, result["machine"]["cache_bytes"])
        result["rows"].append(row)
        if time.monotonic() - start < arguments.seconds:
            attempt(row, "measurement", measure, problem, row, result["ceilings"])
        else:
            row["failures"]["measurement"] = f"not measured, {arguments.seconds:.0f} s had passed"
        result["seconds"] = round(time.monotonic() - start, 1)
        save(result, arguments.out)
        print(f"{result['seconds']:6.1f} s: {problem.id} {row['failures'] or ''}", file=sys.stderr, flush=True)
    print(markdown(result))
    return int(any(row["failures"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())

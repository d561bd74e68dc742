"""The CPU figures of README.md: `python -m benchmarks.cpu_table [out.json]`.

Medians of interleaved runs in one process (ours, dense, ours, dense, ...), so that a machine whose speed drifts slows
both; peak memory of a training step from processes of their own.  Prints Markdown, writes JSON.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import radconv_ext
from radconv_ext.build_info import native

from .problems import MODES, PROBLEMS, Problem, assert_agreement, recording, rivals

ROUNDS = 15
OVERHEAD = [Problem(f"overhead-k{k}", k, batch=1, channels=1, outputs=1, size=(8, 8)) for k in (3, 5, 9)]
RESULTS = Path(__file__).parent / "results" / "cpu.json"

PEAK_SCRIPT = """
import sys, torch
from benchmarks.problems import PROBLEMS, rivals, training_of
torch.set_num_threads(int(sys.argv[3]))
problem = next(p for p in PROBLEMS if p.id == sys.argv[1])
step = training_of(next(r for r in rivals(problem) if r.name == sys.argv[2]))
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
step()
print(status("VmHWM") - before)
"""


def interleaved_medians(functions: list[Callable[[], Any]], rounds: int, calls: int = 1) -> list[float]:
    """Median seconds of one call of each function."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        for _ in range(2 * calls):
            function()
    for _ in range(rounds):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            found.append((time.perf_counter() - start) / calls)
    return [statistics.median(found) for found in times]


def measure(problem: Problem, rounds: int, calls: int = 1) -> dict[str, Any]:
    assert_agreement(problem)
    row: dict[str, Any] = {"problem": problem.id, "kernel_size": problem.kernel_size}
    for mode, make in MODES.items():
        functions = [make(r) for r in rivals(problem)]
        with recording(mode):
            ours, dense = interleaved_medians(functions, rounds, calls)
        row[mode] = {"radconv_cpu": ours, "torch_conv": dense}
    return row


def module_overhead() -> dict[str, dict[str, float]]:
    """Median seconds of a call on (1, 1, 8, 8): `GMRConv2d`, and the functional call with its parameters and sigma.

    Forward alone, with and without recording for a backward.
    """
    found = {}
    for recorded in (False, True):
        layer, x = radconv_ext.nn.GMRConv2d(1, 1, 5, padding=2), torch.randn(1, 1, 8, 8)
        w, sigma, bias = layer.weight, layer.log_sigma.detach().exp().requires_grad_(), layer.bias

        def functional(x=x, w=w, sigma=sigma, bias=bias) -> Tensor:
            return radconv_ext.gmr_conv2d(x, w, sigma, bias, padding=2)

        assert torch.allclose(layer(x), functional(), atol=1e-6)
        with torch.set_grad_enabled(recorded):
            module, call = interleaved_medians([lambda layer=layer, x=x: layer(x), functional], ROUNDS, 1000)
        found["recording" if recorded else "no_grad"] = {"module": module, "functional": call}
    return found


def peak_bytes(problem: str, peer: str) -> int:
    """Peak resident memory that the first training step adds."""
    command = [sys.executable, "-c", PEAK_SCRIPT, problem, peer, str(torch.get_num_threads())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def output_of(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def software() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "radconv_ext": radconv_ext.__version__,
        "python": platform.python_version(),
        "commit": output_of("git", "rev-parse", "HEAD"),
    }


def machine() -> dict[str, Any]:
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    library = native()
    return {
        "cpu": name,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "isa": None if library is None else library.current_isa(),
        **software(),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "| problem | forward: ours, ms | dense, ms | dense / ours | training: ours, ms | dense, ms | dense / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["speed"]:
        cells = [row["problem"]]
        for mode in MODES:
            ours, dense = row[mode]["radconv_cpu"], row[mode]["torch_conv"]
            cells += [f"{ours * 1e3:.1f}", f"{dense * 1e3:.1f}", f"{dense / ours:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| call on (1, 1, 8, 8) | ours, us | dense, us | ours / dense |", "|---|---|---|---|"]
    for row in result["overhead"]:
        for mode in MODES:
            ours, dense = row[mode]["radconv_cpu"], row[mode]["torch_conv"]
            lines.append(
                f"| k={row['kernel_size']} {mode} | {ours * 1e6:.1f} | {dense * 1e6:.1f} | {ours / dense:.2f} |"
            )
    lines += ["", "| call on (1, 1, 8, 8) | GMRConv2d, us | gmr_conv2d, us | module adds, us |", "|---|---|---|---|"]
    for mode, row in result["module_overhead"].items():
        module, call = row["module"] * 1e6, row["functional"] * 1e6
        lines.append(f"| {mode} | {module:.1f} | {call:.1f} | {module - call:.1f} |")
    peak = result["peak_bytes"]
    lines += ["", f"Peak extra memory of a training step, {peak['problem']}: "]
    lines[-1] += ", ".join(f"{peer} {peak[peer] / 2**20:.1f} MiB" for peer in ("radconv_cpu", "torch_conv"))
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(int(os.environ.get("RADCONV_BENCH_THREADS", "2")))
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    result: dict[str, Any] = {"command": "python -m benchmarks.cpu_table", "machine": machine()}
    result["speed"] = [measure(problem, ROUNDS) for problem in PROBLEMS]
    result["overhead"] = [measure(problem, ROUNDS, calls=1000) for problem in OVERHEAD]
    result["module_overhead"] = module_overhead()
    peak = "table-s2-k9"
    result["peak_bytes"] = {"problem": peak, **{p: peak_bytes(peak, p) for p in ("radconv_cpu", "torch_conv")}}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()

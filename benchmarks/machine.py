"""What the figures were made on: names and versions, and the rates that bound every kernel there."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

import radconv_ext
from radconv_ext.build_info import native

from .timing import elapsed

ROOT = Path(__file__).resolve().parents[1]


def output_of(*command: str) -> str | None:
    """What a command prints, None where it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


@lru_cache
def commit() -> str | None:
    """The commit; "+" marks a tree with changes."""
    found = output_of("git", "rev-parse", "HEAD")
    return found and found + ("+" if output_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def describe(device: str) -> dict[str, Any]:
    return (_cpu() if device == "cpu" else _card()) | {
        "torch": torch.__version__,
        "radconv_ext": radconv_ext.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def _cpu() -> dict[str, Any]:
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
    }


def _card() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    triton = next(iter(metadata.distributions(name="triton")), None)
    return {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "cache_bytes": card.L2_cache_size,
        **card_state(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton and triton.version,
    }


def card_state() -> dict[str, str | None]:
    """Driver and clocks of the first card as they are now."""
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem"
    text = output_of("nvidia-smi", query, "--format=csv,noheader")
    cells = text.splitlines()[0].split(", ") if text else []
    return dict(zip_longest(("driver", "sm_clock", "memory_clock"), cells[:3]))


# ---- rates -----------------------------------------------------------------------------------------------------------


def ceilings(device: str) -> dict[str, Any]:
    """Best of several: bytes copied (read and written), FLOPs of large products, multiply-adds; all per second."""
    best = _best_on_card if device == "cuda" else _best_on_cpu
    source = torch.ones(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / best(partial(target.copy_, source))
    return {
        "copy_bytes_per_second": copied,
        "matmul_flops": _products(device, best),
        "fma_per_second": _fma_on_card(best) if device == "cuda" else _fma_on_cpu(),
    }


def _best_on_cpu(function: Callable[[], Any]) -> float:
    times: list[float] = []
    while len(times) < 4 and sum(times) < 2:  # bfloat16 takes seconds on a CPU without units for it
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _best_on_card(function: Callable[[], Any]) -> float:
    elapsed(function, 3)
    return min(elapsed(function, 10) for _ in range(5))


def _products(device: str, best: Callable[[Callable[[], Any]], float]) -> dict[str, float]:
    kinds = [("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False)]
    if device == "cuda":
        kinds += [("tf32", torch.float32, True), ("float16", torch.float16, False)]
    n, found = 8192 if device == "cuda" else 2048, {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in kinds:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b, c = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
        found[name] = 2 * n**3 / best(partial(torch.mm, a, b, out=c))
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return found


def _fma_on_cpu(rounds: int = 300_000) -> float | None:
    """Of as many threads as torch has; None without a C++ compiler."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "fma.so")
        wide = ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []
        flags = ["-O3", "-march=native", *wide, "-shared", "-fPIC"]
        output_of(compiler, *flags, str(Path(__file__).with_name("fma.cpp")), "-o", str(library))
        if not library.exists():
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.multiply_add.argtypes, loaded.multiply_add.restype = [ctypes.c_long], ctypes.c_float
    threads = torch.get_num_threads()

    def run() -> None:
        each = [threading.Thread(target=loaded.multiply_add, args=(rounds,)) for _ in range(threads)]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()

    return threads * rounds * loaded.multiply_adds_a_round() / _best_on_cpu(run)


def _fma_on_card(best: Callable[[Callable[[], Any]], float]) -> float | None:
    """By a Triton kernel; None where Triton is missing, doesn't compile or interprets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    try:
        from .fma_kernel import CHAINS, STEPS, multiply_add

        multiply_add[(1,)](torch.empty(CHAINS.value, device="cuda"), 1, num_warps=4)
    except Exception as error:
        warnings.warn(f"rate of multiply-adds not measured, Triton says: {error}", stacklevel=2)
        return None
    blocks, rounds = 16 * torch.cuda.get_device_properties(0).multi_processor_count, 500
    out = torch.empty(blocks * CHAINS.value, device="cuda")
    seconds = best(lambda: multiply_add[(blocks,)](out, rounds, num_warps=4))
    return blocks * CHAINS.value * STEPS.value * rounds / seconds

"""Clocks, memory meters, and turns: every peer runs a few calls, then the next one, round after round.

On a CPU a turn is wall time, after one call that isn't counted: it brings the peer's data into the caches and lets idle
threads of the peer before it fall asleep.  On a GPU a turn replays a CUDA graph between two events.  A graph runs the
step on one input set after another, together more than twice the second-level cache, so that every step reads device
memory (small problems, of which `MOST_SETS` inputs fit, stay in the cache); wall time of eager calls, host included, is
taken beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .problems import NetworkProblem, Problem
from .work import Step, by_norm, relative

Turn = Callable[[int], float]  # number of calls -> seconds of one


@dataclass(frozen=True)
class Limits:
    """How long to measure; seconds."""

    turn: float  # of one peer's turn, in calls as short as this; else one call
    group: float  # of all turns of all peers of a problem and mode, but for those that must
    rounds: tuple[int, int]  # least and most
    step: float  # a peer whose step is predicted to take longer is left out
    reference_flops: float  # of the part that is compared with the definition


QUICK = Limits(turn=0.005, group=0.5, rounds=(3, 9), step=0.5, reference_flops=2e8)
FULL = {
    "cpu": Limits(turn=0.02, group=4.0, rounds=(7, 15), step=5.0, reference_flops=2e9),
    "cuda": Limits(turn=0.01, group=0.5, rounds=(5, 9), step=0.2, reference_flops=2e10),
}
# The GMR-Conv paper's Table S2 has 1,000 calls: so many or more in five turns, where a call takes half a millisecond.
PAPER: dict[str, Any] = {"turn": 0.1, "rounds": (5, 5)}
EAGER: dict[str, Any] = {"turn": 0.005, "rounds": (3, 3)}  # beside the replays
FEWEST_TURNS = 5  # of a peer with slow calls
LONG = 0.2  # a call that takes as many seconds is one turn, without an untimed one before it


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def wall(steps: Sequence[Step], device: str) -> Turn:
    def timed(calls: int) -> float:
        start = time.perf_counter()
        for i in range(calls):
            steps[i % len(steps)]()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    def turn(calls: int) -> float:
        before = timed(1)
        return before if calls == 1 and before > LONG else timed(calls)

    return turn


def elapsed(function: Step, calls: int) -> float:
    """Seconds on the card of one of several calls in a row."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def captured(steps: Sequence[Step], problem: Problem) -> Turn:
    """A CUDA graph of all steps in turn; a call is one of them."""
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream())
    # Nothing may compile, tune or load inside the capture, and the leaves' gradients are summed on the stream of the
    # first step whose result is still held: `expected` of any other stream would break the capture.
    with torch.cuda.stream(stream):
        for step in (steps[0], steps[0], *steps):
            step()
        expected = steps[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # the outer context brings the stream back when the capture fails
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool, stream=stream):
            # held until the end, or all steps would write to the same memory and find it in the cache
            held = [step() for step in steps]
    except RuntimeError:
        # torch before 2.12 still counts the capture as going on, and would never give back cached memory again; later
        # versions say that there is nothing to end
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    elapsed(graph.replay, 2)
    if not is_same(held[0], expected, problem):
        raise AssertionError("a replay of the CUDA graph doesn't give what an eager call gives")
    del held, expected
    return lambda calls: elapsed(graph.replay, -(-calls // len(steps))) / len(steps)


def is_same(got: Any, expected: Any, problem: Problem) -> bool:
    """A step's tensors within the problem's bounds, and 2 % at most; a network's gradients as one vector."""
    (y, *gradients), (y0, *gradients0) = ((t,) if isinstance(t, torch.Tensor) else t for t in (got, expected))
    if gradients and isinstance(problem, NetworkProblem):
        errors = [by_norm(gradients, gradients0)]
    else:
        errors = [relative(g, g0.double()) for g, g0 in zip(gradients, gradients0, strict=True)]
    bounds = {name: min(problem.bound(name), 0.02) for name in ("output", "gradients")}
    return relative(y, y0.double()) < bounds["output"] and all(error < bounds["gradients"] for error in errors)


def interleaved(turns: dict[str, Turn], first: dict[str, float], limits: Limits) -> dict[str, list[float]]:
    """Seconds of a call, a list per peer: the peers take turns, those with slow calls not in every round.

    `first` has the seconds of one turn of one call of each; who has none takes no turns.
    """
    turns = {name: turns[name] for name in first}
    calls = {name: max(1, round(limits.turn / max(t, 1e-9))) for name, t in first.items()}
    cost = {name: first[name] * (calls[name] + 1) for name in turns}
    least, most = limits.rounds
    slow = {name for name in turns if cost[name] * most > limits.group}
    quick_cost = sum(cost[name] for name in turns if name not in slow)
    rounds = min(max(round(limits.group / quick_cost), least), most) if quick_cost else FEWEST_TURNS
    rounds = max(rounds, min(FEWEST_TURNS, most)) if slow else rounds
    times: dict[str, list[float]] = {name: [] for name in turns}
    slow_rounds = {round(i * (rounds - 1) / (FEWEST_TURNS - 1)) for i in range(FEWEST_TURNS)}
    with collector_off():
        for i in range(rounds):
            # another order in every round, or each peer would always work behind the same one
            for name in random.Random(i).sample(list(turns), len(turns)):
                if name not in slow or i in slow_rounds:
                    times[name].append(turns[name](calls[name]))
    return times


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(step: Step, device: str) -> int | None:
    """Memory that a step adds at its peak; call the step before, or what it loads and compiles counts too."""
    return _peak_allocated(step) if device == "cuda" else _peak_resident(step)


def _peak_allocated(step: Step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_resident(step: Step) -> int | None:
    """By Linux' high-water mark of resident memory; None elsewhere."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that is still resident would be filled unseen
        with open("/proc/self/clear_refs", "w") as marks:
            marks.write("5")  # the peak counts from here
    except OSError:
        return None
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0)


def _status(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


# ---- settings --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def settings(problem: Problem) -> Iterator[None]:
    """TF32 and the choice of algorithms, the same for all peers of a problem."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    cudnn.allow_tf32 = matmul.allow_tf32 = problem.precision == "tf32"
    cudnn.benchmark = problem.protocol == "modern"
    cudnn.deterministic = problem.protocol == "paper"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before


MOST_SETS = 32


def input_sets(problem: Problem, channels: int, outputs: int, cache_bytes: int) -> int:
    """How many inputs together exceed twice the cache; tiny problems stop at a limit and stay in it."""
    moved = problem.pixels * (channels + outputs) * problem.dtype.itemsize
    return max(2, min(MOST_SETS, 2 * cache_bytes // moved + 1))

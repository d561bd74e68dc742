"""One problem on one device: every peer is built, compared with its definition, and timed in turns with the others."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from . import machine, roofline
from .peers import PEERS
from .problems import NetworkProblem, Problem
from .timing import EAGER, PAPER, Limits, Turn, captured, input_sets, interleaved, peak_bytes, settings, wall
from .work import Step, Work, recording, step_of

Found = TypeVar("Found")


@dataclass
class Result:
    """What one peer showed; `failure` when it can't be timed or must not be, since it disagrees."""

    times: list[float] = field(default_factory=list)  # seconds of a call
    errors: dict[str, float] = field(default_factory=dict)  # relative to the largest value
    parameters: int = 0
    peak_bytes: int | None = None
    eager: float | None = None  # seconds of a call, host included; GPU
    clock: str = "wall time"
    clocks_afterwards: dict[str, str | None] | None = None  # of the card
    failure: str | None = None


@dataclass
class Device:
    """What is known of a device, each measured once, when it's first needed."""

    name: str

    def why_not(self) -> str | None:
        if self.name == "cuda" and not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return None

    @cached_property
    def machine(self) -> dict[str, Any]:
        return machine.describe(self.name)

    @cached_property
    def ceilings(self) -> dict[str, Any]:
        return machine.ceilings(self.name)

    def why_too_long(self, flops: float, mode: str, problem: Problem, limits: Limits) -> str | None:
        """Why a step of so many FLOPs, at this device's measured rate, is left out; None when it isn't."""
        seconds = flops * (3 if mode == "training" else 1) / self.ceilings["matmul_flops"][problem.precision]
        if seconds <= limits.step:
            return None
        return f"a step takes {seconds:.1f} s or more here, the limit is {limits.step:g} s (--longest-step)"


class Bench:
    """A problem on a device.  Peers are built once for all its modes; a new problem frees the last one's."""

    def __init__(self, problem: Problem, device: Device, limits: Limits) -> None:
        self.problem, self.device, self.limits = problem, device.name, limits
        self.cache_bytes = device.machine.get("cache_bytes", 0)
        self.works: dict[str, Work] = {}

    def _work(self, peer: str) -> Work:
        if peer not in self.works:
            self.works[peer] = PEERS[peer].build(self.problem, self.device)
        return self.works[peer]

    def _steps(self, peer: str, mode: str) -> list[Step]:
        """One step for each input; more than one on a GPU."""
        p, work = self.problem, self._work(peer)
        sets = input_sets(p, work.channels, work.outputs, self.cache_bytes) if self.device == "cuda" else 1
        data = (p.data(work.channels, work.outputs, self.device, seed) for seed in range(sets))
        return [step_of(work, mode, x, grad) for x, grad in data]

    def measure(self, mode: str, peers: Sequence[str]) -> dict[str, Result]:
        results = {peer: Result() for peer in peers}
        limits = replace(self.limits, **PAPER) if self.problem.protocol == "paper" else self.limits
        with settings(self.problem):
            steps = self._each(results, lambda peer: self._agreed(peer, mode, results[peer]))
            with recording(mode):
                turns = self._each(results, lambda peer: self._turn(peer, steps[peer], results[peer]), steps)
                times = self._interleaved(results, turns, limits)
                for peer, found in times.items():
                    results[peer].times = found
                if self.device == "cuda":
                    state = machine.card_state()
                    for peer, seconds in self._eager(results, steps, times).items():
                        results[peer].eager, results[peer].clocks_afterwards = seconds, state
                peaks = self._each(results, lambda peer: peak_bytes(steps[peer][0], self.device), times)
                for peer, peak in peaks.items():
                    results[peer].peak_bytes = peak
        return results

    def _interleaved(
        self, results: dict[str, Result], turns: dict[str, Turn], limits: Limits
    ) -> dict[str, list[float]]:
        """Times of all whose first turn succeeds."""
        return interleaved(turns, self._each(results, lambda peer: turns[peer](1), turns), limits)

    def _eager(
        self, results: dict[str, Result], steps: dict[str, list[Step]], times: dict[str, list[float]]
    ) -> dict[str, float]:
        """Seconds of an eager call, host included, of all that were timed."""
        if self.problem.protocol != "paper":  # whose turns are eager
            turns = {peer: wall(steps[peer], self.device) for peer in times}
            times = self._interleaved(results, turns, replace(self.limits, **EAGER))
        return {peer: statistics.median(found) for peer, found in times.items()}

    def _each(
        self, results: dict[str, Result], function: Callable[[str], Found], peers: Iterable[str] | None = None
    ) -> dict[str, Found]:
        """The function's value by peer; the failure of one leaves the others' figures."""
        found = {}
        for peer in results if peers is None else peers:
            try:
                found[peer] = function(peer)
            except Exception as error:
                results[peer].failure = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return found

    def _agreed(self, peer: str, mode: str, result: Result) -> list[Step]:
        """The peer's steps, once its results are those of its definition."""
        work, p = self._work(peer), self.problem
        work.enter(mode)
        result.parameters = sum(t.numel() for t in work.parameters.values())
        result.errors = PEERS[peer].errors(work, p, mode, self.device, self.limits.reference_flops)
        wrong = [
            f"{name} {error:.1e} (bound {p.bound(name):.0e})"
            for name, error in result.errors.items()
            if not error < p.bound(name)
        ]
        if wrong:
            raise AssertionError(f"disagrees with the definition, relative errors: {', '.join(wrong)}")
        return self._steps(peer, mode)

    def _turn(self, peer: str, steps: list[Step], result: Result) -> Turn:
        if self.device == "cpu":
            return wall(steps, self.device)  # the comparison with the definition was the first call
        if self.problem.protocol == "paper":
            result.clock = "wall time of eager calls on one input, as in the paper"
            return wall(steps[:1], self.device)
        try:
            turn = captured(steps, self.problem)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that failed says only that it did
            result.clock = f"wall time of eager calls: no CUDA graph, {' '.join(str(cause).split())[:200]}"
            return wall(steps, self.device)
        result.clock = "replay of a CUDA graph"
        return turn


def extra_info(peer: str, problem: Problem, mode: str, device: Device, result: Result) -> dict[str, Any]:
    """What goes into the JSON beside the times."""
    info = {name: value for name, value in asdict(problem).items() if name in SHOWN}
    median = statistics.median(result.times)
    network = isinstance(problem, NetworkProblem)
    floor = None if network else roofline.floor(problem, mode, device.name, device.ceilings)
    info["kernel_size"] = None if network else problem.kernel_size
    return info | {
        "peer": peer,
        "problem": problem.id,
        "mode": mode,
        "dtype": problem.precision,
        "device": device.name,
        "ndim": problem.ndim,
        "size": list(problem.size),
        "agrees_with_reference": True,
        "errors": result.errors,
        "error_bounds": {name: problem.bound(name) for name in result.errors},
        "parameters": result.parameters,
        "floor": floor,
        "floor_fraction": floor and floor["total"] / median,
        "peak_bytes": result.peak_bytes,
        "eager": result.eager,
        "clock": result.clock,
        "clocks_afterwards": result.clocks_afterwards,
        "machine": device.machine,
        "ceilings": device.ceilings,
    }


SHOWN = ("suite", "batch", "channels", "outputs", "groups", "layout", "protocol")


def release() -> None:
    """Give back what the last problem held."""
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a capture that failed may be in the way; the memory is then kept
            torch.cuda.empty_cache()

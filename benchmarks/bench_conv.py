"""Radial against dense convolution: `pytest benchmarks --benchmark-json=out.json`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .problems import MODES, PROBLEMS, Problem, assert_agreement, recording, rivals


@pytest.fixture(scope="module")
def agreed() -> set[str]:
    return set()


@pytest.mark.parametrize("peer", ["radconv_cpu", "torch_conv"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_speed(benchmark: Any, agreed: set[str], problem: Problem, mode: str, peer: str) -> None:
    if problem.id not in agreed:
        assert_agreement(problem)
        agreed.add(problem.id)
    rival = next(r for r in rivals(problem) if r.name == peer)
    benchmark.group = f"{problem.id} {mode}"
    benchmark.extra_info.update(
        peer=peer,
        problem=problem.id,
        mode=mode,
        dtype="float32",
        layout=problem.layout,
        device="cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        agrees_with_reference=True,
    )
    step = MODES[mode](rival)
    with recording(mode):
        benchmark.pedantic(step, rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("peer", ["radconv_cpu", "torch_conv"])
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_host_overhead(benchmark: Any, kernel_size: int, mode: str, peer: str) -> None:
    """A call on (1, 1, 8, 8), where nothing but the host's work counts."""
    problem = Problem(f"overhead-k{kernel_size}", kernel_size, batch=1, channels=1, outputs=1, size=(8, 8))
    assert_agreement(problem)
    ours, dense = rivals(problem)
    benchmark.group = f"{problem.id} {mode}"
    benchmark.extra_info.update(peer=peer, problem=problem.id, mode=mode, dtype="float32", device="cpu")
    step = MODES[mode](ours if peer == "radconv_cpu" else dense)
    with recording(mode):
        benchmark.pedantic(step, rounds=9, iterations=1000, warmup_rounds=1)

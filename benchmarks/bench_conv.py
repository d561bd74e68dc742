"""Every problem by every peer: `pytest benchmarks --benchmark-json=out.json`; options in `conftest.py`.

The peers of a problem are compared with the definition first and then timed together, in turns.  pytest-benchmark,
which would time one after the other, is given the times that each one had.
"""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Campaign


class Tape:
    """A timer that plays measured times back: each call of `advance` takes as long as the next of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times: list[float] = []

    def timer(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += self.times.pop(0)


TAPE = Tape()


def measured_in_turns() -> float:
    return TAPE.timer()


@pytest.mark.benchmark(timer=measured_in_turns)
def test_conv(benchmark: Any, campaign: Campaign, device: str, problem: str, mode: str, peer: str) -> None:
    group = device, problem, mode
    result = campaign.result(group, peer)
    assert result.failure is None, result.failure
    benchmark.group = " ".join(group)
    benchmark.extra_info.update(campaign.info(group, peer, result))
    TAPE.times = list(result.times)
    TAPE.now = 0.0  # or rounding would grow with the sum
    benchmark.pedantic(TAPE.advance, rounds=len(result.times))
    if benchmark.stats is not None:  # None under --benchmark-disable
        campaign.write(benchmark.stats.as_dict(include_data=False))

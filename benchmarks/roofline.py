"""The least time of a problem: bytes moved, ring sums and mixing product, at rates measured on the same machine.

The counts are of the operator itself, radial convolution with Gaussian rings, whoever computes it, with every sum of
pixels that several outputs need taken once: horizontal pairs x[+u] + x[-u] are shared by the rows, pairs of rows by
the columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from .problems import Problem


@dataclass(frozen=True)
class RingWork:
    """Operations of the plain units per pixel and channel."""

    additions: int  # to the sums of all shells
    shells: int
    combination: int  # multiply-adds from shells to rings


def ring_work(problem: Problem) -> RingWork:
    k, ndim = problem.kernel_size, problem.ndim
    reach = range(k // 2 + 1)
    quarter = [d for d in itertools.product(reach, repeat=ndim) if 4 * sum(u * u for u in d) < k * k]
    # pairs along an axis are formed for every place in the axes before it, of the points that are off the axis
    pairs = sum(len({d[: axis + 1] for d in quarter if d[axis] > 0}) for axis in range(ndim))
    shells = len({sum(u * u for u in d) for d in quarter})
    additions = pairs + len(quarter) - shells
    if problem.groups == problem.channels == problem.outputs:
        return RingWork(additions, shells, shells)  # weights and profile make one number for each shell
    return RingWork(additions, shells, shells * problem.rings)


def counts(problem: Problem, mode: str) -> tuple[float, float, float]:
    """Bytes, operations of the plain units (an addition or a multiply-add is one), FLOPs of the product.

    Training: the output; the input gradient, which is the same with input and output exchanged; the weight and sigma
    gradients, which need shell sums of the input again and a product by shells, or by rings and their derivatives.
    """
    p, ring = problem, ring_work(problem)
    depthwise = p.groups == p.channels == p.outputs
    mixing = 0 if depthwise else 2 * p.pixels * p.outputs * (p.channels // p.groups)
    forward, backward = (p.pixels * c * (ring.additions + ring.combination) for c in (p.channels, p.outputs))
    item = p.dtype.itemsize
    if mode != "training":
        return p.pixels * (p.channels + p.outputs) * item, forward, mixing * p.rings
    basis = min(ring.shells, 2 * p.rings)
    sums = p.pixels * p.channels * (ring.additions + (ring.shells if depthwise else 0))
    moved = p.pixels * (3 * p.channels + 2 * p.outputs) * item  # x, y; x, dy, dx
    return moved, forward + backward + sums, mixing * (2 * p.rings + basis)


def floor(problem: Problem, mode: str, device: str, ceilings: dict[str, Any]) -> dict[str, float] | None:
    """Seconds; None where a rate was not measured.

    On a GPU the three go on beside each other.  On a CPU a thread makes sums and product one after the other.
    """
    moved, operations, product = counts(problem, mode)
    rates = ceilings["matmul_flops"]
    flops = rates.get(problem.precision)
    if ceilings["fma_per_second"] is None or flops is None:
        return None
    if problem.precision == "float32":  # or by three products of operands split in two, by six of those split in three
        flops = max([flops, *(rates[kind] / count for kind, count in (("tf32", 3), ("bfloat16", 6)) if kind in rates)])
    memory = moved / ceilings["copy_bytes_per_second"]
    rings, mixing = operations / ceilings["fma_per_second"], product / flops
    total = max(memory, rings + mixing) if device == "cpu" else max(memory, rings, mixing)
    return {"memory": memory, "rings": rings, "product": mixing, "total": total}

"""Rate of a card's plain units: 8 independent chains of multiply-adds in each thread of 4 warps."""

import triton
import triton.language as tl

CHAINS = tl.constexpr(8 * 128)  # of a program
STEPS = tl.constexpr(32)  # of each chain in a round


@triton.jit
def multiply_add(out_ptr, rounds):
    o_chain = tl.arange(0, CHAINS)
    chain = o_chain.to(tl.float32)
    scale, shift = tl.full((CHAINS,), 0.999, tl.float32), tl.full((CHAINS,), 0.001, tl.float32)
    for _ in range(rounds):
        for _step in tl.static_range(STEPS):
            chain = tl.fma(chain, scale, shift)
    tl.store(out_ptr + tl.program_id(0) * CHAINS + o_chain, chain)

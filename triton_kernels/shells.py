"""Sums of the input over the taps of one shell, and their coordinates: device code that every gathering kernel shares.

Taps are compile-time constants for small kernels, else a table: taps `start[s] .. start[s + 1]` belong to bucket `s`,
three offsets each.  Names and conventions are those of `kernels`.
"""

import triton
import triton.language as tl

__all__ = ["inside", "joined", "offset", "settled", "shell_sum", "tap_bits", "tile_pixels"]


@triton.jit
def tile_pixels(tile, tiles, NDIM, INDEX: tl.constexpr, TILE_D, TILE_H, TILE_W):
    """Coordinates (BP,) of the pixels of one tile; tiles are numbered in row-major order."""
    BP: tl.constexpr = TILE_D * TILE_H * TILE_W
    p = tl.arange(0, BP)
    o_w = (tile % tiles[2] * TILE_W + p % TILE_W).to(INDEX)
    o_h = tl.zeros((BP,), INDEX)
    o_d = tl.zeros((BP,), INDEX)
    if NDIM >= 2:
        o_h = (tile // tiles[2] % tiles[1] * TILE_H + p // TILE_W % TILE_H).to(INDEX)
    if NDIM == 3:
        o_d = (tile // (tiles[2] * tiles[1]) * TILE_D + p // (TILE_W * TILE_H)).to(INDEX)
    return o_d, o_h, o_w


@triton.jit
def inside(i_d, i_h, i_w, size, NDIM):
    """Which coordinates lie in a box that begins at 0."""
    m = (i_w >= 0) & (i_w < size[2])
    if NDIM >= 2:
        m = m & (i_h >= 0) & (i_h < size[1])
    if NDIM == 3:
        m = m & (i_d >= 0) & (i_d < size[0])
    return m


@triton.jit
def offset(i_d, i_h, i_w, strides, NDIM):
    """Memory offset of coordinates; strides are those of (batch, channel, depth, height, width)."""
    at = i_w * strides[4]
    if NDIM >= 2:
        at += i_h * strides[3]
    if NDIM == 3:
        at += i_d * strides[2]
    return at


@triton.jit
def _wrapped(i, size):
    """Periodic coordinate; a tap reaches once around at most."""
    i = tl.where(i < 0, i + size, i)
    return tl.where(i >= size, i - size, i)


@triton.jit
def tap_bits(m_p, i_d, i_h, i_w, size, KERNEL_SIZE: tl.constexpr, DILATION: tl.constexpr, NDIM):
    """Which tap indices of each axis stay inside the image: (BP,) int32, a field of KERNEL_SIZE bits an axis."""
    bits = tl.zeros_like(i_w).to(tl.int32)
    for t in tl.static_range(KERNEL_SIZE):
        v_w = i_w + t * DILATION[2]
        bits += ((v_w >= 0) & (v_w < size[2])).to(tl.int32) << t
        if NDIM >= 2:
            v_h = i_h + t * DILATION[1]
            bits += ((v_h >= 0) & (v_h < size[1])).to(tl.int32) << (t + KERNEL_SIZE)
        if NDIM == 3:
            v_d = i_d + t * DILATION[0]
            bits += ((v_d >= 0) & (v_d < size[0])).to(tl.int32) << (t + 2 * KERNEL_SIZE)
    return tl.where(m_p, bits, 0)


@triton.jit
def _floats(b_x, PAIRS, HALF: tl.constexpr):
    """A loaded tile in float32; PAIRS: its even and its odd channels, from two half floats in one word."""
    if PAIRS and tl.bfloat16 == HALF:
        return (b_x << 16).to(tl.float32, bitcast=True), (b_x & -65536).to(tl.float32, bitcast=True)
    elif PAIRS:
        b_low = b_x.to(tl.int16).to(tl.float16, bitcast=True)
        return b_low.to(tl.float32), (b_x >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return b_x.to(tl.float32), b_x.to(tl.float32)


@triton.jit
def joined(b_even, b_odd, scale, dtype: tl.constexpr, PAIRS):
    """The columns of `_floats` in order again, rounded to dtype; float16: times scale."""
    if tl.float16 == dtype:
        b_even *= scale
        b_odd *= scale
    if PAIRS:
        b_both = tl.join(b_even.to(dtype), b_odd.to(dtype))
        return b_both.reshape(b_even.shape[0], 2 * b_even.shape[1])
    else:
        return b_even.to(dtype)


@triton.jit
def settled(b_x):
    """The same values.  The compiler doesn't move layout changes across a sum, not even one over a single element.

    It would make each warp sum the shells of all warps, in the layout of an operand, and load every tap through shared
    memory: three times the instructions on sm_80.
    """
    return tl.sum(b_x[:, :, None], 2)


@triton.jit
def shell_sum(
    s, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
    TAPS: tl.constexpr, STARTS: tl.constexpr, NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr, BP, BC,
):  # fmt: skip
    """Sum of the inputs over the taps of bucket s, 0 outside the image: see `_floats`.

    x_ptrs (BP, BC) point to the coordinates i; with WRAP, to the first pixel of each channel.
    """
    b_even = tl.zeros((BP, BC), tl.float32)
    b_odd = b_even
    if STARTS is not None:
        first: tl.constexpr = STARTS[s]
        last: tl.constexpr = STARTS[s + 1]
        for t in tl.static_range(first, last):
            # 64 bits: the sign extensions of 32-bit offsets would fill the registers
            t_x = tl.full((), TAPS[4 * t + 2], tl.int64) * strides[4]
            if NDIM >= 2:
                t_x += tl.full((), TAPS[4 * t + 1], tl.int64) * strides[3]
            if NDIM == 3:
                t_x += tl.full((), TAPS[4 * t], tl.int64) * strides[2]
            m_x = (b_bits & TAPS[4 * t + 3]) == TAPS[4 * t + 3]
            b_x = tl.load(x_ptrs + t_x, mask=m_x, other=0)
            b_left, b_right = _floats(b_x, PAIRS, HALF)
            b_even = b_left if t == first else b_even + b_left
            if PAIRS:
                b_odd = b_right if t == first else b_odd + b_right
    else:
        for t in range(tl.load(start_ptr + s), tl.load(start_ptr + s + 1)):
            t_d = tl.load(tap_ptr + 3 * t).to(INDEX)
            t_h = tl.load(tap_ptr + 3 * t + 1).to(INDEX)
            t_w = tl.load(tap_ptr + 3 * t + 2).to(INDEX)
            v_d = i_d + t_d
            v_h = i_h + t_h
            v_w = i_w + t_w
            if WRAP:
                v_w = _wrapped(v_w, size[2])
                if NDIM >= 2:
                    v_h = _wrapped(v_h, size[1])
                if NDIM == 3:
                    v_d = _wrapped(v_d, size[0])
                t_ptrs = x_ptrs + offset(v_d, v_h, v_w, strides, NDIM)[:, None]
            else:
                t_ptrs = x_ptrs + offset(t_d, t_h, t_w, strides, NDIM)
            m_x = (m_p & inside(v_d, v_h, v_w, size, NDIM))[:, None] & m_c[None, :]
            b_left, b_right = _floats(tl.load(t_ptrs, mask=m_x, other=0), PAIRS, HALF)
            b_even += b_left
            if PAIRS:
                b_odd += b_right
    return b_even, b_odd

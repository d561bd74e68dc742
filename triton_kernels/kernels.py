"""The device code: four kernels serve 1D, 2D and 3D, dense mixing and depthwise, forward and backward.

    prepare          sigma -> profile -> orthonormal basis and folded weights; tiny, float64
    convolve         shell sums -> ring combination -> product with the folded weights; forward and input gradient
    weight_gradient  shell sums -> product with the output gradient over pixels, split over pixels into a workspace
    finish           workspace -> gradients of w, sigma (or the profile) and bias, in a fixed order

A tile is TILE_D x TILE_H x TILE_W pixels, BP of them.  `convolve` walks over channels in chunks of BLOCK_C.  Each
tap of a shell is one masked load of (BP, BLOCK_C) elements, which all but the first time comes from the first-level
cache.  Shells are summed in float32, rounded once to x's dtype, and meet weights that the profile was folded into
on the matrix units.  Where products are slow (float32), n combinations of the shells meet n weights instead,
orthonormal over the taps so that rounding does not grow.  What bounds it: plain issue slots, which
`python -m benchmarks.resources` counts, then the matrix units.

Taps are compile-time constants for small kernels, else a table: taps `start[s] .. start[s + 1]` belong to bucket `s`,
three offsets each.  A transposed convolution, or the input gradient of a strided one, is split into residue classes of
its output pixels: within a class it is an ordinary convolution with some of the taps, so each class has a table of its
own and nothing is spent on the zeros in between.

Names: x_ptr pointer, o_x offset, i_x input coordinate, t_x tap, m_x mask, b_x block.  Sizes and strides are tuples in
the order depth, height, width; unused leading axes have size 1 and cost nothing (NDIM).
"""

import triton
import triton.language as tl

__all__ = ["convolve", "finish", "prepare", "weight_gradient"]

# float16 ends at 65504: a shell sum is rounded to it at an eighth, its weights at eight times their size
SHRINK = tl.constexpr(0.125)


# --- shell sums -------------------------------------------------------------------------------------------------------


@triton.jit
def _tile_pixels(tile, tiles, NDIM, INDEX: tl.constexpr, TILE_D, TILE_H, TILE_W):
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
def _inside(i_d, i_h, i_w, size, NDIM):
    """Which coordinates lie in a box that begins at 0."""
    m = (i_w >= 0) & (i_w < size[2])
    if NDIM >= 2:
        m = m & (i_h >= 0) & (i_h < size[1])
    if NDIM == 3:
        m = m & (i_d >= 0) & (i_d < size[0])
    return m


@triton.jit
def _offset(i_d, i_h, i_w, strides, NDIM):
    """Memory offset of coordinates; strides are those of (batch, channel, depth, height, width)."""
    offset = i_w * strides[4]
    if NDIM >= 2:
        offset += i_h * strides[3]
    if NDIM == 3:
        offset += i_d * strides[2]
    return offset


@triton.jit
def _wrapped(i, size):
    """Periodic coordinate; a tap reaches once around at most."""
    i = tl.where(i < 0, i + size, i)
    return tl.where(i >= size, i - size, i)


@triton.jit
def _tap_bits(m_p, i_d, i_h, i_w, size, KERNEL_SIZE: tl.constexpr, DILATION: tl.constexpr, NDIM):
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
def _joined(b_even, b_odd, dtype: tl.constexpr, PAIRS):
    """The columns of `_floats` in order again, rounded to dtype; float16: times SHRINK."""
    if tl.float16 == dtype:
        b_even *= SHRINK
        b_odd *= SHRINK
    if PAIRS:
        b_both = tl.join(b_even.to(dtype), b_odd.to(dtype))
        return b_both.reshape(b_even.shape[0], 2 * b_even.shape[1])
    else:
        return b_even.to(dtype)


@triton.jit
def _settled(b_x):
    """The same values.  The compiler doesn't move layout changes across a sum, not even one over a single element.

    It would make each warp sum the shells of all warps, in the layout of an operand, and load every tap through shared
    memory: three times the instructions on sm_80.
    """
    return tl.sum(b_x[:, :, None], 2)


@triton.jit
def _shell_sum(
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
                t_ptrs = x_ptrs + _offset(v_d, v_h, v_w, strides, NDIM)[:, None]
            else:
                t_ptrs = x_ptrs + _offset(t_d, t_h, t_w, strides, NDIM)
            m_x = (m_p & _inside(v_d, v_h, v_w, size, NDIM))[:, None] & m_c[None, :]
            b_left, b_right = _floats(tl.load(t_ptrs, mask=m_x, other=0), PAIRS, HALF)
            b_even += b_left
            if PAIRS:
                b_odd += b_right
    return b_even, b_odd


# --- forward and input gradient ---------------------------------------------------------------------------------------


@triton.jit
def _mix(b_acc, b_even, b_odd, w_ptrs, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION: tl.constexpr):
    """A basis function times its weights, added to the outputs."""
    b_w = tl.load(w_ptrs, mask=m_w, other=0.0)
    b_basis = _joined(b_even, b_odd, b_w.dtype, PAIRS)
    if SETTLE:
        b_basis = _settled(b_basis)
    if DEPTHWISE:
        return b_acc + b_basis * b_w[None, :]  # (BP, BO) * (1, BO)
    else:
        return tl.dot(b_basis, b_w, b_acc, input_precision=PRECISION)  # (BP, BC) @ (BC, BO)


@triton.jit
def _bucket(
    s, b_acc, b_evens, b_odds, b_ptr, w_ptrs, row, m_w,
    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides, RINGS,
    TAPS: tl.constexpr, STARTS: tl.constexpr, BUCKETS, NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr,
    BP, BC, COMBINE, DEPTHWISE, SETTLE, PRECISION: tl.constexpr,
):  # fmt: skip
    """One bucket's share: in every ring, or at once in the outputs."""
    # before the taps: multiply-adds that wait for them would be put off, and all shell sums kept until then
    values = [tl.load(b_ptr + i * BUCKETS + s) for i in RINGS] if COMBINE else b_evens
    b_even, b_odd = _shell_sum(
        s, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
        TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC,
    )  # fmt: skip
    if COMBINE:
        b_evens = [b_evens[i] + values[i] * b_even for i in RINGS]
        if PAIRS:
            b_odds = [b_odds[i] + values[i] * b_odd for i in RINGS]
    else:
        b_acc = _mix(b_acc, b_even, b_odd, w_ptrs + s * row, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION)
    return b_acc, b_evens, b_odds


@triton.jit
def _place(pid, tiles, classes, NDIM, INDEX: tl.constexpr, TILE_D, TILE_H, TILE_W):
    """Image, residue class, and coordinates within the class, of one program's pixels."""
    tile = pid % (tiles[0] * tiles[1] * tiles[2])
    pid = pid // (tiles[0] * tiles[1] * tiles[2])
    kind = pid % (classes[0] * classes[1] * classes[2])
    image = (pid // (classes[0] * classes[1] * classes[2])).to(tl.int64)
    o_d, o_h, o_w = _tile_pixels(tile, tiles, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
    return image, kind, o_d, o_h, o_w


@triton.jit
def _output(kind, o_d, o_h, o_w, classes):
    """Coordinates in the output."""
    o_d = o_d * classes[0] + kind // (classes[1] * classes[2])
    o_h = o_h * classes[1] + kind // classes[2] % classes[1]
    o_w = o_w * classes[2] + kind % classes[2]
    return o_d, o_h, o_w


@triton.jit
def convolve(
    x_ptr, y_ptr, bias_ptr, ws_ptr, tap_ptr, start_ptr,
    channels,  # of one group
    basis_at, weights_at,  # in ws, in words
    in_size, out_size, tiles, stride, origin,  # input coordinate = stride * output coordinate + origin + tap
    classes,  # residue classes of output coordinates, per axis
    x_strides, y_strides,  # (batch, channel, depth, height, width)
    RINGS,  # (0, 1, .., n - 1)
    outputs: tl.constexpr, groups: tl.constexpr,  # outputs of one group; constant, so that weights need few addresses
    COMBINE: tl.constexpr,  # basis functions are n combinations of shells; else they are the shells
    TAPS: tl.constexpr, STARTS: tl.constexpr, BUCKETS: tl.constexpr, KERNEL_SIZE: tl.constexpr,
    DILATION: tl.constexpr, NDIM: tl.constexpr, INDEX: tl.constexpr,
    WRAP: tl.constexpr, PAIRS: tl.constexpr, DEPTHWISE: tl.constexpr, SETTLE: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One tile of pixels by one block of outputs.

    Grid: (tiles * classes * batch, blocks of outputs, groups); DEPTHWISE: a lane is an output channel of any group, and
    the last axis is 1.
    """
    BP: tl.constexpr = TILE_D * TILE_H * TILE_W
    PACK: tl.constexpr = 2 if PAIRS else 1  # channels in a word
    BC: tl.constexpr = (BLOCK_O if DEPTHWISE else BLOCK_C) // PACK
    group = tl.program_id(2)
    image, kind, o_d, o_h, o_w = _place(tl.program_id(0), tiles, classes, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
    if PAIRS:
        x_ptr = x_ptr.to(tl.pointer_type(tl.int32))
    x_ptr += image * x_strides[0]
    q_ptr = (ws_ptr + basis_at).to(tl.pointer_type(tl.float32))
    HALF: tl.constexpr = y_ptr.dtype.element_ty
    W_DTYPE: tl.constexpr = tl.float32 if DEPTHWISE else HALF
    w_ptr = (ws_ptr + weights_at).to(tl.pointer_type(W_DTYPE))
    first_ptr = start_ptr  # to a zero
    start_ptr += kind * (BUCKETS + 1)

    i_d = o_d * stride[0] + origin[0]
    i_h = o_h * stride[1] + origin[1]
    i_w = o_w * stride[2] + origin[2]
    y_d, y_h, y_w = _output(kind, o_d, o_h, o_w, classes)
    m_p = _inside(y_d, y_h, y_w, out_size, NDIM)
    if not WRAP:
        x_ptr += _offset(i_d, i_h, i_w, x_strides, NDIM)[:, None]
    bits = tl.zeros((BP,), tl.int32)
    if STARTS is not None:
        bits = _tap_bits(m_p, i_d, i_h, i_w, in_size, KERNEL_SIZE, DILATION, NDIM)

    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)  # within the group; DEPTHWISE: of all groups
    m_o = o_o < (groups * outputs if DEPTHWISE else outputs)
    row: tl.constexpr = groups * outputs  # from one basis function's weights to the next one's
    FUNCTIONS: tl.constexpr = len(RINGS) if COMBINE else BUCKETS
    b_acc = tl.zeros((BP, BLOCK_O), tl.float32)
    for c0 in tl.range(0, channels, BLOCK_C, num_stages=1):
        if DEPTHWISE:
            o_c = (tl.program_id(1) * BC + tl.arange(0, BC)) // outputs * channels + c0
            m_c = o_c < groups * channels // PACK
            m_w = m_o
            w_ptrs = w_ptr + c0 * FUNCTIONS * row + o_o
        else:
            o_k = c0 + tl.arange(0, BLOCK_C)
            m_k = o_k < channels
            m_w = m_k[:, None] & m_o[None, :]
            w_ptrs = w_ptr + (o_k * FUNCTIONS * row)[:, None] + (group * outputs + o_o)[None, :]
            o_c = (group * channels + c0) // PACK + tl.arange(0, BC)
            m_c = o_c < (group + 1) * channels // PACK
        x_ptrs = x_ptr + (o_c.to(INDEX) * x_strides[1])[None, :]
        # the channel mask varies from chunk to chunk: without it, the masks of all taps would be kept in registers
        b_bits = tl.where(m_c[None, :], bits[:, None], 0)
        # a copy of the basis for each chunk: one for all would be kept in registers, all n * D values of it
        b_ptr = q_ptr + c0 // BLOCK_C * BUCKETS * len(RINGS)
        b_evens = [tl.zeros((BP, BC), tl.float32) for i in RINGS]
        b_odds = b_evens
        if STARTS is not None:
            for s in tl.static_range(BUCKETS):
                b_acc, b_evens, b_odds = _bucket(
                    s, b_acc, b_evens, b_odds, b_ptr, w_ptrs, row, m_w,
                    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, in_size, x_strides, RINGS,
                    TAPS, STARTS, BUCKETS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, COMBINE, DEPTHWISE,
                    SETTLE, PRECISION,
                )  # fmt: skip
        else:
            for s in range(BUCKETS):
                b_acc, b_evens, b_odds = _bucket(
                    s, b_acc, b_evens, b_odds, b_ptr, w_ptrs, row, m_w,
                    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, in_size, x_strides, RINGS,
                    TAPS, STARTS, BUCKETS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, COMBINE, DEPTHWISE,
                    SETTLE, PRECISION,
                )  # fmt: skip
        if COMBINE:
            for i in tl.static_range(len(RINGS)):
                b_acc = _mix(b_acc, b_evens[i], b_odds[i], w_ptrs + i * row, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION)
    if BIAS:
        o_bias = o_o if DEPTHWISE else group * outputs + o_o
        b_acc += tl.load(bias_ptr + o_bias, mask=m_o, other=0.0).to(tl.float32)[None, :]
    # the output's coordinates once more, in a way that the compiler can't take for the same: kept over the loop, they
    # would take registers that the ring sums need
    again = tl.program_id(0) + tl.load(first_ptr)
    image, kind, o_d, o_h, o_w = _place(again, tiles, classes, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
    y_d, y_h, y_w = _output(kind, o_d, o_h, o_w, classes)
    m_y = _inside(y_d, y_h, y_w, out_size, NDIM)[:, None] & m_o[None, :]
    o_y = (o_o if DEPTHWISE else group * outputs + o_o).to(INDEX) * y_strides[1]
    y_ptrs = y_ptr + image * y_strides[0] + _offset(y_d, y_h, y_w, y_strides, NDIM)[:, None] + o_y[None, :]
    tl.store(y_ptrs, b_acc.to(y_ptr.dtype.element_ty), mask=m_y)


# --- weights: profile, basis, folding ---------------------------------------------------------------------------------


@triton.jit
def _profile(p_ptr, table_ptr, o_i, o_s, n, BUCKETS, FAMILY: tl.constexpr):
    """Profile of ring o_i on bucket o_s, and its slope by sigma: float64, 0 outside.

    table: radii (BUCKETS), tap counts (BUCKETS), smallest sigma, largest sigma, sqrt(2 pi), ring centres (n).
    """
    m = (o_i < n) & (o_s < BUCKETS)
    if FAMILY == "identity":
        value = tl.where(m & (o_i == o_s), 1.0, 0.0).to(tl.float64)
        slope = value
    elif FAMILY == "custom":
        value = tl.load(p_ptr + o_i * BUCKETS + o_s, mask=m, other=0.0).to(tl.float64)
        slope = value
    else:
        given = tl.load(p_ptr + o_i, mask=o_i < n, other=1.0).to(tl.float64)
        lowest = tl.load(table_ptr + 2 * BUCKETS)
        highest = tl.load(table_ptr + 2 * BUCKETS + 1)
        sigma = tl.where(given < lowest, lowest, tl.where(given > highest, highest, given))  # NaN stays NaN
        if FAMILY == "gaussian":
            radius = tl.load(table_ptr + o_s, mask=o_s < BUCKETS, other=0.0)
            distance = (radius - tl.load(table_ptr + 2 * BUCKETS + 3 + o_i, mask=o_i < n, other=0.0)) / sigma
            value = tl.exp(-0.5 * distance * distance)
            slope = value * distance * distance / sigma
        else:
            distance = (o_s - o_i).to(tl.float64) / sigma
            value = tl.exp(-0.5 * distance * distance) / (tl.load(table_ptr + 2 * BUCKETS + 2) * sigma)
            slope = value * (distance * distance - 1.0) / sigma
        value = tl.where(m, value, 0.0)
        slope = tl.where(m & (given >= lowest) & (given <= highest), slope, 0.0)
    return value, slope


@triton.jit
def _prepare(
    pid, w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, channels, outputs, groups, w_strides, copies,
    FAMILY: tl.constexpr, COMBINE, W_DTYPE: tl.constexpr, N2: tl.constexpr, D2: tl.constexpr, ROWS, BUCKETS,
):  # fmt: skip
    o_n = tl.arange(0, N2)
    o_d = tl.arange(0, D2)
    mixing, _slope = _profile(p_ptr, table_ptr, o_n[:, None], o_d[None, :], n, BUCKETS, FAMILY)  # (N2, D2)
    functions = BUCKETS
    o_f = o_d
    if COMBINE:
        # P = L Q with the rows of Q orthonormal over the taps; each row is swept twice: once is not orthogonal to
        # rounding when rings overlap
        count = tl.load(table_ptr + BUCKETS + o_d, mask=o_d < BUCKETS, other=1.0)
        profile = mixing * tl.sqrt(count)[None, :]
        basis = tl.zeros((N2, D2), tl.float64)
        lower = tl.zeros((N2, N2), tl.float64)
        for i in range(n):
            row = tl.sum(tl.where((o_n == i)[:, None], profile, 0.0), 0)  # (D2,)
            before = tl.sum(row * row, 0)
            for _sweep in tl.static_range(2):
                along = tl.sum(basis * row[None, :], 1)  # (N2,)
                row -= tl.sum(basis * along[:, None], 0)
                lower += tl.where((o_n == i)[:, None], along[None, :], 0.0)
            after = tl.sum(row * row, 0)
            # a ring that the earlier ones already span leaves rounding noise, which must not become a direction
            spanned = after <= before * 1e-28
            norm = tl.sqrt(tl.where(spanned, 1.0, after))
            row = tl.where(spanned, 0.0, row / norm)
            basis = tl.where((o_n == i)[:, None], row[None, :], basis)
            here = (o_n == i)[:, None] & (o_n == i)[None, :]
            lower += tl.where(here, tl.where(spanned, 0.0, norm), 0.0)
        if pid == 0:
            q_ptr = (ws_ptr + basis_at).to(tl.pointer_type(tl.float32))
            m_q = (o_n < n)[:, None] & (o_d < BUCKETS)[None, :]
            values = (basis / tl.sqrt(count)[None, :]).to(tl.float32)
            for copy in range(copies):
                at = copy * n * BUCKETS + o_n[:, None] * BUCKETS + o_d[None, :]
                tl.store(q_ptr + at, values, mask=m_q)
        mixing = lower
        functions = n
        o_f = o_n
    total = channels * groups * outputs
    o_r = pid * ROWS + tl.arange(0, ROWS)  # (channel, group, output), the last fastest
    o_w = (
        o_r // outputs % groups * w_strides[0] + o_r % outputs * w_strides[1] + o_r // (outputs * groups) * w_strides[2]
    )
    o_to = o_r // (outputs * groups) * functions * outputs * groups + o_r % (outputs * groups)
    m_r = o_r < total
    m_w = m_r[:, None] & (o_n < n)[None, :]
    b_w = tl.load(w_ptr + o_w[:, None] + o_n[None, :], mask=m_w, other=0.0).to(tl.float64)  # (ROWS, N2)
    to_ptr = (ws_ptr + weights_at).to(tl.pointer_type(W_DTYPE))
    for f in range(functions):
        column = tl.sum(tl.where((o_f == f)[None, :], mixing, 0.0), 1)  # (N2,)
        folded = tl.sum(b_w * column[None, :], 1)
        if tl.float16 == W_DTYPE:
            folded /= SHRINK
        tl.store(to_ptr + o_to + f * outputs * groups, folded.to(tl.float32).to(W_DTYPE), mask=m_r)


@triton.jit
def prepare(
    w_ptr, p_ptr, ws_ptr, table_ptr, basis_at, weights_at, n, channels, outputs, groups,
    w_strides,  # (group, output, channel), elements
    copies,  # of the basis
    FAMILY: tl.constexpr, COMBINE: tl.constexpr, W_DTYPE: tl.constexpr,
    N2: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr, BUCKETS: tl.constexpr,
):  # fmt: skip
    """Weights folded with the profile, (channels, functions, groups, outputs), and the basis (copies, n, BUCKETS).

    Grid: blocks of ROWS weights; each does the n x D work anew, which is cheaper than another launch.
    """
    _prepare(
        tl.program_id(0), w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, channels, outputs, groups,
        w_strides, copies, FAMILY, COMBINE, W_DTYPE, N2, D2, ROWS, BUCKETS,
    )  # fmt: skip


# --- gradient of the weights ------------------------------------------------------------------------------------------


@triton.jit
def _correlate(
    s, b_sum, b_g, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
    TAPS: tl.constexpr, STARTS: tl.constexpr, NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr, BP, BC,
    DEPTHWISE, SETTLE, PRECISION: tl.constexpr,
):  # fmt: skip
    """A shell sum times the output gradient, summed over the tile's pixels; DEPTHWISE: pixel by pixel."""
    b_even, b_odd = _shell_sum(
        s, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
        TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC,
    )  # fmt: skip
    if DEPTHWISE:
        return b_sum + _joined(b_even, b_odd, tl.float32, PAIRS) * b_g
    else:
        b_q = _joined(b_even, b_odd, b_g.dtype, PAIRS)
        if SETTLE and not PAIRS:  # whose join does the same
            b_q = _settled(b_q)
        return tl.dot(tl.trans(b_g), b_q, b_sum, input_precision=PRECISION)  # (BO, BP) @ (BP, BC)


@triton.jit
def _share(pid, blocks, groups):
    """Blocks of outputs, channels and buckets, group, and split of one program."""
    block_o = pid % blocks[0]
    pid = pid // blocks[0]
    block_c = pid % blocks[1]
    pid = pid // blocks[1]
    block_s = pid % blocks[2]
    pid = pid // blocks[2]
    return block_o, block_c, block_s, pid % groups, pid // groups


@triton.jit
def weight_gradient(
    x_ptr, g_ptr, w_ptr, p_ptr, ws_ptr, tap_ptr, start_ptr, table_ptr,
    channels, outputs, groups,
    sums_at, bias_at, count_at,  # in ws, in words
    in_size, out_size, tiles, tile_count, tiles_per_split, stride, origin, x_strides, g_strides,
    blocks,  # (of outputs, of channels, of buckets)
    # what `prepare` needs for the input gradient that follows
    fold_programs, basis_at, weights_at, n, fold_channels, fold_outputs, w_strides, copies,
    LANES,  # (0, 1, .., buckets of one block - 1)
    FOLD: tl.constexpr, FAMILY: tl.constexpr, COMBINE: tl.constexpr, W_DTYPE: tl.constexpr, N2: tl.constexpr,
    D2: tl.constexpr, ROWS: tl.constexpr,
    TAPS: tl.constexpr, STARTS: tl.constexpr, BUCKETS: tl.constexpr, KERNEL_SIZE: tl.constexpr,
    DILATION: tl.constexpr, NDIM: tl.constexpr, INDEX: tl.constexpr, WRAP: tl.constexpr, PAIRS: tl.constexpr,
    DEPTHWISE: tl.constexpr, SETTLE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    TILE_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Sums over pixels of shell sum times output gradient: (splits, BUCKETS, groups * outputs, channels), float32.

    Grid: fold_programs + splits * groups * blocks.  The first programs do the work of `prepare` for the launch that
    follows, which saves one.  Each split adds up its own share of the tiles; `finish` adds the splits.
    """
    if PAIRS:
        x_ptr = x_ptr.to(tl.pointer_type(tl.int32))
    if FOLD and tl.program_id(0) < fold_programs:
        _prepare(
            tl.program_id(0), w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, fold_channels, fold_outputs,
            groups, w_strides, copies, FAMILY, COMBINE, W_DTYPE, N2, D2, ROWS, BUCKETS,
        )  # fmt: skip
    else:
        HALF: tl.constexpr = g_ptr.dtype.element_ty
        BP: tl.constexpr = TILE_D * TILE_H * TILE_W
        PACK: tl.constexpr = 2 if PAIRS else 1
        BC: tl.constexpr = (BLOCK_O if DEPTHWISE else BLOCK_C) // PACK
        pid = tl.program_id(0) - fold_programs
        if pid == 0:
            tl.store(ws_ptr + count_at, 0)  # programs of `finish` that are done
        lane_groups = 1 if DEPTHWISE else groups
        block_o, block_c, block_s, group, split = _share(pid, blocks, lane_groups)
        o_o = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
        if DEPTHWISE:
            m_o = o_o < groups * outputs
            o_row = o_o
            o_c = (block_o * BC + tl.arange(0, BC)) // outputs * channels + block_c
            m_c = o_c < groups * channels // PACK
        else:
            m_o = o_o < outputs
            o_row = group * outputs + o_o
            o_c = (group * channels + block_c * BLOCK_C) // PACK + tl.arange(0, BC)
            m_c = o_c < (group + 1) * channels // PACK
        o_g = (o_row.to(INDEX) * g_strides[1])[None, :]
        b_bias = tl.zeros((BLOCK_O,), tl.float32)
        b_sums = [
            tl.zeros((BP if DEPTHWISE else BLOCK_O, BLOCK_O if DEPTHWISE else BLOCK_C), tl.float32) for j in LANES
        ]
        last = tl.minimum((split + 1) * tiles_per_split, tile_count)
        for t in tl.range(split * tiles_per_split, last, num_stages=1):
            image = (t // (tiles[0] * tiles[1] * tiles[2])).to(tl.int64)
            tile = t % (tiles[0] * tiles[1] * tiles[2])
            o_d, o_h, o_w = _tile_pixels(tile, tiles, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
            m_p = _inside(o_d, o_h, o_w, out_size, NDIM)
            g_ptrs = g_ptr + image * g_strides[0] + _offset(o_d, o_h, o_w, g_strides, NDIM)[:, None] + o_g
            b_g = tl.load(g_ptrs, mask=m_p[:, None] & m_o[None, :], other=0.0)
            if DEPTHWISE:
                b_g = b_g.to(tl.float32)
            if BIAS and block_c + block_s == 0:
                b_bias += tl.sum(b_g.to(tl.float32), 0)
            i_d = o_d * stride[0] + origin[0]
            i_h = o_h * stride[1] + origin[1]
            i_w = o_w * stride[2] + origin[2]
            x_ptrs = x_ptr + image * x_strides[0] + (o_c.to(INDEX) * x_strides[1])[None, :]
            if not WRAP:
                x_ptrs += _offset(i_d, i_h, i_w, x_strides, NDIM)[:, None]
            else:
                x_ptrs += tl.zeros((BP, 1), INDEX)
            b_bits = tl.zeros((BP, BC), tl.int32)
            if STARTS is not None:
                bits = _tap_bits(m_p, i_d, i_h, i_w, in_size, KERNEL_SIZE, DILATION, NDIM)
                b_bits = tl.where(m_c[None, :], bits[:, None], 0)
            b_sums = [
                _correlate(
                    (0 if STARTS is not None else block_s * len(LANES)) + j, b_sums[j], b_g,
                    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, in_size, x_strides,
                    TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, DEPTHWISE, SETTLE, PRECISION,
                )
                for j in LANES
            ]  # fmt: skip
        # once more, as in `convolve`: not kept over the loop
        pid += tl.load(start_ptr)
        block_o, block_c, block_s, group, split = _share(pid, blocks, lane_groups)
        o_o = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
        m_o = o_o < (groups * outputs if DEPTHWISE else outputs)
        o_row = o_o if DEPTHWISE else group * outputs + o_o
        s_ptr = (ws_ptr + sums_at).to(tl.pointer_type(tl.float32))
        rows = groups * outputs
        for j in tl.static_range(len(LANES)):
            s = block_s * len(LANES) + j
            to_ptr = s_ptr + (split * BUCKETS + s) * rows * channels
            b_total = b_sums[j]
            if not DEPTHWISE and tl.float16 == HALF:
                b_total /= SHRINK
            if s < BUCKETS:
                if DEPTHWISE:
                    tl.store(to_ptr + o_row * channels + block_c, tl.sum(b_total, 0), mask=m_o)
                else:
                    o_k = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
                    m_s = m_o[:, None] & (o_k < channels)[None, :]
                    tl.store(to_ptr + o_row[:, None] * channels + o_k[None, :], b_total, mask=m_s)
        if BIAS and block_c + block_s == 0:
            bias_ptr = (ws_ptr + bias_at).to(tl.pointer_type(tl.float32))
            tl.store(bias_ptr + split * rows + o_row, b_bias, mask=m_o)


@triton.jit
def finish(
    w_ptr, p_ptr, gw_ptr, gp_ptr, gbias_ptr, ws_ptr, table_ptr,
    sums_at, bias_at, partial_at, count_at, n, total, rows, splits,
    FAMILY: tl.constexpr, BUCKETS: tl.constexpr, WANT_W: tl.constexpr, WANT_P: tl.constexpr, BIAS: tl.constexpr,
    N2: tl.constexpr, ND2: tl.constexpr, SPLITS2: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of w, of sigma or the profile, and of the bias, from the sums of `weight_gradient`.

    Grid: blocks of ROWS weights.  The profile's gradient is a sum over all of them: each program leaves its share in
    the workspace, and the last one to arrive adds them up, always in the same order.
    """
    pid = tl.program_id(0)
    o_n = tl.arange(0, N2)
    o_k = tl.arange(0, SPLITS2)
    o_r = pid * ROWS + tl.arange(0, ROWS)
    m_r = o_r < total
    s_ptr = (ws_ptr + sums_at).to(tl.pointer_type(tl.float32))
    m_w = m_r[:, None] & (o_n < n)[None, :]
    part_ptr = (ws_ptr + partial_at).to(tl.pointer_type(tl.float32))
    b_w = tl.load(w_ptr + o_r[:, None] * n + o_n[None, :], mask=m_w, other=0.0).to(tl.float32)
    b_gw = tl.zeros((ROWS, N2), tl.float32)
    for s in range(BUCKETS):
        at = (o_k[:, None] * BUCKETS + s) * total + o_r[None, :]
        b_s = tl.sum(tl.load(s_ptr + at, mask=(o_k < splits)[:, None] & m_r[None, :], other=0.0), 0)  # (ROWS,)
        if WANT_W:
            column, _slope = _profile(p_ptr, table_ptr, o_n, tl.full((N2,), 0, tl.int32) + s, n, BUCKETS, FAMILY)
            b_gw += b_s[:, None] * column.to(tl.float32)[None, :]
        if WANT_P:
            share = tl.sum(b_s[:, None] * b_w, 0)  # (N2,)
            tl.store(part_ptr + pid * n * BUCKETS + o_n * BUCKETS + s, share, mask=o_n < n)
    if WANT_W:
        tl.store(gw_ptr + o_r[:, None] * n + o_n[None, :], b_gw.to(gw_ptr.dtype.element_ty), mask=m_w)
    if BIAS:
        bias_ptr = (ws_ptr + bias_at).to(tl.pointer_type(tl.float32))
        m_b = (o_k < splits)[:, None] & (o_r < rows)[None, :]
        b_b = tl.sum(tl.load(bias_ptr + o_k[:, None] * rows + o_r[None, :], mask=m_b, other=0.0), 0)
        tl.store(gbias_ptr + o_r, b_b, mask=o_r < rows)
    if WANT_P:
        tl.debug_barrier()  # all threads' shares are written before one of them says so
        if tl.atomic_add(ws_ptr + count_at, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            o_p = tl.arange(0, PARTS)
            o_f = tl.arange(0, ND2)  # ring * BUCKETS + bucket
            b_gp = tl.zeros((ND2,), tl.float64)
            for first in range(0, tl.num_programs(0), PARTS):
                m = (first + o_p < tl.num_programs(0))[:, None] & (o_f < n * BUCKETS)[None, :]
                # past the first-level cache, which knows nothing of other programs' writes
                at = (first + o_p)[:, None] * n * BUCKETS + o_f[None, :]
                b_part = tl.load(part_ptr + at, mask=m, other=0.0, cache_modifier=".cg")
                b_gp += tl.sum(b_part.to(tl.float64), 0)
            if FAMILY == "custom":
                tl.store(gp_ptr + o_f, b_gp.to(gp_ptr.dtype.element_ty), mask=o_f < n * BUCKETS)
            else:
                o_i = o_f // BUCKETS
                _value, slope = _profile(p_ptr, table_ptr, o_i, o_f % BUCKETS, n, BUCKETS, FAMILY)
                for i in range(n):
                    g = tl.sum(tl.where(o_i == i, b_gp * slope, 0.0), 0)
                    tl.store(gp_ptr + i, g.to(tl.float32).to(gp_ptr.dtype.element_ty))

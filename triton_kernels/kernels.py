"""The device code: four kernels serve 1D, 2D and 3D, dense mixing and depthwise, forward and backward.

    prepare          sigma -> profile -> orthonormal basis and folded weights; tiny, float64 (weights.py)
    convolve         shell sums -> ring combination -> product with the folded weights; forward and input gradient
    weight_gradient  shell sums -> product with the output gradient over pixels, split over pixels into a workspace
    finish           workspace -> gradients of w, sigma (or the profile) and bias, in a fixed order (weights.py)

A tile is TILE_D x TILE_H x TILE_W pixels, BP of them.  `convolve` walks over channels in chunks of BLOCK_C.  Each
tap of a shell is one masked load of (BP, BLOCK_C) elements, which all but the first time comes from the first-level
cache.  Shells are summed in float32 (shells.py), rounded once to x's dtype, and meet weights that the profile was
folded into on the matrix units.  Where products are slow (float32), n combinations of the shells meet n weights
instead, orthonormal over the taps so that rounding does not grow.  What bounds it: plain issue slots, which
`python -m benchmarks.resources` counts, then the matrix units.

A transposed convolution, or the input gradient of a strided one, is split into residue classes of its output pixels:
within a class it is an ordinary convolution with some of the taps, so each class has a table of its own and nothing is
spent on the zeros in between.

float16 ends at 65504, which shell sums may leave where outputs, with small weights, don't.  A program whose results
are not finite starts again with sums of 1/1024 of their size; so small values, such as gradients, keep all their
digits in the first attempt.

Names: x_ptr pointer, o_x offset, i_x input coordinate, t_x tap, m_x mask, b_x block.  Sizes and strides are tuples in
the order depth, height, width; unused leading axes have size 1 and cost nothing (NDIM).
"""

import triton
import triton.language as tl

from .shells import inside, joined, offset, settled, shell_sum, tap_bits, tile_pixels
from .weights import fold

__all__ = ["convolve", "weight_gradient"]

SHRINK = tl.constexpr(2.0**-10)  # of the second attempt

# What changes with the image's size: no reason to compile anew where one of them becomes 1 or a multiple of 16.
# (Of tuples, Triton would look at each number all the same.)
IMAGE = ["in_d", "in_h", "in_w", "out_d", "out_h", "out_w", "tiles_d", "tiles_h", "tiles_w"]


@triton.jit
def _scale(attempt):
    """Of float16 shell sums."""
    return tl.where(attempt == 0, 1.0, SHRINK)


@triton.jit
def _beyond(b_sums):
    """1 where values are Inf or NaN, else 0."""
    return tl.where(tl.abs(b_sums) < float("inf"), 0, 1)


@triton.jit
def _rows(block_o, group, outputs, groups, DEPTHWISE, BLOCK_O: tl.constexpr):
    """Output channels (BLOCK_O,) of one block, counted over all groups, and which exist."""
    o_o = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
    if DEPTHWISE:
        o_row = o_o
        m_o = o_o < groups * outputs
    else:
        o_row = group * outputs + o_o
        m_o = o_o < outputs
    return o_row, m_o


# --- forward and input gradient ---------------------------------------------------------------------------------------


@triton.jit
def _mix(b_acc, b_even, b_odd, scale, w_ptrs, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION: tl.constexpr):
    """A basis function times its weights, added to the outputs."""
    b_w = tl.load(w_ptrs, mask=m_w, other=0.0)
    b_basis = joined(b_even, b_odd, scale, b_w.dtype, PAIRS)
    if SETTLE:
        b_basis = settled(b_basis)
    if DEPTHWISE:
        return b_acc + b_basis * b_w[None, :]  # (BP, BO) * (1, BO)
    else:
        return tl.dot(b_basis, b_w, b_acc, input_precision=PRECISION)  # (BP, BC) @ (BC, BO)


@triton.jit
def _bucket(
    s, b_acc, b_evens, b_odds, scale, b_ptr, w_ptrs, row, m_w,
    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides, RINGS,
    TAPS: tl.constexpr, STARTS: tl.constexpr, BUCKETS, NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr,
    BP, BC, COMBINE, DEPTHWISE, SETTLE, PRECISION: tl.constexpr,
):  # fmt: skip
    """One bucket's share: in every ring, or at once in the outputs."""
    # before the taps: multiply-adds that wait for them would be put off, and all shell sums kept until then
    values = [tl.load(b_ptr + i * BUCKETS + s) for i in RINGS] if COMBINE else b_evens
    b_even, b_odd = shell_sum(
        s, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
        TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC,
    )  # fmt: skip
    if COMBINE:
        b_evens = [b_evens[i] + values[i] * b_even for i in RINGS]
        if PAIRS:
            b_odds = [b_odds[i] + values[i] * b_odd for i in RINGS]
    else:
        b_acc = _mix(b_acc, b_even, b_odd, scale, w_ptrs + s * row, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION)
    return b_acc, b_evens, b_odds


@triton.jit
def _place(pid, tiles, classes, NDIM, INDEX: tl.constexpr, TILE_D, TILE_H, TILE_W):
    """Image, residue class, and coordinates within the class, of one program's pixels."""
    tile = pid % (tiles[0] * tiles[1] * tiles[2])
    pid = pid // (tiles[0] * tiles[1] * tiles[2])
    kind = pid % (classes[0] * classes[1] * classes[2])
    image = (pid // (classes[0] * classes[1] * classes[2])).to(tl.int64)
    o_d, o_h, o_w = tile_pixels(tile, tiles, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
    return image, kind, o_d, o_h, o_w


@triton.jit
def _output(kind, o_d, o_h, o_w, classes):
    """Coordinates in the output."""
    o_d = o_d * classes[0] + kind // (classes[1] * classes[2])
    o_h = o_h * classes[1] + kind // classes[2] % classes[1]
    o_w = o_w * classes[2] + kind % classes[2]
    return o_d, o_h, o_w


@triton.jit
def _channel_sums(
    scale, x_ptr, w_ptr, q_ptr, tap_ptr, start_ptr, channels, group, o_row, m_o,
    m_p, i_d, i_h, i_w, bits, size, strides, RINGS, outputs: tl.constexpr, groups: tl.constexpr, COMBINE,
    TAPS: tl.constexpr, STARTS: tl.constexpr, BUCKETS: tl.constexpr, NDIM, INDEX: tl.constexpr,
    WRAP, PAIRS, HALF: tl.constexpr, DEPTHWISE, SETTLE, PRECISION: tl.constexpr,
    BP: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Outputs (BP, BLOCK_O), times scale: sum over channels, chunk by chunk."""
    PACK: tl.constexpr = 2 if PAIRS else 1  # channels in a word
    BC: tl.constexpr = (BLOCK_O if DEPTHWISE else BLOCK_C) // PACK
    row: tl.constexpr = groups * outputs  # from one basis function's weights to the next one's
    FUNCTIONS: tl.constexpr = len(RINGS) if COMBINE else BUCKETS
    b_acc = tl.zeros((BP, BLOCK_O), tl.float32)
    for c0 in tl.range(0, channels, BLOCK_C, num_stages=1):
        if DEPTHWISE:
            o_c = (tl.program_id(1) * BC + tl.arange(0, BC)) // outputs * channels + c0
            m_c = o_c < groups * channels // PACK
            m_w = m_o
            w_ptrs = w_ptr + c0 * FUNCTIONS * row + o_row
        else:
            o_k = c0 + tl.arange(0, BLOCK_C)
            m_k = o_k < channels
            m_w = m_k[:, None] & m_o[None, :]
            w_ptrs = w_ptr + (o_k * FUNCTIONS * row)[:, None] + o_row[None, :]
            o_c = (group * channels + c0) // PACK + tl.arange(0, BC)
            m_c = o_c < (group + 1) * channels // PACK
        x_ptrs = x_ptr + (o_c.to(INDEX) * strides[1])[None, :]
        # the channel mask varies from chunk to chunk: without it, the masks of all taps would be kept in registers
        b_bits = tl.where(m_c[None, :], bits[:, None], 0)
        # a copy of the basis for each chunk: one for all would be kept in registers, all n * D values of it
        b_ptr = q_ptr + c0 // BLOCK_C * BUCKETS * len(RINGS)
        b_evens = [tl.zeros((BP, BC), tl.float32) for i in RINGS]
        b_odds = b_evens
        if STARTS is not None:
            for s in tl.static_range(BUCKETS):
                b_acc, b_evens, b_odds = _bucket(
                    s, b_acc, b_evens, b_odds, scale, b_ptr, w_ptrs, row, m_w,
                    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides, RINGS,
                    TAPS, STARTS, BUCKETS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, COMBINE, DEPTHWISE,
                    SETTLE, PRECISION,
                )  # fmt: skip
        else:
            for s in range(BUCKETS):
                b_acc, b_evens, b_odds = _bucket(
                    s, b_acc, b_evens, b_odds, scale, b_ptr, w_ptrs, row, m_w,
                    x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides, RINGS,
                    TAPS, STARTS, BUCKETS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, COMBINE, DEPTHWISE,
                    SETTLE, PRECISION,
                )  # fmt: skip
        if COMBINE:
            for i in tl.static_range(len(RINGS)):
                b_acc = _mix(
                    b_acc, b_evens[i], b_odds[i], scale, w_ptrs + i * row, m_w, DEPTHWISE, PAIRS, SETTLE, PRECISION
                )
    return b_acc


@triton.jit
def _store_tile(
    pid, b_acc, y_ptr, o_row, m_o, tiles, classes, size, strides, NDIM, INDEX: tl.constexpr, TILE_D, TILE_H, TILE_W
):
    """Write (BP, BLOCK_O) to the pixels of program pid, output channels o_row."""
    image, kind, o_d, o_h, o_w = _place(pid, tiles, classes, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
    y_d, y_h, y_w = _output(kind, o_d, o_h, o_w, classes)
    m_y = inside(y_d, y_h, y_w, size, NDIM)[:, None] & m_o[None, :]
    y_ptrs = y_ptr + image * strides[0] + offset(y_d, y_h, y_w, strides, NDIM)[:, None]
    tl.store(y_ptrs + (o_row.to(INDEX) * strides[1])[None, :], b_acc.to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=IMAGE)
def convolve(
    x_ptr, y_ptr, bias_ptr, ws_ptr, tap_ptr, start_ptr,
    channels,  # of one group
    basis_at, weights_at,  # in ws, in words
    in_d, in_h, in_w, out_d, out_h, out_w, tiles_d, tiles_h, tiles_w,  # sizes of the image, numbers of tiles
    stride, origin,  # input coordinate = stride * output coordinate + origin + tap
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
    in_size, out_size, tiles = (in_d, in_h, in_w), (out_d, out_h, out_w), (tiles_d, tiles_h, tiles_w)
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
    m_p = inside(y_d, y_h, y_w, out_size, NDIM)
    if not WRAP:
        x_ptr += offset(i_d, i_h, i_w, x_strides, NDIM)[:, None]
    bits = tl.zeros((BP,), tl.int32)
    if STARTS is not None:
        bits = tap_bits(m_p, i_d, i_h, i_w, in_size, KERNEL_SIZE, DILATION, NDIM)

    o_row, m_o = _rows(tl.program_id(1), group, outputs, groups, DEPTHWISE, BLOCK_O)
    ATTEMPTS: tl.constexpr = 2 if tl.float16 == HALF and not DEPTHWISE else 1
    failed = tl.full((), True, tl.int1)
    for attempt in range(ATTEMPTS):
        if failed:
            scale = _scale(attempt)
            b_acc = _channel_sums(
                scale, x_ptr, w_ptr, q_ptr, tap_ptr, start_ptr, channels, group, o_row, m_o,
                m_p, i_d, i_h, i_w, bits, in_size, x_strides, RINGS, outputs, groups, COMBINE,
                TAPS, STARTS, BUCKETS, NDIM, INDEX, WRAP, PAIRS, HALF, DEPTHWISE, SETTLE, PRECISION,
                BP, BLOCK_C, BLOCK_O,
            )  # fmt: skip
            if ATTEMPTS > 1:
                b_acc *= 1.0 / scale
                failed = tl.max(_beyond(b_acc)) > 0
            if BIAS:
                b_acc += tl.load(bias_ptr + o_row, mask=m_o, other=0.0).to(tl.float32)[None, :]
            # the output's coordinates once more, in a way that the compiler can't take for the same: kept over the
            # loop, they would take registers that the ring sums need
            again = tl.program_id(0) + tl.load(first_ptr)
            _store_tile(
                again, b_acc, y_ptr, o_row, m_o, tiles, classes, out_size, y_strides,
                NDIM, INDEX, TILE_D, TILE_H, TILE_W,
            )  # fmt: skip


# --- gradient of the weights ------------------------------------------------------------------------------------------


@triton.jit
def _correlate(
    s, b_sum, b_g, scale, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
    TAPS: tl.constexpr, STARTS: tl.constexpr, NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr, BP, BC,
    DEPTHWISE, SETTLE, PRECISION: tl.constexpr,
):  # fmt: skip
    """A shell sum times the output gradient, summed over the tile's pixels; DEPTHWISE: pixel by pixel."""
    b_even, b_odd = shell_sum(
        s, x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, size, strides,
        TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC,
    )  # fmt: skip
    if DEPTHWISE:
        return b_sum + joined(b_even, b_odd, scale, tl.float32, PAIRS) * b_g
    else:
        b_q = joined(b_even, b_odd, scale, b_g.dtype, PAIRS)
        if SETTLE and not PAIRS:  # whose join does the same
            b_q = settled(b_q)
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
def _pixel_sums(
    scale, x_ptr, g_ptr, tap_ptr, start_ptr, channels, outputs, groups, in_size, out_size, tiles, first, last,
    stride, origin, x_strides, g_strides, block_o, block_c, block_s, group, LANES,
    TAPS: tl.constexpr, STARTS: tl.constexpr, KERNEL_SIZE: tl.constexpr, DILATION: tl.constexpr,
    NDIM, INDEX: tl.constexpr, WRAP, PAIRS, HALF: tl.constexpr, DEPTHWISE, SETTLE, BIAS, PRECISION: tl.constexpr,
    TILE_D, TILE_H, TILE_W, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Sums over tiles first .. last, times scale, a tensor a bucket, and those of the output gradient itself."""
    BP: tl.constexpr = TILE_D * TILE_H * TILE_W
    PACK: tl.constexpr = 2 if PAIRS else 1
    BC: tl.constexpr = (BLOCK_O if DEPTHWISE else BLOCK_C) // PACK
    o_row, m_o = _rows(block_o, group, outputs, groups, DEPTHWISE, BLOCK_O)
    if DEPTHWISE:
        o_c = (block_o * BC + tl.arange(0, BC)) // outputs * channels + block_c
        m_c = o_c < groups * channels // PACK
    else:
        o_c = (group * channels + block_c * BLOCK_C) // PACK + tl.arange(0, BC)
        m_c = o_c < (group + 1) * channels // PACK
    o_g = (o_row.to(INDEX) * g_strides[1])[None, :]
    b_bias = tl.zeros((BLOCK_O,), tl.float32)
    b_sums = [tl.zeros((BP if DEPTHWISE else BLOCK_O, BLOCK_O if DEPTHWISE else BLOCK_C), tl.float32) for j in LANES]
    for t in tl.range(first, last, num_stages=1):
        image = (t // (tiles[0] * tiles[1] * tiles[2])).to(tl.int64)
        tile = t % (tiles[0] * tiles[1] * tiles[2])
        o_d, o_h, o_w = tile_pixels(tile, tiles, NDIM, INDEX, TILE_D, TILE_H, TILE_W)
        m_p = inside(o_d, o_h, o_w, out_size, NDIM)
        g_ptrs = g_ptr + image * g_strides[0] + offset(o_d, o_h, o_w, g_strides, NDIM)[:, None] + o_g
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
            x_ptrs += offset(i_d, i_h, i_w, x_strides, NDIM)[:, None]
        else:
            x_ptrs += tl.zeros((BP, 1), INDEX)
        b_bits = tl.zeros((BP, BC), tl.int32)
        if STARTS is not None:
            bits = tap_bits(m_p, i_d, i_h, i_w, in_size, KERNEL_SIZE, DILATION, NDIM)
            b_bits = tl.where(m_c[None, :], bits[:, None], 0)
        b_sums = [
            _correlate(
                (0 if STARTS is not None else block_s * len(LANES)) + j, b_sums[j], b_g, scale,
                x_ptrs, m_p, m_c, i_d, i_h, i_w, b_bits, tap_ptr, start_ptr, in_size, x_strides,
                TAPS, STARTS, NDIM, INDEX, WRAP, PAIRS, HALF, BP, BC, DEPTHWISE, SETTLE, PRECISION,
            )
            for j in LANES
        ]  # fmt: skip
    return b_sums, b_bias


@triton.jit
def _store_sums(
    pid, scale, b_sums, b_bias, ws_ptr, sums_at, bias_at, channels, outputs, groups, blocks, LANES,
    BUCKETS, DEPTHWISE, BIAS, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Write what `_pixel_sums` found to program pid's place in the workspace; whether all of it was finite."""
    block_o, block_c, block_s, group, split = _share(pid, blocks, 1 if DEPTHWISE else groups)
    o_row, m_o = _rows(block_o, group, outputs, groups, DEPTHWISE, BLOCK_O)
    s_ptr = (ws_ptr + sums_at).to(tl.pointer_type(tl.float32))
    rows = groups * outputs
    if scale is not None:
        b_beyond = _beyond(b_sums[0])
        for j in tl.static_range(1, len(LANES)):
            b_beyond |= _beyond(b_sums[j])
        failed = tl.max(b_beyond) > 0
    else:
        failed = tl.full((), False, tl.int1)
    for j in tl.static_range(len(LANES)):
        s = block_s * len(LANES) + j
        to_ptr = s_ptr + (split * BUCKETS + s) * rows * channels
        b_total = b_sums[j]
        if scale is not None:
            b_total *= 1.0 / scale
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
    return failed


@triton.jit(do_not_specialize=[*IMAGE, "tile_count", "tiles_per_split"])
def weight_gradient(
    x_ptr, g_ptr, w_ptr, p_ptr, ws_ptr, tap_ptr, start_ptr, table_ptr,
    channels, outputs, groups,
    sums_at, bias_at, count_at,  # in ws, in words
    in_d, in_h, in_w, out_d, out_h, out_w, tiles_d, tiles_h, tiles_w,
    tile_count, tiles_per_split, stride, origin, x_strides, g_strides,
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
        fold(
            tl.program_id(0), w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, fold_channels, fold_outputs,
            groups, w_strides, copies, FAMILY, COMBINE, W_DTYPE, N2, D2, ROWS, BUCKETS,
        )  # fmt: skip
    else:
        in_size, out_size, tiles = (in_d, in_h, in_w), (out_d, out_h, out_w), (tiles_d, tiles_h, tiles_w)
        HALF: tl.constexpr = g_ptr.dtype.element_ty
        ATTEMPTS: tl.constexpr = 2 if tl.float16 == HALF and not DEPTHWISE else 1
        pid = tl.program_id(0) - fold_programs
        if pid == 0:
            tl.store(ws_ptr + count_at, 0)  # programs of `finish` that are done
        block_o, block_c, block_s, group, split = _share(pid, blocks, 1 if DEPTHWISE else groups)
        first = split * tiles_per_split
        last = tl.minimum(first + tiles_per_split, tile_count)
        failed = tl.full((), True, tl.int1)
        for attempt in range(ATTEMPTS):
            if failed:
                scale = _scale(attempt)
                b_sums, b_bias = _pixel_sums(
                    scale, x_ptr, g_ptr, tap_ptr, start_ptr, channels, outputs, groups, in_size, out_size, tiles,
                    first, last, stride, origin, x_strides, g_strides, block_o, block_c, block_s, group, LANES,
                    TAPS, STARTS, KERNEL_SIZE, DILATION, NDIM, INDEX, WRAP, PAIRS, HALF, DEPTHWISE, SETTLE, BIAS,
                    PRECISION, TILE_D, TILE_H, TILE_W, BLOCK_C, BLOCK_O,
                )  # fmt: skip
                # once more, as in `convolve`: not kept over the loop
                failed = _store_sums(
                    pid + tl.load(start_ptr), scale if ATTEMPTS > 1 else None, b_sums, b_bias, ws_ptr, sums_at, bias_at,
                    channels, outputs, groups, blocks, LANES, BUCKETS, DEPTHWISE, BIAS, BLOCK_C, BLOCK_O,
                )  # fmt: skip

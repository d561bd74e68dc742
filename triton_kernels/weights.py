"""Everything of the weights' size: profile, orthonormal basis, folding into weights, and the gradients' last sums."""

import triton
import triton.language as tl

__all__ = ["finish", "fold", "prepare"]


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
def fold(
    pid, w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, channels, outputs, groups, w_strides, copies,
    FAMILY: tl.constexpr, COMBINE, W_DTYPE: tl.constexpr, N2: tl.constexpr, D2: tl.constexpr, ROWS, BUCKETS,
):  # fmt: skip
    """Weights pid * ROWS and on, folded with the profile; program 0 writes the basis too."""
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
    fold(
        tl.program_id(0), w_ptr, p_ptr, table_ptr, ws_ptr, basis_at, weights_at, n, channels, outputs, groups,
        w_strides, copies, FAMILY, COMBINE, W_DTYPE, N2, D2, ROWS, BUCKETS,
    )  # fmt: skip


@triton.jit
def _over_splits(ptrs, distance, splits, m_r, SPLITS: tl.constexpr, ROWS: tl.constexpr):
    """Sum (ROWS,) of the values that the splits have left, SPLITS at a time, always in the same order."""
    b_sum = tl.zeros((SPLITS, ROWS), tl.float32)
    for first in range(0, splits, SPLITS):
        o_k = first + tl.arange(0, SPLITS)
        b_sum += tl.load(
            ptrs[None, :] + o_k[:, None] * distance, mask=(o_k < splits)[:, None] & m_r[None, :], other=0.0
        )
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["splits"])
def finish(
    w_ptr, p_ptr, gw_ptr, gp_ptr, gbias_ptr, ws_ptr, table_ptr,
    sums_at, bias_at, partial_at, count_at, n, total, rows, splits,
    FAMILY: tl.constexpr, BUCKETS: tl.constexpr, WANT_W: tl.constexpr, WANT_P: tl.constexpr, BIAS: tl.constexpr,
    N2: tl.constexpr, ND2: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Gradients of w, of sigma or the profile, and of the bias, from the sums of `weight_gradient`.

    Grid: blocks of ROWS weights.  The profile's gradient is a sum over all of them: each program leaves its share in
    the workspace, and the last one to arrive adds them up, always in the same order.
    """
    pid = tl.program_id(0)
    o_n = tl.arange(0, N2)
    o_r = pid * ROWS + tl.arange(0, ROWS)
    m_r = o_r < total
    s_ptr = (ws_ptr + sums_at).to(tl.pointer_type(tl.float32))
    m_w = m_r[:, None] & (o_n < n)[None, :]
    part_ptr = (ws_ptr + partial_at).to(tl.pointer_type(tl.float32))
    b_w = tl.load(w_ptr + o_r[:, None] * n + o_n[None, :], mask=m_w, other=0.0).to(tl.float32)
    b_gw = tl.zeros((ROWS, N2), tl.float32)
    for s in range(BUCKETS):
        b_s = _over_splits(s_ptr + s * total + o_r, BUCKETS * total, splits, m_r, SPLITS, ROWS)
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
        b_b = _over_splits(bias_ptr + o_r, rows, splits, o_r < rows, SPLITS, ROWS)
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

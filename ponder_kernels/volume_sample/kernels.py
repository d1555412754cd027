"""Triton kernels of trilinear sampling: values, first and second derivatives.

A volume that is read comes with five strides in steps of UNIT elements and with two constants: UNIT, a power of two
that divides every stride but the channel's, and LAST, whether the channel's stride is 1. So the compiler knows where
wide loads are aligned, while no size and no stride is part of the compiled form. A volume that is written is dense, the
channel its last axis in memory (LAST) or its second.
"""

import triton
import triton.language as tl

from ponder_kernels._constants import REFLECTION_MAX

_ZEROS = tl.constexpr(0)
_REFLECTION = tl.constexpr(2)
_REFLECTION_MAX = tl.constexpr(REFLECTION_MAX)


@triton.jit
def _reflect(position, slope, size, ALIGN: tl.constexpr):
    """Mirrored index and its slope; see reference._reflect."""
    low = 0.0 if ALIGN else -0.5
    span = (size - 1 if ALIGN else size) * 1.0
    period = tl.maximum(2.0 * span, 1.0)
    position = tl.where(tl.abs(position) < _REFLECTION_MAX, position, 0.0) - low
    distance = tl.abs(position)
    distance -= tl.floor(distance / period) * period
    turned = distance > span
    slope = tl.where((position < 0.0) == turned, slope, -slope)
    return tl.where(turned, period - distance, distance) + low, slope


@triton.jit
def _axis(coordinate, size, PADDING: tl.constexpr, ALIGN: tl.constexpr, SMOOTH: tl.constexpr):
    """One axis of reference.axis_position and axis_weights, for the lower (k = 0) and the upper neighbour (k = 1).

    Returns a tuple: [0] the lower neighbour's index (int32), [1 + k] which are inside, [3 + k] weights, [5 + k] and
    [7 + k] the weights' first and second derivatives, exactly 0 where the coordinate cannot move the index.
    """
    if ALIGN:
        position = (coordinate + 1.0) * 0.5 * (size - 1)
        slope = 0.5 * (size - 1)
    else:
        position = ((coordinate + 1.0) * size - 1.0) * 0.5
        slope = 0.5 * size
    if PADDING == _ZEROS:
        # -2 has no neighbour inside, so that every corner is masked (NaN and infinities come here too).
        moves = (position >= -1.0) & (position < size)
        position = tl.where(moves, position, -2.0)
    else:
        if PADDING == _REFLECTION:
            position, slope = _reflect(position, slope, size, ALIGN)
        moves = (position > 0.0) & (position < size - 1)
        # Comparisons with NaN are false: NaN becomes 0 before any conversion to an integer.
        position = tl.where(position > 0.0, position, 0.0)
        position = tl.where(position < size - 1, position, (size - 1) * 1.0)
    slope = tl.where(moves, slope, 0.0)
    floor = tl.floor(position)
    upper = position - floor
    curve = slope * 0.0
    if SMOOTH:
        curve = slope * slope * (6.0 - 12.0 * upper)
        slope = slope * 6.0 * upper * (1.0 - upper)
        upper = upper * upper * (3.0 - 2.0 * upper)
    low = floor.to(tl.int32)
    low_inside = (low >= 0) & (low < size)
    high_inside = (low >= -1) & (low < size - 1)
    return low, low_inside, high_inside, 1.0 - upper, upper, -slope, slope, -curve, curve


@triton.jit
def _along(q, axis):
    """q times the [k] first and [2 + k] second derivatives of an axis' weights; 0 where they are, whatever q is."""
    first = tl.where(axis[6] == 0.0, 0.0, q * axis[6])
    second = tl.where(axis[8] == 0.0, 0.0, q * axis[8])
    return -first, first, -second, second


@triton.jit
def _program_rows(N, BLOCK_N: tl.constexpr):
    """Batch entry (int64) of the program, its points' rows in [B * N] (int64), and which of them exist."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    return b, b * N + n, n < N


@triton.jit
def _load_xyz(ptr, row, live):
    """Three numbers of each point, float32."""
    x = tl.load(ptr + row * 3, mask=live, other=0.0).to(tl.float32)
    y = tl.load(ptr + row * 3 + 1, mask=live, other=0.0).to(tl.float32)
    z = tl.load(ptr + row * 3 + 2, mask=live, other=0.0).to(tl.float32)
    return x, y, z


@triton.jit
def _store_xyz(ptr, row, x, y, z, live):
    tl.store(ptr + row * 3, x, mask=live)
    tl.store(ptr + row * 3 + 1, y, mask=live)
    tl.store(ptr + row * 3 + 2, z, mask=live)


@triton.jit
def _axes(points_ptr, row, live, D, H, W, PADDING: tl.constexpr, ALIGN: tl.constexpr, SMOOTH: tl.constexpr):
    """`_axis` of the three coordinates of each point."""
    x, y, z = _load_xyz(points_ptr, row, live)
    X = _axis(x, W, PADDING, ALIGN, SMOOTH)
    Y = _axis(y, H, PADDING, ALIGN, SMOOTH)
    Z = _axis(z, D, PADDING, ALIGN, SMOOTH)
    return X, Y, Z


@triton.jit
def _along_axes(gg_points_ptr, row, live, X, Y, Z):
    """`_along` of the three numbers of each point."""
    x, y, z = _load_xyz(gg_points_ptr, row, live)
    return _along(x, X), _along(y, Y), _along(z, Z)


@triton.jit
def _cell(b, x, y, z, stride_b, stride_d, stride_h, stride_w, UNIT: tl.constexpr):
    """Elements (int64) from the start of a strided volume to voxels, and to their neighbours along x, y, z."""
    step_x, step_y, step_z = stride_w.to(tl.int64), stride_h.to(tl.int64), stride_d.to(tl.int64)
    cell = b * stride_b + z * step_z + y * step_y + x * step_x
    return cell * UNIT, step_x * UNIT, step_y * UNIT, step_z * UNIT


@triton.jit
def _dense_cell(b, x, y, z, D, H, W, C: tl.constexpr, LAST: tl.constexpr):
    """The same for a dense volume, and its channel's stride."""
    area = H.to(tl.int64) * W
    cell = z * area + y.to(tl.int64) * W + x
    if LAST:
        return (b * D * area + cell) * C, C, W * C, area * C, 1
    else:
        return b * D * area * C + cell, 1, W, area, area * D


_SIZES = ["N", "D", "H", "W"]
_STRIDES = ["stride_b", "stride_c", "stride_d", "stride_h", "stride_w"]
_GG_STRIDES = ["gg_stride_b", "gg_stride_c", "gg_stride_d", "gg_stride_h", "gg_stride_w"]


@triton.jit(do_not_specialize=_SIZES + _STRIDES)
def volume_sample_forward_kernel(
    volume_ptr,  # [B, C, D, H, W] any strides
    points_ptr,  # [B, N, 3] contiguous
    out_ptr,  # [B, N, C] contiguous
    N,
    D,
    H,
    W,
    stride_b,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[b,n,c] = sum over 8 corners of weight * volume[b,c,corner]; corners outside count 0.

    Grid (B * ceil(N / BLOCK_N), ceil(C / BLOCK_C)); a program owns BLOCK_N points of one batch entry and BLOCK_C
    channels, and writes that tile of `out` exactly once. Reads 12 B + 8 C elements per point, writes 4 C B; about
    30 + 16 C FLOPs per point (cost.forward_cost): bound by the latency and bandwidth of the gather. The weights are
    recomputed per channel block. With channels last each corner is one coalesced row.
    """
    b, row, live = _program_rows(N, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    X, Y, Z = _axes(points_ptr, row, live, D, H, W, PADDING, ALIGN, SMOOTH)
    cell, step_x, step_y, step_z = _cell(b, X[0], Y[0], Z[0], stride_b, stride_d, stride_h, stride_w, UNIT)
    # One address per point and channel; the corners are the same address plus scalars, which saves registers.
    source = volume_ptr + cell[:, None] + (c if LAST else c * (stride_c.to(tl.int64) * UNIT))[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    channels = (c < C)[None, :]
    for dz in tl.static_range(2):
        for dy in tl.static_range(2):
            inside = live & Z[1 + dz] & Y[1 + dy]
            wyz = Z[3 + dz] * Y[3 + dy]
            line = source + (dz * step_z + dy * step_y)
            for dx in tl.static_range(2):
                mask = (inside & X[1 + dx])[:, None] & channels
                value = tl.load(line + dx * step_x, mask=mask, other=0.0).to(tl.float32)
                acc += (X[3 + dx] * wyz)[:, None] * value
    tl.store(out_ptr + row[:, None] * C + c[None, :], acc, mask=live[:, None] & channels)


@triton.jit(do_not_specialize=_SIZES + _STRIDES)
def volume_sample_backward_kernel(
    grad_out_ptr,  # [B, N, C] contiguous, float32
    volume_ptr,  # [B, C, D, H, W] any strides
    points_ptr,  # [B, N, 3] contiguous
    to_volume_ptr,  # [B, C, D, H, W] dense, float32, zero on entry; unused without TO_VOLUME
    to_points_ptr,  # [B, N, 3] contiguous, float32; unused without TO_POINTS
    N,
    D,
    H,
    W,
    stride_b,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    TO_VOLUME: tl.constexpr,
    TO_POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """to_volume[k] += w_k g;  to_points[a] = sum over corners k and channels of (dw_k / dp_a) g volume[k].

    Grid (B * ceil(N / BLOCK_N),); a program owns BLOCK_N points with all their channels, so that it writes their
    `to_points` exactly once without atomics. `to_volume` is an atomic float32 sum over all points that touch a cell:
    its last bits depend on the order of arrival (volume_sample_scatter_kernel is the deterministic way). Positions and
    weights are recomputed. Bytes and FLOPs: cost.backward_cost; bound by the gather and by atomic throughput.
    """
    b, row, live = _program_rows(N, BLOCK_N)
    X, Y, Z = _axes(points_ptr, row, live, D, H, W, PADDING, ALIGN, SMOOTH)
    cell, step_x, step_y, step_z = _cell(b, X[0], Y[0], Z[0], stride_b, stride_d, stride_h, stride_w, UNIT)
    to_cell, to_x, to_y, to_z, to_c = _dense_cell(b, X[0], Y[0], Z[0], D, H, W, C, LAST)
    sum_x = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_y = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_z = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        rows = row[:, None] * C + c[None, :]
        channels = (c < C)[None, :]
        g = tl.load(grad_out_ptr + rows, mask=live[:, None] & channels, other=0.0).to(tl.float32)
        source = volume_ptr + cell[:, None] + (c if LAST else c * (stride_c.to(tl.int64) * UNIT))[None, :]
        target = to_volume_ptr + to_cell[:, None] + (c * to_c)[None, :]
        for dz in tl.static_range(2):
            for dy in tl.static_range(2):
                inside = live & Z[1 + dz] & Y[1 + dy]
                # The derivative along an axis takes that axis' slope in the place of its weight.
                wyz, syz, wys = Z[3 + dz] * Y[3 + dy], Z[3 + dz] * Y[5 + dy], Z[5 + dz] * Y[3 + dy]
                line = source + (dz * step_z + dy * step_y)
                target_line = target + (dz * to_z + dy * to_y)
                for dx in tl.static_range(2):
                    mask = (inside & X[1 + dx])[:, None] & channels
                    wx, sx = X[3 + dx], X[5 + dx]
                    if TO_VOLUME:
                        tl.atomic_add(target_line + dx * to_x, (wx * wyz)[:, None] * g, mask=mask, sem="relaxed")
                    if TO_POINTS:
                        gv = g * tl.load(line + dx * step_x, mask=mask, other=0.0).to(tl.float32)
                        sum_x += (sx * wyz)[:, None] * gv
                        sum_y += (wx * syz)[:, None] * gv
                        sum_z += (wx * wys)[:, None] * gv
    if TO_POINTS:
        # A coordinate that cannot move has derivative 0, NaN voxels or not.
        along_x = tl.where(X[6] == 0.0, 0.0, tl.sum(sum_x, axis=1))
        along_y = tl.where(Y[6] == 0.0, 0.0, tl.sum(sum_y, axis=1))
        along_z = tl.where(Z[6] == 0.0, 0.0, tl.sum(sum_z, axis=1))
        _store_xyz(to_points_ptr, row, along_x, along_y, along_z, live)


@triton.jit(do_not_specialize=_SIZES + _STRIDES + _GG_STRIDES)
def volume_sample_double_backward_kernel(
    gg_volume_ptr,  # [B, C, D, H, W] any strides, cotangent of the volume's gradient; unused without FROM_VOLUME
    gg_points_ptr,  # [B, N, 3] contiguous, cotangent of the points' gradient; unused without FROM_POINTS
    grad_out_ptr,  # [B, N, C] contiguous, float32
    volume_ptr,  # [B, C, D, H, W] any strides
    points_ptr,  # [B, N, 3] contiguous
    to_out_ptr,  # [B, N, C] contiguous, float32; unused without TO_OUT
    to_volume_ptr,  # [B, C, D, H, W] dense, float32, zero on entry; unused without TO_VOLUME
    to_points_ptr,  # [B, N, 3] contiguous, float32; unused without TO_POINTS
    N,
    D,
    H,
    W,
    stride_b,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    gg_stride_b,
    gg_stride_c,
    gg_stride_d,
    gg_stride_h,
    gg_stride_w,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    GG_LAST: tl.constexpr,
    GG_UNIT: tl.constexpr,
    FROM_VOLUME: tl.constexpr,
    FROM_POINTS: tl.constexpr,
    TO_OUT: tl.constexpr,
    TO_VOLUME: tl.constexpr,
    TO_POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With Q = gg_volume, q = gg_points, d_a = d/dp_a; k runs over corners, c over channels, a over axes:

    to_out[c] = sum_k w_k Q_kc + (sum_a q_a d_a w_k) V_kc;  to_volume[k,c] += (sum_a q_a d_a w_k) g_c;
    to_points[b] = sum_kc (d_b w_k) g_c Q_kc + (sum_a q_a d_a d_b w_k) g_c V_kc; d_a d_a w_k is 0 without SMOOTH.

    Grid (B * ceil(N / BLOCK_N),); a program owns BLOCK_N points with all their channels and writes their `to_out` and
    `to_points` exactly once; `to_volume` is an atomic sum as in the backward, and needs FROM_POINTS. Positions and
    weights are recomputed. Bytes and FLOPs: cost.double_backward_cost; bound by two gathers and the atomics.
    """
    b, row, live = _program_rows(N, BLOCK_N)
    X, Y, Z = _axes(points_ptr, row, live, D, H, W, PADDING, ALIGN, SMOOTH)
    cell, step_x, step_y, step_z = _cell(b, X[0], Y[0], Z[0], stride_b, stride_d, stride_h, stride_w, UNIT)
    gg_strides = gg_stride_b, gg_stride_d, gg_stride_h, gg_stride_w
    gg_cell, gg_x, gg_y, gg_z = _cell(b, X[0], Y[0], Z[0], *gg_strides, GG_UNIT)
    to_cell, to_x, to_y, to_z, to_c = _dense_cell(b, X[0], Y[0], Z[0], D, H, W, C, LAST)
    if FROM_POINTS:
        qx, qy, qz = _along_axes(gg_points_ptr, row, live, X, Y, Z)
    sum_x = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_y = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_z = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        rows = row[:, None] * C + c[None, :]
        channels = (c < C)[None, :]
        g = tl.load(grad_out_ptr + rows, mask=live[:, None] & channels, other=0.0).to(tl.float32)
        source = volume_ptr + cell[:, None] + (c if LAST else c * (stride_c.to(tl.int64) * UNIT))[None, :]
        gg_source = gg_volume_ptr + gg_cell[:, None]
        gg_source += (c if GG_LAST else c * (gg_stride_c.to(tl.int64) * GG_UNIT))[None, :]
        target = to_volume_ptr + to_cell[:, None] + (c * to_c)[None, :]
        acc = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
        for dz in tl.static_range(2):
            for dy in tl.static_range(2):
                inside = live & Z[1 + dz] & Y[1 + dy]
                wy, sy, wz, sz = Y[3 + dy], Y[5 + dy], Z[3 + dz], Z[5 + dz]
                wyz, syz, wys = wy * wz, sy * wz, wy * sz
                line = source + (dz * step_z + dy * step_y)
                gg_line = gg_source + (dz * gg_z + dy * gg_y)
                target_line = target + (dz * to_z + dy * to_y)
                if FROM_POINTS:
                    # The letter q stands for an axis' weight differentiated along gg_points, once more than w or s.
                    qyz = qy[dy] * wz + wy * qz[dz]
                    qy_z = (sy * qz[dz] + qy[2 + dy] * wz) if SMOOTH else sy * qz[dz]
                    qz_y = (qy[dy] * sz + wy * qz[2 + dz]) if SMOOTH else qy[dy] * sz
                for dx in tl.static_range(2):
                    mask = (inside & X[1 + dx])[:, None] & channels
                    wx, sx = X[3 + dx], X[5 + dx]
                    if FROM_POINTS:
                        along = (qx[dx] * wyz + wx * qyz)[:, None]
                        if TO_VOLUME:
                            tl.atomic_add(target_line + dx * to_x, along * g, mask=mask, sem="relaxed")
                        if TO_OUT or TO_POINTS:
                            value = tl.load(line + dx * step_x, mask=mask, other=0.0).to(tl.float32)
                            acc += along * value
                            value *= g
                        if TO_POINTS:
                            along_x = (sx * qyz + qx[2 + dx] * wyz) if SMOOTH else sx * qyz
                            sum_x += along_x[:, None] * value
                            sum_y += (wx * qy_z + qx[dx] * syz)[:, None] * value
                            sum_z += (wx * qz_y + qx[dx] * wys)[:, None] * value
                    if FROM_VOLUME and (TO_OUT or TO_POINTS):
                        value = tl.load(gg_line + dx * gg_x, mask=mask, other=0.0).to(tl.float32)
                        acc += (wx * wyz)[:, None] * value
                        value *= g
                        if TO_POINTS:
                            sum_x += (sx * wyz)[:, None] * value
                            sum_y += (wx * syz)[:, None] * value
                            sum_z += (wx * wys)[:, None] * value
        if TO_OUT:
            tl.store(to_out_ptr + rows, acc, mask=live[:, None] & channels)
    if TO_POINTS:
        x = tl.where((X[6] == 0.0) & (X[8] == 0.0), 0.0, tl.sum(sum_x, axis=1))
        y = tl.where((Y[6] == 0.0) & (Y[8] == 0.0), 0.0, tl.sum(sum_y, axis=1))
        z = tl.where((Z[6] == 0.0) & (Z[8] == 0.0), 0.0, tl.sum(sum_z, axis=1))
        _store_xyz(to_points_ptr, row, x, y, z, live)

"""Triton kernels of trilinear sampling: values, and first derivatives."""

import triton
import triton.language as tl


@triton.jit
def _axis_position(coordinate, size, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """Lower neighbour (int32), fraction f, and d position / d coordinate; see reference.axis_position."""
    if ALIGN:
        position = (coordinate + 1.0) * 0.5 * (size - 1)
        slope = tl.zeros_like(coordinate) + 0.5 * (size - 1)
    else:
        position = ((coordinate + 1.0) * size - 1.0) * 0.5
        slope = tl.zeros_like(coordinate) + 0.5 * size
    if BORDER:
        slope = tl.where((position > 0.0) & (position < size - 1), slope, 0.0)
        # Comparisons with NaN are false: NaN becomes 0 before any conversion to an integer.
        position = tl.where(position > 0.0, position, 0.0)
        position = tl.where(position < size - 1, position, (size - 1) * 1.0)
    else:
        # -2 has no neighbour inside, so that every corner is masked (NaN and infinities come here too).
        position = tl.where((position >= -1.0) & (position < size), position, -2.0)
    floor = tl.floor(position)
    return floor.to(tl.int32), position - floor, slope


@triton.jit
def _load_points(points_ptr, row, live):
    """Coordinates of the program's points, float32."""
    x = tl.load(points_ptr + row * 3, mask=live, other=0.0).to(tl.float32)
    y = tl.load(points_ptr + row * 3 + 1, mask=live, other=0.0).to(tl.float32)
    z = tl.load(points_ptr + row * 3 + 2, mask=live, other=0.0).to(tl.float32)
    return x, y, z


@triton.jit(do_not_specialize=["N", "D", "H", "W"])
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
    ALIGN: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[b,n,c] = sum over 8 corners of weight * volume[b,c,corner]; corners outside count 0.

    Grid (B * ceil(N / BLOCK_N), ceil(C / BLOCK_C)); a program owns BLOCK_N points of one batch entry and
    BLOCK_C channels, and writes that tile of `out` exactly once. Reads 12 B + 8 C elements per point, writes
    4 C B; about 34 + 16 C FLOPs per point (cost.forward_cost). The weights are recomputed per channel block.
    With channels last the channel axis is contiguous, so that each corner is one coalesced row.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = tl.program_id(0) // blocks
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live = n < N
    row = b.to(tl.int64) * N + n
    x, y, z = _load_points(points_ptr, row, live)
    x0, fx, _ = _axis_position(x, W, ALIGN, BORDER)
    y0, fy, _ = _axis_position(y, H, ALIGN, BORDER)
    z0, fz, _ = _axis_position(z, D, ALIGN, BORDER)
    cell = b.to(tl.int64) * stride_b + z0.to(tl.int64) * stride_d
    cell += y0.to(tl.int64) * stride_h + x0.to(tl.int64) * stride_w
    # One address per point and channel; the corners are the same address plus scalars, which saves registers.
    base = volume_ptr + cell[:, None] + (c.to(tl.int64) * stride_c)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for corner in tl.static_range(8):
        dx = corner % 2
        dy = (corner // 2) % 2
        dz = corner // 4
        xi = x0 + dx
        yi = y0 + dy
        zi = z0 + dz
        inside = live & (xi >= 0) & (xi < W) & (yi >= 0) & (yi < H) & (zi >= 0) & (zi < D)
        mask = inside[:, None] & (c < C)[None, :]
        source = base + dz * stride_d + dy * stride_h + dx * stride_w
        value = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        weight = (fx * dx + (1.0 - fx) * (1 - dx)) * (fy * dy + (1.0 - fy) * (1 - dy))
        weight = weight * (fz * dz + (1.0 - fz) * (1 - dz))
        acc += weight[:, None] * value
    tl.store(out_ptr + row[:, None] * C + c[None, :], acc, mask=live[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=["N", "D", "H", "W"])
def volume_sample_backward_kernel(
    grad_out_ptr,  # [B, N, C] contiguous, float32
    volume_ptr,  # [B, C, D, H, W] any strides
    points_ptr,  # [B, N, 3] contiguous
    grad_volume_ptr,  # [B, C, D, H, W] any strides, float32, zero on entry; unused without TO_VOLUME
    grad_points_ptr,  # [B, N, 3] contiguous, float32; unused without TO_POINTS
    N,
    D,
    H,
    W,
    stride_b,
    stride_c,
    stride_d,
    stride_h,
    stride_w,
    grad_stride_b,
    grad_stride_c,
    grad_stride_d,
    grad_stride_h,
    grad_stride_w,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
    BORDER: tl.constexpr,
    TO_VOLUME: tl.constexpr,
    TO_POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_volume[corner] += w g;  grad_points[k] = slope_k sum over corners and channels of dw/dp_k g
    volume.

    Grid (B * ceil(N / BLOCK_N),); a program owns BLOCK_N points with all their channels, so that it writes
    their `grad_points` exactly once without atomics. `grad_volume` is an atomic float32 sum over all points
    that touch a cell: its last bits depend on the order of arrival (non-deterministic). Positions and weights
    are recomputed. Bytes and FLOPs: cost.backward_cost.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = tl.program_id(0) // blocks
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = n < N
    row = b.to(tl.int64) * N + n
    x, y, z = _load_points(points_ptr, row, live)
    x0, fx, slope_x = _axis_position(x, W, ALIGN, BORDER)
    y0, fy, slope_y = _axis_position(y, H, ALIGN, BORDER)
    z0, fz, slope_z = _axis_position(z, D, ALIGN, BORDER)
    cell = b.to(tl.int64) * stride_b + z0.to(tl.int64) * stride_d
    cell += y0.to(tl.int64) * stride_h + x0.to(tl.int64) * stride_w
    grad_cell = b.to(tl.int64) * grad_stride_b + z0.to(tl.int64) * grad_stride_d
    grad_cell += y0.to(tl.int64) * grad_stride_h + x0.to(tl.int64) * grad_stride_w
    sum_x = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_y = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    sum_z = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        tile = live[:, None] & (c < C)[None, :]
        g = tl.load(grad_out_ptr + row[:, None] * C + c[None, :], mask=tile, other=0.0).to(tl.float32)
        base = volume_ptr + cell[:, None] + (c.to(tl.int64) * stride_c)[None, :]
        grad_base = grad_volume_ptr + grad_cell[:, None] + (c.to(tl.int64) * grad_stride_c)[None, :]
        for corner in tl.static_range(8):
            dx = corner % 2
            dy = (corner // 2) % 2
            dz = corner // 4
            xi = x0 + dx
            yi = y0 + dy
            zi = z0 + dz
            inside = live & (xi >= 0) & (xi < W) & (yi >= 0) & (yi < H) & (zi >= 0) & (zi < D)
            mask = inside[:, None] & (c < C)[None, :]
            wx = fx * dx + (1.0 - fx) * (1 - dx)
            wy = fy * dy + (1.0 - fy) * (1 - dy)
            wz = fz * dz + (1.0 - fz) * (1 - dz)
            if TO_VOLUME:
                target = grad_base + dz * grad_stride_d + dy * grad_stride_h + dx * grad_stride_w
                tl.atomic_add(target, (wx * wy * wz)[:, None] * g, mask=mask, sem="relaxed")
            if TO_POINTS:
                source = base + dz * stride_d + dy * stride_h + dx * stride_w
                gv = g * tl.load(source, mask=mask, other=0.0).to(tl.float32)
                # dw/dp along an axis drops that axis' factor and takes the sign of the corner's side.
                sum_x += ((2 * dx - 1) * wy * wz)[:, None] * gv
                sum_y += ((2 * dy - 1) * wx * wz)[:, None] * gv
                sum_z += ((2 * dz - 1) * wx * wy)[:, None] * gv
    if TO_POINTS:
        tl.store(grad_points_ptr + row * 3, slope_x * tl.sum(sum_x, axis=1), mask=live)
        tl.store(grad_points_ptr + row * 3 + 1, slope_y * tl.sum(sum_y, axis=1), mask=live)
        tl.store(grad_points_ptr + row * 3 + 2, slope_z * tl.sum(sum_z, axis=1), mask=live)

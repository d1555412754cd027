"""Triton kernels of the deterministic scatter: the terms of a volume's gradient, and their sums in a fixed order."""

import triton
import triton.language as tl

from ponder_kernels.volume_sample.kernels import _along_axes, _axes, _dense_cell, _program_rows


@triton.jit(do_not_specialize=["N", "D", "H", "W"])
def volume_sample_entries_kernel(
    points_ptr,  # [B, N, 3] contiguous
    gg_points_ptr,  # [B, N, 3] contiguous; unused without ALONG
    voxel_ptr,  # [B, N, 8] contiguous, int64
    weight_ptr,  # [B, N, 8] contiguous, float32
    N,
    D,
    H,
    W,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    SMOOTH: tl.constexpr,
    ALONG: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The eight terms that a point adds to a volume's gradient: voxel number (-1 outside) and weight of the point's row
    of grad_out, which is w_k, or with ALONG its derivative along gg_points, sum_a q_a d_a w_k.

    Grid (B * ceil(N / BLOCK_N),); a program writes the entries of its BLOCK_N points exactly once. 12 B read (24 with
    ALONG) and 96 B written per point: bound by bandwidth.
    """
    b, row, live = _program_rows(N, BLOCK_N)
    X, Y, Z = _axes(points_ptr, row, live, D, H, W, PADDING, ALIGN, SMOOTH)
    first, _, to_y, to_z, _ = _dense_cell(b, X[0], Y[0], Z[0], D, H, W, 1, True)
    if ALONG:
        qx, qy, qz = _along_axes(gg_points_ptr, row, live, X, Y, Z)
    for dz in tl.static_range(2):
        for dy in tl.static_range(2):
            wy, wz = Y[3 + dy], Z[3 + dz]
            wyz = wy * wz
            if ALONG:
                qyz = qy[dy] * wz + wy * qz[dz]
            for dx in tl.static_range(2):
                weight = (qx[dx] * wyz + X[3 + dx] * qyz) if ALONG else X[3 + dx] * wyz
                inside = X[1 + dx] & Y[1 + dy] & Z[1 + dz]
                voxel = tl.where(inside, first + (dx + dy * to_y + dz * to_z), -1)
                entry = row * 8 + (4 * dz + 2 * dy + dx)
                tl.store(voxel_ptr + entry, voxel, mask=live)
                tl.store(weight_ptr + entry, weight, mask=live)


@triton.jit(do_not_specialize=["n", "voxels"])
def volume_sample_scatter_kernel(
    voxel_ptr,  # [n] int64, ascending
    order_ptr,  # [n] int64, entry number of each sorted place: point row * 8 + corner
    weight_ptr,  # [n] float32, by entry number
    grad_out_ptr,  # [n / 8, C] contiguous, float32
    to_volume_ptr,  # [B, C, voxels] dense, float32, zero on entry
    n,
    voxels,
    C: tl.constexpr,
    TO_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """to_volume[voxel] = sum of weight * grad_out[row] over the voxel's entries, in the order of the entry numbers.

    Grid (n, ceil(C / BLOCK_C)); the program of the first entry of a voxel owns the voxel's BLOCK_C channels and stores
    them once, all others return: no atomics, the same bits in every run. 24 B and one row of grad_out read per entry,
    one row written per touched voxel; bound by the latency of the longest chain of entries.
    """
    place = tl.program_id(0).to(tl.int64)
    voxel = tl.load(voxel_ptr + place)
    before = tl.load(voxel_ptr + place - 1, mask=place > 0, other=-1)
    if voxel != before:
        c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        acc = tl.zeros([BLOCK_C], dtype=tl.float32)
        current = voxel
        while current == voxel:
            entry = tl.load(order_ptr + place)
            weight = tl.load(weight_ptr + entry)
            acc += weight * tl.load(grad_out_ptr + (entry // 8) * C + c, mask=c < C, other=0.0).to(tl.float32)
            place += 1
            current = tl.load(voxel_ptr + place, mask=place < n, other=-1)
        at = (voxel * C + c) if TO_LAST else ((voxel // voxels) * voxels * (C - 1) + voxel + c * voxels)
        tl.store(to_volume_ptr + at, acc, mask=c < C)

"""Traffic and arithmetic of trilinear sampling as a function of shape.

Corners are counted without cache reuse between points, which in practice is most of them: the operators are bound by
the latency and bandwidth of gathers from the L2 cache, and the backward ones by its atomic adds as well, not by
arithmetic. Reflection and smoothstep add about 15 FLOPs per point and axis, which are left out.
"""

from __future__ import annotations

from ponder_kernels._launch import Cost

POINT_BYTES = 3 * 4
CORNERS = 8
# Per point: 3 positions (3 ops), 3 floors and fractions (2), 3 complements (1); weights of 4 edges, then of 8 corners.
POINT_FLOPS = 3 * 6 + 4 + 8
# Derivatives of the weights: 2 products per edge, 3 per corner.
SLOPE_FLOPS = 4 * 2 + 8 * 3
# Their derivative along a direction, and its derivatives: 3 and 2 per edge; 3 and 1 + 3 + 3 per corner.
ALONG_FLOPS = 4 * 3 + 8 * 3
CURVE_FLOPS = 4 * 2 + 8 * 7


def forward_cost(batch: int, points: int, channels: int, element_bytes: int) -> Cost:
    """Cost of the values; bound by the gather.

    Args:
        batch: B.
        points: N, per batch entry.
        channels: C.
        element_bytes: bytes of one volume element (2 or 4).
    """
    total = batch * points
    return Cost(
        bytes_read=total * (POINT_BYTES + CORNERS * channels * element_bytes),
        bytes_written=total * channels * 4,
        flops=total * (POINT_FLOPS + 2 * CORNERS * channels),
    )


def backward_cost(
    batch: int,
    points: int,
    channels: int,
    element_bytes: int,
    *,
    to_volume: bool = True,
    to_points: bool = True,
) -> Cost:
    """Cost of the first derivatives; an atomic add counts as a float32 read and a write. Bound by gather and atomics.

    Args:
        batch, points, channels, element_bytes: as in `forward_cost`.
        to_volume: whether the volume's gradient is computed.
        to_points: whether the points' gradient is computed.
    """
    total = batch * points
    corner_values = CORNERS * channels
    read = POINT_BYTES + channels * 4
    written = 0
    flops = POINT_FLOPS
    if to_volume:
        read += corner_values * 4
        written += corner_values * 4
        flops += 2 * corner_values
    if to_points:
        # One product per corner and channel, three multiply-adds into the axis sums, the three channel sums.
        read += corner_values * element_bytes
        written += POINT_BYTES
        flops += SLOPE_FLOPS + 7 * corner_values + 3 * channels
    return Cost(total * read, total * written, total * flops)


def double_backward_cost(
    batch: int,
    points: int,
    channels: int,
    element_bytes: int,
    *,
    from_volume: bool = True,
    from_points: bool = True,
    to_out: bool = True,
    to_volume: bool = True,
    to_points: bool = True,
) -> Cost:
    """Cost of the second derivatives; atomics as in `backward_cost`. Bound by one or two gathers and the atomics.

    Args:
        batch, points, channels, element_bytes: as in `forward_cost`.
        from_volume, from_points: whether the gradient of the volume, of the points is differentiated.
        to_out, to_volume, to_points: whether the gradient of the upstream gradient, the volume, the points is
            computed.
    """
    total = batch * points
    corner_values = CORNERS * channels
    read = POINT_BYTES + channels * 4
    written = 0
    flops = POINT_FLOPS
    for given in (from_volume, from_points):
        if given and (to_out or to_points):
            read += corner_values * element_bytes
            flops += 2 * corner_values * to_out + 7 * corner_values * to_points
    if from_points:
        read += POINT_BYTES
        flops += ALONG_FLOPS + CURVE_FLOPS * to_points
    if from_volume and to_points:
        flops += SLOPE_FLOPS
    if from_points and to_volume:
        read += corner_values * 4
        written += corner_values * 4
        flops += 2 * corner_values
    if to_points:
        written += POINT_BYTES
        flops += 3 * channels
    written += channels * 4 * to_out
    return Cost(total * read, total * written, total * flops)


def scatter_cost(batch: int, points: int, channels: int, touched: int, *, along: bool = False) -> Cost:
    """Cost of the deterministic gradient of a volume without the sort; bound by the longest chain of entries.

    Args:
        batch, points, channels: as in `forward_cost`.
        touched: number of different voxels that receive something, at most 8 B N.
        along: whether the entries are weighted by derivatives along a direction.
    """
    entries = batch * points * CORNERS
    listed = Cost(
        bytes_read=batch * points * POINT_BYTES * (2 if along else 1),
        bytes_written=entries * (8 + 4),
        flops=batch * points * (POINT_FLOPS + ALONG_FLOPS * along),
    )
    # An entry is a voxel number, an order number, a weight and a row of the upstream gradient.
    summed = Cost(entries * (8 + 8 + 4 + 4 * channels), touched * channels * 4, entries * 2 * channels)
    return Cost(*(a + b for a, b in zip(listed, summed, strict=True)))

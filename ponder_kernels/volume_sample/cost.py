"""Traffic and arithmetic of trilinear sampling as a function of shape."""

from __future__ import annotations

from ponder_kernels._launch import Cost

POINT_BYTES = 3 * 4
CORNERS = 8
# Per point: 3 positions (3 ops), 3 floors and fractions (2), 3 complements (1), 8 weights (2 products each).
POINT_FLOPS = 3 * 6 + 8 * 2


def forward_cost(batch: int, points: int, channels: int, element_bytes: int) -> Cost:
    """Cost of the values: every corner of every point is fetched once (no cache reuse between points).

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
    """Cost of the first derivatives; an atomic add counts as a float32 read and a write.

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
        flops += 7 * corner_values + 3 * channels
    return Cost(total * read, total * written, total * flops)

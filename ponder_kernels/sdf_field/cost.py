"""Traffic and arithmetic of the SDF field's kernels as functions of the field's sizes.

Corners are counted without cache reuse between points; along a ray neighbours share most of them, so that the first
and second-level caches serve what is counted here as read. All kernels are bound by that gather, by the stores of the
state, or by the atomics, not by arithmetic.
"""

from __future__ import annotations

from ponder_kernels._launch import Cost
from ponder_kernels.sdf_field.packing import GEOMETRY, FieldSizes

POINT_BYTES = 3 * 4
CORNERS = 8
# Per point: index and weights of the corners, and their slopes (see volume_sample.cost).
POINT_FLOPS, SLOPE_FLOPS = 30, 32
# exp, log, division and the rest of softplus and its slope.
ACTIVATION_FLOPS = 10


def matrix_flops(sizes: FieldSizes, *, gradient: bool = True) -> int:
    """FLOPs per point of the decoder's matrix products, padding included: what the tensor cores do.

    Args:
        sizes: of the field.
        gradient: whether the SDF's gradient is computed.
    """
    inner = max(sizes.layers - 1, 0) * sizes.hidden * sizes.hidden
    return 2 * (sizes.layers * sizes.hidden * sizes.inputs + inner) * (2 if gradient else 1)


def field_forward_cost(
    points: int, sizes: FieldSizes, *, gradient: bool = True, state: bool = False, slope: bool = False
) -> Cost:
    """Cost of the forward kernel; bound by the gather.

    Args:
        points: N.
        sizes: of the field.
        gradient: whether the SDF's gradient is computed, which reads the corners again.
        state: whether the state is stored, and the second channels are read for it.
        slope: whether d sdf / d input is stored with it.
    """
    units = sizes.layers * sizes.hidden
    read = POINT_BYTES + CORNERS * 4 * (sizes.first * (2 if gradient else 1) + sizes.second * state)
    stored = sizes.state_width - sizes.inputs + sizes.inputs * slope if state else 0
    written = 4 * (1 + 3 * gradient + stored)
    flops = POINT_FLOPS + 2 * CORNERS * (sizes.first + sizes.second * state) + matrix_flops(sizes, gradient=gradient)
    flops += ACTIVATION_FLOPS * units + 2 * (sizes.inputs + sizes.hidden)
    if gradient:
        flops += SLOPE_FLOPS + 2 * CORNERS * (sizes.first + 3) + units
    return Cost(points * read, points * written, points * flops)


def field_backward_matrix_flops(sizes: FieldSizes) -> int:
    """FLOPs per point of the backward kernel's matrix products, padding included."""
    inner = max(sizes.layers - 1, 0) * sizes.hidden * sizes.hidden
    return 2 * (2 * sizes.layers * sizes.hidden * sizes.inputs + 3 * inner)


def field_backward_cost(points: int, sizes: FieldSizes, *, state_bar: bool = True) -> Cost:
    """Cost of the backward kernel; bound by the gather and the stores.

    Args:
        points, sizes: as in `field_forward_cost`.
        state_bar: whether the state has an upstream gradient.
    """
    units = sizes.layers * sizes.hidden
    kept = sizes.inputs + units
    # Activations are read three times, the second and third time from cache.
    read = POINT_BYTES + 4 * (4 + CORNERS * sizes.first + kept + (sizes.inputs + sizes.hidden) * state_bar)
    written = 4 * (2 * (units + GEOMETRY) + 2 * (sizes.inputs + GEOMETRY) + units + sizes.inputs)
    flops = POINT_FLOPS + SLOPE_FLOPS + CORNERS * (5 + 2 * sizes.first) + field_backward_matrix_flops(sizes)
    return Cost(points * read, points * written, points * (flops + 12 * units))


def field_scatter_cost(points: int, sizes: FieldSizes, *, state_bar: bool = True) -> Cost:
    """Cost of the scatter kernel; an atomic add counts as a float32 read and a write. Bound by the atomics.

    Args:
        points, sizes, state_bar: as in `field_backward_cost`.
    """
    channels = sizes.first + sizes.second * state_bar
    adds = CORNERS * channels
    read = POINT_BYTES + 4 * (3 + 2 * sizes.first + sizes.second * state_bar + adds)
    flops = POINT_FLOPS + SLOPE_FLOPS + CORNERS * 5 + CORNERS * (4 * sizes.first + 2 * sizes.second * state_bar)
    return Cost(points * read, points * 4 * adds, points * flops)


def chain_gradient_cost(points: int, sizes: FieldSizes) -> Cost:
    """Cost of the products that sum the decoder's derivatives over points; bound by reading their factors."""
    units = sizes.layers * sizes.hidden
    left, right = units + GEOMETRY, sizes.inputs + GEOMETRY
    inner = max(sizes.layers - 1, 0) * 2 * sizes.hidden * sizes.hidden
    read = 4 * (2 * left + 2 * right + 2 * units)
    return Cost(points * read, 4 * left * right, points * 2 * (2 * left * right + inner + 2 * sizes.hidden))

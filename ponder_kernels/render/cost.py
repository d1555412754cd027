"""Traffic and arithmetic of one rendering step as functions of shape: every launch of the fused renderer.

Buffers of a chunk are written and read again from the GPU's second-level cache where it holds them; they count here
all the same, because the launches really issue that traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ponder_kernels._launch import Cost
from ponder_kernels.sdf_field.cost import (
    chain_gradient_cost,
    field_backward_cost,
    field_forward_cost,
    field_scatter_cost,
)
from ponder_kernels.sdf_field.packing import FieldSizes

CLEAR = "clear volume gradient"
# Per sample: sdf, gradient, edge in; weight, transmittance out. About 100 FLOPs.
OPACITY_FORWARD = (20, 8, 100)
# Per sample: those, transmittance, upstream of weight and gradient in; by sdf and gradient out.
OPACITY_BACKWARD = (40, 16, 200)


def opacity_cost(rays: int, samples: int, *, backward: bool = False) -> Cost:
    """Cost of the per-ray kernels; bound by bandwidth.

    Args:
        rays, samples: R, S.
        backward: which of the two.
    """
    read, written, flops = OPACITY_BACKWARD if backward else OPACITY_FORWARD
    n = rays * samples
    return Cost(n * read + rays * 32, n * written + rays * 12, n * flops)


def product_cost(rows: int, inner: int, columns: int) -> Cost:
    """Cost of a matrix product [rows, inner] x [inner, columns] in float32, every operand moved once."""
    return Cost(4 * (rows * inner + inner * columns), 4 * rows * columns, 2 * rows * inner * columns)


def forward_costs(rays: int, samples: int, sizes: FieldSizes, heads: Sequence[int]) -> dict[str, Cost]:
    """Every launch of the forward pass, by name.

    Args:
        rays, samples: R, S of the call.
        sizes: of the field.
        heads: output widths of the one-layer heads evaluated per sample.
    """
    n, width = rays * samples, sizes.composite_width
    launches = {
        "field": field_forward_cost(n, sizes, state=True),
        "opacity": opacity_cost(rays, samples),
        "composite": Cost(4 * n * (width + 1), 4 * rays * width, 2 * n * width),
    }
    for number, outputs in enumerate(heads):
        launches[f"head {number}"] = product_cost(n, width, outputs)
        launches[f"composite head {number}"] = Cost(4 * n * (outputs + 1), 4 * rays * outputs, 2 * n * outputs)
    return launches


def backward_costs(rays: int, samples: int, sizes: FieldSizes, heads: Sequence[int], voxels: int) -> dict[str, Cost]:
    """Every launch of the backward pass, by name.

    Args:
        rays, samples, sizes, heads: as in `forward_costs`.
        voxels: B D H W, whose gradient is cleared.
    """
    n, width = rays * samples, sizes.composite_width
    launches = {
        CLEAR: Cost(0, 4 * voxels * sizes.channels, 0),
        "field again": field_forward_cost(n, sizes, state=True, slope=True),
        "opacity again": opacity_cost(rays, samples),
        "by weights": Cost(4 * n * width, 4 * n, 2 * n * width),
        "by state": Cost(4 * n, 4 * n * width, n * width),
    }
    for number, outputs in enumerate(heads):
        again, by_weight = product_cost(n, width, outputs), product_cost(outputs, n, width)
        by_state = product_cost(n, outputs, width)
        # Added to what is there, which is read once more.
        by_state = by_state._replace(bytes_read=by_state.bytes_read + 4 * n * width)
        launches |= {f"head {number} again": again, f"by head {number}": by_weight, f"head {number} by state": by_state}
    launches["opacity backward"] = opacity_cost(rays, samples, backward=True)
    launches["field backward"] = field_backward_cost(n, sizes)
    launches["by decoder"] = chain_gradient_cost(n, sizes)
    launches["scatter"] = field_scatter_cost(n, sizes)
    return launches


def sampler_costs(rays: int, samples: int, sizes: FieldSizes) -> dict[str, Cost]:
    """The evaluation that importance sampling needs: values only."""
    return {"sampler field": field_forward_cost(rays * samples, sizes, gradient=False)}


def total(costs: Mapping[str, Cost]) -> Cost:
    """Sum of all launches."""
    return Cost(*(sum(column) for column in zip(*costs.values(), strict=True)))

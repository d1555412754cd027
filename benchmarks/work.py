"""How much there is to move and to compute, from the operators' cost tables: the same work for every competitor."""

from __future__ import annotations

from benchmarks.cases import CompositeSizes, RenderCase, SampleSizes, Sizes
from benchmarks.measure import WHOLE
from ponder.compat.ponderv2 import build_renderer
from ponder_kernels import FieldWeights
from ponder_kernels._launch import Cost
from ponder_kernels.composite import cost as composite_cost
from ponder_kernels.render.cost import backward_costs, forward_costs, sampler_costs, total
from ponder_kernels.sdf_field.packing import FieldSizes, field_sizes
from ponder_kernels.volume_sample import cost as sample_cost

Work = dict[str, Cost]
FLOAT = 4


def render_work(case: RenderCase, sizes: Sizes) -> Work:
    """Traffic and arithmetic that the fused renderer issues, by part; losses on images are left out."""
    channels, *extent = sizes.volume
    voxels = sizes.scenes * extent[0] * extent[1] * extent[2]
    weights = build_renderer(case.config()).field.weights(1)
    field, heads = _field(weights, channels), _head_widths(weights)
    first, samples = case.samples
    rays = sizes.all_rays
    forward = total(sampler_costs(rays, first, field) | forward_costs(rays, samples, field, heads))
    if not case.training:
        return _with_whole({"forward": forward})
    return _with_whole({"forward": forward, "backward": total(backward_costs(rays, samples, field, heads, voxels))})


def sample_work(sizes: SampleSizes) -> Work:
    """Of the sampling operator: values, slopes, and the backward pass of both."""
    shape = (1, sizes.points, sizes.volume[0], FLOAT)
    values_back = sample_cost.backward_cost(*shape, to_points=False)
    slopes_back = sample_cost.double_backward_cost(*shape, from_volume=False, to_out=False, to_points=False)
    return _with_whole(
        {
            "values": sample_cost.forward_cost(*shape),
            "slopes": sample_cost.backward_cost(*shape, to_volume=False),
            "second": _sum(values_back, slopes_back),
        }
    )


def composite_work(sizes: CompositeSizes) -> Work:
    """Of weights and weighted sums along rays."""
    rays, samples, channels = sizes.rays, sizes.samples, sizes.channels
    weights, weights_back = (
        cost(rays, samples)
        for cost in (composite_cost.render_weights_cost, composite_cost.render_weights_backward_cost)
    )
    sums = composite_cost.composite_cost(rays, samples, channels)
    sums_back = composite_cost.composite_backward_cost(rays, samples, channels)
    return _with_whole({"forward": _sum(weights, sums), "backward": _sum(weights_back, sums_back)})


def _field(weights: FieldWeights, channels: int) -> FieldSizes:
    inputs = weights.sdf[0].inputs.shape[1] - 3 * weights.points
    return field_sizes(weights.sdf, channels, 0 if weights.shared else channels - inputs, weights.points)


def _head_widths(weights: FieldWeights) -> list[int]:
    """Outputs of every layer that is evaluated per sample: all but a last one without activation."""
    layers = [head.layers if head.sigmoid else head.layers[:-1] for head in weights.heads]
    return [layer.bias.shape[0] for head in layers for layer in head]


def _with_whole(parts: Work) -> Work:
    return parts | {WHOLE: _sum(*parts.values())}


def _sum(*costs: Cost) -> Cost:
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))

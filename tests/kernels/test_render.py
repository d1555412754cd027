"""`render_rays` against its doubly differentiated reference."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ponder_kernels import (
    ColourWeights,
    RayTargets,
    RenderedRays,
    SdfWeights,
    intersect_aabb,
    render_rays,
    stratified_edges,
)
from ponder_kernels.render.op import chunk_rays
from ponder_kernels.render.reference import render_rays_reference
from tests.tolerance import assert_close_to_reference

# Behind a nearly opaque sample the gradient of the transmittance product divides by a factor close to 0, in the
# reference (torch's cumprod) as in the operator: the sums are that much worse conditioned than their values.
CONDITION = 256


class Case(NamedTuple):
    leaves: list[Tensor]
    rays: tuple[Tensor, Tensor, Tensor]
    box: Tensor
    hit: Tensor
    targets: RayTargets


def make_case(
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
    channels: int = 7,
    sdf_channels: int = 4,
    hidden: int = 6,
    rays: int = 9,
    samples: int = 5,
    shape: tuple[int, int, int] = (4, 6, 5),
    seed: int = 0,
    inv_s: float = 7.0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    rest = channels - sdf_channels
    leaves = [
        normal(batch, channels, *shape) * 0.5,
        *(normal(hidden, sdf_channels) * 0.3, normal(hidden) * 0.02, normal(hidden) * 0.5),
        *(normal(sdf_channels) * 0.5, normal() * 0.1),
        *(normal(3, hidden), normal(3, sdf_channels), normal(3, rest), normal(3, 3), normal(3, 3), normal(3)),
        torch.tensor(inv_s, dtype=torch.float64),
    ]
    low = torch.tensor([-0.2, 0.1, 0.0], dtype=torch.float64)
    box = torch.stack([torch.stack([low * scene, low * scene + 3 + scene]) for scene in range(batch)])
    origins = uniform(batch, rays, 3) + 0.7
    directions = torch.nn.functional.normalize(normal(batch, rays, 3), dim=-1)
    interval = intersect_aabb(origins, directions, box[:, None], near_min=0.05)
    edges = stratified_edges(interval.near, interval.far, samples, uniform(batch, rays, samples + 1))
    hit = interval.hit.clone()
    if rays > 2:
        hit[0, 2] = False
    depth = uniform(batch, rays) * 2 * (uniform(batch, rays) > 0.2)
    slope = uniform(batch, rays) * 0.5 + 0.5
    cast = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    bundle = (origins.to(dtype), directions.to(dtype), edges.to(dtype))
    return Case(cast, bundle, box.to(dtype), hit, RayTargets(depth.to(dtype), slope.to(dtype), 0.4))


def call(function, case: Case, **options) -> RenderedRays:
    volume, *weights = case.leaves
    sdf, colour = SdfWeights(*weights[:5]), ColourWeights(*weights[5:11])
    return function(
        volume, sdf, colour, *case.rays, weights[11], case.box, hit=case.hit, targets=case.targets, **options
    )


def gradients(rendered: RenderedRays, case: Case, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)).sum()
        for value in rendered
    )
    return torch.autograd.grad(loss, case.leaves)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_reference(dtype: torch.dtype, align_corners: bool, padding: str) -> None:
    options = {"align_corners": align_corners, "padding": padding}
    truth_case, case = make_case(), make_case(dtype)
    truth = call(render_rays_reference, truth_case, **options)
    rendered = call(render_rays, case, **options)
    for name, got, want in zip(RenderedRays._fields, rendered, truth, strict=True):
        assert_close_to_reference(got, want, 50, name=name)
    names = ("volume", *SdfWeights._fields, *ColourWeights._fields, "inv_s")
    pairs = zip(names, gradients(rendered, case), gradients(truth, truth_case), strict=True)
    for name, got, want in pairs:
        assert_close_to_reference(got, want, 500, scale=CONDITION, name=f"gradient of {name}")
        assert want.abs().max() > 0, name


@pytest.mark.parametrize("colour_channels", [0, 3], ids=["shared", "split"])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_shapes(samples: int, colour_channels: int) -> None:
    options = {"samples": samples, "channels": 4 + colour_channels, "batch": 1, "shape": (1, 2, 3)}
    truth_case, case = make_case(**options), make_case(**options)
    truth, rendered = call(render_rays_reference, truth_case), call(render_rays, case)
    for got, want in zip((*rendered, *gradients(rendered, case)), (*truth, *gradients(truth, truth_case)), strict=True):
        assert_close_to_reference(got, want, 500, scale=CONDITION)


def test_result_does_not_depend_on_the_chunks() -> None:
    whole, parts = make_case(), make_case()
    first, second = call(render_rays, whole), call(render_rays, parts, chunk_bytes=1)
    for got, want in zip((*second, *gradients(second, parts)), (*first, *gradients(first, whole)), strict=True):
        assert_close_to_reference(got, want.detach(), 100)


def test_no_rays() -> None:
    case = make_case(rays=0)
    rendered = call(render_rays, case)
    assert rendered.rgb.shape == (2, 0, 3)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(rendered, case))


def test_channels_last_and_transposed_volumes() -> None:
    truth_case = make_case()
    truth = gradients(call(render_rays, truth_case), truth_case)
    for layout in (
        lambda v: v.contiguous(memory_format=torch.channels_last_3d),
        lambda v: v.transpose(2, 4).contiguous().transpose(2, 4),
    ):
        case = make_case()
        case.leaves[0] = layout(case.leaves[0].detach()).requires_grad_()
        for got, want in zip(gradients(call(render_rays, case), case), truth, strict=True):
            assert_close_to_reference(got, want, 100)


def test_missed_rays_are_black_and_without_gradient() -> None:
    case = make_case()
    rendered = call(render_rays, case)
    assert not bool(case.hit[0, 2])
    assert rendered.opacity[0, 2] == 0 and rendered.depth[0, 2] == 0
    missed = (rendered.rgb[0, 2].sum() + rendered.normal[0, 2].sum()) * 1.0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in torch.autograd.grad(missed, case.leaves))


@pytest.mark.parametrize("inv_s", [1e-6, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e4], ids=["flat", "steep"])
def test_hostile_fields_stay_finite(inv_s: float, scale: float) -> None:
    case = make_case(torch.float32, inv_s=inv_s)
    case.leaves[0] = (case.leaves[0].detach() * scale).requires_grad_()
    rendered = call(render_rays, case)
    for value in (*rendered, *gradients(rendered, case)):
        assert torch.isfinite(value).all()


def test_opaque_first_sample_hides_the_rest() -> None:
    case = make_case(samples=2)
    weights = [torch.zeros_like(leaf) for leaf in case.leaves]
    inside = [*weights[:5], torch.tensor(-5.0, dtype=torch.float64), *weights[6:]]
    inside[12] = torch.tensor(50.0, dtype=torch.float64)
    rendered = call(render_rays, case._replace(leaves=inside))
    middle = (case.rays[2][..., 0] + case.rays[2][..., 1]) / 2
    assert_close_to_reference(rendered.depth[case.hit], middle[case.hit], 1, scale=1e9)
    assert_close_to_reference(rendered.opacity[case.hit], torch.ones_like(middle[case.hit]), 1, scale=1e9)


def test_saved_memory_does_not_depend_on_the_channels() -> None:
    def saved_per_sample(channels: int) -> float:
        case = make_case(torch.float32, channels=channels, sdf_channels=channels // 2, rays=64, samples=16)
        inputs = {leaf.data_ptr() for leaf in case.leaves}
        voxels = case.leaves[0].numel() // channels
        sizes: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            # The volume itself, here as rows of its two channel halves, is not counted.
            if value.data_ptr() not in inputs and value.shape[:1] != (voxels,):
                sizes[value.data_ptr()] = value.numel() * value.element_size()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            call(render_rays, case)
        return sum(sizes.values()) / (2 * 64 * 16)

    narrow, wide = saved_per_sample(8), saved_per_sample(64)
    assert wide <= narrow * 1.01
    assert wide < 48


def test_second_order_is_refused() -> None:
    case = make_case()
    rendered = call(render_rays, case)
    (first,) = torch.autograd.grad(rendered.rgb.square().sum(), case.leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_chunk_rays() -> None:
    assert chunk_rays(samples=64, channels=32, element_bytes=4, chunk_bytes=1 << 20) == 128
    assert chunk_rays(samples=64, channels=32, element_bytes=4, chunk_bytes=1) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origins": torch.zeros(2, 9, 2)}, r"origins: expected shape \[B, R, 3\]"),
        ({"directions": torch.zeros(2, 8, 3)}, r"directions: expected shape \[B, R, 3\] with B=2, R=9"),
        ({"edges": torch.zeros(2, 9, 1)}, "edges: expected at least 2 edges"),
        ({"volume": torch.zeros(2, 7, 4, 6, 5, dtype=torch.int32)}, "volume: expected dtype"),
        ({"volume": torch.zeros(2, 7, 0, 6, 5)}, "volume: expected at least one voxel"),
        ({"volume": torch.zeros(2, 5, 4, 6, 5)}, r"colour_weights.features: expected shape \[3, Cr\]"),
        ({"box": torch.zeros(3, 2, 3)}, r"box: expected shape \[B, 2, 3\] with B=2"),
        ({"inv_s": torch.ones(1)}, r"inv_s: expected shape \[\]"),
        ({"hit": torch.ones(2, 3, dtype=torch.bool)}, "hit: expected shape"),
        ({"padding": "wrap"}, "padding: expected one of zeros, border, got 'wrap'"),
        ({"chunk_bytes": 0}, "chunk_bytes: expected a positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input(change: dict, message: str) -> None:
    case = make_case(torch.float32)
    volume, *weights = case.leaves
    arguments = {
        "volume": volume,
        "sdf_weights": SdfWeights(*weights[:5]),
        "colour_weights": ColourWeights(*weights[5:11]),
        **dict(zip(("origins", "directions", "edges"), case.rays, strict=True)),
        "inv_s": weights[11],
        "box": case.box,
        "hit": case.hit,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        render_rays(**(arguments | change))

"""`render_rays` with the layers that the SDF was multiplied out from: the same function, with their roundings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from ponder_kernels import PlainDecoder, render_rays
from ponder_kernels.render.reference import render_rays_reference
from ponder_kernels.sdf_field.chain import Layer, exp_of, log_sigmoid
from ponder_kernels.sdf_field.plain import LEAST_ROWS, rebuild_plain
from tests.kernels.render_cases import UNIT_CUBE, Case, Shape, gradients, make_case, values_of
from tests.kernels.test_render_kernels import fused, on
from tests.tolerance import assert_close_to_reference

ONE = Shape(batch=1, options={"opacity": "neus-plain", "per_sample": True})

SHAPES = {
    "indoor": replace(ONE, channels=8, options=ONE.options | {"padding": "zeros", "align_corners": True}),
    "outdoor": replace(ONE, points=True, shared=True, sdf_hidden=(6, 6, 6), semantic_hidden=(4,)),
    "normalised": replace(ONE, points=True, options=ONE.options | {"normalise": UNIT_CUBE}),
    "two-volumes": replace(ONE, volumes=2),
    "no-hidden": replace(ONE, sdf_hidden=()),
    "volsdf": replace(ONE, sharpness=0.2, options={"opacity": "volsdf-plain", "sample_at": "start"}),
}


def _decoder(shape: Shape) -> PlainDecoder:
    """Random layers, the outer ones of one width."""
    generator = torch.Generator().manual_seed(3)

    def affine(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        return weight, torch.randn(outputs, generator=generator) * 0.05

    width = shape.sdf_hidden[0] if shape.sdf_hidden else 6
    count = len(shape.sdf_hidden) + 1
    inner = tuple(affine(width, shape.first) for _ in range(count))
    outer = tuple(affine(width if k < count - 1 else 1 + shape.geometry, width) for k in range(count))
    return PlainDecoder(inner, outer, affine(width, 3) if shape.points else None, 0.3 if shape.points else 0.0)


def _multiplied(decoder: PlainDecoder, points: bool, dtype: torch.dtype) -> tuple[Layer, ...]:
    layers = []
    for number, ((inner, inner_bias), (outer, bias)) in enumerate(zip(decoder.inner, decoder.outer, strict=True)):
        columns, offset = inner.to(dtype), inner_bias.to(dtype)
        if points:
            extra, extra_bias = (torch.zeros(len(columns), 3), torch.zeros(len(columns)))
            if number == 0 and decoder.points is not None:
                extra, extra_bias = (value.to(dtype) * decoder.factor for value in decoder.points)
            columns, offset = torch.cat([columns, extra.to(dtype)], 1), offset + extra_bias.to(dtype)
        outer, bias = outer.to(dtype), bias.to(dtype)
        leaves = (outer @ columns, outer @ offset + bias)
        previous = outer.clone().requires_grad_() if number else None
        layers.append(Layer(previous, *(leaf.requires_grad_() for leaf in leaves)))
    return tuple(layers)


def _case(shape: Shape, dtype: torch.dtype) -> tuple[Case, PlainDecoder]:
    decoder, case = _decoder(shape), make_case(shape, dtype)
    field = case.field._replace(sdf=_multiplied(decoder, shape.points, dtype))
    tensors = decoder.tensors(dtype)
    moved = rebuild_plain(tensors, decoder.factor)
    assert moved is not None
    return case._replace(field=field), moved


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    (truth_case, _), (case, plain) = _case(shape, torch.float64), _case(shape, dtype)
    truth, rendered = truth_case.call(render_rays_reference), case.call(render_rays, plain=plain)
    expected = values_of(truth)
    for name, got in values_of(rendered).items():
        assert_close_to_reference(got, expected[name].detach(), 100, scale=16, name=name)
    pairs = zip(gradients(rendered, case), gradients(truth, truth_case), strict=True)
    for number, (got, want) in enumerate(pairs):
        assert_close_to_reference(got, want, 500, scale=256, name=f"gradient of leaf {number}")


def test_digits_are_those_of_the_layers() -> None:
    """Of a decoder like PonderV2's, with enough rays for a BLAS to add up in its usual order."""
    shape = replace(SHAPES["indoor"], channels=64, sdf_channels=32, sdf_hidden=(48,), geometry=31, rays=80, hit=False)
    case, plain = _case(shape, torch.float32)
    origins, directions, edges = (value[0] for value in case.rays)
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    points = (origins[:, None] + directions[:, None] * middles[..., None]).view(-1, 3)
    assert len(points) >= LEAST_ROWS
    low, high = case.box[0]
    grid = ((points - low) / (high - low) * 2 - 1)[None, None, None]
    volume = case.volumes[0].detach()[:, :32].contiguous(memory_format=torch.channels_last_3d)
    z = F.grid_sample(volume, grid, align_corners=True).view(32, -1).T.contiguous()
    hidden = F.softplus(F.linear(F.linear(z, *plain.inner[0]), *plain.outer[0]), beta=100)
    want = F.linear(hidden + F.linear(z, *plain.inner[1]), *plain.outer[1])[:, 0].view(edges.shape[0], -1)

    def same(**options: Any) -> float:
        return float((case.call(render_rays, **options).samples.sdf[0] == want).double().mean())

    assert same(plain=plain) > 0.95 and same() < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d._replace(inner=d.inner[:1]),
            "plain: expected 2 layers inner and outer, as in field.sdf, got 1 and 2",
        ),
        (lambda d: d._replace(inner=(d.inner[0], d.outer[1])), r"plain.inner\[1\] weight: expected shape \[H, I\]"),
        (lambda d: d._replace(outer=d.outer[::-1]), r"plain.outer\[0\] weight: expected shape \[O, H\]"),
        (lambda d: d._replace(points=(torch.zeros(6, 2), torch.zeros(6))), "plain.points weight: expected shape"),
        (
            lambda d: d._replace(inner=((d.inner[0][0].int(), d.inner[0][1]), d.inner[1])),
            r"plain.inner\[0\] weight: ex",
        ),
    ],
)
def test_layers_that_do_not_fit(change: Any, message: str) -> None:
    case, plain = _case(ONE, torch.float32)
    with pytest.raises((TypeError, ValueError), match=message):
        case.call(render_rays, plain=change(plain))


def test_triton_kernels_do_not_read_it(device: str) -> None:
    case, plain = _case(SHAPES["volsdf"], torch.float32)
    case = on(case, device)
    other = plain._replace(inner=tuple((weight.to(device) + 1, bias.to(device)) for weight, bias in plain.inner))
    pairs = zip(values_of(fused(case, plain=other)).values(), values_of(fused(case)).values(), strict=True)
    assert all(torch.equal(got, want) for got, want in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_activations_at_both_ends(dtype: torch.dtype) -> None:
    x = torch.linspace(-300.1, 300.1, 1201, dtype=dtype)
    log, gate = torch.empty_like(x), torch.empty_like(x)
    log_sigmoid(x, log, gate)
    found = exp_of(log, torch.empty_like(x))
    torch.testing.assert_close(found, gate, rtol=100 * torch.finfo(dtype).eps, atol=1e-34)
    assert bool((found[(x >= -80)] > 0).all()) == (dtype == torch.float32)


def test_columns_in_another_order() -> None:
    case, plain = _case(SHAPES["two-volumes"], torch.float64)
    columns = torch.tensor([3, 0, 5, 1, 7, 2, 6, 4])
    other = plain._replace(inner=tuple((weight[:, columns], bias) for weight, bias in plain.inner), columns=columns)
    want, got = (case.call(render_rays, plain=decoder).samples.sdf for decoder in (plain, other))
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)
    with pytest.raises(TypeError, match=r"plain\.columns: expected dtype"):
        case.call(render_rays, plain=plain._replace(columns=columns.float()))


def test_of_one_scene_only() -> None:
    case, plain = _case(replace(ONE, batch=2), torch.float32)
    with pytest.raises(ValueError, match="plain: expected one scene, got B=2"):
        case.call(render_rays, plain=plain)


@pytest.mark.unguarded
def test_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    case, plain = _case(ONE, torch.float64)
    want = case.call(render_rays, plain=plain)
    compiled = torch.compile(lambda: case.call(render_rays, plain=plain), backend="aot_eager", fullgraph=True)
    for got, expected in zip(values_of(compiled()).values(), values_of(want).values(), strict=True):
        torch.testing.assert_close(got, expected)
    torch._dynamo.reset()

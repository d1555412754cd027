"""`render_rays` on its Triton kernels against the doubly differentiated reference in float64: outputs and gradients."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from ponder_kernels import render_rays
from ponder_kernels.render.reference import render_rays_reference
from tests.kernels.render_cases import UNIT_CUBE, Case, Shape, gradients, make_case, values_of, with_leaves
from tests.tolerance import assert_close_to_reference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

CONDITION = 256  # see test_render

SHAPES = {
    # PonderV2's indoor configuration: split volume, one hidden layer, affine heads.
    "indoor": Shape(channels=8, sdf_hidden=(7,)),
    # Its outdoor one: shared volume, points, five hidden layers, deep heads.
    "outdoor": Shape(
        channels=4, shared=True, points=True, sdf_hidden=(5, 5, 5, 5, 5), geometry=5, colour_hidden=(5, 4, 5),
        semantic_hidden=(5, 4, 5), options={"normalise": UNIT_CUBE, "padding": "zeros"},
    ),
    "colour-only": Shape(semantic_hidden=None),
    "plain": Shape(options={"opacity": "neus-plain"}),
    "volsdf": Shape(sharpness=0.2, options={"opacity": "volsdf", "sample_at": "start"}),
    "annealed-per-sample": Shape(options={"cos_anneal_ratio": 0.3, "per_sample": True}, hit=False),
    "affine-sdf": Shape(sdf_hidden=(), channels=5),
    "many-samples": Shape(samples=37, rays=3, batch=1),
}  # fmt: skip


def on(case: Case, device: str) -> Case:
    """The case on the device under test."""
    moved = with_leaves(case, [x.detach().to(device).requires_grad_() for x in case.leaves])
    rays = tuple(x.to(device) for x in case.rays)
    targets = case.targets._replace(ray_depth=case.targets.ray_depth.to(device), slope=case.targets.slope.to(device))
    hit = None if case.hit is None else case.hit.to(device)
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.shape.options.items()}
    shape = replace(case.shape, options=options)
    return moved._replace(shape=shape, rays=rays, box=case.box.to(device), hit=hit, targets=targets)


def fused(case: Case, **options: Any) -> Any:
    return case.call(render_rays, backend="triton", precision="ieee", **options)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_reference(shape: Shape, device: str) -> None:
    truth_case, case = make_case(shape), on(make_case(shape, torch.float32), device)
    truth, rendered = truth_case.call(render_rays_reference), fused(case)
    expected = values_of(truth)
    for name, got in values_of(rendered).items():
        assert_close_to_reference(got, expected[name].detach(), 50, scale=16, name=name)
    pairs = zip(gradients(rendered, case), gradients(truth, truth_case), strict=True)
    for number, (got, want) in enumerate(pairs):
        assert_close_to_reference(got, want, 500, scale=CONDITION, name=f"gradient of leaf {number}")


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("tf32x3", 1e-5), ("tf32", 5e-3), ("bf16", 8e-2)])
def test_precisions_on_tensor_cores(precision: str, limit: float) -> None:
    """Only a GPU rounds the operands; outputs and gradients by relative error in the Euclidean norm."""
    truth_case, case = make_case(SHAPES["indoor"]), on(make_case(SHAPES["indoor"], torch.float32), "cuda")
    truth, rendered = truth_case.call(render_rays_reference), case.call(render_rays, precision=precision)
    pairs = [*zip(values_of(rendered).values(), values_of(truth).values(), strict=True)]
    pairs += zip(gradients(rendered, case), gradients(truth, truth_case), strict=True)
    for got, want in pairs:
        difference = (got.detach().double().cpu() - want.detach()).norm()
        assert difference <= limit * want.detach().norm() + 1e-12


def test_result_does_not_depend_on_the_chunks(device: str) -> None:
    """Chunks of 16 rays, the last one smaller; scenes end in the middle of a chunk."""
    shape = Shape(rays=21, samples=3, channels=8)
    whole, parts = on(make_case(shape, torch.float32), device), on(make_case(shape, torch.float32), device)
    first, second = fused(whole), fused(parts, chunk_bytes=1)
    wanted = [*values_of(first).values(), *gradients(first, whole)]
    for got, want in zip([*values_of(second).values(), *gradients(second, parts)], wanted, strict=True):
        assert_close_to_reference(got, want.detach().double(), 500, scale=16, dtype=torch.float32)


@pytest.mark.parametrize("model", ["neus", "volsdf"])
@pytest.mark.parametrize(("sharpness", "scale"), [(1e-4, 0.0), (1e6, 0.0), (1e6, 1e4)], ids=str)
def test_hostile_fields_stay_finite(sharpness: float, scale: float, model: str, device: str) -> None:
    case = on(make_case(dtype=torch.float32, sharpness=sharpness, rays=3, options={"opacity": model}), device)
    case = case._replace(volumes=[(case.volumes[0].detach() * scale).requires_grad_()])
    rendered = fused(case)
    for value in (*values_of(rendered).values(), *gradients(rendered, case)):
        assert torch.isfinite(value).all()


def test_no_rays(device: str) -> None:
    case = on(make_case(dtype=torch.float32, rays=0), device)
    rendered = fused(case)
    assert rendered.rgb.shape == (2, 0, 3)
    assert all(not g.any() for g in gradients(rendered, case))


def test_deterministic_sums(device: str) -> None:
    case = on(make_case(dtype=torch.float32, channels=8), device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(fused(case), case) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_backend_that_does_not_fit_is_refused() -> None:
    case = make_case(volumes=2, dtype=torch.float32)
    with pytest.raises(ValueError, match="'triton' takes one volume"):
        case.call(render_rays, backend="triton")
    with pytest.raises(ValueError, match="precision: expected one of"):
        case.call(render_rays, precision="float32")

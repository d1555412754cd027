"""`render_rays` on its Triton kernels against the doubly differentiated reference in float64: outputs and gradients."""

from __future__ import annotations

import importlib.util
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
    return moved._replace(rays=rays, box=case.box.to(device), hit=hit, targets=targets)


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
